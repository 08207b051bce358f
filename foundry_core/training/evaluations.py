"""Evaluation during a run: on which text after which step, and whether the run ends because nothing improves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.preparation import ExperimentData, HeldOut
from foundry_core.errors import warn
from foundry_core.training.plan import RunPlan

LOG_KEYS: Mapping[HeldOut, str] = {"validation": "validation_loss", "test": "eval_loss"}
"""The key of a loss in the log of the state, by its corpus."""


class Evaluations:
    """Decides after each step which texts to evaluate on, and whether the run ends there.

    What decides is the validation corpus: the schedule and early stopping see only its losses. Without one, the test
    corpus takes its place. Early stopping is a function of the losses in the log, which every checkpoint stores: a
    resumed run decides as one left alone.

    Args:
        config: The experiment.
        data: Its corpora.
        plan: Its plan.
        log: The log of the state that training continues from.
    """

    def __init__(self, config: ExperimentConfig, data: ExperimentData, plan: RunPlan, log: Iterable[Mapping[str, Any]]):
        self.decisive: HeldOut = "test" if data.validation is None else "validation"
        self._plan, self._there = plan, [corpus for corpus in LOG_KEYS if getattr(data, corpus) is not None]
        self._always = data.validation is None or config.training.evaluate_test == "always"
        self._patience = config.training.early_stopping_patience
        self._best, self._stalled = math.inf, 0
        for entry in log:
            if LOG_KEYS[self.decisive] in entry:
                self._follow(entry[LOG_KEYS[self.decisive]])

    def due(self, step: int) -> Iterator[HeldOut]:
        """Yield the texts to evaluate on after a step, each once the one before has been observed."""
        for corpus in self._there:
            # What decides comes first: its loss may make this step the last, at which the test corpus is due.
            each_time = corpus == self.decisive or self._always
            if self._plan.evaluation_due(step) if each_time else self.ended(step):
                yield corpus

    def observe(self, corpus: HeldOut, step: int, loss: float) -> None:
        """Take note of a loss, and report it if it ends the run."""
        if corpus == self.decisive:
            self._follow(loss)
            if self.stalled and step < self._plan.total_steps:
                steps = f"step {step:,} of {self._plan.total_steps:,}"
                found = f"no better loss than {self._best:.4f} in {self._stalled:,} evaluations"
                warn(f"stopped after {steps}: {found} (training.early_stopping_patience)")

    def _follow(self, loss: float) -> None:
        self._best, self._stalled = _followed(self._best, self._stalled, loss)

    @property
    def stalled(self) -> bool:
        """Whether so many evaluations in a row have brought nothing that the run ends."""
        return self._patience is not None and self._stalled >= self._patience

    def ended(self, step: int) -> bool:
        """Check whether a step is the last one."""
        return self.stalled or step >= self._plan.total_steps


def _followed(best: float, stalled: int, loss: float) -> tuple[float, int]:
    """Return the best loss, and how many in a row were not better, after one more."""
    return (loss, 0) if loss < best else (best, stalled + 1)


def ended_early(config: ExperimentConfig, log: Iterable[Mapping[str, Any]]) -> bool:
    """Check whether the losses in the log of a run have ended it, whatever its budget."""
    patience = config.training.early_stopping_patience
    key = LOG_KEYS["validation"]  # without a validation corpus patience is refused
    best, stalled = math.inf, 0
    for entry in log:
        if key in entry:
            best, stalled = _followed(best, stalled, entry[key])
    return patience is not None and stalled >= patience
