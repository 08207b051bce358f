"""The learning rate of each step. A step is an optimizer step, always."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from numbers import Real
from typing import Literal, TypeAlias

from foundry_core.checkpoints.state import ScheduleState
from foundry_core.config.sections import TrainingConfig
from foundry_core.errors import PluginError, UsageError
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.schedule import CORE_SCHEDULES, FALLING, LearningRateSchedule

Verdict: TypeAlias = Literal["improved", "stalled", "lowered"]
"""What an evaluation means: the best loss so far, or not; `lowered` if `plateau` has cut the learning rate for it."""

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "wsd": lambda done: 1 - done,
}
"""The way from 1 to 0 of each schedule of `FALLING`, by the share of the decay that is done."""


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Return the number of steps of linear warm-up."""
    return _steps(config.warmup_steps, config.warmup_ratio, total_steps) or 0


def _steps(number: int | None, ratio: float | None, total_steps: int) -> int | None:
    """Return a number of steps that is given as such, or as a share of all."""
    if ratio is None:
        return number
    # The decimal that was written: as a binary float 0.07 of 100 steps would be a little over 7, and 8 rounded up.
    return math.ceil(Fraction(str(ratio)) * total_steps)


class Schedule:
    """The learning rate of each step: a function of step and epoch, and for `plateau` of the losses of evaluations too.

    Step s of 1..total applies `rate(s)`: the peak times s / warm-up while warming up, then the peak times

    * constant: 1;
    * linear, cosine: from 1 to the floor over the steps of the decay, by default all that are left, and then the floor;
    * wsd: 1, and the same line in the last steps;
    * inverse_sqrt: the root of warm-up / s;
    * step: `step_factor` once for each epoch begun after `step_after_epochs`;
    * plateau: `plateau_factor` once for each time that evaluations stalled;
    * a plugin's: what its function returns.

    None falls below the floor, `min_learning_rate_ratio`. No step of core's schedules has rate 0.

    Args:
        config: The training section.
        total_steps: The steps of the run.
        kind: The descriptor of the schedule; by default core's own of the configured name.

    Raises:
        UsageError: The decay does not fit into the run.
    """

    def __init__(self, config: TrainingConfig, total_steps: int, kind: LearningRateSchedule | None = None):
        self.config, self.total_steps = config, total_steps
        self.plateau = ScheduleState()
        self._kind = CORE_SCHEDULES[config.lr_scheduler] if kind is None else kind
        self._warmup = warmup_steps(config, total_steps)
        left, decay = total_steps - self._warmup, _steps(config.decay_steps, config.decay_ratio, total_steps)
        self._decay = left if decay is None else decay
        self._decay_after = total_steps - self._decay if self._kind.name == "wsd" else self._warmup
        if self._kind.name == "wsd" and self._decay > left:
            raise UsageError(
                f"training.decay_steps: {self._decay} steps of decay and {self._warmup} of warm-up exceed the "
                f"{total_steps} steps that the budget comes to"
            )
        if self._kind.name in ("linear", "cosine") and self._decay < left and not config.min_learning_rate_ratio:
            raise UsageError(
                f"training.decay_steps: the learning rate is 0 after step {self._warmup + self._decay} of "
                f"{total_steps}: give training.min_learning_rate_ratio"
            )
        if self._kind.function is None and self._kind is not CORE_SCHEDULES.get(self._kind.name):
            raise PluginError(f"the schedule {self._kind.name} has no function: give it an import string")
        self._function: Callable[..., object] | None = None
        if self._kind.function is not None:
            self._function = import_string(self._kind.function)

    def rate(self, step: int, epoch: float = 0.0) -> float:
        """Return the learning rate of a step, counted from 1, before which so many epochs have passed."""
        peak, warmup = self.config.learning_rate, self._warmup
        if step <= warmup:
            return peak * step / (warmup + (self.config.warmup_end == "below_peak"))
        return peak * self._factor(step, epoch)

    def _factor(self, step: int, epoch: float) -> float:
        """Return the share of the peak after the warm-up."""
        name, floor = self._kind.name, self.config.min_learning_rate_ratio
        if self._function is not None:
            return self._of_plugin(step - self._warmup)
        if name in FALLING:
            done = (step - 1 - self._decay_after) / max(self._decay, 1)
            return floor + (1 - floor) * _SHAPES[name](min(max(done, 0.0), 1.0))
        if name == "inverse_sqrt":
            return max(math.sqrt(max(self._warmup, 1) / step), floor)
        if name == "step":
            number = int(epoch) + 1
            return max(self.config.step_factor ** max(number - (self.config.step_after_epochs or 0), 0), floor)
        return max(self.plateau.scale, floor) if name == "plateau" else 1.0

    def _of_plugin(self, step: int) -> float:
        """Return the factor of a plugin's function. Raises PluginError for what is not a share of the peak."""
        what = f"the schedule {self._kind.name}, {self._kind.function},"
        assert self._function is not None
        with failing_as(what):
            factor = self._function(step, self.total_steps - self._warmup, self.config)
        if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 <= float(factor) < math.inf:
            raise PluginError(f"{what} returned {factor!r} in step {step}, not a finite number of at least 0")
        return float(factor)

    def observe(self, loss: float) -> Verdict:
        """Take note of an evaluation; `plateau` cuts the rate after more than `plateau_patience` without a best one."""
        plateau = self.plateau
        if plateau.best is None or loss < plateau.best:
            plateau.best, plateau.stalled = loss, 0
            return "improved"
        plateau.stalled += 1
        if plateau.stalled <= self.config.plateau_patience:
            return "stalled"
        plateau.scale *= self.config.plateau_factor
        plateau.stalled = 0
        return "lowered" if self._kind.name == "plateau" else "stalled"

    def state(self) -> ScheduleState:
        """Return a copy of what a checkpoint stores."""
        return replace(self.plateau)

    def load(self, state: ScheduleState) -> None:
        """Continue from what a checkpoint stored."""
        self.plateau = replace(state)
