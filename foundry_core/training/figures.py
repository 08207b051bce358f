"""The figures of a step: sums of its micro-batches, which the processes of the run divide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch

from foundry_core.data.batches import Share
from foundry_core.processes import World


class Figures:
    """Adds up the figures of the micro-batches of a step, in the order of the micro-batches.

    Args:
        share: Which micro-batches of a step this process has.
        world: The processes of the run.
    """

    def __init__(self, share: Share, world: World):
        self._share, self._world = share, world
        self._names: list[str] | None = None

    def summed(self, own: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Return the sum of each figure over all micro-batches; own: the figures of this process's."""
        if self._names is None:  # a process without a micro-batch in a short first step has none to name
            self._names = self._world.from_first("the first step", lambda: list(own[0]))
        table = torch.zeros(self._share.per_step, len(self._names), dtype=torch.float64)
        if own:
            values = torch.stack([torch.stack([each[name] for name in self._names]) for each in own])
            table[self._share.first : self._share.first + len(own)] = values.cpu().double()
        columns = self._world.sum(table).T.tolist()
        # One after the other: torch sums in an order that depends on how many there are.
        return {name: reduce(add, column, 0.0) for name, column in zip(self._names, columns, strict=True)}
