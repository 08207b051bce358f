"""Documents to token ids, the id that ends a document, and what a saved tokenizer adds around a text.

Measured on two shared cores with 8000 tokens: 3 to 4 MB/s in a first pass over English, 5 to 8 once words are known.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from copy import deepcopy

import numpy as np
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES
from foundry_core.tokenization.text_counts import UNIT, blocks
from foundry_core.tokenization.tokenizer_folder import KIND_KEY, MODEL_INPUTS


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id that ends a document in the token stream: eos_token's, or sep_token's if there is no eos_token."""
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    raise TokenizerError("the tokenizer has neither an eos_token nor a sep_token to end a document with: add one")


def as_trained(tokenizer: PreTrainedTokenizerFast, *, framed: bool) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint, a copy that adds around a text what its model was trained to see there.

    Args:
        framed: Whether rows are framed, so that a text stands between cls_token and sep_token. Otherwise nothing is
            added, and bos_token and eos_token are the separator, which opens and ends a document in training. Scorers
            prepend bos: a `<s>` that was never trained would spoil the first prediction.
    """
    saved = deepcopy(tokenizer)
    saved.model_input_names = list(MODEL_INPUTS)
    backend, cls, sep = saved.backend_tokenizer, saved.cls_token, saved.sep_token
    backend.post_processor = None
    if framed:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys((cls, sep))],
        )
    else:
        saved.bos_token = saved.eos_token = saved.convert_ids_to_tokens(separator_id(saved))
    return saved


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Return the token ids of each text as training reads a document: special tokens in the text stay text."""
    return [ids.tolist() for ids in DocumentEncoder(tokenizer).encode(texts)]


class DocumentEncoder:
    """Encodes as `tokenizer(document, add_special_tokens=False)` does, but special tokens in the text stay text.

    A document is cut before every space or newline that follows a non-space. In core's five types no token reaches over
    such a cut, so each distinct part is encoded once and looked up afterwards. A tokenizer of another origin, or one
    with tokens added later, gets whole documents.
    """

    WINDOW = 1 << 20  # characters of text taken at a time, however long a document is
    REMEMBERED = 2 << 20  # characters of distinct parts whose ids are remembered: about 50 MB

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        kind = tokenizer.init_kwargs.get(KIND_KEY)
        # An added token that is not special is found in the text, and may contain a space.
        self._cuts = kind in CORE_TOKENIZER_TYPES and all(token["special"] for token in state["added_tokens"])
        self.lead = ""
        if self._cuts and kind == "sentencepiece":
            # The space before a document belongs to its first part alone: it is part of the text, not prepended.
            self.lead = " "
            steps = state["normalizer"]["normalizers"]
            steps[:] = [step for step in steps if step["type"] != "Prepend"]
        self._backend = Tokenizer.from_str(json.dumps(state))
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        self._known: dict[str, bytes] = {}
        self._held = 0

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield a uint32 array for each document, in order, without added special tokens."""
        ids = bytearray()
        for batch in self._batches(documents):
            known = self._known_after(set().union(*(parts for parts, _ in batch)))
            for parts, last in batch:
                ids += b"".join(map(known.__getitem__, parts))
                if last:
                    yield np.frombuffer(ids, np.uint32)
                    ids = bytearray()

    def _batches(self, documents: Iterable[str]) -> Iterator[list[tuple[list[str], bool]]]:
        """Yield windows of text as lists of (parts, whether the last of them ends a document)."""
        batch: list[tuple[list[str], bool]] = []
        size = 0
        for document in documents:
            text = self.lead + document if document else document
            done = 0
            for window in blocks(text, self.WINDOW) if self._cuts else (text,):
                done += len(window)
                size += len(window) + 1
                batch.append((UNIT.findall(window) if self._cuts else [window], done == len(text)))
                if size >= self.WINDOW:
                    yield batch
                    batch, size = [], 0
        yield batch

    def _known_after(self, wanted: set[str]) -> dict[str, bytes]:
        """Return the ids of parts as bytes, with those of all `wanted` ones among them."""
        missing = [part for part in wanted if part not in self._known]
        self._held += sum(map(len, missing))
        if self._held > self.REMEMBERED:
            self._known.clear()
            missing = list(wanted)
            self._held = sum(map(len, missing))
        encodings = self._backend.encode_batch_fast(missing, add_special_tokens=False)
        for part, encoding in zip(missing, encodings, strict=True):
            self._known[part] = array("I", encoding.ids).tobytes()
        return self._known
