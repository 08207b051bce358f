"""Three objectives, two optimizers, a byte tokenizer and an observer for foundry.

Light: other modules are imported when used.
"""

import json
from pathlib import Path

from pydantic import Field

from foundry_core import (
    ConfigSection,
    EvaluationReport,
    Objective,
    Optimizer,
    RunInfo,
    TokenizerType,
    hookimpl,
)


class SpanSettings(ConfigSection):
    """The section `training.objective_settings` of span_corruption."""

    hidden_share: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are hidden")
    mean_span: float = Field(3.0, ge=1, description="mean length of a hidden span, in tokens")


class SmoothingSettings(ConfigSection):
    """The section `training.objective_settings` of smoothed_lm."""

    smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target that all tokens have in equal parts")


class DistillationSettings(ConfigSection):
    """The section `training.objective_settings` of distilled_lm."""

    teacher: str = Field(description="folder of a checkpoint with the same tokenizer")
    weight: float = Field(0.5, ge=0, le=1, description="weight of the teacher's predictions; the rest is the text's")


class LionSettings(ConfigSection):
    """The section `training.optimizer_settings` of lion."""

    beta1: float = Field(0.9, ge=0, lt=1, description="weight of the momentum in the update")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the momentum")


class MuonSettings(ConfigSection):
    """The section `training.optimizer_settings` of muon."""

    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the momentum of matrices")


@hookimpl
def foundry_objectives() -> list[Objective]:
    return [
        Objective(
            name="span_corruption",
            summary="predict hidden spans of tokens from both sides (Raffel et al. 2020, Joshi et al. 2020)",
            causal=False,
            layout="framed",
            collator="foundry_example.collator:span_collator",
            required_tokens=("mask_token", "cls_token", "sep_token"),
            same_interface_as="masked_lm",
            settings=SpanSettings,
        ),
        # The collator is core's, that of causal_lm.
        Objective(
            name="smoothed_lm",
            summary="predict each token, not with certainty (Szegedy et al. 2016)",
            causal=True,
            layout="overlap",
            collator=None,
            same_interface_as="causal_lm",
            settings=SmoothingSettings,
            loss="foundry_example.losses:smoothed",
        ),
        Objective(
            name="distilled_lm",
            summary="predict each token as a trained model does (Hinton et al. 2015)",
            causal=True,
            layout="overlap",
            collator=None,
            same_interface_as="causal_lm",
            settings=DistillationSettings,
            loss="foundry_example.losses:distilled",
        ),
    ]


@hookimpl
def foundry_optimizers() -> list[Optimizer]:
    return [
        Optimizer(
            name="lion",
            summary="the sign of a momentum, with decoupled weight decay (Chen et al. 2023)",
            builder="foundry_example.lion:lion",
            settings=LionSettings,
        ),
        Optimizer(
            name="muon",
            summary="an orthogonalised momentum for matrices, Adam for everything else (Jordan et al. 2024)",
            builder="foundry_example.muon:muon",
            settings=MuonSettings,
        ),
    ]


@hookimpl
def foundry_tokenizer_types() -> list[TokenizerType]:
    return [
        TokenizerType(
            name="bytes",
            summary="one token for each byte of UTF-8 (Xue et al. 2022)",
            trainer="foundry_example.bytes_tokenizer:train",
        )
    ]


class _Best:
    """The best evaluation of the current run."""

    folder: Path | None = None
    loss: float | None = None


@hookimpl
def foundry_run_started(run: RunInfo) -> None:
    _Best.folder, _Best.loss = run.output_dir, None
    file = run.output_dir / "best.json"
    if run.first_step and file.exists():
        _Best.loss = json.loads(file.read_text())["loss"]


@hookimpl
def foundry_evaluated(report: EvaluationReport) -> None:
    if _Best.folder is not None and (_Best.loss is None or report.loss < _Best.loss):
        _Best.loss = report.loss
        (_Best.folder / "best.json").write_text(json.dumps({"step": report.step, "loss": report.loss}) + "\n")
