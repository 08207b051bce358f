"""What an optimizer remembers: taken as tensors and plain values, saved without pickle, put back bit for bit.

Tensors go into the checkpoint's safetensors file as `<kind>/<parameter name>`, numbers and text into its JSON, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundry_core.errors import CheckpointError, PluginError
from foundry_core.models.weights import open_tensors

_PLAIN = (bool, int, float, str, type(None))
_SET_BY_CORE = ("params", "lr", "weight_decay")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The living tensors: training on changes them."""
    return {key: value.detach() for key, value in _entries(model, optimizer) if isinstance(value, torch.Tensor)}


def optimizer_values(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is no tensor, as plain data: empty for an optimizer that remembers tensors only.

    values: those in `state`. groups: for each parameter group what differs from the defaults that the optimizer was
    made with, where some keep count of their progress. Raises PluginError for what could not be saved, or not be found
    again.
    """
    name = type(optimizer).__name__
    if len(optimizer.state) > sum(parameter in optimizer.state for parameter in model.parameters()):
        raise _unsaved(name, "state of something that is no parameter of the model")
    more = sorted(set(optimizer.state_dict()) - {"state", "param_groups"})
    if more:
        raise _unsaved(name, f"'{more[0]}' beside its state and its parameter groups")
    values = {key: value for key, value in _entries(model, optimizer) if not isinstance(value, torch.Tensor)}
    for key, value in values.items():
        if not _is_plain(value):
            raise _unsaved(name, f"{_what(value)} as {key}")
    groups = [
        {
            key: value
            for key, value in group.items()
            if key not in _SET_BY_CORE and not _same(value, optimizer.defaults.get(key))
        }
        for group in optimizer.param_groups
    ]
    for key, value in (item for moved in groups for item in moved.items()):
        if not _is_plain(value):
            raise _unsaved(name, f"{_what(value)} as '{key}' of a parameter group")
    found = {"values": values, "groups": groups if any(groups) else []}
    return {key: value for key, value in found.items() if value}


def first_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer built anew remembers after one step, as `<kind>/<parameter name>`: each has kinds of its own.

    Found by taking a step with gradients of 0. Weights, gradients and optimizer are afterwards what they were.
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


def load_optimizer(
    path: Path, stored: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, *, begun: bool
) -> None:
    """Put what was saved into an optimizer that is built anew. stored: of `optimizer_values`.

    begun: steps have been taken, so that there must be something where the optimizer remembers anything. Raises
    CheckpointError for what this optimizer would not remember of this model.
    """
    expected, parameters = first_state(model, optimizer), dict(model.named_parameters())
    values, groups = stored.get("values", {}), stored.get("groups", [])
    if not isinstance(values, dict) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise CheckpointError(f"{path.parent}: what the optimizer remembers beside tensors is damaged")
    found: dict[str, Any] = dict(values)
    with open_tensors(path) as file:
        for key in sorted(file.keys()):
            if key in found:
                raise CheckpointError(f"{path} holds {key}, and {path.parent} as a number or text, too")
            found[key] = file.get_tensor(key)
    if begun and expected and not found:
        raise CheckpointError(f"{path} is empty, and steps have been taken")
    known = {key.partition("/")[2] for key in found}
    missing = sorted(key for key in set(expected) - set(found) if key.partition("/")[2] in known)
    if missing:
        kind, _, name = missing[0].partition("/")
        raise CheckpointError(f"{path} lacks {kind} of '{name}'")
    for key, value in found.items():
        kind, _, name = key.partition("/")
        if key not in expected:
            raise CheckpointError(f"{path} holds {kind} of '{name}', which model and optimizer have not")
        # None stands for what has not been needed yet.
        if not (value is None or expected[key] is None or _nature(value) == _nature(expected[key])):
            raise CheckpointError(f"{path}: {key} is {_nature(value)}, not {_nature(expected[key])}")
        if isinstance(value, torch.Tensor):
            # A copy: the file's tensors are a view of the file. Some keep a step counter on the CPU, others beside the
            # parameter.
            value = value.to(expected[key].device, copy=True)
        optimizer.state[parameters[name]][kind] = value
    if groups and len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path.parent} was trained with {len(groups)} parameter groups, here are {len(optimizer.param_groups)}: "
            "put training.weight_decay_on back"
        )
    for group, moved in zip(optimizer.param_groups, groups, strict=False):
        for key, value in moved.items():
            if key in _SET_BY_CORE or key not in group or not _is_plain(value):
                raise CheckpointError(f"{path.parent}: the optimizer's parameter groups have no such '{key}'")
            group[key] = value


def _nature(value: Any) -> str:
    """What has to be the same for a value to take another's place."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__


def _entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(kind, str) or "/" in kind:
                raise _unsaved(type(optimizer).__name__, f"state under {kind!r}, which is no name")
            yield f"{kind}/{name}", value


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))


def _what(value: Any) -> str:
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and not isinstance(value, torch.Tensor) and value == default
    )


def _unsaved(optimizer: str, what: str) -> PluginError:
    return PluginError(
        f"the optimizer {optimizer} keeps {what}: only tensors, numbers and text in its state and its parameter groups "
        "can be saved, and a run that goes on would not be the same without it"
    )
