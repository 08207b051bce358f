"""Core's own steps, and what they do to a text: drop, keep, replace, sample, deduplicate, relabel, control."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from foundry_core.corpus.account import word_count
from foundry_core.errors import DataError
from foundry_core.random_streams import derive
from foundry_core.registry.core_steps import WORD, checked_word
from foundry_core.registry.loading import import_string

Change: TypeAlias = Callable[[str, int], str | None]
"""A function of a text and its number that returns the text to train on, or None to leave it out."""

_WORDS = WORD.findall


def core_change(name: str, settings: Any, contents: Mapping[str, bytes]) -> Change:
    """Return what one of core's steps does, for one pass over the corpus.

    Args:
        name: The name of the step; a control is made by `control`.
        settings: Its section of the YAML.
        contents: The content of each file that the settings name, by their key.
    """
    return _CHANGES[name](settings, contents)


def _selected(settings: Any, contents: Mapping[str, bytes]) -> Callable[[str], bool]:
    """Return a function that recognises the texts that `drop` or `keep` is about."""
    if settings.matching is not None:
        search = re.compile(settings.matching, re.IGNORECASE if settings.ignore_case else 0).search
        return lambda text: search(text) is not None
    if settings.function is not None:
        function = import_string(settings.function)
        return lambda text: bool(function(text))
    fold = str.casefold if settings.ignore_case else str
    if settings.words is not None:
        some = frozenset(map(fold, _word_list("words", settings, contents)))
        return lambda text: not some.isdisjoint(_WORDS(fold(text)))
    only = frozenset(map(fold, _word_list("only_words", settings, contents)))
    return lambda text: only.issuperset(_WORDS(fold(text)))


def _drop(settings: Any, contents: Mapping[str, bytes]) -> Change:
    selected = _selected(settings, contents)
    return lambda text, number: None if selected(text) else text


def _keep(settings: Any, contents: Mapping[str, bytes]) -> Change:
    selected = _selected(settings, contents)
    return lambda text, number: text if selected(text) else None


def _replace(settings: Any, contents: Mapping[str, bytes]) -> Change:
    if settings.function is not None:
        function = import_string(settings.function)
        return lambda text, number: function(text)
    by: str = settings.by
    if settings.matching is not None:
        sub = re.compile(settings.matching, re.IGNORECASE if settings.ignore_case else 0).sub
        return lambda text, number: sub(by, text)
    fold = str.casefold if settings.ignore_case else str
    words = frozenset(map(fold, _word_list("words", settings, contents)))
    return lambda text, number: WORD.sub(lambda found: by if fold(found[0]) in words else found[0], text)


def _relabel(settings: Any, contents: Mapping[str, bytes]) -> Change:
    table = settings.table if isinstance(settings.table, dict) else _table_of(settings.table, contents["table"])
    others, cased = settings.others, not settings.ignore_case
    if not cased:
        table = {word.casefold(): other for word, other in table.items()}

    def label(found: re.Match[str]) -> str:
        word = found[0]
        other = table.get(word if cased else word.casefold())
        if other is None:
            return word if others is None else others
        return other if cased or not word[0].isupper() else other[:1].upper() + other[1:]

    return lambda text, number: WORD.sub(label, text)


def _sample(settings: Any, contents: Mapping[str, bytes]) -> Change:
    draw, share = _Draw(settings.seed, "corpus sample"), settings.share
    if settings.follows == "text":
        return lambda text, number: text if draw(text.encode()) < share else None
    return lambda text, number: text if draw(_bytes(number)) < share else None


def _deduplicate(settings: Any, contents: Mapping[str, bytes]) -> Change:
    """Remember 16 bytes of each text, in 100 bytes of memory."""
    seen: set[bytes] = set()
    fold = str.casefold if settings.ignore_case else str

    def change(text: str, number: int) -> str | None:
        before = len(seen)
        seen.add(hashlib.blake2b(fold(text).encode(), digest_size=16).digest())
        return text if len(seen) > before else None

    return change


_CHANGES: dict[str, Callable[[Any, Mapping[str, bytes]], Change]] = {
    "drop": _drop,
    "keep": _keep,
    "replace": _replace,
    "relabel": _relabel,
    "sample": _sample,
    "deduplicate": _deduplicate,
}


class _Draw:
    """Draws a number from 0 up to 1, a function of a seed, a name and a content."""

    def __init__(self, seed: int, name: str):
        self._key = derive(seed, name).to_bytes(8, "little")

    def __call__(self, content: bytes) -> float:
        bits = int.from_bytes(hashlib.blake2b(content, digest_size=8, key=self._key).digest(), "little")
        return (bits >> 11) * 2.0**-53


def _bytes(number: int) -> bytes:
    return number.to_bytes(16, "little")


@dataclass
class Totals:
    """Amounts that a control has to drop, and that it may drop of: texts and words."""

    texts: int = 0
    words: int = 0
    available_texts: int = 0
    available_words: int = 0

    def count(self, text: str, *, dropped: bool, available: bool) -> None:
        """Count a text that the controlled step drops or keeps."""
        words = word_count(text)
        self.texts += dropped
        self.words += words if dropped else 0
        self.available_texts += available
        self.available_words += words if available else 0


def control(settings: Any, inner: Change, totals: Totals, place: str) -> Change:
    """Return a step that drops as much as another one, in one pass and without holding the corpus.

    Each text that may be dropped is dropped with the probability with which the rest of them has to be: that is the
    selection sampling of Knuth (1969, algorithm S), which ends with exactly as many texts. By words, a text that is
    longer than what is left to drop is kept, so that never more words are dropped.

    Args:
        settings: Its section of the YAML.
        inner: What the controlled step does, for this pass.
        totals: What that step drops of the corpus, and what there is besides.
        place: The key of the control, for messages.

    Raises:
        DataError: There is less to drop than the controlled step drops.
    """
    by_words, others = settings.as_many == "words", settings.among == "others"
    left = totals.words if by_words else totals.texts
    available = totals.available_words if by_words else totals.available_texts
    if left > available:
        what = settings.as_many if by_words else "texts"
        raise DataError(
            f"{place}: the step drops {left:,} {what}, and there are only {available:,} others to drop: "
            "a control needs as much text again"
        )
    draw = _Draw(settings.seed, "corpus control")

    def change(text: str, number: int) -> str | None:
        nonlocal left, available
        if inner(text, number) is None and others:
            return text
        size = word_count(text) if by_words else 1
        dropped = size <= left and draw(_bytes(number)) * available < left
        available -= size
        left -= size if dropped else 0
        return None if dropped else text

    return change


def _lines_of(path: str, content: bytes) -> list[tuple[str, str]]:
    """Return each line of a file that is not blank, with its place."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8: convert the file to UTF-8") from error
    found = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: has no words")
    return found


def _word_of(place: str, text: str) -> str:
    try:
        return checked_word(text.strip())
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None


def _word_list(key: str, settings: Any, contents: Mapping[str, bytes]) -> list[str]:
    given = getattr(settings, key)
    if isinstance(given, str):
        return [_word_of(place, line) for place, line in _lines_of(given, contents[key])]
    return list(given)


def _table_of(path: str, content: bytes) -> dict[str, str]:
    table: dict[str, str] = {}
    for place, line in _lines_of(path, content):
        word, tab, other = line.partition("\t")
        word = _word_of(place, word)
        if not tab or "\t" in other:
            raise DataError(f"{place}: a line needs two columns, a word and what takes its place, parted by a tab")
        if word in table:
            raise DataError(f"{place}: {word!r} stands there twice")
        table[word] = other.strip()
    return table
