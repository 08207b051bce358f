"""Muon: an orthogonalised momentum for matrices (Jordan et al. 2024), Adam for everything else.

Which parameters are matrices is not guessed from shapes or names: core gives every group its `role`.
"""

import math
from typing import Any

import torch

from foundry_core import TrainingConfig


class Muon(torch.optim.Optimizer):
    """Updates of matrices have singular values near 1, times 0.2 sqrt(larger side): the size of Adam's updates."""

    def __init__(self, groups: Any, lr: float, momentum: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._of_a_matrix if group["role"] == "matrix" else self._of_adam
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(group["lr"] * update(weight.grad, self.state[weight], group))

    @staticmethod
    def _of_a_matrix(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        average = state.setdefault("average", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - group["momentum"])
        # A stack of matrices, such as those of experts, is one tensor: the last two dimensions are a matrix.
        return orthogonal(gradient.lerp(average, group["momentum"])) * (0.2 * math.sqrt(max(gradient.shape[-2:])))

    @staticmethod
    def _of_adam(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        if not state:
            state.update(steps=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
        state["steps"] += 1
        first, second = group["betas"]
        mean, square = state["mean"].lerp_(gradient, 1 - first), state["square"].lerp_(gradient**2, 1 - second)
        root = (square / (1 - second ** state["steps"])).sqrt()
        update: torch.Tensor = mean / (1 - first ** state["steps"]) / (root + 1e-8)
        return update


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return U V^T of a matrix U S V^T, roughly: five Newton-Schulz steps put singular values between 0.7 and 1.2."""
    x: torch.Tensor = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def muon(parameter_groups: list[dict[str, Any]], training: TrainingConfig) -> Muon:
    """Return the optimizer `muon` for an experiment."""
    settings: Any = training.optimizer_settings
    betas = (training.adam_beta1, training.adam_beta2)
    return Muon(parameter_groups, training.learning_rate, settings.momentum, betas)
