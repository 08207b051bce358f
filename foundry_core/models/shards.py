"""Tensors that the processes of a run hold in parts, as `training.reduction: sharded` leaves a model and its optimizer.

Such a tensor (torch's DTensor) has the shape of the whole. Putting it together is something that all processes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def is_divided(tensor: torch.Tensor) -> bool:
    """Check whether each process holds a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # to import its class takes 1 s, and few runs have any


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one piece; if it is divided, in every process."""
    given: Any = tensor
    return given.full_tensor() if is_divided(tensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Return tensors by name, each that is divided in one piece on the CPU, one after the other.

    keep: Return them; otherwise only take part in putting them together.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if keep:
            found[name] = complete.cpu() if is_divided(tensor) else tensor
    return found


def divided_like(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor on the device of another one, and divided as that one is."""
    if not is_divided(expected):
        return value.to(expected.device)
    from torch.distributed.tensor import distribute_tensor

    like: Any = expected
    # Each process has read the whole, and takes its part: nothing is sent.
    return distribute_tensor(value.to(expected.device), like.device_mesh, like.placements, src_data_rank=None)
