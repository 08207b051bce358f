"""What a run tells the outside: terminal, metrics.jsonl, TensorBoard, Weights & Biases.

Each is an observer, written as hook implementations, and none is treated otherwise than a plugin's. Observers cannot
change training: `Notifier` gives each a copy of its own, restores what `kept_settings` names after it, and mutes one
that raises.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import pluggy

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError, PluginError, tell
from foundry_core.registry.hooks import owner_of
from foundry_core.registry.hookspecs import EvaluationReport, RunInfo, StepReport, hookimpl
from foundry_core.registry.isolation import cause, guarded, kept_settings
from foundry_core.run_folder import METRICS, TENSORBOARD
from foundry_core.storage.files import AppendedLines, StorageError, read_appended, write_file


class _Muted(PluginError):  # noqa: N818 - what becomes of the observer
    """An observer that failed."""


class Notifier:
    """Tells every observer; a failing one is reported on stderr once and muted.

    Whatever an observer does before it returns, training goes on as if it had not been there: it gets copies, and what
    `kept_settings` names is put back. It can take time, and it can touch files: a checkpoint's are not to be
    changed.
    """

    def __init__(self, manager: pluggy.PluginManager, stream: IO[str] | None = None):
        self._manager = manager
        self._stream = stream
        self._muted: set[int] = set()

    def tell(self, hook: str, **facts: Any) -> None:
        """Call a hook, such as `foundry_step_ended`, on every observer that is not muted."""
        with kept_settings():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if id(implementation.plugin) not in self._muted:
                    self._tell(implementation, hook, facts)

    def _tell(self, implementation: pluggy.HookImpl, hook: str, facts: Mapping[str, Any]) -> None:
        plugin = implementation.plugin

        def failure(error: BaseException) -> BaseException:
            # A disk that refuses the metrics will refuse the checkpoint too.
            fatal = isinstance(error, StorageError) and isinstance(plugin, MetricsFile)
            return (
                error if fatal else _Muted(f"observer {owner_of(plugin)} failed in {hook} and is muted: {cause(error)}")
            )

        try:
            with guarded(failure):
                implementation.function(**{name: deepcopy(facts[name]) for name in implementation.argnames})
        except _Muted as muted:
            self._muted.add(id(plugin))
            tell(f"warning: {muted}\n", self._stream)


class MetricsFile:
    """metrics.jsonl: one JSON object for each logged step and each evaluation, with `kind`."""

    def __init__(self, path: Path):
        self._path = path
        self._lines: AppendedLines | None = None

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        if os.path.lexists(self._path):
            _drop_after(self._path, run.first_step)
        self._lines = AppendedLines(self._path)

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        self._append("train", asdict(report))

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        self._append("eval", asdict(report))

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        if self._lines is not None:
            self._lines.close()

    def _append(self, kind: str, facts: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.append(json.dumps({"kind": kind, **facts}))


def _drop_after(path: Path, step: int) -> None:
    """Cut the lines of steps that a resumed run will take again, and what is none, such as one that a crash tore."""
    kept = []
    for line in read_appended(path).split(b"\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_file(path, b"".join(kept))


def duration(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def compact(number: float) -> str:
    """`12.3k`, `4.56M`: three figures, for people."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


class _Stderr:
    """stderr for a library that draws on it: a reader that has gone, or a full disk behind it, stops nothing."""

    @property
    def _stream(self) -> Any:
        # While rich shows a bar, what is written to stderr comes here: to write it there would go in circles.
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

        self._console = RichConsole(file=stream or cast(IO[str], _Stderr()), highlight=False, soft_wrap=True)
        self._progress: Any = None
        self._task: Any = None

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        start = f"from step {run.first_step}, " if run.first_step else ""
        facts = ", ".join(f"{key} {value}" for key, value in run.facts.items())
        self._console.print(f"{run.experiment_name}: {start}{run.total_steps} steps; {facts}", markup=False)
        if not self._console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
        ]
        self._progress = Progress(*columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task(
            run.experiment_name, total=run.total_steps, completed=run.first_step, line=""
        )

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        line = (
            f"loss {report.loss:.4f}  lr {report.learning_rate:.2e}  {compact(report.tokens_per_second)} tokens/s  "
            f"{duration(report.seconds_left)} left"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=report.step, line=line)
        else:
            self._console.print(f"step {report.step}/{report.total_steps}  {line}", markup=False)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        bits = f"  bits per byte {report.bits_per_byte:.4f}" if report.bits_per_byte is not None else ""
        line = f"step {report.step}  test loss {report.loss:.4f}  perplexity {report.perplexity:.2f}{bits}"
        self._console.print(line, markup=False)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def reading(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes read, on a terminal; gives the function that is told how many were read."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = RichConsole(file=cast(IO[str], _Stderr()))
    if quiet or not console.is_terminal:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.update(task, completed=count)


class TensorBoard:
    """TensorBoard events under the names people expect; the x axis is the optimizer step."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FoundryError("logging.tensorboard needs a package: pip install foundry-core[tensorboard]") from error
        self._folder, self._writer_class = folder, SummaryWriter
        self._writer: Any = None

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        self._writer = self._writer_class(str(self._folder), purge_step=run.first_step + 1 if run.first_step else None)

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        self._writer.add_scalar("train/loss", report.loss, report.step)
        self._writer.add_scalar("train/learning_rate", report.learning_rate, report.step)
        self._writer.add_scalar("train/grad_norm", report.grad_norm, report.step)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        self._writer.add_scalar("eval/loss", report.loss, report.step)
        self._writer.add_scalar("eval/perplexity", report.perplexity, report.step)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        self._writer.close()


class WeightsAndBiases:
    """W&B under the same names; a resumed run goes on in the run it belongs to."""

    def __init__(self, project: str | None, folder: Path):
        try:
            import wandb
        except ImportError as error:
            raise FoundryError("logging.use_wandb needs a package: pip install foundry-core[wandb]") from error
        self._wandb, self._project, self._folder = wandb, project, folder

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        self._wandb.init(
            project=self._project,
            name=run.experiment_name,
            id=run.wandb_run_id,
            resume="allow",
            dir=str(self._folder),
            config=dict(run.config),
        )

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        facts = {"loss": report.loss, "learning_rate": report.learning_rate, "grad_norm": report.grad_norm}
        self._wandb.log({f"train/{key}": value for key, value in facts.items()}, step=report.step)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        self._wandb.log({"eval/loss": report.loss, "eval/perplexity": report.perplexity}, step=report.step)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        self._wandb.finish()


def observers(config: ExperimentConfig, *, quiet: bool = False) -> Iterable[Any]:
    """Those that the `logging` section asks for."""
    folder = Path(config.training.output_dir)
    found: list[Any] = [MetricsFile(folder / METRICS)]
    if not quiet:
        found.append(Console())
    if config.logging.tensorboard:
        found.append(TensorBoard(folder / TENSORBOARD))
    if config.logging.use_wandb:
        os.environ.setdefault("WANDB_SILENT", "true")
        found.append(WeightsAndBiases(config.logging.wandb_project, folder))
    return found
