"""Batches: rows in their order, collated, by this process or by workers; the same batches bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch.utils.data import Dataset

from foundry_core.data.order import SampleOrder
from foundry_core.data.rows import Rows
from foundry_core.data.workers import Batch as Batch
from foundry_core.data.workers import batches_from_workers

Collator: TypeAlias = Callable[[Sequence[Any]], Batch]
"""Makes a batch of rows: `{"input_ids": int64 array, "epoch": int, "row": int}` each."""


class Batches(Dataset[Batch]):
    """Collated batches of the samples from position `start` to `stop`, `batch_size` each, the last one perhaps fewer.

    `collate` receives a list of `{"input_ids": int64 array, "epoch": int, "row": int}` and must not draw from a global
    random generator: what it draws has to be a function of epoch and row, or workers would change it. With
    `num_workers` > 0 that many processes prepare batches ahead for as long as one iteration lasts.

    Raises (while iterating):
        DataError: A worker died or failed.
    """

    GROUP = 64

    def __init__(
        self,
        rows: Rows,
        order: SampleOrder,
        collate: Collator,
        batch_size: int,
        start: int,
        stop: int,
        num_workers: int = 0,
    ):
        assert order.size == len(rows), (order.size, len(rows))
        assert batch_size >= 1, batch_size
        assert 0 <= start <= stop, (start, stop)
        self.rows, self.order, self.collate = rows, order, collate
        self.batch_size, self.start, self.stop, self.num_workers = batch_size, start, stop, num_workers
        self._group, self._epochs, self._rows = -1, list[int](), list[int]()

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            return map(self.__getitem__, range(len(self)))
        return batches_from_workers(self, len(self), self.num_workers)

    def __getitem__(self, index: int) -> Batch:
        """Return the batch at an index."""
        group, within = divmod(index, self.GROUP)
        if group != self._group:
            # The order of one batch costs nearly as much as that of 64: it is the calls to numpy that count.
            first = self.start + group * self.GROUP * self.batch_size
            positions = np.arange(first, min(first + self.GROUP * self.batch_size, self.stop))
            epochs, rows = self.order.at(positions)
            self._group, self._epochs, self._rows = group, epochs.tolist(), rows.tolist()
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        return self.collate(
            [
                {"input_ids": self.rows.row(row), "epoch": epoch, "row": row}
                for epoch, row in zip(self._epochs[part], self._rows[part], strict=True)
            ]
        )
