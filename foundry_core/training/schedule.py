"""The learning rate of each step. A step is an optimizer step, always."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

from foundry_core.checkpoints.state import ScheduleState
from foundry_core.config.sections import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Return the number of steps of linear warm-up."""
    if config.warmup_ratio is not None:
        # The decimal that was written: as a binary float 0.07 of 100 steps would be a little over 7, and 8 rounded up.
        return math.ceil(Fraction(str(config.warmup_ratio)) * total_steps)
    return config.warmup_steps or 0


@dataclass
class Schedule:
    """The learning rate of each step: a function of the step, and for `plateau` of the test losses too.

    Step s of 1..total applies `rate(s)`: the peak times s / warm-up while warming up, then the peak times 1 (constant,
    plateau), the share of steps left (linear), or half a cosine of the share done (cosine). No step has rate 0.
    """

    config: TrainingConfig
    total_steps: int
    plateau: ScheduleState = field(default_factory=ScheduleState)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        peak, warmup = self.config.learning_rate, warmup_steps(self.config, self.total_steps)
        if step <= warmup:
            return peak * step / warmup
        done = (step - 1 - warmup) / max(self.total_steps - warmup, 1)
        if self.config.lr_scheduler == "linear":
            return peak * (1 - done)
        if self.config.lr_scheduler == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * self.plateau.scale

    def observe(self, test_loss: float) -> None:
        """Under `plateau`, cut the rate after more than `plateau_patience` evaluations without improvement."""
        plateau = self.plateau
        if plateau.best is None or test_loss < plateau.best:
            plateau.best, plateau.stalled = test_loss, 0
            return
        plateau.stalled += 1
        if plateau.stalled > self.config.plateau_patience:
            plateau.scale *= self.config.plateau_factor
            plateau.stalled = 0

    def state(self) -> ScheduleState:
        """Return a copy of what a checkpoint stores."""
        return replace(self.plateau)

    def load(self, state: ScheduleState) -> None:
        """Continue from what a checkpoint stored."""
        self.plateau = replace(state)
