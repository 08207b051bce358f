"""The tensors of a checkpoint, and copies of them that training on does not change."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foundry_core.checkpoints.optimizer_state import optimizer_tensors
from foundry_core.models.interface import LanguageModel
from foundry_core.models.weights import stored_tensors


@dataclass(frozen=True)
class CheckpointTensors:
    """weights: the model's, by their names in its file. optimizer: its state as `<kind>/<parameter name>`."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: LanguageModel, optimizer: torch.optim.Optimizer) -> CheckpointTensors:
        """Return the living tensors: training on changes them."""
        return cls(stored_tensors(model), optimizer_tensors(model, optimizer))


class TensorBuffers:
    """Room on the CPU for a consistent copy of a checkpoint's tensors, allocated once and used for every save."""

    def __init__(self) -> None:
        self._room: dict[str, torch.Tensor] = {}

    def copy(self, tensors: CheckpointTensors) -> CheckpointTensors:
        """Return a copy that training on does not change, valid until the next one."""
        copied = CheckpointTensors(
            {name: self._filled(f"weights/{name}", tensor) for name, tensor in tensors.weights.items()},
            {name: self._filled(f"optimizer/{name}", tensor) for name, tensor in tensors.optimizer.items()},
        )
        if any(tensor.is_cuda for tensor in tensors.weights.values()):
            torch.cuda.synchronize()
        return copied

    def _filled(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        room = self._room.get(key)
        if room is None or room.shape != tensor.shape:
            # Pinned memory is what a GPU copies into without waiting.
            room = self._room[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return room.copy_(tensor, non_blocking=True)
