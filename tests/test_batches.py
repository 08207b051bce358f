"""Batches: the rows at their positions, however a run is cut and batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from foundry_core.data.batches import Batches
from foundry_core.data.order import SampleOrder
from foundry_core.data.rows import Rows


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": pad_sequence(
            [torch.from_numpy(sample["input_ids"]) for sample in samples], True, padding_value=-1
        ),
        "where": torch.tensor([[sample["epoch"], sample["row"]] for sample in samples]),
    }


def batches(start: int, stop: int, num_workers: int = 0, batch_size: int = 4) -> Batches:
    rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 8)
    return Batches(rows, SampleOrder(len(rows), 11), collate, batch_size, start, stop, num_workers)


def test_batches_are_the_rows_at_their_positions() -> None:
    made = list(batches(120, 131))
    rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 8)
    epochs, indices = SampleOrder(len(rows), 11).at(np.arange(120, 131))
    assert [len(batch["where"]) for batch in made] == [4, 4, 3]
    wheres = [where for batch in made for where in batch["where"].tolist()]
    assert wheres == np.stack([epochs, indices], axis=1).tolist()
    ids = [row[row >= 0].tolist() for batch in made for row in batch["input_ids"]]
    assert ids == [rows.row(index).tolist() for index in indices.tolist()]
    assert set(epochs.tolist()) == {0, 1}


def test_cuts_and_batch_sizes_do_not_change_the_samples() -> None:
    def samples(*parts: Batches) -> list[list[int]]:
        return [where for part in parts for batch in part for where in batch["where"].tolist()]

    whole = samples(batches(0, 900))
    assert samples(batches(0, 37), batches(37, 500, batch_size=7), batches(500, 900, 2, batch_size=1)) == whole
    assert samples(batches(0, 900, batch_size=900)) == whole


def test_the_batch_after_100_million_samples_costs_no_more() -> None:
    """Rows read and positions computed are counted; `python -m benchmarks grow` measures the time."""
    read, asked = list[int](), list[int]()

    class CountedRows(Rows):
        def row(self, index: int) -> np.ndarray:
            read.append(index)
            return super().row(index)

    class CountedOrder(SampleOrder):
        def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(positions))
            return super().at(positions)

    rows = CountedRows(np.broadcast_to(np.uint16(7), (30_000_000 * 8 + 1,)), "overlap", 8)
    order = CountedOrder(len(rows), 11)
    costs = []
    for start in (0, 10**8):
        batch = next(iter(Batches(rows, order, collate, 4, start, start + 10**9)))
        assert (
            batch["where"].tolist()
            == np.stack(SampleOrder(len(rows), 11).at(np.arange(start, start + 4)), axis=1).tolist()
        )
        costs.append((len(read), sum(asked)))
        read.clear()
        asked.clear()
    assert costs[0] == costs[1] == (4, 4 * Batches.GROUP)
