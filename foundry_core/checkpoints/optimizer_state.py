"""The state of an optimizer: taken as tensors and plain values, saved without pickle, put back bit for bit.

Tensors go into the checkpoint's safetensors file as `<kind>/<parameter name>`, numbers and text into its JSON, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from foundry_core.checkpoints.kept_weights import is_kept
from foundry_core.checkpoints.state import OptimizerValues
from foundry_core.errors import CheckpointError, PluginError
from foundry_core.models.folder import open_tensors
from foundry_core.models.shards import divided_like

_PLAIN = (bool, int, float, str, type(None))
_SET_BY_CORE = ("params", "names", "role", "lr", "weight_decay")


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Return the living tensors, which further training changes."""
    return {key: value.detach() for key, value in _entries(model, optimizer) if isinstance(value, torch.Tensor)}


def optimizer_values(model: nn.Module, optimizer: Optimizer) -> OptimizerValues:
    """Return the values that are not tensors; empty for an optimizer that keeps tensors only.

    values: those in `state`. groups: for each parameter group the settings that differ from the defaults that the
    optimizer was made with: some keep count of their progress there.

    Raises:
        PluginError: Part of the state could not be saved, or not be found again.
    """
    if len(optimizer.state) > sum(parameter in optimizer.state for parameter in model.parameters()):
        raise _unsaved(optimizer, "state of something that is not a parameter of the model")
    more = sorted(set(optimizer.state_dict()) - {"state", "param_groups"})
    if more:
        raise _unsaved(optimizer, f"'{more[0]}' in addition to its state and its parameter groups")
    values = {key: value for key, value in _entries(model, optimizer) if not isinstance(value, torch.Tensor)}
    defaults = optimizer.defaults
    groups = [
        {key: value for key, value in group.items() if not (key in _SET_BY_CORE or _same(value, defaults.get(key)))}
        for group in optimizer.param_groups
    ]
    in_groups = [(f"'{key}' of a parameter group", value) for group in groups for key, value in group.items()]
    for place, value in (*values.items(), *in_groups):
        if not isinstance(value, _PLAIN) or (isinstance(value, float) and not math.isfinite(value)):
            raise _unsaved(optimizer, f"a {type(value).__name__} as {place}")
    kept: OptimizerValues = {"values": values} if values else {}
    return kept | {"groups": groups} if any(groups) else kept


def first_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of a new optimizer after one step, as `<kind>/<parameter name>`: each has kinds of its own.

    Found by taking a step with gradients of 0. Leaves weights, gradients and optimizer as they were.
    """
    weights = [(parameter, parameter.detach().clone(), parameter.grad) for parameter in model.parameters()]
    groups = [dict(group) for group in optimizer.param_groups]
    try:
        for parameter, before, _ in weights:
            parameter.grad = torch.zeros_like(before) if parameter.requires_grad else None
        optimizer.step()
        return dict(_entries(model, optimizer))
    finally:
        optimizer.state.clear()
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(settings)
        with torch.no_grad():
            for parameter, before, gradient in weights:
                parameter.copy_(before)
                parameter.grad = gradient


def load_optimizer(path: Path, stored: OptimizerValues, model: nn.Module, optimizer: Optimizer, *, begun: bool) -> None:
    """Put a saved state, the tensors of a file and the values of `optimizer_values`, into a new optimizer.

    begun: steps have been taken, so that the state cannot be empty if the optimizer keeps any.

    Raises:
        CheckpointError: The state is not one that this optimizer would have for this model.
    """
    expected, parameters = first_state(model, optimizer), dict(model.named_parameters())
    with open_tensors(path) as file:
        own = [key for key in sorted(file.keys()) if not is_kept(key)]
        # A copy: the file's tensors are a view of the file.
        found = {**stored.get("values", {}), **{key: file.get_tensor(key).clone() for key in own}}
    if begun and expected and not found:
        raise CheckpointError(f"{path} is empty, and steps have been taken")
    begun_parameters = {key.partition("/")[2] for key in found}
    for key in sorted(expected):
        kind, _, name = key.partition("/")
        if key not in found and name in begun_parameters:
            raise CheckpointError(f"{path} lacks {kind} of '{name}'")
    for key, value in found.items():
        kind, _, name = key.partition("/")
        if key not in expected:
            raise CheckpointError(f"{path} contains {kind} for '{name}', which this model and optimizer do not have")
        # None stands for a value that has not been needed yet.
        if not (value is None or expected[key] is None or _nature(value) == _nature(expected[key])):
            raise CheckpointError(f"{path}: {key} is {_nature(value)}, not {_nature(expected[key])}")
        # Some keep a step counter on the CPU, others on the device of the parameter.
        placed = divided_like(value, expected[key]) if isinstance(value, torch.Tensor) else value
        optimizer.state[parameters[name]][kind] = placed
    groups = stored.get("groups", [])
    if groups and len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path.parent} was trained with {len(groups)} parameter groups, here are {len(optimizer.param_groups)}: "
            "the roles of the model's parameters have changed"
        )
    for group, moved in zip(optimizer.param_groups, groups, strict=False):
        group.update({key: value for key, value in moved.items() if key in group and key not in _SET_BY_CORE})


def _nature(value: Any) -> str:
    """Return what must be equal for a value to take another's place: dtype and shape, or the type."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__


def _entries(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(kind, str) or "/" in kind:
                raise _unsaved(optimizer, f"state under {kind!r}, which is not a name")
            yield f"{kind}/{name}", value


def _same(value: Any, default: Any) -> bool:
    plain = type(value) is type(default) and not isinstance(value, torch.Tensor)
    return value is default or (plain and bool(value == default))


def _unsaved(optimizer: Optimizer, what: str) -> PluginError:
    return PluginError(
        f"the optimizer {type(optimizer).__name__} keeps {what}: only tensors, finite numbers and text in its state "
        "and its parameter groups can be saved, and a resumed run would differ without it"
    )
