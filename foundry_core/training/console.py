"""The terminal during a run: a progress bar where there is one, plain lines otherwise."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import IO, Any, cast

from foundry_core.errors import tell
from foundry_core.registry.hookspecs import hookimpl
from foundry_core.registry.reports import EvaluationReport, RunInfo, StepReport, SuiteReport


def duration(seconds: float) -> str:
    """Return `1:02:03` or `02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def compact(number: float) -> str:
    """Return a number with three figures: `12.3k`, `4.56M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def amounts(epochs: float, tokens: float, words: float, text_bytes: float) -> str:
    """Return an amount of the training text in each unit."""
    return f"{round(epochs, 3):,} epochs, {tokens:,} tokens, {words:,} words, {text_bytes:,} bytes"


def share(part: float) -> str:
    """Return a share as a percentage, `3.10%`; only 0 itself is shown as 0."""
    return f"{max(part, 0.0001) if part else 0:.2%}"


def _seen(report: EvaluationReport | SuiteReport) -> str:
    return f"after {compact(report.words_seen)} words, {compact(report.tokens_seen)} tokens"


class Stderr:
    """stderr for a library that draws on it; a closed pipe or a full disk behind it stops nothing."""

    @property
    def _stream(self) -> Any:
        # While rich shows a bar, it redirects stderr to here: writing to that again would recurse.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            tell(text, self._stream)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and bool(self._stream.isatty())


class Console:
    """The terminal: a progress bar where there is one, plain lines otherwise."""

    def __init__(self, stream: IO[str] | None = None):
        from rich.console import Console as RichConsole

        self._console = RichConsole(file=stream or cast(IO[str], Stderr()), highlight=False, soft_wrap=True)
        self._progress: Any = None
        self._task: Any = None

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        start = f"from step {run.first_step}, " if run.first_step else ""
        facts = ", ".join(f"{key} {value}" for key, value in run.facts.items())
        units = [run.budget[unit] for unit in ("epochs", "tokens", "words", "bytes") if unit in run.budget]
        budget = f"{run.total_steps} steps" + (f", {amounts(*units)}" if len(units) == 4 else "")
        self._console.print(f"{run.experiment_name}: {start}{budget}; {facts}", markup=False)
        if not self._console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        name, line = TextColumn("{task.description}"), TextColumn("{task.fields[line]}")
        self._progress = Progress(name, BarColumn(), MofNCompleteColumn(), line, console=self._console)
        self._progress.start()
        steps = {"total": run.total_steps, "completed": run.first_step}
        self._task = self._progress.add_task(run.experiment_name, **steps, line="")

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        terms = "".join(f"{name} {term:.4f}  " for name, term in report.auxiliary.items())
        talk = f"{report.communication:.0%} communication  " if report.communication else ""
        line = (
            f"loss {report.loss:.4f}  {terms}lr {report.learning_rate:.2e}  "
            f"{compact(report.tokens_per_second)} tokens/s  {talk}{duration(report.seconds_left)} left"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=report.step, line=line)
        else:
            self._console.print(f"step {report.step}/{report.total_steps}  {line}", markup=False)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        bits = f"  bits per byte {report.bits_per_byte:.4f}" if report.bits_per_byte is not None else ""
        if report.perplexity_per_word is not None:
            bits = f"  per word {report.perplexity_per_word:.2f}{bits}"
        unknown = f"  unknown tokens {share(report.unknown_share)}" if report.unknown_share else ""
        scores = f"{report.corpus} loss {report.loss:.4f}  perplexity {report.perplexity:.2f}{bits}{unknown}"
        self._console.print(f"step {report.step}  {scores}  {_seen(report)}", markup=False)

    @hookimpl
    def foundry_suite_scored(self, report: SuiteReport) -> None:
        low, high = report.interval
        scores = f"accuracy {report.accuracy:.3f} ({low:.3f} to {high:.3f})  macro {report.macro:.3f}"
        self._console.print(f"step {report.step}  {report.suite}: {scores}  {_seen(report)}", markup=False)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        if self._progress is not None:
            self._progress.stop()
