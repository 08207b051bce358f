"""Where the metrics of a run go: metrics.jsonl, TensorBoard, Weights & Biases.

Each sink is an observer written as hook implementations, treated exactly like a plugin's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError
from foundry_core.registry.hookspecs import EvaluationReport, RunInfo, StepReport, hookimpl
from foundry_core.run_folder import METRICS, TENSORBOARD
from foundry_core.storage.files import AppendedLines, read_appended, write_file
from foundry_core.training.console import Console


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
    """Remove the lines of steps that a resumed run will take again, and lines that a crash tore."""
    kept = [line for line in read_appended(path).split(b"\n") if reports_up_to(line, step)]
    write_file(path, b"".join(line + b"\n" for line in kept))


def reports_up_to(line: bytes, step: float) -> bool:
    """Check that a line of the log is a whole report, of that step or an earlier one."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


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
