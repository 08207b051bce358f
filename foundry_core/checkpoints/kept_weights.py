"""Tensors that only a resumed run needs besides the optimizer's state, in its file of a checkpoint.

A kind of copies, such as the best weights, has the parameters and buffers of the model under their names in it. In the
optimizer's file they stand as `weights:<kind>/<name>`. The tensors of a state that rows continue from stand as
`carried:<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundry_core.errors import CheckpointError
from foundry_core.models.carried import CarriedState
from foundry_core.models.folder import open_tensors
from foundry_core.models.shards import divided_like

_MARK, _CARRIED, _LANES = "weights:", "carried:", "micro_batches"

Weights = dict[str, torch.Tensor]
"""Tensors of a model by name, each shared one once."""


def living_weights(model: nn.Module) -> Weights:
    """Return the parameters and saved buffers of a model themselves, which training changes in place.

    Not detached: a parameter can get another storage, as those of a recurrent layer do on a GPU.
    """
    saved, tensors = model.state_dict().keys(), chain(model.named_parameters(), model.named_buffers())
    return {name: tensor for name, tensor in tensors if name in saved and tensor.is_floating_point()}


def copied(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Return copies that training does not change."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def put_back(copies: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Copy copies into the weights that they are of, bit for bit."""
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(copies[name])


def kept_entries(kind: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of a kind under their names in the optimizer's file."""
    return {f"{_MARK}{kind}/{name}": tensor for name, tensor in weights.items()}


def is_kept(key: str) -> bool:
    """Check whether a tensor of the optimizer's file is not of the optimizer's state."""
    return key.startswith((_MARK, _CARRIED))


def carried_entries(states: Sequence[tuple[Any, Weights]]) -> tuple[Any, Weights]:
    """Return the layout of carried states, and their tensors under their names in the optimizer's file.

    states: The layout and the tensors of the state of each micro-batch of a step.
    """
    entries = {
        f"{_CARRIED}{_lane(number)}{name}": tensor
        for number, (_, each) in enumerate(states)
        for name, tensor in each.items()
    }
    layouts = [layout for layout, _ in states]
    return (layouts[0] if len(layouts) == 1 else {_LANES: layouts}), entries


def load_carried(path: Path, states: Mapping[int, CarriedState], layout: Any, device: torch.device) -> None:
    """Take up the states of some micro-batches of a step.

    Raises:
        CheckpointError: Their tensors are not those of their layout, or there are none of a micro-batch.
    """
    layouts = layout[_LANES] if isinstance(layout, dict) and _LANES in layout else [layout]
    with open_tensors(path) as file:
        names = [name.removeprefix(_CARRIED) for name in sorted(file.keys()) if name.startswith(_CARRIED)]
        for number, state in states.items():
            if number >= len(layouts):
                raise CheckpointError(
                    f"{path}: it has the carried states of {len(layouts)} micro-batches, none of number {number + 1}: "
                    "the run goes on with the training.gradient_accumulation_steps that it began with"
                )
            own, mark = dict[str, torch.Tensor](), _lane(number)
            for name in names:
                if name.startswith(mark) and (mark or "/" not in name):
                    own[name.removeprefix(mark)] = file.get_tensor(_CARRIED + name).clone()
            try:
                state.load(layouts[number], own, device)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error


def _lane(number: int) -> str:
    """Return what stands before the names of a micro-batch's state: nothing for the first, often the only one."""
    return f"{number}/" if number else ""


def load_kept(path: Path, kind: str, like: Mapping[str, torch.Tensor]) -> Weights:
    """Return the copies of a kind, on the devices of the weights that they are copies of.

    Raises:
        CheckpointError: One is missing, or has another shape or type.
    """
    found = {}
    with open_tensors(path) as file:
        there = set(file.keys())
        for name, expected in like.items():
            key = f"{_MARK}{kind}/{name}"
            if key not in there:
                raise CheckpointError(f"{path} lacks {key}")
            tensor = file.get_tensor(key)
            if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                raise CheckpointError(f"{path}: {key} is {tensor.dtype} of shape {tuple(tensor.shape)}")
            found[name] = divided_like(tensor.clone(), expected)
    return found
