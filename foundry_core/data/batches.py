"""Batches: rows in their order, collated by this process or by workers, the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch.utils.data import Dataset

from foundry_core.data.order import Order
from foundry_core.data.rows import AnyRows
from foundry_core.data.workers import Batch as Batch
from foundry_core.data.workers import batches_from_workers

Collator: TypeAlias = Callable[[Sequence[Any]], Batch]
"""Makes a batch of rows, each `{"input_ids": int64 array, "epoch": int, "row": int, "position": int}`.

With `data.isolate_documents` also `documents`: the number of the document of each token in its row, an int64 array.
"""


class Share(NamedTuple):
    """A contiguous block of the batches of each step: `size` of `per_step`, from number `first` on."""

    first: int
    size: int
    per_step: int

    @classmethod
    def of(cls, rank: int, processes: int, per_step: int) -> Share:
        """Return the share of one of some processes."""
        size = per_step // processes
        return cls(rank * size, size, per_step)


class Batches(Dataset[Batch]):
    """The samples from position `start` to `stop` in batches of `batch_size`; the last one may be smaller.

    What `collate` draws at random must be a function of epoch and row, or the number of workers would change it.

    Args:
        share: What to iterate over, where `start` is the beginning of a step; by default all batches.
    """

    GROUP = 64  # batches; computing the order of one costs nearly as much as that of all of them

    def __init__(
        self,
        rows: AnyRows,
        order: Order,
        collate: Collator,
        batch_size: int,
        start: int,
        stop: int,
        num_workers: int = 0,
        share: Share = Share(0, 1, 1),  # noqa: B008 - it is immutable
    ):
        assert order.size == rows.per_epoch, (order.size, rows.per_epoch)
        self.rows, self.order, self.collate = rows, order, collate
        self.batch_size, self.start, self.stop, self.num_workers = batch_size, start, stop, num_workers
        self._share = share
        self._group, self._epochs, self._rows = -1, list[int](), list[int]()

    def __len__(self) -> int:
        first, size, per_step = self._share
        steps, rest = divmod(-(-(self.stop - self.start) // self.batch_size), per_step)
        return steps * size + min(max(rest - first, 0), size)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            return map(self.__getitem__, range(len(self)))
        return batches_from_workers(self, len(self), self.num_workers)

    def __getitem__(self, index: int) -> Batch:
        step, own = divmod(index, self._share.size)
        index = step * self._share.per_step + self._share.first + own
        group, within = divmod(index, self.GROUP)
        if group != self._group:
            first = self.start + group * self.GROUP * self.batch_size
            positions = np.arange(first, min(first + self.GROUP * self.batch_size, self.stop))
            epochs, rows = self.order.at(positions)
            self._group, self._epochs, self._rows = group, epochs.tolist(), rows.tolist()
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        return self.collate(
            [
                self._sample(position, epoch, row)
                for position, (epoch, row) in enumerate(
                    zip(self._epochs[part], self._rows[part], strict=True), self.start + index * self.batch_size
                )
            ]
        )

    def _sample(self, position: int, epoch: int, row: int) -> dict[str, Any]:
        documents = self.rows.documents(row)
        apart = {} if documents is None else {"documents": documents}
        return {"input_ids": self.rows.row(row), "epoch": epoch, "row": row, "position": position, **apart}
