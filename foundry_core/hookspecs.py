"""The hooks a plugin may implement; pluggy calls every active implementation.

Mark an implementation with `from foundry_core import hookimpl`. An installed package is active only when the run uses
its architecture or names its module under `plugins:`. Observers hear of a run and cannot change it: what they return
is ignored, and one that raises is reported once and muted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

from foundry_core.objective import Objective

hookspec = pluggy.HookspecMarker("foundry")
hookimpl = pluggy.HookimplMarker("foundry")


@dataclass(frozen=True)
class RunInfo:
    """What is known when a run starts: the resolved configuration as plain data, where it writes, what it plans."""

    experiment_name: str
    output_dir: Path
    config: Mapping[str, Any]
    total_steps: int
    first_step: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    wandb_run_id: str | None = None


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. loss: nats per predicted token of this step. learning_rate: the one applied.

    grad_norm: before clipping. tokens_per_second: since the last report. *_seen: since the start of the experiment,
    padding and overlap not counted. seconds_left: at the present speed.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_seen: int
    words_seen: int
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EvaluationReport:
    """Scores on the test corpus. loss: nats per predicted token; perplexity: its exponential.

    bits_per_byte: all nats over the UTF-8 bytes of the documents, in bits; None when the objective is not causal,
    because the hidden tokens of a masked model do not add up to the probability of the text.
    """

    step: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int


@hookspec
def foundry_objectives() -> list[Objective]:  # type: ignore[empty-body]
    """Offer further values of `training.objective`.

    @hookimpl
    def foundry_objectives():
        return [Objective(name="prefix_lm", summary="...", causal=True, layout="overlap",
                          collator="foundry_prefix.collator:prefix_collator", auto_class="AutoModelForCausalLM")]
    """


@hookspec
def foundry_run_started(run: RunInfo) -> None:
    """Called once before the first step.

    @hookimpl
    def foundry_run_started(run):
        log.info("%s: %d steps", run.experiment_name, run.total_steps)
    """


@hookspec
def foundry_step_ended(report: StepReport) -> None:
    """Called every `logging.log_every_steps` optimizer steps, and after the last.

    @hookimpl
    def foundry_step_ended(report):
        history.append((report.step, report.loss))
    """


@hookspec
def foundry_evaluated(report: EvaluationReport) -> None:
    """Called after each evaluation on the test corpus.

    @hookimpl
    def foundry_evaluated(report):
        log.info("step %d: perplexity %.2f", report.step, report.perplexity)
    """


@hookspec
def foundry_checkpoint_saved(step: int, folder: Path) -> None:
    """Called when a checkpoint is safely on the disk.

    @hookimpl
    def foundry_checkpoint_saved(step, folder):
        queue.put(folder)
    """


@hookspec
def foundry_run_ended(step: int) -> None:
    """Called once when the loop is left, also by an error.

    @hookimpl
    def foundry_run_ended(step):
        log.close()
    """
