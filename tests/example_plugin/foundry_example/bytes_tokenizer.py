"""Bytes as tokens: ids 0 to 255 are the bytes of UTF-8, special tokens follow. Nothing is learned from the text."""

from collections.abc import Callable, Iterable, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from foundry_core import FoundryError


def train(
    documents: Callable[[], Iterable[str]], vocab_size: int | None, special_tokens: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Build a tokenizer of type `bytes`. Decoding is exact; the length in tokens is the length in bytes."""
    names = list(dict.fromkeys(special_tokens.values()))
    if vocab_size is not None and vocab_size < 256 + len(names):
        raise FoundryError(f"vocab_size {vocab_size} is too small for bytes: set it to {256 + len(names)} or more")
    # Without merges or characters in the vocabulary, every character falls back to its bytes.
    backend = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )
