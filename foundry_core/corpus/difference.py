"""Differences between the training texts of two experiments, without holding either in memory.

Where both read the same files, documents are compared by their number, after the steps of each. Other corpora are
compared by text: a document is in both if it occurs in both, in any order, and what stands at the same place between
two common documents is one that was changed, if half of its words are the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.corpus.account import ByteAccount, utf8_bytes, word_count
from foundry_core.corpus.mixture import one_or_several
from foundry_core.corpus.reader import Corpus
from foundry_core.corpus.steps import Steps

Pair: TypeAlias = tuple[str | None, str | None]
"""A document of the first corpus and one of the second that belong together; None where there is none."""

_RUN = 256
"""Documents between two common ones among which those that were changed are looked for."""


@dataclass
class Size:
    """Counts of some documents."""

    documents: int = 0
    words: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        self.documents += 1
        self.words += word_count(text)
        self.bytes += utf8_bytes(text)


@dataclass
class Difference:
    """The difference of a first corpus from a second one; pairs of figures are of the first and the second.

    Attributes:
        accounts: The accounts of both, with the counts of their steps.
        by_number: Whether documents were compared by their number, because both corpora read the same files.
        same: Documents that are in both.
        only: Documents that are in one of them.
        changed: Documents whose text differs, as each of them has it.
        examples: The first documents of each kind: `first`, `second`, and `changed`, which are pairs.
    """

    accounts: tuple[ByteAccount, ByteAccount] = field(default_factory=lambda: (ByteAccount(), ByteAccount()))
    by_number: bool = True
    same: Size = field(default_factory=Size)
    only: tuple[Size, Size] = field(default_factory=lambda: (Size(), Size()))
    changed: tuple[Size, Size] = field(default_factory=lambda: (Size(), Size()))
    examples: dict[str, list[Any]] = field(default_factory=lambda: {"first": [], "second": [], "changed": []})

    def plain(self) -> dict[str, Any]:
        """Return the difference as plain data."""
        return asdict(self) | {"accounts": [account.plain() for account in self.accounts]}

    def add(self, pair: Pair, examples: int) -> None:
        """Count a pair of documents."""
        first, second = pair
        if first is not None and first == second:
            self.same.add(first)
            return
        sizes = self.only if first is None or second is None else self.changed
        for size, text in zip(sizes, pair, strict=True):
            if text is not None:
                size.add(text)
        kind = "second" if first is None else "first" if second is None else "changed"
        if len(self.examples[kind]) < examples:
            shown = _around(first, second) if first is not None and second is not None else first or second
            self.examples[kind].append(shown)


def training_text(config: ExperimentConfig) -> Corpus:
    """Open the training corpus of an experiment, with its steps."""
    data, keep = config.data, config.data.blank_lines == "keep"

    def opened(path: str, name: str) -> Corpus:
        return Corpus.open(path, unit=data.documents, name=name, pattern=data.files, keep_blank_lines=keep)

    return one_or_several(data.training_corpus, "data.training_corpus", opened).changed_by(Steps.of(config))


def difference(first: Corpus, second: Corpus, examples: int) -> Difference:
    """Compare two corpora. Raises what reading them raises."""
    found = Difference(by_number=first.as_read.digest == second.as_read.digest)
    pairs = _by_number(first, second, found) if found.by_number else _by_text(first, second, found)
    for pair in pairs:
        found.add(pair, examples)
    return found


def _by_number(first: Corpus, second: Corpus, found: Difference) -> Iterator[Pair]:
    ours, theirs = (
        ((number, text) for number, text, kept in corpus.numbered(account) if kept)
        for corpus, account in zip((first, second), found.accounts, strict=True)
    )
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[1], None
            one = next(ours, None)
        elif one is None or other[0] < one[0]:
            yield None, other[1]
            other = next(theirs, None)
        else:
            yield one[1], other[1]
            one, other = next(ours, None), next(theirs, None)


def _by_text(first: Corpus, second: Corpus, found: Difference) -> Iterator[Pair]:
    """Compare digests of 8 bytes: memory grows with them, and with the number of documents that differ."""
    digests = [
        np.fromiter(map(_digest, corpus.documents(account)), np.uint64)
        for corpus, account in zip((first, second), found.accounts, strict=True)
    ]
    (values, counts), (of_second, counts_of_second) = (np.unique(each, return_counts=True) for each in digests)
    alone: list[dict[int, int]] = []
    for own, number, others, of_others in (
        (values, counts, of_second, counts_of_second),
        (of_second, counts_of_second, values, counts),
    ):
        place = np.minimum(np.searchsorted(others, own), len(others) - 1)
        surplus = number - np.where(others[place] == own, of_others[place], 0)
        more = surplus > 0
        alone.append(dict(zip(own[more].tolist(), surplus[more].tolist(), strict=True)))
    ours, theirs = (_Runs(corpus, surplus) for corpus, surplus in zip((first, second), alone, strict=True))
    while not (ours.ended and theirs.ended):
        run, other_run = ours.run(), theirs.run()
        aligned = ours.common == theirs.common
        yield from _paired(run, other_run) if aligned else _apart(run, other_run)
        yield from ((text, None) for text in ours.rest())
        yield from ((None, text) for text in theirs.rest())
        if ours.common is not None:
            yield ours.common, ours.common


class _Runs:
    """The documents of a corpus as runs of those that are in it alone, each up to one that is in both."""

    def __init__(self, corpus: Corpus, surplus: dict[int, int]):
        self._documents, self._surplus = corpus.documents(), surplus
        self.common: str | None = None
        self.ended = False

    def run(self) -> list[str]:
        """Return the next run, as far as documents are paired; `common` is the document after it, None at the end."""
        self.common = None
        return list(islice(self.rest(), _RUN))

    def rest(self) -> Iterator[str]:
        """Yield the rest of a run."""
        while self.common is None and not self.ended:
            text = next(self._documents, None)
            if text is None:
                self.ended = True
                return
            digest = _digest(text)
            if not self._surplus.get(digest):
                self.common = text
                return
            self._surplus[digest] -= 1
            yield text


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _apart(run: list[str], other_run: list[str]) -> Iterator[Pair]:
    yield from ((text, None) for text in run)
    yield from ((None, text) for text in other_run)


def _paired(run: list[str], other_run: list[str]) -> Iterator[Pair]:
    """Pair the documents of two runs in order, each with the next one that shares half of its words."""
    begin = 0
    for text in run:
        near = range(begin, min(begin + 8, len(other_run)))
        place = next((each for each in near if _alike(text, other_run[each])), None)
        if place is None:
            yield text, None
            continue
        yield from ((None, passed) for passed in other_run[begin:place])
        yield text, other_run[place]
        begin = place + 1
    yield from ((None, text) for text in other_run[begin:])


def _alike(text: str, other: str) -> bool:
    words, others = Counter(text.split()), Counter(other.split())
    return 2 * (words & others).total() >= max(words.total(), others.total())


def _around(first: str, second: str) -> tuple[str, str]:
    """Return two texts from shortly before the place where they begin to differ."""
    same = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    start = max(same - 40, 0)
    mark = "... " if start else ""
    return mark + first[start:], mark + second[start:]
