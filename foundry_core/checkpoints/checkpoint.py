"""Checkpoints: a transformers model folder with the optimizer, the position and a manifest in addition.

No pickle, for reading or writing. A checkpoint is published whole or not at all (`storage`), loaded only when every
file matches its manifest, and removed only when a newer one is known to be whole. The optimizer's state may be in a
folder beside it, published before it and removed alone: a checkpoint stays as it was published.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.compatibility import accepted_differences, check_allowed
from foundry_core.checkpoints.optimizer_state import load_optimizer, optimizer_tensors
from foundry_core.checkpoints.state import TrainState, parent_entry, read_state, unchecked_manifest
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import CheckpointError
from foundry_core.models.folder import load_weights, model_files, stored_tensors
from foundry_core.models.interface import LanguageModel
from foundry_core.models.tensor_file import weights_file
from foundry_core.run_folder import (
    CHECKPOINT,
    OPTIMIZER,
    OPTIMIZER_FOLDER,
    TRAINER_STATE,
    WEIGHTS,
    checkpoint_name,
    optimizer_name,
)
from foundry_core.storage.files import StorageError, publish_folder, remove_set_aside, set_aside
from foundry_core.storage.manifest import read_manifest
from foundry_core.tokenization.encoding import as_trained
from foundry_core.tokenization.tokenizer_folder import tokenizer_files

Tensors: TypeAlias = dict[str, dict[str, torch.Tensor]]
"""The tensors of a checkpoint: for each of its two files, by their names in it."""


def checkpoint_tensors(
    model: LanguageModel, optimizer: torch.optim.Optimizer, kept: Mapping[str, torch.Tensor] | None = None
) -> Tensors:
    """Return the living tensors of a checkpoint, which further training changes; `kept` as of `kept_entries`."""
    return {WEIGHTS: stored_tensors(model), OPTIMIZER: optimizer_tensors(model, optimizer) | dict(kept or {})}


class TensorBuffers:
    """Room on the CPU for a consistent copy of a checkpoint's tensors, allocated once and used for every save."""

    def __init__(self) -> None:
        self._room: dict[tuple[str, str], torch.Tensor] = {}

    def copy(self, tensors: Tensors) -> Tensors:
        """Return a copy that further training does not change, valid until the next one."""
        copied = {
            file: {name: self._filled((file, name), tensor) for name, tensor in content.items()}
            for file, content in tensors.items()
        }
        if any(tensor.is_cuda for tensor in tensors[WEIGHTS].values()):
            torch.cuda.synchronize()
        return copied

    def _filled(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        room = self._room.get(key)
        if room is None or room.shape != tensor.shape:
            # CUDA copies into pinned memory without waiting.
            room = self._room[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return room.copy_(tensor, non_blocking=tensor.is_cuda)


def fixed_files(model: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """Return the files that are the same in every checkpoint of a run: model description and tokenizer."""
    framed = model.context.objective.layout == "framed"
    return model_files(model) | tokenizer_files(as_trained(tokenizer, framed=framed))


def save_checkpoint(
    output_dir: Path,
    fixed: Mapping[str, bytes],
    tensors: Tensors,
    state: TrainState,
    *,
    facts: Mapping[str, Any],
    apart: bool = False,
) -> Path:
    """Publish `checkpoint-<step>`; returns its folder once it is safely on the disk.

    Args:
        fixed: The files of `fixed_files`.
        tensors: Those of `checkpoint_tensors`, or a copy of them.
        facts: Entries of the manifest besides step and files: ephemeral, environment, and as parent the name of the
            checkpoint that training continued from.
        apart: Publish the optimizer's state first, as `optimizer-<step>`; the checkpoint's manifest records its sha256.
    """
    target, stored = output_dir / checkpoint_name(state.step), asdict(state)
    parent = parent_entry(output_dir, facts["parent"])
    if apart:
        beside, tensors = output_dir / optimizer_name(state.step), dict(tensors)
        with publish_folder(beside, {"step": state.step}) as sink:
            sink.write(OPTIMIZER, weights_file(tensors.pop(OPTIMIZER)))
        facts = {**facts, "optimizer": unchecked_manifest(beside)["files"][OPTIMIZER]}
    with publish_folder(target, {"step": state.step, **facts, "parent": parent}) as sink:
        for name, content in fixed.items():
            sink.write(name, content)
        for name, by_name in tensors.items():
            sink.write(name, weights_file(by_name))
        trainer_state = {
            "global_step": state.step,
            "epoch": state.epoch,
            "num_input_tokens_seen": state.tokens_seen,
            "log_history": stored.pop("log"),
            "foundry": stored,
        }
        sink.write(TRAINER_STATE, (json.dumps(trainer_state, indent=1) + "\n").encode())
    return target


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest step first, without reading them."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.match(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("checkpoint-"))


def check_whole(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises CheckpointError if a file, or the folder's name, has changed."""
    manifest = read_manifest(folder)
    if folder.name != f"checkpoint-{manifest.get('step')!r}":
        raise CheckpointError(f"{folder} does not match its name: its manifest records step {manifest.get('step')!r}")
    return manifest


def optimizer_file(folder: Path) -> Path:
    """Return where the optimizer's state of a checkpoint is, or was: in its folder or, kept apart, beside it."""
    apart = unchecked_manifest(folder).get("optimizer") is not None
    return (_beside(folder) if apart else folder) / OPTIMIZER


def _beside(folder: Path) -> Path:
    return folder.with_name(optimizer_name(checkpoint_step(folder)))


class StateNotKeptError(CheckpointError):
    """A checkpoint is whole, but training cannot go on from it: the optimizer's state was removed."""


def check_resumable(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check the optimizer's state of a checkpoint that is whole, if it is kept apart.

    Raises:
        StateNotKeptError: It was removed.
        CheckpointError: It is damaged, or belongs to another checkpoint.
    """
    expected = manifest.get("optimizer")
    if expected is None:
        return
    beside = _beside(folder)
    if os.path.lexists(beside) and not stat.S_ISDIR(beside.lstat().st_mode):
        raise CheckpointError(f"{beside} is not a folder of the run")
    if not beside.is_dir():
        raise StateNotKeptError(
            f"{folder}: its optimizer state was not kept: training.checkpoints.keep_optimizer: all keeps it"
        )
    if read_manifest(beside)["files"].get(OPTIMIZER) != expected:
        raise CheckpointError(f"{beside / OPTIMIZER} is not the state that {folder.name} was saved with")


def newest_valid(output_dir: str | Path, *, to_resume: bool = False) -> tuple[Path, list[str]]:
    """Return the newest checkpoint whose every file matches its manifest, and a line for each newer one passed over.

    to_resume: The optimizer's state is needed, too. Training does not begin again at step 0 because later states were
    not kept.

    Raises:
        CheckpointError: There is none.
    """
    passed_over, none, kept = [], "it has no valid checkpoint", True
    for folder in reversed(checkpoints(output_dir)):
        try:
            manifest = check_whole(folder)
            if to_resume:
                check_resumable(folder, manifest)
        except CheckpointError as error:
            passed_over.append(f"{folder.name} is passed over: {error}")
            kept = kept and not isinstance(error, StateNotKeptError)
        else:
            if kept or checkpoint_step(folder) > 0:
                return folder, passed_over
            none = "only step 0 is left to begin again from, for which choose another training.output_dir"
    raise CheckpointError("; ".join([f"nothing to resume in {output_dir}: {none}", *passed_over]))


def load_checkpoint(
    folder: Path,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    *,
    config: ExperimentConfig,
    fresh: TrainState,
    allowed: Iterable[str] = (),
) -> TrainState:
    """Put a checkpoint into the model and the optimizer that continue training; returns its state.

    Args:
        folder: Known to be whole, from `newest_valid`.
        fresh: The state that a new run would begin with, for its data and its choices.
        allowed: Keys and sections of the configuration that may differ.

    Raises:
        CheckpointError: Configuration, data or precision differ from those it was trained with; lists what differs.
    """
    allowed = tuple(allowed)
    check_allowed(allowed, config.resolved())
    state = read_state(folder)
    differences = accepted_differences(folder, state, config, fresh, allowed)
    state.data, state.stream = fresh.data, fresh.stream
    state.precision, state.compile, state.kernels = fresh.precision, fresh.compile, fresh.kernels
    load_weights(model, folder / WEIGHTS)
    # The state of one optimizer means nothing to another, which starts without one if the change was allowed.
    if "training.optimizer" not in differences:
        load_optimizer(optimizer_file(folder), state.optimizer, model, optimizer, begun=state.step > 0)
    return state


def is_ephemeral(folder: Path) -> bool:
    """Check whether a checkpoint was saved for crash safety only; False if its manifest cannot be read."""
    try:
        return unchecked_manifest(folder)["ephemeral"] is True
    except (CheckpointError, KeyError, TypeError):
        return False


def retire(
    output_dir: Path,
    keep: int | None,
    newest: Path,
    *,
    ephemeral: Collection[Path],
    damaged: Collection[Path],
    states: int | None = None,
    kept_steps: Collection[int] = (),
) -> list[str]:
    """Remove the ephemeral checkpoints before `newest`, and the permanent ones older than the last `keep` of them.

    That of step 0 stays. States of the optimizer that are kept apart go with their checkpoint, or before it.

    Args:
        newest: Known to be whole, because it has just been published or loaded.
        damaged: Those that were passed over; they do not count among the last.
        states: The number of newest checkpoints to keep the optimizer's state of; None for all.
        kept_steps: The steps of permanent checkpoints that stay, however old they are.

    Returns:
        A line for each folder that could not be removed.
    """
    older = [path for path in checkpoints(output_dir) if checkpoint_step(path) < checkpoint_step(newest)]
    permanent = [path for path in (*older, newest) if path not in ephemeral and checkpoint_step(path) > 0]
    last = [path for path in permanent if path not in damaged][-keep:] if keep is not None else permanent
    victims = [path for path in older if path in ephemeral]
    older_ones = permanent[: permanent.index(last[0])] if last else []
    victims += [path for path in older_ones if checkpoint_step(path) not in kept_steps]
    problems = []
    for victim in (*victims, *_states_to_retire(output_dir, newest, {*victims, *damaged}, states)):
        try:
            set_aside(victim)
        except StorageError as error:
            problems.append(str(error))
    return problems + remove_set_aside(output_dir)


def _states_to_retire(output_dir: Path, newest: Path, gone: Collection[Path], states: int | None) -> list[Path]:
    """Return the optimizer states beside the checkpoints before `newest` that are not needed, oldest first.

    gone: the checkpoints that will not be resumed from.
    """
    found = [path for path in output_dir.glob("optimizer-*") if OPTIMIZER_FOLDER.match(path.name) and path.is_dir()]
    apart = {int(path.name.partition("-")[2]): path for path in found}
    there = [path for path in checkpoints(output_dir) if path not in gone]
    steps = [step for path in there if (step := checkpoint_step(path)) in apart or (path / OPTIMIZER).exists()]
    last = checkpoint_step(newest)
    needed = [step for step in steps if step <= last][-states if states is not None else 0 :]
    return [apart[step] for step in sorted(apart) if step < last and step not in needed]
