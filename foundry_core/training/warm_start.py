"""A new run that starts from the weights of a checkpoint of another one: `training.start_from`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import check_whole, checkpoints
from foundry_core.checkpoints.compatibility import changed_settings, check_allowed
from foundry_core.checkpoints.state import unchecked_manifest
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.settings import covered, flat
from foundry_core.errors import CheckpointError
from foundry_core.models.building import read_description
from foundry_core.models.folder import load_weights
from foundry_core.models.interface import LanguageModel
from foundry_core.models.migrations import migrated, pending
from foundry_core.run_folder import WEIGHTS
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest

Origin: TypeAlias = dict[str, str | int]
"""Folder, step and manifest's sha256 of the checkpoint that a run started from, as every checkpoint of it records."""


def check_start(config: ExperimentConfig, allowed: Iterable[str] = ()) -> None:
    """Check the checkpoint that an experiment starts from, before anything is prepared.

    Args:
        config: The experiment.
        allowed: Keys and sections of `model` that may differ.

    Raises:
        CheckpointError: It is not whole, or of another architecture, or its settings differ.
    """
    if config.training.start_from is None:
        return
    allowed, folder = tuple(allowed), Path(config.training.start_from)
    check_allowed(allowed, config.resolved())
    _origin(folder)
    try:
        problems = [phrase for key, phrase in _differences(folder, config) if not covered(key, allowed)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"training.start_from: {folder}: its config.json is damaged: {error}") from error
    if problems:
        raise CheckpointError(
            f"training.start_from: {folder} was trained with other settings: {'; '.join(problems)}. Put them back, or "
            "allow a key by name: --allow KEY"
        )


def check_start_tokenizer(config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, *, resume: bool) -> None:
    """Raise CheckpointError if the checkpoint that a new run starts from was trained with another tokenizer."""
    start = None if resume else config.training.start_from
    if start is not None and tokenizer_digest(load_tokenizer(Path(start))) != tokenizer_digest(tokenizer):
        raise CheckpointError(
            f"training.start_from: {start} was trained with another tokenizer, and its weights mean nothing under "
            "other token ids: use its tokenizer in this run"
        )


def load_start(config: ExperimentConfig, model: LanguageModel, allowed: Iterable[str] = ()) -> Origin | None:
    """Copy the weights of the checkpoint that an experiment starts from into its model.

    Returns:
        Where they come from; None for an experiment that starts from fresh weights.

    Raises:
        CheckpointError: As `check_start`, or a tensor does not fit.
    """
    if config.training.start_from is None:
        return None
    folder = Path(config.training.start_from)
    check_start(config, allowed)
    try:
        load_weights(model, folder / WEIGHTS, pending(read_description(folder)))
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from error
    return _origin(folder)


def _origin(folder: Path) -> Origin:
    """Return the origin of a checkpoint, every file of which matches its manifest."""
    inside = checkpoints(folder)
    if inside:
        raise CheckpointError(f"training.start_from: {folder} is a run: name a checkpoint in it, such as {inside[-1]}")
    try:
        step = int(check_whole(folder)["step"])
        return {"checkpoint": str(folder), "step": step, "sha256": str(unchecked_manifest(folder)["sha256"])}
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from error


def _differences(folder: Path, config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Yield each key of `model` that differs, with a phrase."""
    description: dict[str, Any] = read_description(folder)
    was, key = description["experiment"]["model"], "model.architecture"
    if was["architecture"] != config.model.architecture:
        yield key, f"{key} was {was['architecture']!r}, is {config.model.architecture!r}"
        return
    chosen = flat({"model": config.model.model_dump(mode="json", exclude_defaults=True)})
    before, after = {"model": migrated(was, pending(description))}, {"model": config.resolved()["model"]}
    yield from changed_settings(before, after, chosen).items()
