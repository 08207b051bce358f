"""Checks of observers: their hooks take what a run gives them, and change nothing but files of their own."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from foundry_core.registry.hooks import hook_manager
from foundry_core.registry.reports import EvaluationReport, RunInfo, StepReport, SuiteReport
from foundry_core.run_folder import MODEL_CONFIG, WEIGHTS
from foundry_core.storage.files import write_file
from foundry_core.testing.extensions.check import Function, bench, check, described
from foundry_core.testing.extensions.experiment import experiment
from foundry_core.testing.extensions.subjects import Subject, observing_hooks
from foundry_core.testing.kit.check import NonconformanceError, NotApplicableError, listed, require
from foundry_core.testing.kit.processes import forked
from foundry_core.testing.kit.surroundings import changed, settings
from foundry_core.training.notifier import Notifier

LONGEST_CALL = 0.1
"""Seconds that a call after a logged step may take; a step of a small model takes as long."""

_STEP = StepReport(
    step=10,
    total_steps=30,
    epoch=0.5,
    loss=3.2,
    learning_rate=1e-3,
    grad_norm=0.8,
    tokens_seen=5000,
    words_seen=4000,
    tokens_per_second=20000.0,
    seconds_left=2.0,
)
Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class ObserverBench:
    """The module of an observer, and the events of a run."""

    subject: Subject

    @property
    def module(self) -> ModuleType:
        assert self.subject.module is not None
        return self.subject.module

    def events(self, output_dir: Path, *, first_step: int = 0, causal: bool = True) -> Iterator[Event]:
        """Yield what happens in a run: hooks with their arguments. Makes the folders of its checkpoints."""
        subject = replace(self.subject, kind="observer")
        config = experiment(subject, training={"output_dir": str(output_dir)}).resolved()
        facts = {"parameters": 12345, "device": "cpu", "precision": "fp32", "threads": 1, "compile": False}
        yield "foundry_run_started", {"run": RunInfo("check", output_dir, config, 30, first_step, facts)}
        for step in range(first_step + 10, 31, 10):
            report = replace(_STEP, step=step, epoch=step / 20, loss=_STEP.loss - step / 100)
            yield "foundry_step_ended", {"report": report}
            score = EvaluationReport(step, report.loss, 2.718**report.loss, 1.9 if causal else None, 700)
            yield "foundry_evaluated", {"report": score}
            yield "foundry_suite_scored", {"report": SuiteReport(step, "blimp", 0.6, 0.6, 1000, (0.57, 0.63))}
            folder = output_dir / f"checkpoint-{step}"
            for name in (MODEL_CONFIG, WEIGHTS):
                write_file(folder / name, f"{name} of step {step}".encode())
            yield "foundry_checkpoint_saved", {"step": step, "folder": folder}
        yield "foundry_run_ended", {"step": 30}

    def call(self, event: Event) -> None:
        """Call the hook of an event, if the observer has it, with copies; what it raises is not muted."""
        hook, arguments = event
        for implementation in getattr(hook_manager([self.module]).hook, hook).get_hookimpls():
            implementation.function(**{name: deepcopy(arguments[name]) for name in implementation.argnames})


def apart(function: Function) -> Function:
    """Run a check in another process, so that what an observer leaves behind does not reach other checks."""

    @wraps(function)
    def in_a_child(bench: ObserverBench) -> str | None:
        def answer() -> bytes:
            try:
                return (function(bench) or "").encode()
            except Exception as error:
                raise NonconformanceError(described(error, bench.subject)) from error

        return forked(answer)[0].decode() or None

    return in_a_child


@bench("observer")
def observer_bench(subject: Subject) -> ObserverBench:
    return ObserverBench(subject)


@check(
    "observer",
    "runs",
    fix="The named line raises an exception: in training it is printed once, and the observer is not called again. "
    "bits_per_byte is None for a masked model; a second run in one process starts with foundry_run_started, as does a "
    "resumed one, with `run.first_step` above 0.",
)
@apart
def runs(bench: ObserverBench) -> str:
    """Every hook accepts its arguments in the order of a run: of a causal and of a masked model, one after the other,
    and resumed.
    """
    for first_step, causal in ((0, True), (0, False), (10, True)):
        with TemporaryDirectory(prefix="foundry-check-") as folder:
            for event in bench.events(Path(folder), first_step=first_step, causal=causal):
                bench.call(event)
    return f"observes {', '.join(name.removeprefix('foundry_') for name in observing_hooks(bench.module))}"


@check(
    "observer",
    "side-effects",
    fix="After a hook core restores random generators, threads, default dtype, grad mode and the working folder. "
    "Everything else stays changed: set no environment variables, signal handlers or settings of torch.",
)
@apart
def side_effects(bench: ObserverBench) -> None:
    """A run with the observer leaves the environment, settings of torch and handlers of signals as they were."""
    watched = (signal.SIGTERM, signal.SIGINT)
    with TemporaryDirectory(prefix="foundry-check-") as folder:
        notifier = Notifier(hook_manager([bench.module]), stream=io.StringIO())
        before, handlers = settings(), [signal.getsignal(number) for number in watched]
        for hook, arguments in bench.events(Path(folder)):
            notifier.tell(hook, **arguments)
            touched = changed(before, settings())
            require(not touched, f"{hook} changes {listed(touched)}")
            same = [signal.getsignal(number) for number in watched] == handlers
            require(same, f"{hook} sets a handler for SIGTERM or SIGINT, with which core saves and stops")


@check(
    "observer",
    "checkpoints",
    fix="Copy what you need elsewhere, and write into a folder or file of your own: a checkpoint whose files have "
    "changed counts as damaged.",
)
@apart
def checkpoints(bench: ObserverBench) -> None:
    """The folders of checkpoints stay as they were saved."""
    with TemporaryDirectory(prefix="foundry-check-") as place:
        for event in bench.events(Path(place)):
            folder = event[1].get("folder")
            before = _files(folder) if folder is not None else {}
            bench.call(event)
            if folder is not None:
                require(_files(folder) == before, f"{event[0]} changes files of {folder.name}")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@check(
    "observer",
    "failures",
    fix="Let an exception pass, such as OSError for a full disk: core prints it once, mutes the observer and goes on. "
    "os._exit, a signal or KeyboardInterrupt ends the training that the observer watches.",
)
@apart
def failures(bench: ObserverBench) -> str:
    """An observer whose files cannot be written goes on or raises exceptions, which core mutes; training goes on."""
    stream = io.StringIO()
    with TemporaryDirectory(prefix="foundry-check-") as place:
        events = list(bench.events(Path(place)))
        gone = Path(place) / "gone"
        for hook, arguments in events:
            moved = dict(arguments)
            if "run" in moved:
                moved["run"] = replace(moved["run"], output_dir=gone)
            if "folder" in moved:
                moved["folder"] = gone / moved["folder"].name
            try:
                Notifier(hook_manager([bench.module]), stream=stream).tell(
                    hook, **moved
                )  # a new one: nothing is muted yet
            except BaseException as error:
                raise NonconformanceError(f"{hook} ends the run with {type(error).__name__}") from error
    return "muted where its folder is missing" if stream.getvalue() else "goes on where its folder is missing"


@check(
    "observer",
    "time",
    fix="Do less after each step: collect, and write every so often or at the end, or hand the work to a thread.",
)
def takes_time(bench: ObserverBench) -> str | None:
    """A call of foundry_step_ended takes less than 0.1 s; training waits for it."""
    if "foundry_step_ended" not in observing_hooks(bench.module):
        raise NotApplicableError("does not observe steps")
    return _timed(bench)


@apart
def _timed(bench: ObserverBench) -> str:
    with TemporaryDirectory(prefix="foundry-check-") as place:
        started, *_ = events = list(bench.events(Path(place)))
        bench.call(started)
        seconds = []
        for step in range(1, 8):
            event = ("foundry_step_ended", {"report": replace(_STEP, step=step)})
            start = time.perf_counter()
            bench.call(event)
            seconds.append(time.perf_counter() - start)
        bench.call(events[-1])
    require(median(seconds) < LONGEST_CALL, f"a call takes {1000 * median(seconds):.0f} ms")
    return f"{1000 * median(seconds):.1f} ms after each logged step"
