"""The speed of training, with evaluations and saves taken out, and how much of it goes into waiting for batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice

from foundry_core.checkpoints.state import TrainState
from foundry_core.data.workers import Batch
from foundry_core.errors import warn
from foundry_core.processes import World
from foundry_core.registry.reports import StepReport
from foundry_core.systems import processes_here, usable_cores
from foundry_core.training.losses import AUXILIARY
from foundry_core.training.plan import RunPlan

TOO_MUCH = 0.2
"""Share of the time spent waiting for batches from which the loader counts as the bottleneck."""
_JUDGED_SECONDS = 5.0
"""Least time that is judged, without that in which workers start: a run of seconds has nothing to gain."""


class Stopwatch:
    """Measures the time that training steps take, and makes the report of a logged step.

    Use it as a context manager around what is not training: that time does not count.

    Args:
        plan: The plan of the run.
        state: The position that training starts from.
        num_workers: The processes that make batches; 0 if training makes them itself.
        world: The processes of the run.
    """

    def __init__(self, plan: RunPlan, state: TrainState, num_workers: int, world: World):
        self._plan, self._num_workers, self._world = plan, num_workers, world
        self._communicated = world.seconds
        self._mark = time.perf_counter()
        self._tokens, self._step = state.tokens_seen, state.step
        self._waited = 0.0
        self._starting: float | None = None if num_workers else 0.0  # seconds until processes have started
        self._judged: tuple[float, float] | None = (0.0, 0.0)

    def __enter__(self) -> None:
        self._paused_at, self._communicated_at = time.perf_counter(), self._world.seconds

    def __exit__(self, *exception: object) -> None:
        self._mark += time.perf_counter() - self._paused_at
        self._communicated += self._world.seconds - self._communicated_at

    def next_of(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """Return the next `count` batches, or those that are left, and measure the time until they are there."""
        start = time.perf_counter()
        taken = list(islice(batches, count))
        seconds = time.perf_counter() - start
        self._waited += seconds
        if self._starting is None:
            self._starting = seconds
        return taken

    def report(self, state: TrainState, losses: dict[str, float], rate: float, norm: float) -> StepReport:
        """Return the figures of the step just taken; its speed is that since the last report."""
        now = time.perf_counter()
        elapsed, steps = max(now - self._mark, 1e-9), max(state.step - self._step, 1)
        speed = (state.tokens_seen - self._tokens) / elapsed
        waited, communicated = min(self._waited, elapsed), self._world.seconds - self._communicated
        self._communicated = self._world.seconds
        self._mark, self._tokens, self._step, self._waited = now, state.tokens_seen, state.step, 0.0
        starting, self._starting = min(self._starting or 0.0, waited), 0.0
        self._judge(waited - starting, elapsed - starting, state.step)
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
            data_wait=waited / elapsed,
            communication=None if math.isnan(communicated) else min(communicated / elapsed, 1.0),
            tokens_by_corpus=dict(state.tokens_by_corpus),
            bytes_seen=state.bytes_seen,
        )

    def _judge(self, waited: float, elapsed: float, step: int) -> None:
        """Print one line in the run if the loader is the bottleneck; short intervals are put together."""
        if self._judged is None:
            return
        waited, elapsed = waited + self._judged[0], elapsed + self._judged[1]
        self._judged = (waited, elapsed) if elapsed < _JUDGED_SECONDS else (0.0, 0.0)
        if elapsed >= _JUDGED_SECONDS and waited > TOO_MUCH * elapsed:
            self._judged = None
            advice = bottleneck_advice(waited / elapsed, self._num_workers, max(usable_cores() // processes_here(), 1))
            warn(f"waiting for batches took {waited / elapsed:.0%} of the time up to step {step:,}: {advice}")


def bottleneck_advice(waiting: float, num_workers: int, cores: int) -> str:
    """Return what to do about a loader that takes a share of the time, on a machine with that many cores."""
    # Workers make batches while a step computes: without any, enough that each batch is there when a step ends; with
    # some, as many more as they are too slow.
    rest = max(1 - waiting, 0.01)
    needed = math.ceil((num_workers or waiting) / rest)
    tried = min(max(needed, num_workers + 1), cores)
    if tried <= num_workers:
        return f"training.num_workers={num_workers} already uses the {cores} cores: make shorter work of the collator"
    return f"try training.num_workers={tried} (now {num_workers}), which changes nothing else"
