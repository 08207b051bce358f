"""Checks of learning-rate schedules: finite factors that depend on nothing but the step, the total and the settings."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import experiment
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import require
from foundry_core.testing.kit.processes import forked
from foundry_core.training.schedule import Schedule

_TOTALS = (1, 2, 7, 100, 1000)
_EXAMPLES: dict[str, dict[str, Any]] = {
    "wsd": {"decay_ratio": 0.2},
    "step": {"step_after_epochs": 1},
    "plateau": {"evaluate_every_steps": 1},
}
"""Keys that core's own schedules need."""


@dataclass(frozen=True, eq=False)
class ScheduleBench:
    """A schedule in an experiment."""

    subject: Subject
    config: ExperimentConfig

    def schedule(self, total: int) -> Schedule:
        """Return a new schedule over so many steps."""
        return Schedule(self.config.training, total, self.config.schedule)

    def rates(self, total: int, first: int = 1) -> list[float]:
        """Return the learning rates from a step to the last, as a process that begins there applies them."""
        schedule = self.schedule(total)
        return [schedule.rate(step) for step in range(first, total + 1)]


@bench("schedule")
def schedule_bench(subject: Subject) -> ScheduleBench:
    own = _EXAMPLES.get(subject.name, {}) if subject.module is None else {}
    data = {"test_corpus": "corpora/test.txt"} if "evaluate_every_steps" in own else {}
    config = experiment(subject, training={"learning_rate": 1.0, **own}, data=data)
    made = ScheduleBench(subject, config)
    made.rates(10)
    return made


@check(
    "schedule",
    "runs",
    fix="`f(step, total, training)` returns the share of the peak as a number. Steps are counted from 1 to `total`, "
    "which may be 1: look at divisions by `total - 1` and at lists that are too short.",
)
def runs(bench: ScheduleBench) -> str:
    """For runs of 1 to 1000 steps, the factor of every step is a finite number of at least 0, and that of one step is
    greater.
    """
    highest = 0.0
    for total in _TOTALS:
        rates = bench.rates(total)
        require(max(rates) > 0, f"in a run of {total} steps the learning rate is always 0")
        highest = max(highest, *rates)
    return f"the highest learning rate is {highest:.3g} times the peak"


@check(
    "schedule",
    "function",
    fix="Compute the factor from `step`, `total` and `training` alone. Do not count calls, draw random numbers or read "
    "the time: the schedule is called for any step, in any order.",
)
def function(bench: ScheduleBench) -> None:
    """The factor of a step is the same whatever was called before, and the random generators are left alone."""
    total = 100
    expected = bench.rates(total)
    schedule, order = bench.schedule(total), random.Random(1).sample(range(1, total + 1), total)
    before = torch.get_rng_state(), random.getstate()
    for step in (*order, *order):
        found = schedule.rate(step)
        require(found == expected[step - 1], f"step {step} has {expected[step - 1]:.6g} at first and then {found:.6g}")
    after = torch.get_rng_state(), random.getstate()
    require(torch.equal(before[0], after[0]) and before[1] == after[1], "it draws from a global random generator")


@check(
    "schedule",
    "resume",
    fix="What a schedule remembers in a global variable, a closure or an attribute is not saved. Compute it from "
    "`step`, `total` and `training`.",
)
def resume(bench: ScheduleBench) -> None:
    """A run that is resumed in another process continues with the same learning rates, bit for bit."""
    total = 20
    (whole,) = forked(lambda: json.dumps(bench.rates(total)).encode())
    for first in (2, 11, 20):
        (answer,) = forked(lambda first=first: json.dumps(bench.rates(total, first)).encode())  # type: ignore[misc]
        expected, found = json.loads(whole)[first - 1 :], json.loads(answer)
        differing = [
            first + place for place, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]
        ]
        require(not differing, f"resumed before step {first}, the learning rate of step {differing[:1]} is another")
