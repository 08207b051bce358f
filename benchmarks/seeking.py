"""Measure how long resuming takes to find its position: the first batch after up to 10^10 samples.

    python benchmarks/seeking.py

The corpus is one row of numbers, repeated, so that only the order is measured. The limit is 50 milliseconds: the
position is a number, and nothing is replayed.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np

from foundry_core.data.batches import Batches
from foundry_core.data.order import SampleOrder
from foundry_core.data.rows import Rows

ROWS = 30_000_000
LENGTH = 128
BATCH = 32
ROUNDS = 11
LIMIT = 0.050
POSITIONS = (0, 10**6, 10**8, 10**10)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": np.stack([sample["input_ids"] for sample in samples])}


def main() -> int:
    tokens = np.broadcast_to(np.uint16(7), (ROWS * (LENGTH - 1) + 1,))
    rows = Rows(tokens, "overlap", LENGTH - 1)
    order = SampleOrder(len(rows), seed=42)
    times: dict[int, list[float]] = {position: [] for position in POSITIONS}
    for _ in range(ROUNDS):
        for position in POSITIONS:
            start = time.perf_counter()
            next(iter(Batches(rows, order, collate, BATCH, position, position + 10**9)))
            times[position].append(time.perf_counter() - start)
    print(f"{'samples before':<20}{'milliseconds to the first batch':>34}")
    for position, measured in times.items():
        print(f"{position:<20,}{1000 * statistics.median(measured):>34.2f}")
    slowest = max(map(statistics.median, times.values()))
    print(f"limit {1000 * LIMIT:.0f} ms: {'held' if slowest < LIMIT else 'NOT held'}")
    return 0 if slowest < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
