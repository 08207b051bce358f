"""Losses, gradients and weights that are not finite: a run stops with the first tensor that is not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from foundry_core.errors import TrainingError

_CALMER = "Lower training.learning_rate or lengthen the warm-up; in place of fp16, use bf16 or fp32"


def not_finite_update(model: nn.Module, step: int, loss: float, norm: float, samples: range) -> TrainingError:
    """Return the error of a step whose loss or gradient norm is not finite, raised before its update."""
    culprit = _first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    where = f", first in the gradient of {culprit}" if culprit else ""
    return TrainingError(
        f"stopped before the update of step {step}: loss {loss}, gradient norm {norm}{where}; "
        f"samples {samples.start} to {samples.stop - 1}. {_CALMER}"
    )


def check_weights(model: nn.Module, step: int, samples: range, test_loss: float = 0.0) -> None:
    """Raise TrainingError when weights, or a test loss, are not finite after the update of a step."""
    culprit = _first_not_finite((name, p) for name, p in model.named_parameters() if p.requires_grad)
    if culprit is not None or not math.isfinite(test_loss):
        found = f"{culprit} is not finite" if culprit is not None else f"the loss of its evaluation is {test_loss}"
        raise TrainingError(
            f"stopped after the update of step {step}, which is not saved: {found}; samples {samples.start} "
            f"to {samples.stop - 1}. {_CALMER}"
        )


def _first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor with a number that is not finite."""
    named = list(tensors)
    # A sum is finite only if every number is. It takes no memory, where isfinite takes several times the tensor's; sums
    # that overflow are no answer, and the numbers are asked one by one.
    sums = [tensor.sum(dtype=torch.float32) for _, tensor in named]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return None
    return next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
