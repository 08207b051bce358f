"""Lion: evolved sign momentum (Chen et al. 2023). It stores one momentum per weight, half as much as Adam."""

from typing import Any

import torch

from foundry_core import TrainingConfig


class Lion(torch.optim.Optimizer):
    """Moves weights by the learning rate against the sign of a momentum; weight decay is decoupled."""

    def __init__(self, groups: Any, lr: float, beta1: float, beta2: float):
        super().__init__(groups, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(momentum.lerp(weight.grad, 1 - group["beta1"]).sign_(), alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - group["beta2"])


def lion(parameter_groups: list[dict[str, Any]], training: TrainingConfig) -> Lion:
    """Return the optimizer `lion` for an experiment."""
    settings: Any = training.optimizer_settings
    return Lion(parameter_groups, training.learning_rate, settings.beta1, settings.beta2)
