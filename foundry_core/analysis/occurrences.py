"""Occurrences of patterns in a training corpus: in which token of the token file each of them ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.reader import Corpus
from foundry_core.data.order import Ints
from foundry_core.data.token_file import TokenFile
from foundry_core.errors import UsageError
from foundry_core.tokenization.encoding import DocumentEncoder

Finder = Callable[[str], Sequence[tuple[int, int]]]
"""Returns (number of a pattern, end in characters) for each occurrence in a document."""

_ENCODED_AT_ONCE = 1 << 20  # characters
_UNIT = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Occurrences:
    """Occurrences of some patterns.

    Attributes:
        patterns: Their names.
        which: The number of the pattern of each occurrence (int64).
        places: Where the token in which it ends stands in the token file (int64).
    """

    patterns: tuple[str, ...]
    which: Ints
    places: Ints


def pattern_finder(pattern: str, *, ignore_case: bool = False) -> Finder:
    """Return what finds a regular expression; `^` and `$` match at lines, and empty matches do not count.

    Raises:
        UsageError: It is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {pattern!r} is not a regular expression: {error}") from error
    return lambda text: [(0, match.end()) for match in compiled.finditer(text) if match.end() > match.start()]


def word_finder(words: Sequence[str], *, ignore_case: bool = False) -> Finder:
    """Return what finds words: where no letter, digit or underscore stands next to one that is their edge.

    All words are looked for at once: each is tried only where its first run of letters, or its first sign, stands.
    """

    def plain(text: str) -> str:
        return text.casefold() if ignore_case else text

    tried: dict[str, list[tuple[int, str]]] = {}
    for number, word in enumerate(words):
        first = _UNIT.search(word)
        assert first is not None, word
        tried.setdefault(plain(first.group()), []).append((number, plain(word)))
    ends_in_letter = [bool(re.search(r"\w\Z", word)) for word in words]

    def find(text: str) -> list[tuple[int, int]]:
        found = []
        for unit in _UNIT.finditer(text):
            for number, word in tried.get(plain(unit.group()), ()):
                start, end = unit.start(), unit.start() + len(words[number])
                if plain(text[start:end]) == word and not (ends_in_letter[number] and _goes_on(text, end)):
                    found.append((number, end))
        return found

    return find


def _goes_on(text: str, end: int) -> bool:
    return end < len(text) and (text[end].isalnum() or text[end] == "_")


def occurrences(
    patterns: Sequence[str],
    find: Finder,
    corpus: Corpus,
    tokens: TokenFile,
    tokenizer: PreTrainedTokenizerFast,
    progress: Callable[[int], None] = lambda size: None,
) -> Occurrences:
    """Find patterns in the documents that are trained on.

    Only documents that hold one are encoded, to find the token in which it ends; where the tokenizer drops what a
    match ends with, that is the token before.

    Args:
        progress: Called with the bytes of the corpus read so far.
    """
    encoder, account = DocumentEncoder(tokenizer), ByteAccount()
    which, places = list[Ints](), list[Ints]()
    for batch in _batches(find, corpus, account):
        for (number, _, found), starts in zip(batch, encoder.starts([text for _, text, _ in batch]), strict=True):
            first, end = int(tokens.documents[number]), int(tokens.documents[number + 1])
            assert len(starts) == end - first - 1, f"document {number} has {len(starts)} tokens, not {end - first - 1}"
            numbers, ends = np.array(found, dtype=np.int64).T
            inside = np.maximum(np.searchsorted(starts, ends, side="left") - 1, 0)
            which.append(numbers)
            places.append(first + inside)
        progress(account.bytes_in)
    none = np.empty(0, dtype=np.int64)
    return Occurrences(tuple(patterns), np.concatenate([none, *which]), np.concatenate([none, *places]))


_Found = tuple[int, str, Sequence[tuple[int, int]]]


def _batches(find: Finder, corpus: Corpus, account: ByteAccount) -> Iterator[list[_Found]]:
    """Yield the documents in which something is found: number in the token file, text, and what is found."""
    batch, size = list[_Found](), 0
    for number, (text, kept) in enumerate(corpus.stream(account)):
        found = find(text) if kept else ()
        if found:
            batch.append((number, text, found))
            size += len(text)
        if size >= _ENCODED_AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch
