"""The trainers of core's five tokenizer types, in memory that does not grow with the corpus.

A trainer is given what `text_counts` finds: the parts of words and how often they occur, cut where no token of that
kind reaches across. Of what was counted, the trainer of a subword kind gets as many of the most frequent parts as
`training_request.handed` leaves. With the bounds of `text_counts` less than a gigabyte is enough for any corpus.

Costs, measured on two shared cores with 8000 tokens. On 3 MB of English (MASC), training takes 3.4 s (sentencepiece),
1.3 s (wordpiece, bpe) or 0.2 s. On 206 MB of generated text with more distinct words than are kept, it takes at most
107 s and 375 MB (sentencepiece), 93 s and 590 MB (bpe) or 22 s and 230 MB (word).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foundry_core.tokenization.sentencepiece_trainer import build_sentencepiece
from foundry_core.tokenization.text_counts import UNIT, blocks, by_frequency, character_counts, count
from foundry_core.tokenization.training_request import (
    KIND_KEY,
    TRAINING_PIECE,
    Documents,
    Request,
    ambiguous,
    handed,
    with_special_tokens,
)

_ALPHABET_LIMIT = 1000  # characters that wordpiece keeps; the limit that `tokenizers` itself has
_WORD = re.compile(r"[^ \n]+")


def _train(backend: Tokenizer, trainer: trainers.Trainer, counts: Mapping[str, int]) -> None:
    """Trains on words, none with white space inside: the trainer counts for itself, so each comes as often as it is."""

    def texts() -> Iterator[str]:
        text: list[str] = []
        size = 0
        for word, times in counts.items():
            while times > 0:
                now = min(times, TRAINING_PIECE // (len(word) + 1) + 1)
                text.append(f"{word} " * now)
                times -= now
                size += now * (len(word) + 1)
                if size >= TRAINING_PIECE:
                    yield "".join(text)
                    text, size = [], 0
        yield "".join(text)

    splitter, backend.pre_tokenizer = backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit()
    normalizer, backend.normalizer = backend.normalizer, None
    backend.train_from_iterator(texts(), trainer)
    backend.pre_tokenizer, backend.normalizer = splitter, normalizer


def _build_bpe(request: Request) -> Tokenizer:
    """Byte-level BPE: every Unicode text comes back exactly, no token is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = request.room()
    if room < len(alphabet):
        raise request.too_small(request.size() - room + len(alphabet))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    splitter = backend.pre_tokenizer
    counts = count(request.texts(), UNIT.findall, lambda text: [part for part, _ in splitter.pre_tokenize_str(text)])
    _train(backend, trainer, handed(counts))
    return with_special_tokens(request, backend)


def _build_wordpiece(request: Request) -> Tokenizer:
    """BERT's WordPiece, case and accents kept; white space is not encoded."""
    unknown = request.roles["unk_token"]
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = count(
        request.texts(),
        _WORD.findall,
        lambda text: [part for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))],
    )
    counts = handed(counts)
    characters: Counter[str] = Counter()
    for word, times in counts.items():
        for character in word:
            characters[character] += times
    kept = by_frequency(characters)[:_ALPHABET_LIMIT]
    # The trainer numbers "##a" in the order of a hash table, which differs from run to run and decides ties. Given
    # in sorted order, they are the same every time.
    continued = sorted(f"##{character}" for character in {c for word in counts for c in word[1:]}.intersection(kept))
    room = request.room(unknown)
    backend = Tokenizer(models.WordPiece(unk_token=unknown))
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(room, 0),
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        special_tokens=[unknown, *continued],
        show_progress=False,
    )
    _train(backend, trainer, counts)
    if backend.get_vocab_size() > room:
        raise request.too_small(request.size() - room + backend.get_vocab_size())
    # Built anew because the trainer has registered "##a" and its like as special tokens.
    result = Tokenizer(backend.model)
    result.normalizer = normalizer
    result.pre_tokenizer = splitter
    result.decoder = decoders.WordPiece(cleanup=False)
    return with_special_tokens(request, result, unknown)


def _build_character(request: Request) -> Tokenizer:
    """One token for each character of the corpus, the most frequent ones if there are more than fit."""
    unknown = request.roles["unk_token"]
    backend = _word_level(request, character_counts(request.documents()), [unknown])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return with_special_tokens(request, backend, unknown)


def _build_word(request: Request) -> Tokenizer:
    """One token for each frequent word of the corpus, white space as `str.split()` has it; a newline is the separator.

    A literal unknown token stays what it is, as the files of Penn Treebank and WikiText mean it. A word spelt like the
    separator is unknown.
    """
    unknown = request.roles["unk_token"]
    separator = request.roles["eos_token" if "eos_token" in request.roles else "sep_token"]
    texts = (block for document in request.documents() for block in blocks(document, 1 << 16))
    counts = count(texts, str.split, lambda word: (word,))
    for name in request.names:
        counts.pop(name, None)
    backend = _word_level(request, counts, [unknown, separator])
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\x1c-\x1f]"), " "),  # white space in Python, not in Rust
            normalizers.Replace(Regex(rf"(?<!\S){re.escape(separator)}(?!\S)"), unknown),
            normalizers.Replace("\n", f" {separator} "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_special_tokens(request, backend, unknown, separator)


def _word_level(request: Request, counts: Mapping[str, int], first: Sequence[str]) -> Tokenizer:
    """A model that looks tokens up: `first`, then as many of the most frequent as there is room for."""
    for name in request.names:
        if name in counts:
            raise ambiguous(name)
    reserved = len(request.names)
    if request.vocab_size is not None and request.vocab_size <= reserved:
        raise request.too_small(reserved + 1)
    room = None if request.vocab_size is None else request.vocab_size - reserved
    tokens = dict.fromkeys([*first, *by_frequency(counts)[:room]])
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=first[0]))


Trainer = Callable[[Documents, int | None, Mapping[str, str]], PreTrainedTokenizerFast]


def _trainer(kind: str, build: Callable[[Request], Tokenizer]) -> Trainer:
    """Return the trainer of one of core's types, which takes and returns what `TokenizerType.trainer` describes."""

    def train(
        documents: Documents, vocab_size: int | None, special_tokens: Mapping[str, str]
    ) -> PreTrainedTokenizerFast:
        request = Request(kind, documents, vocab_size, special_tokens)
        backend = build(request)
        # Without segment ids unless the model is asked for [CLS] A [SEP] B [SEP]: GPT-2 would add them to its
        # embeddings.
        segments = ["token_type_ids"] if backend.post_processor is not None else []
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", *segments, "attention_mask"],
            **special_tokens,
            **{KIND_KEY: kind},
        )
        tokenizer.foundry_files = request.files
        return tokenizer

    return train


CORE_TRAINERS = {
    kind: _trainer(kind, build)
    for kind, build in {
        "sentencepiece": build_sentencepiece,
        "wordpiece": _build_wordpiece,
        "bpe": _build_bpe,
        "character": _build_character,
        "word": _build_word,
    }.items()
}
"""How core's own types are trained; those of plugins name it in `TokenizerType.trainer`."""
