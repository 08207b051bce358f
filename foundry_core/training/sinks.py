"""Write the metrics of a run to metrics.jsonl, TensorBoard and Weights & Biases.

Each sink is an observer written as hook implementations, treated exactly like a plugin's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError
from foundry_core.registry.hookspecs import hookimpl
from foundry_core.registry.reports import EvaluationReport, RunInfo, StepReport, SuiteReport
from foundry_core.run_folder import METRICS, TENSORBOARD
from foundry_core.storage.files import AppendedLines, read_appended, write_file
from foundry_core.training.console import Console
from foundry_core.training.losses import AUXILIARY


class MetricsFile:
    """metrics.jsonl: one JSON object for each logged step, evaluation and suite, with `kind`."""

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
    def foundry_suite_scored(self, report: SuiteReport) -> None:
        self._append("suite", asdict(report))

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        if self._lines is not None:
            self._lines.close()

    def _append(self, kind: str, facts: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.append(json.dumps({"kind": kind, **facts}))


def _drop_after(path: Path, step: int) -> None:
    """Remove the lines of steps that a resumed run will take again, and lines that a crash tore."""
    kept = [line for line in read_appended(path).split(b"\n") if reports_up_to(line, step)]
    write_file(path, b"".join(line + b"\n" for line in kept))


def reports_up_to(line: bytes, step: float) -> bool:
    """Check that a line of the log is a whole report, of that step or an earlier one."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


_GROUPS = {"validation": "validation", "test": "eval"}
"""The first part of the names of an evaluation's curves, by its corpus."""


def _seen(group: str, report: StepReport | EvaluationReport | SuiteReport) -> dict[str, float]:
    """Return how much text had been seen: an x axis on which runs with other tokenizers or batches can be compared."""
    return {f"{group}/{unit}_seen": getattr(report, f"{unit}_seen") for unit in ("tokens", "words", "bytes")}


class _Curves:
    """Sends each logged step and each evaluation as named numbers; the x axis is the optimizer step."""

    def send(self, numbers: dict[str, float], step: int) -> None:
        raise NotImplementedError

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        names = ("loss", "learning_rate", "grad_norm")
        numbers = {f"train/{name}": getattr(report, name) for name in names}
        if report.optimised_loss is not None:
            numbers["train/optimised_loss"] = report.optimised_loss
        numbers |= {AUXILIARY + name: term for name, term in report.auxiliary.items()}
        self.send(numbers | _seen("train", report), report.step)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        group, per_word = _GROUPS[report.corpus], report.perplexity_per_word
        numbers = {f"{group}/loss": report.loss, f"{group}/perplexity": report.perplexity}
        numbers |= {} if per_word is None else {f"{group}/perplexity_per_word": per_word}
        self.send(numbers | _seen(group, report), report.step)

    @hookimpl
    def foundry_suite_scored(self, report: SuiteReport) -> None:
        numbers = {f"suites/{report.suite}": report.accuracy, f"suites/{report.suite}, macro": report.macro}
        self.send(numbers | _seen("suites", report), report.step)


def _not_installed(key: str, package: str) -> FoundryError:
    """Return the error of a package that is missing, or that something else in the search path stands in for."""
    module = sys.modules.get(package)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    found = next((f"; what Python imports as {package} is {place}" for place in places if place), "")
    return FoundryError(f"{key} needs a package: pip install model-foundry[{package}]{found}")


class TensorBoard(_Curves):
    """TensorBoard events under the names people expect."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except (ImportError, AttributeError) as error:
            raise _not_installed("logging.tensorboard", "tensorboard") from error
        self._folder, self._writer_class = folder, SummaryWriter
        self._writer: Any = None

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        self._writer = self._writer_class(str(self._folder), purge_step=run.first_step + 1 if run.first_step else None)

    def send(self, numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        self._writer.close()


class WeightsAndBiases(_Curves):
    """W&B under the same names; a resumed run continues the W&B run it belongs to."""

    def __init__(self, project: str | None, folder: Path):
        try:
            import wandb

            wandb.init, wandb.log, wandb.finish  # noqa: B018 - any folder of that name can be imported
        except (ImportError, AttributeError) as error:
            raise _not_installed("logging.use_wandb", "wandb") from error
        self._wandb, self._project, self._folder = wandb, project, folder

    @hookimpl
    def foundry_run_started(self, run: RunInfo) -> None:
        names = {"project": self._project, "name": run.experiment_name, "id": run.wandb_run_id}
        self._wandb.init(**names, resume="allow", dir=str(self._folder), config=dict(run.config))

    def send(self, numbers: dict[str, float], step: int) -> None:
        self._wandb.log(numbers, step=step)

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        self._wandb.finish()


def sinks(config: ExperimentConfig, *, quiet: bool = False) -> Iterable[Any]:
    """Return the observers that the `logging` section asks for."""
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
