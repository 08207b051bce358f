"""Saving during a run: when an ephemeral checkpoint is due, saving in the background, retention, and names."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import (
    TensorBuffers,
    Tensors,
    checkpoint_step,
    checkpoint_tensors,
    checkpoints,
    fixed_files,
    is_ephemeral,
    retire,
    save_checkpoint,
)
from foundry_core.checkpoints.compatibility import environment
from foundry_core.checkpoints.names import name_checkpoints
from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import warn
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.shards import gathered
from foundry_core.run_folder import checkpoint_name
from foundry_core.training.notifier import Notifier

KEPT_STATES = {"newest": 2, "all": None}
"""Number of newest checkpoints whose optimizer state stays. Two, so that one is left if the newest is damaged."""


class CheckpointSaver:
    """Saves the checkpoints of one run and removes those that retention does not keep.

    Saving only reads the model and the optimizer: it is invisible to the result.

    Args:
        config: The experiment, for its folder and its settings of checkpoints.
        model: The model that is trained.
        optimizer: Its optimizer.
        tokenizer: The tokenizer that every checkpoint carries.
        notifier: Receives `foundry_checkpoint_saved`.
        background: Save in a thread, from a copy. On a CPU such a thread takes its time from training: nothing was
            gained when measured.
        writes: Whether this process of the run is the one that saves.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: BaseLanguageModel,
        optimizer: torch.optim.Optimizer,
        tokenizer: PreTrainedTokenizerFast,
        *,
        notifier: Notifier,
        background: bool,
        writes: bool = True,
    ):
        self.output_dir = Path(config.training.output_dir)
        self.parent: str | None = None
        """The checkpoint that training went on from or saved last; None before the first."""
        self.kept_steps: Collection[int] = ()
        """Steps whose checkpoints retention never removes."""
        self.names: Mapping[str, int] = {}
        """Steps of the checkpoints that get a name."""
        self._settings = config.training.checkpoints
        self._model, self._optimizer, self._notifier = model, optimizer, notifier
        self._writes = writes
        self._fixed_files = fixed_files(model, tokenizer) if writes else {}
        self._buffers = TensorBuffers() if background else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="foundry-saving")
        self._under_way: Future[Path] | None = None
        self._ephemeral: set[Path] = set()
        self._damaged: set[Path] = set()
        self.reported: set[str] = set()
        """Lines that have been printed already."""
        self._saved_at = time.monotonic()

    def go_on_from(self, folder: Path) -> None:
        """Take a checkpoint that was loaded as the last one; newer ones were passed over because they are damaged."""
        there = checkpoints(self.output_dir)
        self.parent = folder.name
        self._damaged = set(there[there.index(folder) + 1 :])
        self._ephemeral = {path for path in there if is_ephemeral(path)}

    def tidy_again(self) -> None:
        """Apply names and retention, which an earlier process may not have come to after its last save."""
        if self.parent is not None and self._writes:
            self._tidy(self.output_dir / self.parent)

    def overdue(self) -> bool:
        """Check whether `checkpoints.ephemeral_minutes` have passed since the last save."""
        minutes = self._settings.ephemeral_minutes
        return self._writes and minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save(
        self, state: TrainState, *, ephemeral: bool = False, kept: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Save a checkpoint, after the one before has been saved. All processes put its tensors together.

        kept: What only a resumed run needs, under its names in the optimizer's file.
        """
        self.finish()
        living = checkpoint_tensors(self._model, self._optimizer, kept)
        tensors = {file: gathered(content, keep=self._writes) for file, content in living.items()}
        if not self._writes:
            self.parent = checkpoint_name(state.step)
            return
        if self._buffers is not None:
            tensors, state = self._buffers.copy(tensors), deepcopy(state)
        device = next(self._model.parameters()).device
        facts: dict[str, Any] = {"parent": self.parent, "ephemeral": ephemeral}
        facts["environment"] = environment(device)
        if state.started_from is not None:
            facts["started_from"] = state.started_from
        self.parent = checkpoint_name(state.step)
        if self._buffers is not None:
            self._under_way = self._thread.submit(self._publish, tensors, state, facts)
        else:
            self._announce(self._publish(tensors, state, facts))
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Wait for the save that is under way, if there is one; raise what it raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            self._announce(under_way.result())

    def _publish(self, tensors: Tensors, state: TrainState, facts: dict[str, Any]) -> Path:
        # The checkpoint of step 0 stays as long as the run: nothing of it is removed.
        apart = self._settings.keep_optimizer == "newest" and state.step > 0
        folder = save_checkpoint(self.output_dir, self._fixed_files, tensors, state, facts=facts, apart=apart)
        self._damaged.discard(folder)
        (self._ephemeral.add if facts["ephemeral"] else self._ephemeral.discard)(folder)
        self._tidy(folder)
        return folder

    def _tidy(self, newest: Path) -> None:
        """Apply names and retention once `newest` is known to be whole."""
        lasting = {
            name: step
            for name, step in self.names.items()
            if step <= checkpoint_step(newest) and self.output_dir / checkpoint_name(step) not in self._ephemeral
        }
        problems = name_checkpoints(self.output_dir, lasting)
        problems += retire(
            self.output_dir,
            self._settings.keep,
            newest,
            ephemeral=self._ephemeral,
            damaged=self._damaged,
            states=KEPT_STATES[self._settings.keep_optimizer],
            kept_steps=self.kept_steps,
        )
        self._report(problems)

    def _report(self, problems: Iterable[str]) -> None:
        """Print what could not be named or removed, once; it is tried again after each save."""
        for line in sorted({*problems} - self.reported):
            warn(f"{line}; training goes on")
        self.reported.update(problems)

    def _announce(self, folder: Path) -> None:
        self._notifier.tell("foundry_checkpoint_saved", step=checkpoint_step(folder), folder=folder)
