"""Rows of whole documents, packed so that little room is left, for a model that keeps the documents of a row apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundry_core.data.order import Ints
from foundry_core.data.rows import Layout, Rows, document_pieces


class PackedRows(Rows):
    """As many whole documents in each row as fit; one that is longer than a row is cut into pieces.

    In a framed row each has its own frame: `start_id` d d d `end_id` `start_id` d d `end_id`. So many fit that this is
    at most tokens_per_row + 2, under either layout: models of every objective see the same text in the same rows.

    Args:
        documents: Of a token file: where each document starts in its tokens, and their number.
        in_order: Keep the documents of the corpus in their order; otherwise a row takes documents from anywhere whose
            lengths fill it. On 34,532 lines of 2 to 126 tokens rows of 128 are 84 % full in order, and 99.9 % without.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        layout: Layout,
        tokens_per_row: int,
        *,
        documents: Ints,
        in_order: bool = False,
        **ids: Any,
    ):
        super().__init__(tokens, layout, tokens_per_row, **ids)
        edges = document_pieces(documents, tokens_per_row)
        ended = np.isin(edges[1:], documents[1:] - 1)
        room = tokens_per_row + 2
        # What a piece takes in a framed row: its tokens without the separator, and its frame.
        taken = np.diff(edges) - ended + 2
        if in_order:
            order, self._edges = np.arange(len(taken)), _in_order(taken, room)
        else:
            order, self._edges = packed(taken, np.isin(edges[:-1], documents[:-1] - 1), room)
        self._starts, self._stops, self._ended = edges[:-1][order], edges[1:][order], ended[order]
        self._consumed = np.concatenate([[0], (self._stops - self._starts).cumsum()])
        text = self._stops - self._starts - self._holes.between(self._starts + 1, self._stops + 1)
        self._text = np.concatenate([[0], text.cumsum()])
        framed = np.concatenate([[0], taken[order].cumsum()])
        self.length = int(np.diff((self._consumed if self._frame is None else framed)[self._edges]).max())
        self.length += 1 if self._frame is None else 0

    @property
    def tokens_per_row(self) -> int:
        return self._new

    def __len__(self) -> int:
        return len(self._edges) - 1

    def _pieces(self, index: int) -> slice:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return slice(int(self._edges[index]), int(self._edges[index + 1]))

    def row(self, index: int) -> Ints:
        pieces = self._pieces(index)
        spans = list(zip(self._starts[pieces].tolist(), self._stops[pieces].tolist(), strict=True))
        if self._frame is None:
            # The separator that opens a document is the one that closes the document before it in the row.
            parts = [self._read(start, stop)[1 if number else 0 :] for number, (start, stop) in enumerate(spans)]
            return np.concatenate(parts)
        begin, end = self._frame
        found: list[Ints | list[int]] = []
        for (start, stop), ended in zip(spans, self._ended[pieces].tolist(), strict=True):
            found += [[begin], self._read(start + 1, stop - ended), [end]]
        return np.concatenate(found).astype(np.int64)

    def documents(self, index: int) -> Ints:
        pieces = self._pieces(index)
        sizes, ended = self._stops[pieces] - self._starts[pieces], self._ended[pieces]
        if self._frame is not None:
            return np.repeat(np.arange(len(sizes)), sizes - ended + 2)
        # A separator is the first token of the document after it, which is predicted from there.
        marks = np.zeros(int(sizes.sum()) + 1, dtype=np.int64)
        marks[sizes.cumsum()[ended]] = 1
        return marks.cumsum()

    def stream_tokens(self, index: int | Ints) -> Ints:
        return self._between(self._text, index)

    def consumed(self, index: int | Ints) -> Ints:
        return self._between(self._consumed, index)

    def rows_of(self, places: Ints) -> Ints:
        """Return the row that consumes each of some tokens of the stream; its first separator is in none."""
        order = np.argsort(self._starts)
        pieces = order[np.searchsorted(self._starts[order], places - 1, side="right") - 1]
        return np.searchsorted(self._edges, pieces, side="right") - 1

    def _between(self, before: Ints, index: int | Ints) -> Ints:
        index = np.asarray(index)
        found: Ints = before[self._edges[index + 1]] - before[self._edges[index]]
        return found


