"""The ids of many short parts of text at once.

One by one, `tokenizers` takes 8 us for a part, most of it to set up an encoding. In blocks, with a marker between two
parts, it takes 5, and for words of plain letters, which go straight to the model, 2 to 3.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MARK = "\0"
"""Stands between two parts or texts; the reader of corpora refuses it."""

Ids: TypeAlias = NDArray[np.uint32]

_BLOCK = 6000  # characters
_LONG = 100  # characters; wordpiece cuts longer words
_SPACE_IN_MODEL = {"bpe": "Ġ", "wordpiece": "", "sentencepiece": "▁", "word": ""}
"""How the model of a type spells the space before a word of plain letters, which reaches it in one piece."""


def plain_backend(state: Mapping[str, Any], *, special_tokens_are_text: bool = True) -> Tokenizer:
    """Return a tokenizer that adds and drops nothing."""
    backend = Tokenizer.from_str(json.dumps(state))
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

    def __init__(self, state: Mapping[str, Any]) -> None:
        token: dict[str, Any] = {"id": len(state["model"]["vocab"]), "content": MARK, "special": True}
        marker = token | dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
        self._backend = plain_backend(state | {"added_tokens": [marker]}, special_tokens_are_text=False)
        self._marker: int = self._backend.token_to_id(MARK)

    def encode(self, parts: list[str]) -> list[bytes]:
        """Return the ids of each part."""
        texts, begun = [], 0
        lengths = np.cumsum([len(part) + 1 for part in parts])
        for end in (np.flatnonzero(np.diff(lengths // _BLOCK, append=-1)) + 1).tolist():
            texts.append(MARK.join(parts[begun:end]))
            begun = end
        ids = joined_ids(self._backend, texts, self._marker)
        ends = np.flatnonzero(ids == self._marker) * 4
        raw, starts = ids.tobytes(), np.concatenate([[0], ends + 4])
        return [raw[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=False)]


class PartEncoder:
    """Encodes distinct parts of text with a tokenizer of one of core's types, whose special tokens are text."""

    def __init__(self, kind: str, state: Mapping[str, Any]) -> None:
        self._backend = plain_backend(state)
        self._blocks = self._words = None
        vocabulary = state["model"]["vocab"]
        if MARK not in (dict(vocabulary) if isinstance(vocabulary, list) else vocabulary):
            self._blocks = _Blocks(state)
            # A special token in letters alone could be part of a word, where normalizers of some types look for it.
            if not any(token["content"].isalpha() for token in state["added_tokens"]):
                self._space = _SPACE_IN_MODEL[kind]
                self._words = _Blocks(state | {"normalizer": None, "pre_tokenizer": None})

    def encode(self, parts: Iterable[str]) -> dict[str, bytes]:
        """Return the ids of each part, as bytes."""
        words: list[str] = []
        others: list[str] = []
        whole: list[str] = []
        for part in parts:
            if self._words is not None and part.isascii() and part[part[0] == " " :].isalpha() and len(part) < _LONG:
                words.append(part)
            elif self._blocks is not None and MARK not in part:
                others.append(part)
            else:
                whole.append(part)
        found: dict[str, bytes] = {}
        if words and self._words is not None:
            spelt = [part.replace(" ", self._space) for part in words]
            found.update(zip(words, self._words.encode(spelt), strict=True))
        if others and self._blocks is not None:
            found.update(zip(others, self._blocks.encode(others), strict=True))
        for part, encoding in zip(whole, self._backend.encode_batch_fast(whole, add_special_tokens=False), strict=True):
            found[part] = array("I", encoding.ids).tobytes()
        return found
