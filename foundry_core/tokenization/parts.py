"""The ids of many short parts of text at once.

One by one, `tokenizers` takes 8 us for a part, most of it to set up an encoding. In blocks, with a marker between two
parts, it takes 5, and for words of plain letters, which go straight to the model, 1 to 4.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MARK = "\0"
"""Stands between two parts or texts; the reader of corpora refuses it."""

END = 0xFFFFFFFF
"""Stands behind the ids of each document in a stream; a separator may also be a token of the text."""

Ids: TypeAlias = NDArray[np.uint32]

_BLOCK = 6000  # characters
PLAIN_WORD = re.compile(" ?[A-Za-z]{1,99}")  # wordpiece cuts longer words
SPACE_IN_MODEL = {"bpe": "Ġ", "wordpiece": "", "sentencepiece": "▁", "word": ""}
"""How the model of a type spells the space before a word of plain letters, which reaches it in one piece."""


class BackendState:
    """What a tokenizer.json holds, to be changed outside of its model, which is spelled once: that takes the longest.

    Args:
        text: As `Tokenizer.to_str` returns it.
    """

    def __init__(self, text: str) -> None:
        self.parts: dict[str, Any] = json.loads(text)
        self.vocabulary: Any = self.parts["model"]["vocab"]
        self._model = json.dumps(self.parts.pop("model"))

    def text(self, **changes: Any) -> str:
        """Return it with some of its parts replaced."""
        return f'{json.dumps(self.parts | changes)[:-1]}, "model": {self._model}}}'


def plain_backend(text: str, *, special_tokens_are_text: bool = True) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, which adds and drops nothing."""
    backend = Tokenizer.from_str(text)
    backend.encode_special_tokens = special_tokens_are_text
    backend.no_padding()
    backend.no_truncation()
    return backend


def joined_ids(backend: Tokenizer, texts: list[str], end: int) -> Ids:
    """Return the ids of all texts, `end` behind each."""
    ids = array("I")
    for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(end)
    return np.frombuffer(ids, np.uint32)


class _Blocks:
    """Encodes parts in blocks. The marker is an added token: the library takes a text apart there before all else."""

    def __init__(self, state: BackendState, **changes: Any) -> None:
        token: dict[str, Any] = {"id": len(state.vocabulary), "content": MARK, "special": True}
        marker = token | dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
        self._backend = plain_backend(state.text(added_tokens=[marker], **changes), special_tokens_are_text=False)
        (self._marker,) = set(joined_ids(self._backend, [MARK], END).tolist()) - {END}

    def encode(self, parts: list[str], space: str = " ") -> list[bytes]:
        """Return the ids of each part, spaces replaced."""
        texts, begun = [], 0
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        blocks = np.cumsum(lengths + 1) // _BLOCK
        for end in (np.flatnonzero(np.diff(blocks, append=-1)) + 1).tolist():
            texts.append(MARK.join(parts[begun:end]).replace(" ", space))
            begun = end
        ids = joined_ids(self._backend, texts, self._marker)
        ends = (np.flatnonzero(ids == self._marker) * 4).tolist()
        raw, starts = ids.tobytes(), [0, *(end + 4 for end in ends)]
        return [raw[start:end] for start, end in zip(starts, ends, strict=False)]


class PartEncoder:
    """Encodes distinct parts of text with a tokenizer of one of core's types, whose special tokens are text.

    Args:
        kind: The type.
        state: Of the tokenizer.
        backend: Made from it by `plain_backend`.
    """

    def __init__(self, kind: str, state: BackendState, backend: Tokenizer) -> None:
        self._backend = backend
        self._blocks = self._words = None
        vocabulary = state.vocabulary
        if MARK not in (dict(vocabulary) if isinstance(vocabulary, list) else vocabulary):
            self._blocks = _Blocks(state)
            # A special token in letters alone could be part of a word, where normalizers of some types look for it.
            if not any(token["content"].isalpha() for token in state.parts["added_tokens"]):
                self._space = SPACE_IN_MODEL[kind]
                self._words = _Blocks(state, normalizer=None, pre_tokenizer=None)

    def encode(self, parts: Collection[str]) -> dict[str, bytes]:
        """Return the ids of each part, as bytes."""
        found: dict[str, bytes] = {}
        rest = list(parts)
        if self._words is not None:
            words = list(filter(PLAIN_WORD.fullmatch, rest))
            found.update(zip(words, self._words.encode(words, self._space), strict=True))
            rest = [part for part in rest if part not in found]
        if self._blocks is not None and MARK not in "".join(rest):
            found.update(zip(rest, self._blocks.encode(rest), strict=True))
            return found
        for part, encoding in zip(rest, self._backend.encode_batch_fast(rest, add_special_tokens=False), strict=True):
            found[part] = array("I", encoding.ids).tobytes()
        return found
