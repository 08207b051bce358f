"""Averaged SGD: the mean of the weights after each step, evaluated and saved instead of the last ones.

Polyak and Juditsky (1992); Merity et al. (2018) begin the average when evaluations stop improving. Training itself goes
on with the raw weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from foundry_core.checkpoints.kept_weights import Weights, copied, kept_entries, living_weights, load_kept, put_back
from foundry_core.checkpoints.state import WeightsState
from foundry_core.config.sections import TrainingConfig

_RAW = "raw"


class Averaging:
    """The average of a model's weights under `optimizer: asgd`; does nothing under another one.

    A checkpoint contains the average as the model, and the raw weights beside the optimizer's state.

    Args:
        config: The training section.
        model: The model, on its device.
        state: Where the average stands; changed in place.
    """

    def __init__(self, config: TrainingConfig, model: nn.Module, state: WeightsState):
        self._on, self._interval = config.optimizer == "asgd", config.asgd_nonmonotonic_interval
        self._weights, self._state = living_weights(model), state
        self._average: Weights = {}
        self._raw: Weights = {}

    def load(self, file: Path, state: WeightsState) -> None:
        """Continue from a checkpoint, whose average the model contains.

        Raises:
            CheckpointError: The optimizer's file lacks the raw weights.
        """
        self._state = state
        if not self._on:
            state.averaged, state.losses = 0, []
        elif state.averaged:
            raw = load_kept(file, _RAW, self._weights)
            self._average = copied(self._weights)
            put_back(raw, self._weights)

    def step_taken(self) -> None:
        """Add the weights after a step to the average."""
        if not self._on:
            return
        if self._average:
            self._state.averaged += 1
            with torch.no_grad():
                for name, mean in self._average.items():
                    mean.lerp_(self._weights[name], 1 / self._state.averaged)
        elif self._interval is None:
            self._begin()

    def observe(self, loss: float) -> None:
        """Begin the average at an evaluation worse than the best before the last n (algorithm 1 of Merity et al.)."""
        if not self._on or self._interval is None:
            return
        earlier = self._state.losses[: -self._interval]
        if not self._average and earlier and loss > min(earlier):
            self._begin()
        self._state.losses.append(loss)

    def _begin(self) -> None:
        self._average, self._state.averaged = copied(self._weights), 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model, and the raw weights back at the end."""
        if not self._average:
            yield
            return
        self._raw = copied(self._weights)
        put_back(self._average, self._weights)
        try:
            yield
        finally:
            put_back(self._raw, self._weights)
            self._raw = {}

    def kept(self) -> Weights:
        """Return the raw weights as a checkpoint stores them, while the average is applied."""
        return kept_entries(_RAW, self._raw)

    def stop(self) -> None:
        """Drop the average: the model contains the weights to save."""
        self._average, self._state.averaged = {}, 0
