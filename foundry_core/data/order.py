"""The order of the rows: which row is trained at each position, a function of seed and position alone.

Resuming therefore needs one integer and no replay, and no model or number of workers changes the order.

SampleOrder   each row once in an epoch, shuffled or one after the other
LaneOrder     one row of each lane in a batch, each lane from its beginning to its end
LengthOrder   shuffled, with rows of like length in one step
CropOrder     rows drawn with replacement
MixedOrder    several corpora by their shares
GivenOrder    the order of a plugin
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foundry_core.random_streams import derive, mix64, uniform

Ints: TypeAlias = NDArray[np.int64]
Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1, lt=2**63)]


class Order(Protocol):
    """Maps a position, counted in samples since the start of training, to the row that is trained there."""

    @property
    def size(self) -> int:
        """Number of positions in an epoch."""

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions: int64, shaped like `positions`."""

    def times_taken(self, first: int, last: int, starts: Ints) -> Ints:
        """Return how often rows of each group are trained at the positions from `first` up to `last`.

        starts: The first row of each group of neighbouring rows, in order; the first group begins at row 0.
        """


class _EachOnceAnEpoch:
    """An order that takes each row once in each epoch: whole epochs are counted, and only the rest is looked at."""

    size: int

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        raise NotImplementedError

    def times_taken(self, first: int, last: int, starts: Ints) -> Ints:
        """Return how often rows of each group are trained at the positions from `first` up to `last`."""
        return np.add.reduceat(self.times_of_rows(first, last), starts)

    def times_of_rows(self, first: int, last: int) -> Ints:
        """Return how often each row is trained at the positions from `first` up to `last`."""
        begun, ended = -(-first // self.size), last // self.size
        times = np.full(self.size, max(ended - begun, 0), dtype=np.int64)
        parts = [(first, last)] if begun > ended else [(first, begun * self.size), (ended * self.size, last)]
        for start, stop in parts:
            if start < stop:
                times[self._taken(start, stop)] += 1
        return times

    def _taken(self, first: int, last: int) -> Ints:
        """Return the rows at positions of one epoch; their order is not important."""
        return self.at(np.arange(first, last))[1]


class Permutation:
    """The order of `size` rows in one epoch; computed, not stored: any position takes a few microseconds.

    A Feistel network on a grid of about sqrt(size) by sqrt(size): each round moves one coordinate by a hash of the
    other, which is one to one. What lands on one of the few cells too many goes through the network again.
    """

    ROUNDS = 8

    def __init__(self, size: int, seed: int, epoch: int):
        assert size >= 1, size
        self.size = size
        height = math.isqrt(size - 1) + 1
        self._height, self._width = np.uint64(height), np.uint64(-(-size // height))
        key = np.uint64(derive(seed, "data order", epoch))
        self._keys = mix64(np.arange(1, self.ROUNDS + 1, dtype=np.uint64) + key)

    def __call__(self, positions: Ints) -> Ints:
        """Return the rows (int64) at these positions; both are in range(size), of any shape."""
        positions = np.asarray(positions)
        if ((positions < 0) | (positions >= self.size)).any():
            raise IndexError(f"positions outside of 0 to {self.size - 1}")
        rows = self._network(positions.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(rows >= self.size)
        while outside.size:
            rows[outside] = self._network(rows[outside])
            outside = outside[rows[outside] >= self.size]
        return rows.astype(np.int64).reshape(positions.shape)

    def _network(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        y, x = np.divmod(cells, self._width)
        # 32 bits of the hash, so that the sum cannot wrap around 2**64, which would not be one to one.
        for key in range(0, self.ROUNDS, 2):
            y = (y + (mix64(x ^ self._keys[key]) >> np.uint64(32))) % self._height
            x = (x + (mix64(y ^ self._keys[key + 1]) >> np.uint64(32))) % self._width
        return y * self._width + x


@dataclass(frozen=True)
class SampleOrder(_EachOnceAnEpoch):
    """Maps a position, counted in samples since the start of training, to the row that is trained there.

    Epoch e is the positions from `e * size` to `(e + 1) * size - 1`; each epoch has another order.
    """

    size: int
    seed: int
    shuffle: bool = True

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions: int64, shaped like `positions`."""
        epochs, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        if self.shuffle:
            for epoch in np.unique(epochs):
                inside = epochs == epoch
                rows[inside] = Permutation(self.size, self.seed, int(epoch))(rows[inside])
        return epochs, rows


@dataclass(frozen=True)
class LaneOrder(_EachOnceAnEpoch):
    """Order of `LaneRows`: position p is row p // lanes of lane p % lanes, epoch after epoch."""

    size: int
    lanes: int

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions."""
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        step, lane = np.divmod(within, self.lanes)
        return epochs, lane * (self.size // self.lanes) + step


class LengthOrder(_EachOnceAnEpoch):
    """A shuffled order in which the rows of a step have like lengths, so that little is padded.

    The shuffled rows of an epoch are taken `WINDOW` steps at a time, sorted by length, cut into steps, and these
    shuffled. Steps are counted from the start of training, so that they are the trainer's also where the rows of an
    epoch are not a multiple of them; the parts of a step at the ends of an epoch stay there.

    Args:
        lengths: The length of each row.
        per_step: Rows of an optimizer step.
    """

    WINDOW = 64

    def __init__(self, lengths: Ints, per_step: int, seed: int):
        self.size, self.seed = len(lengths), seed
        self._lengths, self._per_step = lengths, per_step
        self._made: tuple[tuple[int, int], Ints] | None = None

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.size)
        # Windows begin at multiples of their size since the start of training, and end with the epoch.
        windows = positions // (self.WINDOW * self._per_step)
        rows = np.empty_like(within)
        for epoch, window in np.unique(np.stack([epochs, windows]).reshape(2, -1), axis=1).T.tolist():
            chosen = (epochs == epoch) & (windows == window)
            first, found = self._window(epoch, window)
            rows[chosen] = found[positions[chosen] - first]
        return epochs, rows

    def _taken(self, first: int, last: int) -> Ints:
        # Sorting and shuffling only move rows inside a window: whole windows need neither.
        size, epoch = self.WINDOW * self._per_step, first // self.size
        begun, ended = -(-first // size) * size, last // size * size
        if begun >= ended:
            return super()._taken(first, last)
        whole = Permutation(self.size, self.seed, epoch)(np.arange(begun, ended) - epoch * self.size)
        return np.concatenate([whole, self.at(np.arange(first, begun))[1], self.at(np.arange(ended, last))[1]])

    def _window(self, epoch: int, window: int) -> tuple[int, Ints]:
        """Return the first position of a window in an epoch, and its rows in their order."""
        size = self.WINDOW * self._per_step
        first, end = max(window * size, epoch * self.size), min((window + 1) * size, (epoch + 1) * self.size)
        if self._made is None or self._made[0] != (epoch, window):
            rows = Permutation(self.size, self.seed, epoch)(np.arange(first, end) - epoch * self.size)
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            head = min(-first % self._per_step, len(rows))
            steps = (len(rows) - head) // self._per_step
            # The longest rows are left for the incomplete steps at both ends.
            whole = rows[: steps * self._per_step].reshape(steps, self._per_step)
            rest = rows[steps * self._per_step :]
            if steps:
                whole = whole[Permutation(steps, derive(self.seed, "steps", epoch), window)(np.arange(steps))]
            self._made = (epoch, window), np.concatenate([rest[:head], whole.reshape(-1), rest[head:]])
        return first, self._made[1]


@dataclass(frozen=True)
class CropOrder:
    """Rows drawn independently, with replacement: `size` of them in an epoch, out of `rows`."""

    DRAWN_AT_ONCE: ClassVar = 1 << 14
    """As many as the cache of a core holds."""
    SORTED_AT_ONCE: ClassVar = 1 << 18, 1 << 25
    """At least and at most; in between 16 for each group, so that looking up its start takes no longer than sorting."""

    size: int
    rows: int
    seed: int

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions."""
        positions = np.asarray(positions, dtype=np.int64)
        return positions // self.size, self._drawn(positions)

    def times_taken(self, first: int, last: int, starts: Ints) -> Ints:
        """Return how often rows of each group are trained at the positions from `first` up to `last`.

        Every draw is repeated. They are sorted, because counters for each row, of which there is one for almost every
        token, do not fit into the cache.
        """
        starts = starts.astype(np.int32 if self.rows < 2**31 else np.int64)  # 4 bytes take half of the time of 8
        below = np.zeros(len(starts), dtype=np.int64)
        some = int(np.clip(16 * len(starts), *self.SORTED_AT_ONCE))
        for begin in range(first, last, some):
            end = min(begin + some, last)
            rows = np.empty(end - begin, dtype=starts.dtype)
            for part in range(begin, end, self.DRAWN_AT_ONCE):
                stop = min(part + self.DRAWN_AT_ONCE, end)
                rows[part - begin : stop - begin] = self._drawn(np.arange(part, stop))
            rows.sort()
            below += np.searchsorted(rows, starts)
        return np.diff(below, append=last - first)

    def _drawn(self, positions: Ints) -> Ints:
        key = np.uint64(derive(self.seed, "crops"))
        bits = mix64(mix64(positions.view(np.uint64) + key))
        return (uniform(bits) * self.rows).astype(np.int64)


class MixedOrder:
    """Several corpora by their shares: each is read without replacement until it is used up, and then once more.

    Of `BLOCK` positions each corpus gets its share, rounded to a whole number, in a shuffled order.

    Args:
        sizes: Rows of each corpus; those of one are numbered after those of the one before.
        shares: Share of each, adding up to 1.
    """

    BLOCK = 10_000

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int):
        self.size, self._seed = sum(sizes), seed
        exact = np.array(shares) * self.BLOCK
        counts = np.floor(exact).astype(np.int64)
        left = self.BLOCK - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        self._counts, self._first = counts, np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self._orders = [SampleOrder(size, derive(seed, "mixture", number)) for number, size in enumerate(sizes)]
        self._made: tuple[int, Ints, Ints] | None = None

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (passes, rows) at these positions: how often the row's corpus has been used up before, and the row."""
        positions = np.asarray(positions, dtype=np.int64)
        passes, rows = np.empty_like(positions), np.empty_like(positions)
        blocks, within = np.divmod(positions, self.BLOCK)
        for block in np.unique(blocks).tolist():
            inside = blocks == block
            sources, numbers = self._block(block)
            for source in np.unique(sources[within[inside]]).tolist():
                chosen = inside.copy()
                chosen[inside] = sources[within[inside]] == source
                taken, found = self._orders[source].at(numbers[within[chosen]])
                passes[chosen], rows[chosen] = taken, found + self._first[source]
        return passes, rows

    def samples_of(self, source: int, positions: int) -> int:
        """Return how many of the first positions are of a corpus."""
        block, within = divmod(positions, self.BLOCK)
        begun = int((self._block(block)[0][:within] == source).sum()) if within else 0
        return block * int(self._counts[source]) + begun

    def times_taken(self, first: int, last: int, starts: Ints) -> Ints:
        """Return how often rows of each group are trained at the positions from `first` up to `last`."""
        times = [
            order.times_of_rows(*(self.samples_of(number, place) for place in (first, last)))
            for number, order in enumerate(self._orders)
        ]
        return np.add.reduceat(np.concatenate(times), starts)

    def _block(self, block: int) -> tuple[Ints, Ints]:
        """Return the corpus of each position of a block, and the number of its sample in that corpus."""
        if self._made is None or self._made[0] != block:
            ranks = Permutation(self.BLOCK, self._seed, block)(np.arange(self.BLOCK))
            sources = np.searchsorted(np.cumsum(self._counts), ranks, side="right")
            numbers = np.empty_like(ranks)
            for source, count in enumerate(self._counts):
                numbers[sources == source] = block * count + np.arange(count)
            self._made = block, sources, numbers
        return self._made[1], self._made[2]


class GivenOrder(_EachOnceAnEpoch):
    """The order of a plugin: a permutation of the rows for each epoch.

    Args:
        size: Number of rows.
        permutation: A function of the epoch. Raises what it finds wrong.
    """

    def __init__(self, size: int, permutation: Callable[[int], Ints]):
        self.size, self._permutation = size, permutation
        self._made: tuple[int, Ints] | None = None

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return (epochs, rows) at these positions."""
        epochs, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        for epoch in np.unique(epochs).tolist():
            if self._made is None or self._made[0] != epoch:
                self._made = epoch, self._permutation(epoch)
            inside = epochs == epoch
            rows[inside] = self._made[1][rows[inside]]
        return epochs, rows


def extended_ledger(ledger: str, epochs: Ints, rows: Ints) -> str:
    """Return the running sha256 (hex) over all samples trained so far, extended by the epochs and rows of one step.

    It starts as an empty string, and proves that no sample was lost or trained twice.
    """
    seen = np.stack([epochs, rows]).astype("<i8").tobytes()
    return hashlib.sha256(bytes.fromhex(ledger) + seen).hexdigest()


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a token stream cut into rows: with seed and batch size they determine what was seen at any position."""

    rows: Positive
    tokens_per_row: Positive
    tokens_per_epoch: Positive
    words_per_epoch: Positive
    bytes_per_epoch: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """UTF-8 bytes of the documents' text; 0 in a checkpoint of a version that did not count them."""

    def words_after(self, tokens_seen: int) -> int:
        """Return how many white-space separated words so many tokens of the corpus are."""
        return round(tokens_seen * self.words_per_epoch / self.tokens_per_epoch)

    def bytes_after(self, tokens_seen: int) -> int:
        """Return how many bytes of text so many tokens of the corpus are."""
        return round(tokens_seen * self.bytes_per_epoch / self.tokens_per_epoch)
