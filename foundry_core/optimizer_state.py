"""What an optimizer remembers: taken as tensors and plain values, saved without pickle, put back bit for bit.

Tensors go into the checkpoint's safetensors file as `<kind>/<parameter name>`, numbers and text into its JSON, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError
from torch import nn

from foundry_core.errors import CheckpointError, PluginError
from foundry_core.export import check_shape, open_tensors

_PLAIN = (bool, int, float, str)
_SET_BY_CORE = ("params", "lr", "weight_decay")

_Plain: TypeAlias = (
    StrictBool | StrictInt | StrictStr | Annotated[float, Field(strict=True, allow_inf_nan=False)] | None
)


@dataclass
class _Values:
    """What `optimizer_values` gives, read from a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    values: dict[str, _Plain] = field(default_factory=dict)
    on_cpu: list[str] = field(default_factory=list)
    groups: list[dict[str, _Plain]] = field(default_factory=list)


_STORED_VALUES = TypeAdapter(_Values)


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
        elif _is_plain(value):
            values[key] = value
        else:
            raise _unsaved(name, f"{_what(value)} as {key}")
    groups = []
    for group in optimizer.param_groups:
        moved = {
            key: value
            for key, value in group.items()
            if key not in _SET_BY_CORE and not _same(value, optimizer.defaults.get(key))
        }
        for key, value in moved.items():
            if not _is_plain(value):
                raise _unsaved(name, f"{_what(value)} as '{key}' of a parameter group")
        groups.append(moved)
    found = {"values": values, "on_cpu": on_cpu, "groups": groups if any(groups) else []}
    return {key: value for key, value in found.items() if value}


def load_optimizer(
    path: Path, values: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, *, begun: bool = False
) -> None:
    """Put what was saved into an optimizer that is built anew. Raises CheckpointError for what does not fit.

    begun: steps have been taken, so that there must be something where the optimizer is known to remember. Of torch's
    AdamW and SGD kinds, shapes and types are known and held to; what a plugin's keeps only its own code knows, here it
    is held to the parameters it belongs to.
    """
    parameters, kinds = dict(model.named_parameters()), _known_kinds(optimizer)
    try:
        plain = _STORED_VALUES.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("optimizer", *first["loc"])))
        raise CheckpointError(f"{path.parent}: {where} is damaged: {first['msg']}") from error

    with open_tensors(path) as file:
        stored = set(file.keys())
        if begun and kinds and not stored:
            raise CheckpointError(f"{path} is empty, and steps have been taken")
        for key in sorted({*stored, *plain.values}):
            kind, _, name = key.partition("/")
            if name not in parameters or not kind or (kinds is not None and (kind not in kinds or key in plain.values)):
                raise CheckpointError(f"{path} holds {kind} of '{name}', which model and optimizer have not")
            if key in stored and key in plain.values:
                raise CheckpointError(f"{path} holds {kind} of '{name}', and {path.parent} as a number or text, too")
            for other in kinds or ():
                if f"{other}/{name}" not in stored:
                    raise CheckpointError(f"{path} lacks {other} of '{name}'")
            parameter = parameters[name]
            if key in plain.values:
                optimizer.state[parameter][kind] = plain.values[key]
                continue
            if kinds is not None:
                check_shape(path, file, key, torch.zeros(()) if kind == "step" else parameter)
            # A copy: the file's tensors are a view of the file. A fused optimizer keeps even its step counter where the
            # parameter lives; others may keep it on the CPU.
            device = torch.device("cpu") if key in plain.on_cpu else parameter.device
            value = file.get_tensor(key).to(device, copy=True)
            if kinds is not None and value.dtype != parameter.dtype:
                raise CheckpointError(f"{path}: {key} is {value.dtype}, its parameter {parameter.dtype}")
            optimizer.state[parameter][kind] = value
    _load_groups(path, plain.groups, optimizer)


def _load_groups(path: Path, groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    if groups and len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path.parent} was trained with {len(groups)} parameter groups, here are {len(optimizer.param_groups)}: "
            "put training.weight_decay_on back"
        )
    for group, moved in zip(optimizer.param_groups, groups, strict=False):
        foreign = sorted(moved.keys() & {*_SET_BY_CORE})
        if foreign:
            raise CheckpointError(f"{path.parent} sets '{foreign[0]}' of a parameter group, which its settings do")
        group.update(moved)


def _known_kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...] | None:
    """What it remembers of a parameter that had a gradient, by torch's names; None for one that torch's are not."""
    if type(optimizer) is torch.optim.AdamW:
        return ("step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if optimizer.defaults["amsgrad"] else []))
    if type(optimizer) is torch.optim.SGD:
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return None


def _entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(kind, str) or "/" in kind:
                raise _unsaved(type(optimizer).__name__, f"state under {kind!r}, which is no name")
            yield f"{kind}/{name}", value, parameter


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value)))


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
