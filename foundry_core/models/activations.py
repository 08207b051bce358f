"""The activation functions of a transformers model, replaced by kernels where it computes them as formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation


class TanhGELU(nn.Module):
    """The tanh approximation of GELU, which transformers computes as a formula of eight kernels.

    Args:
        model: Has `kernels`, which may choose the formula. Not registered as a part.
        formula: The activation of transformers.
    """

    def __init__(self, model: Any, formula: nn.Module):
        super().__init__()
        self.formula = formula
        self.__dict__["model"] = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh") if self.__dict__["model"].kernels == "fast" else self.formula(x)


def replace_activations(model: Any, inner: nn.Module) -> None:
    """Put `TanhGELU` in the place of each formula of transformers for it."""
    for module in list(inner.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, TanhGELU(model, child))
