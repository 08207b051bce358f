"""What an optimizer remembers: taken as tensors and plain values, saved without pickle, put back bit for bit.

Tensors go into the checkpoint's safetensors file as `<kind>/<parameter name>`, numbers and text into its JSON, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from foundry_core.errors import CheckpointError, PluginError

_PLAIN = (bool, int, float, str)
_SET_BY_CORE = ("params", "lr", "weight_decay")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The living tensors: training on changes them."""
    return {key: value.detach() for key, value, _ in _entries(model, optimizer) if isinstance(value, torch.Tensor)}


def optimizer_values(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is no tensor, as plain data: empty for an optimizer that remembers tensors only.

    values: those in `state`. groups: for each parameter group what differs from the defaults that the optimizer was
    made with, where some keep count of their progress. on_cpu: tensors that live there while their parameter does not.
    Raises PluginError for what could not be saved, or not be found again.
    """
    name = type(optimizer).__name__
    if len(optimizer.state) > sum(parameter in optimizer.state for parameter in model.parameters()):
        raise _unsaved(name, "state of something that is no parameter of the model")
    more = sorted(set(optimizer.state_dict()) - {"state", "param_groups"})
    if more:
        raise _unsaved(name, f"'{more[0]}' beside its state and its parameter groups")
    values, on_cpu = {}, []
    for key, value, parameter in _entries(model, optimizer):
        if isinstance(value, torch.Tensor):
            if value.device != parameter.device:
                on_cpu.append(key)
        elif value is None or isinstance(value, _PLAIN):
            values[key] = value
        else:
            raise _unsaved(name, f"a {type(value).__name__} as {key}")
    groups = []
    for group in optimizer.param_groups:
        moved = {
            key: value
            for key, value in group.items()
            if key not in _SET_BY_CORE and not _same(value, optimizer.defaults.get(key))
        }
        for key, value in moved.items():
            if value is not None and not isinstance(value, _PLAIN):
                raise _unsaved(name, f"a {type(value).__name__} as '{key}' of a parameter group")
        groups.append(moved)
    found = {"values": values, "on_cpu": on_cpu, "groups": groups if any(groups) else []}
    return {key: value for key, value in found.items() if value}


def load_optimizer(path: Path, values: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put what was saved into an optimizer that is built anew. Raises CheckpointError for what does not fit."""
    parameters = dict(model.named_parameters())

    def put(key: str, value: Any) -> None:
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{path} holds {kind} of '{name}', which the model has not")
        parameter = parameters[name]
        if isinstance(value, torch.Tensor):
            # A copy: the file's tensors are a view of the file. A fused optimizer keeps even its step counter where the
            # parameter lives; others may keep it on the CPU.
            device = torch.device("cpu") if key in values.get("on_cpu", ()) else parameter.device
            value = value.to(device, copy=True)
        optimizer.state[parameter][kind] = value

    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - a safetensors file is not a dictionary
            put(key, file.get_tensor(key))
    for key, value in values.get("values", {}).items():
        put(key, value)
    groups = values.get("groups", [])
    if groups and len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path.parent} was trained with {len(groups)} parameter groups, here are {len(optimizer.param_groups)}: "
            "put training.weight_decay_on back"
        )
    for group, moved in zip(optimizer.param_groups, groups, strict=False):
        group.update(moved)


def _entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(kind, str) or "/" in kind:
                raise _unsaved(type(optimizer).__name__, f"state under {kind!r}, which is no name")
            yield f"{kind}/{name}", value, parameter


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and not isinstance(value, torch.Tensor) and value == default
    )


def _unsaved(optimizer: str, what: str) -> PluginError:
    return PluginError(
        f"the optimizer {optimizer} keeps {what}: only tensors, numbers and text in its state and its parameter groups "
        "can be saved, and a run that goes on would not be the same without it"
    )
