"""Profiling a few steps of a run: a trace of them, and a table of where their time goes.

Only a run that asks for it uses this trainer; what it computes is the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from foundry_core.checkpoints.state import TrainState
from foundry_core.data.workers import Batch
from foundry_core.devices import wait_for
from foundry_core.errors import tell, warn
from foundry_core.registry.reports import StepReport
from foundry_core.run_folder import PROFILE, PROFILE_TABLE, PROFILE_TRACE
from foundry_core.storage.files import StorageError, scratch_reported, write_file
from foundry_core.training.signals import StopRequest
from foundry_core.training.trainer import Trainer

PARTS = ("loader", "forward", "backward", "optimizer", "logging", "evaluation", "saving", "rest")
"""What the time of a step is divided into; each moment belongs to one of them."""

_WARM_UP = 3
_OPERATORS = 15
_RANGE = "foundry: "


class ProfiledTrainer(Trainer):
    """A trainer that profiles some of its steps, after a few that warm up, and then trains like any other.

    A run that is too short has fewer of them. The table and the trace go into the run's folder. A device
    other than the CPU is waited for at the end of each part while steps are profiled.
    """

    def __init__(self, *arguments: Any, profiled_steps: int):
        super().__init__(*arguments)
        self._profiled_steps = profiled_steps
        self._profile: _Profile | None = None

    def train(self, stop: StopRequest | None = None) -> TrainState:
        left = self.plan.total_steps - self.state.step
        warm_up = max(min(_WARM_UP, left - 1), 0)
        count = min(self._profiled_steps, left - warm_up)
        if count > 0:
            self._begin_profile(_Profile(count, warm_up, self.device))
        try:
            return super().train(stop)
        finally:
            self._end_profile()

    def _begin_profile(self, running: _Profile) -> None:
        self._profile, self._own = running, (self.forward, self.own_loss)
        self.forward = running.during("forward", "backward", self.forward)
        if self.own_loss is not None:
            self.own_loss = running.during("forward", "backward", self.own_loss)
        running.start()

    def _end_profile(self) -> None:
        """Write what was profiled and go back to plain training; a disk that refuses it stops nothing."""
        running, self._profile = self._profile, None
        if running is None:
            return
        self.forward, self.own_loss = self._own
        running.stop()
        if running.steps == 0:
            return
        folder = self.output_dir / PROFILE
        text = running.table(self.state.step)
        try:
            running.write_trace(folder / PROFILE_TRACE)
            write_file(folder / PROFILE_TABLE, text.encode())
            tell(f"{text}\nin {folder / PROFILE_TABLE}; {PROFILE_TRACE} opens in https://ui.perfetto.dev\n")
        except StorageError as error:
            tell(f"{text}\n")
            warn(f"the profile was not stored: {error}")

    def batches(self) -> Iterator[Batch]:
        source = super().batches()
        while True:
            with self._part("loader"):
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    def take_step(self, micro_batches: list[Batch]) -> tuple[dict[str, float], float, float]:
        taken = super().take_step(micro_batches)
        if self._profile is not None and self._profile.step_ended():
            self._end_profile()
        return taken

    def _add_gradient(self, batch: Batch, divisor: int, number: int) -> dict[str, torch.Tensor]:
        figures = super()._add_gradient(batch, divisor, number)
        if self._profile is not None:
            self._profile.enter("optimizer")
        return figures

    def _advance(self, samples: int) -> None:
        with self._part("rest"):
            super()._advance(samples)

    def _log_step(self, report: StepReport) -> None:
        with self._part("logging"):
            super()._log_step(report)

    def _evaluate(self) -> None:
        with self._part("evaluation"):
            super()._evaluate()

    def _save(self, *, ephemeral: bool = False) -> None:
        with self._part("saving"):
            super()._save(ephemeral=ephemeral)

    def _part(self, name: str) -> _Part:
        return _Part(self._profile, name)


class _Part:
    """A part of a step as a context manager, after which the rest begins; nothing when no steps are profiled."""

    def __init__(self, running: _Profile | None, name: str):
        self._running, self._name = running, name

    def __enter__(self) -> None:
        if self._running is not None:
            self._running.enter(self._name)

    def __exit__(self, *exception: object) -> None:
        if self._running is not None:
            self._running.enter("rest")


class _Profile:
    """Profiles steps: from the end of the step before the first of them to the end of the last.

    Args:
        count: Steps to profile.
        warm_up: Steps before them.
        device: The device to wait for.
    """

    def __init__(self, count: int, warm_up: int, device: torch.device):
        self._device, self._cuda = device, device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        ahead = {"wait": max(warm_up - 1, 0), "warmup": min(warm_up, 1)}
        self._profiler = profile(activities=activities, schedule=schedule(**ahead, active=count, repeat=1))
        self._count, self._left = count, warm_up
        self.steps = 0
        """Steps profiled so far."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._name, self._range, self._since = "rest", record_function(f"{_RANGE}rest"), 0.0

    def start(self) -> None:
        """Begin, before the first step of the warm-up."""
        self._profiler.start()
        self._open("rest")

    def stop(self) -> None:
        """End, also in the middle of a step, which then does not count."""
        self._close()
        self._profiler.stop()

    def step_ended(self) -> bool:
        """Note the end of a step. Return whether it was the last one to profile."""
        self._close()
        if self._left:
            self._left -= 1
            self._seconds = dict.fromkeys(PARTS, 0.0)
        else:
            self.steps += 1
            self._whole = dict(self._seconds)
        self._profiler.step()
        self._open("rest")
        return self.steps == self._count

    def enter(self, name: str) -> None:
        """End the present part and begin another one."""
        if name != self._name:
            self._close()
            self._open(name)

    def during(self, name: str, after: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as a part, after which another one begins."""

        def watched(*arguments: Any, **settings: Any) -> Any:
            self.enter(name)
            try:
                return function(*arguments, **settings)
            finally:
                self.enter(after)

        return watched

    def _open(self, name: str) -> None:
        self._name, self._since = name, time.perf_counter()
        self._range = record_function(_RANGE + name)
        self._range.__enter__()  # type: ignore[no-untyped-call]

    def _close(self) -> None:
        wait_for(self._device)
        self._range.__exit__(None, None, None)
        self._seconds[self._name] += time.perf_counter() - self._since

    def write_trace(self, path: Path) -> None:
        """Write the events in Chrome's format."""
        with scratch_reported(), tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / PROFILE_TRACE
            self._profiler.export_chrome_trace(str(made))
            content = made.read_bytes()
        write_file(path, content)

    def table(self, last: int) -> str:
        """Return where the time went, by part and by operator; `last` is the last step that was profiled."""
        whole = sum(self._whole.values())
        parts = [(name, f"{1e3 * s / self.steps:.3f}", f"{s / whole:.1%}") for name, s in self._whole.items() if s]
        parts.append(("all", f"{1e3 * whole / self.steps:.3f}", "100.0%"))
        spent = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        events = [each for each in self._profiler.key_averages() if not each.key.startswith((_RANGE, "ProfilerStep"))]
        total = max(sum(getattr(each, spent) for each in events), 1e-9)
        events = sorted(events, key=lambda each: -float(getattr(each, spent)))[:_OPERATORS]
        operators = [
            (
                each.key[:60],
                f"{getattr(each, spent) / 1e3 / self.steps:.3f}",
                f"{getattr(each, spent) / total:.1%}",
                f"{each.count / self.steps:.0f}",
            )
            for each in events
        ]
        title = f"{self.steps} step{'s' * (self.steps > 1)} to step {last}; the profiler itself takes time, too"
        device = "GPU" if self._cuda else "CPU"
        head = (f"operator, its own {device} time", "ms per step", "share", "calls")
        return "\n".join([title, "", *_columns(("part", *head[1:3]), parts), "", *_columns(head, operators)]) + "\n"


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a table, the first column to the left and figures to the right."""
    cells = [header, *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    return [
        "  ".join(
            cell.rjust(w) if place else cell.ljust(w) for place, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