def _in_order(sizes: Ints, room: int) -> Ints:
    """Return where rows begin that take pieces one after the other as long as they fit, and the number of pieces."""
    before = np.concatenate([[0], sizes.cumsum()])
    edges = [0]
    while edges[-1] < len(sizes):
        edges.append(int(np.searchsorted(before, before[edges[-1]] + room, side="right")) - 1)
    return np.array(edges)


@dataclass(frozen=True)
class _Bins:
    """A number of equal rows: `held` has the sizes of their pieces, each with how many there are of it."""

    number: int
    held: tuple[tuple[int, int], ...] = ()

    def with_more(self, number: int, size: int, copies: int) -> _Bins:
        return _Bins(number, (*self.held, (size, copies)))


def packed(sizes: Ints, opening: NDArray[np.bool_], room: int) -> tuple[Ints, Ints]:
    """Distribute pieces over as few rows as best-fit decreasing finds, counted by size instead of one by one.

    Krell et al. (2021) pack histograms in this way; the time depends on the sizes that occur, not on the pieces.

    Args:
        sizes: Of each piece, at most `room`.
        opening: Which pieces open a document. Of the others, which continue a cut one, a row holds one, the first: it
            begins with the token before it instead of a separator.

    Returns:
        The pieces in the order of the rows, which stand in the order of their first pieces; and where each row begins
        in it, with their number at the end.
    """
    # Pieces by size and kind in the order of the corpus; those that continue a document have a negative size.
    signed = np.where(opening, sizes, -sizes)
    numbers = np.argsort(signed, kind="stable")
    kinds, firsts = np.unique(signed[numbers], return_index=True)
    waiting = {int(kind): numbers[a:b] for kind, (a, b) in zip(kinds, pairwise([*firsts, len(sizes)]), strict=True)}
    bins: dict[int, list[_Bins]] = defaultdict(list)
    for size in (-kind for kind in waiting if kind < 0):
        bins[room - size].append(_Bins(len(waiting[-size]), ((-size, 1),)))
    for size in sorted((kind for kind in waiting if kind > 0), reverse=True):
        left = len(waiting[size])
        for free in sorted(free for free in bins if free >= size):
            if left:
                left = _fill(bins, free, size, left)
        if left:
            bins[room].append(_Bins(-(-left // (room // size))))
            _fill(bins, room, size, left)
    return _assigned([each for group in bins.values() for each in group], waiting)


def _fill(bins: dict[int, list[_Bins]], free: int, size: int, left: int) -> int:
    """Put pieces of a size into rows with so much free room, each as full as it gets; return how many are left."""
    fit = free // size
    untouched: list[_Bins] = []
    for each in bins.pop(free):
        whole = min(each.number, left // fit)
        rest = left - whole * fit if whole < each.number else 0
        if whole:
            bins[free - fit * size].append(each.with_more(whole, size, fit))
        if rest:
            bins[free - rest * size].append(each.with_more(1, size, rest))
        if (same := each.number - whole - bool(rest)) > 0:
            untouched.append(_Bins(same, each.held))
        left -= whole * fit + rest
    if untouched:
        bins[free] += untouched
    return left


def _assigned(bins: list[_Bins], waiting: dict[int, Ints]) -> tuple[Ints, Ints]:
    """Hand the pieces of each size out to the rows that hold it."""
    used: dict[int, int] = defaultdict(int)
    pieces, rows, count = [], [], 0
    for each in bins:
        for size, copies in each.held:
            taken = waiting[size][used[size] : used[size] + each.number * copies]
            used[size] += each.number * copies
            pieces.append(taken)
            rows.append(count + np.repeat(np.arange(each.number), copies))
        count += each.number
    piece, row = np.concatenate(pieces), np.concatenate(rows)
    continuing = np.concatenate([np.full(len(waiting[kind]), kind < 0) for kind in waiting])
    is_first = np.zeros(len(piece), dtype=bool)
    is_first[np.concatenate(list(waiting.values()))] = continuing
    order = np.lexsort([piece, ~is_first[piece], row])
    piece, row = piece[order], row[order]
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    # Rows in the order of their first pieces.
    ranks = np.argsort(np.argsort(piece[begins]))
    order = np.lexsort([np.arange(len(piece)), ranks[row]])
    edges = np.concatenate([[0], np.bincount(ranks[row]).cumsum()])
    return piece[order], edges
