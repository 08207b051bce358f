"""The order of the rows: which row is trained at each position, a function of seed and position alone.

Resuming therefore needs one integer and no replay, and no model, batch size or number of workers changes the order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foundry_core.random_streams import derive, mix64

Ints: TypeAlias = NDArray[np.int64]
Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1, lt=2**63)]


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
class SampleOrder:
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
