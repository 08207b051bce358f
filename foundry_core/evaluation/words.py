"""Tokens and words of a text: where they stand in it, and the surprisal of a word from that of its tokens.

Words are separated by white space. A token belongs to the word of its first character that is not white space, white
space alone to the word after it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import DataError
from foundry_core.evaluation.prefix_tree import Ids, Numbers
from foundry_core.evaluation.surprisal import Floats, TokenScores
from foundry_core.tokenization.encoding import separator_id, text_ids
from foundry_core.tokenization.parts import plain_backend
from foundry_core.tokenization.text_counts import SPACE
from foundry_core.tokenization.tokenizer_folder import KIND_KEY, SENTENCEPIECE_KIND

Boundary = Literal["leading", "trailing"]
Columns: TypeAlias = dict[str, list[Any]]
Values: TypeAlias = tuple[float | None, float | None, int | None]
"""Surprisal, entropy and rank; None for a word without tokens."""

_WORD = re.compile(r"\S+")
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class TextWords:
    """A text with its T tokens and N words. Offsets count the characters of the text.

    Attributes:
        text: The text.
        ids: Its tokens.
        tokens: (T, 2), start and end of each token.
        words: (N, 2), start and end of each word.
        word_of: (T,), the word of each token; -1 for a separator that stands for a newline, which is not part of one.
        groups: (T,), ascending numbers of what the tokenizer cuts first, at white space too: "end." is two groups.
        sentences: (N,), the sentence of each word, counted from 1. A sentence is a line that is not blank.
    """

    text: str
    ids: Ids
    tokens: Numbers
    words: Numbers
    word_of: Numbers
    groups: Numbers
    sentences: Numbers


def text_words(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[TextWords]:
    """Return each text with its tokens, which are those of `text_ids`, and its words.

    Raises:
        DataError: A sentencepiece model and its tokenizer.json encode a text differently, which has not been seen.
    """
    backend = plain_backend(tokenizer.backend_tokenizer.to_str())
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    if tokenizer.init_kwargs.get(KIND_KEY) == SENTENCEPIECE_KIND:
        for text, ids, encoding in zip(texts, text_ids(tokenizer, texts), encodings, strict=True):
            if ids != encoding.ids:
                raise DataError(f"the tokens of {text[:40]!r} cannot be located: tokenizer.json encodes it differently")
    separator = separator_id(tokenizer)
    return [
        _text_words(text, each.ids, each.offsets, each.word_ids, separator)
        for text, each in zip(texts, encodings, strict=True)
    ]


def _text_words(
    text: str, ids: list[int], offsets: list[tuple[int, int]], parts: list[int | None], separator: int
) -> TextWords:
    words = np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
    word_of = np.full(len(ids), -1)
    if len(words):
        firsts = [start + len(piece) - len(piece.lstrip()) for start, end in offsets for piece in [text[start:end]]]
        # The last word that begins before or at the place, or the next one if it ends before.
        word_of = np.searchsorted(words[:, 0], firsts, side="right") - 1
        beyond = (word_of < 0) | (np.array(firsts, dtype=np.int64) >= words[word_of, 1])
        word_of = np.minimum(word_of + beyond, len(words) - 1)
        blank = np.array([text[start:end].isspace() for start, end in offsets], dtype=bool)
        word_of[blank & (np.array(ids, dtype=np.int64) == separator)] = -1
    lines = np.cumsum([0, *("\n" in text[a:b] for a, b in zip(words[:-1, 1], words[1:, 0], strict=True))])
    part_of = np.array([-1 if part is None else part for part in parts], dtype=np.int64)
    changes = (np.diff(word_of, prepend=word_of[:1]) != 0) | (np.diff(part_of, prepend=part_of[:1]) != 0)
    return TextWords(
        text,
        tuple(ids),
        np.array(offsets, dtype=np.int64).reshape(-1, 2),
        words,
        word_of,
        np.cumsum(changes),
        lines[: len(words)] + 1,
    )


def word_beginnings(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> NDArray[np.bool_] | None:
    """Return which tokens begin a word, where a tokenizer marks the start of words, and the separator.

    Args:
        vocabulary: Tokens that the model predicts; it may have more than the tokenizer.

    Returns:
        (V,), or None for a tokenizer that does not mark it: its tokens are words, or the end of words is marked.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, names = state["model"], tokenizer.get_vocab()
    prefix = model.get("continuing_subword_prefix")
    if model.get("end_of_word_suffix"):
        return None
    if prefix:
        begins = [number for name, number in names.items() if not name.startswith(prefix)]
    else:
        special = set(tokenizer.all_special_ids)
        of_bytes = "ByteLevel" in json.dumps([state["pre_tokenizer"], state["decoder"]])
        begins = [n for name, n in names.items() if n not in special and _spelling(name, of_bytes)[:1].isspace()]
    if not begins:
        return None
    found = np.zeros(vocabulary, dtype=bool)
    found[[*begins, separator_id(tokenizer)]] = True
    return found


