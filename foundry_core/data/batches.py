"""Batches: rows in their order, collated by this process or by workers, the same bit for bit."""

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
"""Makes a batch of rows, each `{"input_ids": int64 array, "epoch": int, "row": int, "position": int}`."""


class Batches(Dataset[Batch]):
    """The samples from position `start` to `stop` in batches of `batch_size`; the last one may be smaller.

    What `collate` draws at random must be a function of epoch and row, or the number of workers would change it.
    """

    GROUP = 64  # batches; computing the order of one costs nearly as much as that of all of them

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
        group, within = divmod(index, self.GROUP)
        if group != self._group:
            first = self.start + group * self.GROUP * self.batch_size
            positions = np.arange(first, min(first + self.GROUP * self.batch_size, self.stop))
            epochs, rows = self.order.at(positions)
            self._group, self._epochs, self._rows = group, epochs.tolist(), rows.tolist()
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        return self.collate(
            [
                {"input_ids": self.rows.row(row), "epoch": epoch, "row": row, "position": position}
                for position, (epoch, row) in enumerate(
                    zip(self._epochs[part], self._rows[part], strict=True), self.start + index * self.batch_size
                )
            ]
        )
