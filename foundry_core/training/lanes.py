"""The states that rows continue from in contiguous batching: one for each micro-batch of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foundry_core.checkpoints.kept_weights import carried_entries, load_carried
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Share
from foundry_core.data.batching import row_lengths
from foundry_core.data.preparation import ExperimentData
from foundry_core.data.workers import Batch
from foundry_core.models.carried import CarriedState
from foundry_core.processes import World


class Lanes:
    """The states of a process's micro-batches, each of which reads lanes of its own; none in another batching.

    Args:
        config: The experiment.
        data: Its rows and their order.
        share: Which micro-batches of a step this process has.
        world: The processes of the run.
    """

    def __init__(self, config: ExperimentConfig, data: ExperimentData, share: Share, world: World):
        self._data, self._size, self._world = data, config.data.batch_size, world
        carries = config.data.batching == "contiguous"
        self._states = {share.first + n: CarriedState() for n in range(share.size)} if carries else {}

    def into(self, batch: Batch, number: int, samples: int) -> tuple[CarriedState, torch.Tensor] | None:
        """Return the state that the rows of a micro-batch continue from, and their lengths; None if they do not.

        Args:
            number: That of the micro-batch in its step.
            samples: Rows taken before the step.
        """
        if not self._states:
            return None
        state = self._states[number]
        if samples % self._data.order.size == 0:  # an epoch begins
            state.reset()
        first = samples + number * self._size
        return state, row_lengths(self._data.train_rows, self._data.order, first, len(batch["input_ids"]))

    def load(self, file: Path, layout: Any, device: torch.device) -> None:
        """Take up the states that a checkpoint stores. Raises CheckpointError if they are damaged."""
        if self._states:
            load_carried(file, self._states, layout, device)

    def saved(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the layout of the states of all processes and their tensors, as a checkpoint stores them."""
        if not self._states:
            return None, {}
        own = [
            (state.layout(), {name: tensor.cpu() for name, tensor in state.tensors().items()})
            for state in self._states.values()
        ]
        return carried_entries([state for states in self._world.objects(own) for state in states])
