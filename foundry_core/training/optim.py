"""Parameter groups, optimizers and learning-rate schedules. A step is an optimizer step, always."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from foundry_core.checkpoints.state import ScheduleState
from foundry_core.config.sections import TrainingConfig
from foundry_core.errors import PluginError
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.optimizer import CORE_OPTIMIZERS, Optimizer

ParameterGroups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainingConfig) -> ParameterGroups:
    """Two groups: parameters with weight decay and without.

    Under `weight_decay_on: matrices` biases, norms and embeddings (a tied output layer with them) are left out: decay
    pulls a scale towards 0 and an embedding of a rare token towards its neighbours, which regularises nothing.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    everything = config.weight_decay_on == "all"
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = everything or (parameter.ndim >= 2 and id(parameter) not in embeddings)
            (decayed if decays else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: TrainingConfig, kind: Optimizer | None = None) -> torch.optim.Optimizer:
    """An optimizer over the groups of `parameter_groups`. kind: default, core's own of the configured name.

    Raises PluginError for a builder that fails, or that gives no optimizer over those groups.
    """
    kind = CORE_OPTIMIZERS[config.optimizer] if kind is None else kind
    groups = parameter_groups(model, config)
    asked = _decay_by_parameter(groups)
    if kind.builder is None:
        if kind is not CORE_OPTIMIZERS.get(kind.name):
            raise PluginError(f"the optimizer {kind.name} has no builder: give it an import string")
        return CORE_BUILDERS[kind.name](groups, config)
    with failing_as(f"the optimizer {kind.name}, {kind.builder},"):
        optimizer = import_string(kind.builder)(groups, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PluginError(
            f"the optimizer {kind.name}: {kind.builder} gives a {type(optimizer).__name__}, not a torch.optim.Optimizer"
        )
    if _decay_by_parameter(optimizer.param_groups) != asked:
        raise PluginError(f"the optimizer {kind.name}: {kind.builder} changes the parameter groups it was given")
    return optimizer


def _decay_by_parameter(groups: ParameterGroups) -> list[tuple[int, float | None]]:
    """Each parameter with its decay; None where an optimizer has lost it, as one does that knows no groups."""
    decays = ((id(parameter), group.get("weight_decay")) for group in groups for parameter in group["params"])
    return sorted(decays, key=lambda pair: pair[0])


def adamw(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW in the fused form: one kernel instead of one call per parameter."""
    betas = (training.adam_beta1, training.adam_beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, eps=training.adam_epsilon, fused=True)


def sgd(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent in the fused form."""
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.sgd_momentum, fused=True)


CORE_BUILDERS = {"adamw": adamw, "sgd": sgd}
"""How core's own optimizers are built; those of plugins name it in `Optimizer.builder`."""


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Optimizer steps of linear warm-up."""
    if config.warmup_ratio is not None:
        # The decimal that was written: as a binary float 0.07 of 100 steps would be a little over 7, and 8 rounded up.
        return math.ceil(Fraction(str(config.warmup_ratio)) * total_steps)
    return config.warmup_steps or 0


@dataclass
class Schedule:
    """The learning rate of each step; a function of the step, except for `plateau`, which also hears the test loss.

    Step s of 1..total applies `rate(s)`: the peak times s / warm-up while warming up, then the peak times 1 (constant,
    plateau), the share of steps left (linear), or half a cosine of the share done (cosine). No step has rate 0.
    """

    config: TrainingConfig
    total_steps: int
    heard: ScheduleState = field(default_factory=ScheduleState)

    def rate(self, step: int) -> float:
        peak, warmup = self.config.learning_rate, warmup_steps(self.config, self.total_steps)
        if step <= warmup:
            return peak * step / warmup
        done = (step - 1 - warmup) / max(self.total_steps - warmup, 1)
        if self.config.lr_scheduler == "linear":
            return peak * (1 - done)
        if self.config.lr_scheduler == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * self.heard.scale

    def observe(self, test_loss: float) -> None:
        """Plateau: cut the rate when the test loss has not improved for more than `plateau_patience` evaluations."""
        heard = self.heard
        if heard.best is None or test_loss < heard.best:
            heard.best, heard.stalled = test_loss, 0
            return
        heard.stalled += 1
        if heard.stalled > self.config.plateau_patience:
            heard.scale *= self.config.plateau_factor
            heard.stalled = 0

    def state(self) -> ScheduleState:
        return replace(self.heard)

    def load(self, state: ScheduleState) -> None:
        self.heard = replace(state)
