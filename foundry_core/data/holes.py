"""Holes: the parts of a token stream that steps with `in_place` leave empty.

The tokens of a dropped document stay in the file, so that all others keep their place; its separator stays and is read,
so that the next document is predicted from a separator as before. Neighbouring holes are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
HOLE = -1
"""Stands for each token of a hole in a row. Collators turn it into padding that is neither read nor predicted."""


class Holes:
    """Holes of a stream. spans: (N, 2), where each begins and ends, in order."""

    def __init__(self, spans: NDArray[Any] | None = None):
        self.spans = np.zeros((0, 2), np.int64) if spans is None else np.asarray(spans, np.int64).reshape(-1, 2)
        self._before = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0])])

    @property
    def total(self) -> int:
        """Number of tokens in all holes."""
        return int(self._before[-1])

    def between(self, start: Ints | int, end: Ints | int) -> Ints:
        """Return how many tokens from `start` up to `end` are in holes."""
        return self._up_to(end) - self._up_to(start)

    def _up_to(self, place: Ints | int) -> Ints:
        if not len(self.spans):
            return np.zeros_like(np.asarray(place, np.int64))
        begun = np.searchsorted(self.spans[:, 0], place)
        past: Ints = np.maximum(self.spans[begun - 1, 1] - place, 0)
        return np.where(begun > 0, self._before[begun] - past, 0)

    def cut_out(self, tokens: Ints, start: int) -> None:
        """Put HOLE in the place of the tokens that are in holes; the first of them is number `start` of the stream."""
        end = start + len(tokens)
        first, last = np.searchsorted(self.spans[:, 1], start, "right"), np.searchsorted(self.spans[:, 0], end)
        for begin, stop in self.spans[first:last]:
            tokens[max(begin - start, 0) : stop - start] = HOLE


class HoleFinder:
    """Finds the holes of a stream while it is encoded, window by window, and hands each to `write` when it is whole."""

    def __init__(self, write: Callable[[NDArray[Any]], None]):
        self._write = write
        self._dropped: deque[int] = deque()
        self._document, self._start = 0, 1
        self._open: tuple[int, int, int] | None = None  # the last document of a hole, and where the hole is
        self.tokens = self.number = self.documents = 0

    def texts(self, documents: Iterable[tuple[str, bool]]) -> Iterator[str]:
        """Yield the text of each document, and note those that are to be holes."""
        for number, (text, kept) in enumerate(documents):
            if not kept:
                self._dropped.append(number)
            yield text

    def window(self, ends: NDArray[np.bool_], start: int) -> NDArray[np.bool_]:
        """Return which tokens of a window are of dropped documents.

        Args:
            ends: Which of them end a document.
            start: Where the first of them is in the stream.
        """
        if not self._dropped and self._open is None:
            self._document += int(ends.sum())
            self._start = start + int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else self._start
            return np.zeros(len(ends), bool)
        document = self._document + np.cumsum(ends) - ends
        inside = np.isin(document, np.fromiter(self._dropped, np.int64)) & ~ends
        for end in np.flatnonzero(ends) + start:
            if self._dropped and self._dropped[0] == self._document:
                self._dropped.popleft()
                self.documents += 1
                begin = self._start
                if self._open is not None and self._open[0] == self._document - 1:
                    begin = self._open[1]
                else:
                    self.close()
                self._open = self._document, begin, int(end)
            self._document, self._start = self._document + 1, int(end) + 1
        if self._open is not None and self._open[0] < self._document - 1:
            self.close()
        return inside

    def close(self) -> None:
        """Write the hole that is open; at the end of the stream, too."""
        if self._open is not None:
            _, begin, end = self._open
            self._write(np.array([begin, end]))
            self.tokens, self.number, self._open = self.tokens + end - begin, self.number + 1, None
