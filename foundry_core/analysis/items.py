"""Which items of a suite each run got right, read once for all pairs of models that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from foundry_core.analysis.runs import Run

Names: TypeAlias = tuple[tuple[str, str], ...]
"""Paradigm and name of each item."""


class Items:
    """Reads the items of runs at the last checkpoint that was scored on a suite."""

    def __init__(self) -> None:
        self._read: dict[tuple[Run, str], tuple[Names, NDArray[np.bool_]]] = {}
        self._names: dict[Names, Names] = {}

    def right(self, runs: Sequence[Run], suite: str) -> NDArray[np.bool_]:
        """Return which items are right, of shape (runs, items), for the items that all of the runs have."""
        found = [self._of(run, suite) for run in runs]
        if all(names is found[0][0] for names, _ in found):
            return np.stack([right for _, right in found])
        shared = sorted(set.intersection(*(set(names) for names, _ in found)))
        places = [dict(zip(names, right, strict=True)) for names, right in found]
        return np.array([[each[name] for name in shared] for each in places], dtype=bool)

    def _of(self, run: Run, suite: str) -> tuple[Names, NDArray[np.bool_]]:
        key = (run, suite)
        if key not in self._read:
            rows = run.item_rows(suite)
            names = tuple((row["paradigm"], row["item"]) for row in rows)
            # Runs have the same items, of which a study of 60 runs would otherwise keep as many lists.
            self._read[key] = self._names.setdefault(names, names), np.array([row["right"] for row in rows], dtype=bool)
        return self._read[key]
