"""The speed of training, with evaluations and saves taken out."""

from __future__ import annotations

import time

from foundry_core.checkpoints.state import TrainState
from foundry_core.registry.hookspecs import StepReport
from foundry_core.training.losses import AUXILIARY
from foundry_core.training.plan import RunPlan


class Stopwatch:
    """Measures the time that training steps take, and makes the report of a logged step.

    Use it as a context manager around what is not training: that time does not count.
    """

    def __init__(self, plan: RunPlan, state: TrainState):
        self._plan = plan
        self._mark = time.perf_counter()
        self._tokens, self._step = state.tokens_seen, state.step

    def __enter__(self) -> None:
        self._paused_at = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._mark += time.perf_counter() - self._paused_at

    def report(self, state: TrainState, losses: dict[str, float], rate: float, norm: float) -> StepReport:
        """Return the figures of the step just taken; its speed is that since the last report."""
        now = time.perf_counter()
        elapsed, steps = max(now - self._mark, 1e-9), max(state.step - self._step, 1)
        speed = (state.tokens_seen - self._tokens) / elapsed
        self._mark, self._tokens, self._step = now, state.tokens_seen, state.step
        return StepReport(
            step=state.step,
            total_steps=self._plan.total_steps,
            epoch=state.epoch,
            loss=losses["loss"],
            learning_rate=rate,
            grad_norm=norm,
            tokens_seen=state.tokens_seen,
            words_seen=state.words_seen,
            tokens_per_second=speed,
            seconds_left=(self._plan.total_steps - state.step) * elapsed / steps,
            auxiliary={name[len(AUXILIARY) :]: term for name, term in losses.items() if name.startswith(AUXILIARY)},
            optimised_loss=losses.get("optimised"),
        )