def _spelling(name: str, of_bytes: bool) -> str:
    """Return the text that a token stands for inside of a text."""
    if of_bytes:
        return str(decoders.ByteLevel().decode([name]))
    byte = _BYTE.fullmatch(name)
    return chr(int(byte[1], 16)) if byte else name.replace(SPACE, " ")


def word_surprisal(words: TextWords, scores: TokenScores, boundary: Boundary) -> Floats:
    """Return the surprisal of each word in nats, (N,); not a number for a word without tokens.

    leading: the sum over its tokens. trailing: the probability that a new word begins is counted with the word that
    ends there, not with the token that marks it (Oh and Schuler 2024; Pimentel and Meister 2024, theorem 2). Nothing
    is taken from the first word of a text. The last one ends where another one begins or the text ends, so that the
    sum over the words of a text is that over its tokens and `-beginnings[-1]`.
    """
    total, first, last = _over_words(words, scores.surprisal)
    if boundary == "trailing" and scores.beginnings is not None:
        begun = -scores.beginnings[first]
        begun[:1] = 0.0
        total = total - begun - scores.beginnings[last + 1]
    return np.where(first <= last, total, np.nan)


def _over_words(words: TextWords, values: Floats) -> tuple[Floats, Numbers, Numbers]:
    """Return of each word the sum of values over its tokens, its first token, and its last; 0 and -1 without tokens."""
    inside = np.flatnonzero(words.word_of >= 0)
    number = len(words.words)
    total: Floats = np.bincount(words.word_of[inside], values[inside], number).astype(np.float64)
    first, last = np.zeros(number, np.int64), np.full(number, -1)
    first[words.word_of[inside[::-1]]] = inside[::-1]
    last[words.word_of[inside]] = inside
    return total, first, last


def word_columns(
    texts: Sequence[TextWords], scores: Sequence[TokenScores], *, boundary: Boundary, unknown: int | None
) -> Columns:
    """Return a table with a row for each word; entropy and rank are those of its first token.

    Args:
        unknown: The id of the unknown token.
    """
    columns = _columns()
    for document, (words, found) in enumerate(zip(texts, scores, strict=True), 1):
        surprisal = word_surprisal(words, found, boundary)
        is_unknown = np.array([token == unknown for token in words.ids], dtype=float)
        unknowns, first, _ = _over_words(words, is_unknown)
        for number, (start, end) in enumerate(words.words.tolist()):
            values: Values = (None, None, None)
            if not np.isnan(surprisal[number]):
                values = (surprisal[number], found.entropy[first[number]], found.rank[first[number]])
            known = values[0] is not None and not unknowns[number]
            _add(columns, document, words, number, (start, end), values, known)
    return columns


def token_columns(texts: Sequence[TextWords], scores: Sequence[TokenScores], *, unknown: int | None) -> Columns:
    """Return a table with a row for each token, which has a further column, the number of the token in its text."""
    columns = _columns("token")
    for document, (words, found) in enumerate(zip(texts, scores, strict=True), 1):
        for token, (start, end) in enumerate(words.tokens.tolist()):
            columns["token"].append(token + 1)
            values = (found.surprisal[token], found.entropy[token], found.rank[token])
            known = words.ids[token] != unknown
            _add(columns, document, words, int(words.word_of[token]), (start, end), values, known)
    return columns


_NAMES = ("start", "end", "text", "surprisal", "entropy", "rank", "in_vocabulary")


def _columns(*more: str) -> Columns:
    return {name: [] for name in ("document", "sentence", "word", *more, *_NAMES)}


def _add(
    columns: Columns, document: int, words: TextWords, word: int, span: tuple[int, int], values: Values, known: bool
) -> None:
    """Add a row; surprisal and entropy are given in nats, and become bits."""
    start, end = span
    sentence = int(words.sentences[word]) if word >= 0 else None
    place = None if sentence is None else 1 + word - int(np.searchsorted(words.sentences, sentence))
    *nats, rank = values
    bits = [None if each is None else float(each) / math.log(2) for each in nats]
    row = (document, sentence, place, start, end, words.text[start:end], *bits, None if rank is None else int(rank))
    for name, value in zip(("document", "sentence", "word", *_NAMES), (*row, known), strict=True):
        columns[name].append(value)
