"""Parameter groups, and the optimizers that update them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from foundry_core.config.sections import TrainingConfig
from foundry_core.devices import in_whole_lines
from foundry_core.errors import PluginError
from foundry_core.models.interface import LanguageModel
from foundry_core.models.roles import DECAYED, ROLES, Role, derived_roles
from foundry_core.models.shards import is_divided
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.optimizer import CORE_OPTIMIZERS, Optimizer

ParameterGroups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainingConfig) -> ParameterGroups:
    """Return a group for each role of `parameter_roles` that trainable parameters of the model have.

    A group contains `params`, their `names`, the `role` and its `weight_decay`. Under `weight_decay_on:
    two_dimensional` a role whose parameters decay in part has two groups.

    Raises:
        PluginError: The model names a role or a parameter that there is not.
    """
    roles = model.parameter_roles() if isinstance(model, LanguageModel) else derived_roles(model)
    parameters = dict(model.named_parameters())
    for name, role in roles.items():
        if role not in ROLES or name not in parameters:
            raise PluginError(
                f"{type(model).__module__}.{type(model).__qualname__}.parameter_roles returned {role!r} for '{name}': "
                f"a role is one of {', '.join(ROLES)}, and the name that of a parameter"
            )
    groups: ParameterGroups = []
    for role in ROLES:
        of_role = [name for name, each in parameters.items() if each.requires_grad and roles.get(name, "other") == role]
        decaying = [name for name in of_role if _decays(role, parameters[name], config)]
        for names, decay in ((decaying, config.weight_decay), ([n for n in of_role if n not in decaying], 0.0)):
            group = {"params": [parameters[name] for name in names], "names": names, "role": role}
            if names:
                groups.append({**group, "weight_decay": decay})
    return groups


def _decays(role: Role, parameter: nn.Parameter, config: TrainingConfig) -> bool:
    if config.weight_decay_on == "two_dimensional":
        return parameter.ndim >= 2
    return config.weight_decay_on == "all" or role in DECAYED


def build_optimizer(model: nn.Module, config: TrainingConfig, kind: Optimizer | None = None) -> torch.optim.Optimizer:
    """Build an optimizer over `parameter_groups`.

    Args:
        kind: Its descriptor; by default core's own of the configured name.

    Raises:
        PluginError: The builder fails, or does not return an optimizer over those groups.
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
            f"the optimizer {kind.name}: {kind.builder} returned a {type(optimizer).__name__}, not a "
            "torch.optim.Optimizer"
        )
    if _decay_by_parameter(optimizer.param_groups) != asked:
        raise PluginError(f"the optimizer {kind.name}: {kind.builder} changes the parameter groups it was given")
    return optimizer


def _decay_by_parameter(groups: ParameterGroups) -> list[tuple[int, float | None]]:
    """Return each parameter with its decay; None where an optimizer has dropped it."""
    decays = ((id(parameter), group.get("weight_decay")) for group in groups for parameter in group["params"])
    return sorted(decays, key=lambda pair: pair[0])


_adamw_step = inspect.unwrap(torch.optim.AdamW.step)


class AdamW(torch.optim.AdamW):
    """Torch's own, without the decorators that keep torch.compile out of it, which is not applied to it here.

    They import torch._dynamo and sympy, 1.4 s of processor time, when an optimizer is made.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, as torch does."""
        self._make_moments()
        return _adamw_step(self, closure)

    def _make_moments(self) -> None:
        """Make the moments of parameters that have none, in one block of memory.

        Made one by one they would lie between what the first backward pass has left, and keep its room apart: 0.3 GB of
        the 2.7 GB that a GPT-2 of 124M parameters takes.
        """
        every = [each for group in self.param_groups for each in group["params"]]
        new = [each for each in every if each.grad is not None and not self.state.get(each)]
        if any(each.device.type != "cpu" or each.dtype != torch.float32 or is_divided(each) for each in new):
            return
        sizes = [in_whole_lines(each.numel()) for each in new]
        moments = torch.split(torch.zeros(2 * sum(sizes)), 2 * sizes)
        for parameter, first, second in zip(new, moments[: len(new)], moments[len(new) :], strict=True):
            self.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": first[: parameter.numel()].view(parameter.shape),
                "exp_avg_sq": second[: parameter.numel()].view(parameter.shape),
            }

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)


class SGD(torch.optim.SGD):
    """Torch's own, as `AdamW` is."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    add_param_group, zero_grad, state_dict = AdamW.add_param_group, AdamW.zero_grad, AdamW.state_dict


def adamw(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW in the fused form: one kernel instead of one call per parameter."""
    betas = (training.adam_beta1, training.adam_beta2)
    return AdamW(groups, lr=training.learning_rate, betas=betas, eps=training.adam_epsilon, fused=True)


def sgd(groups: ParameterGroups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent in the fused form, which torch does not have for divided tensors."""
    divided = any(is_divided(each) for group in groups for each in group["params"])
    return SGD(groups, lr=training.learning_rate, momentum=training.sgd_momentum, fused=not divided)


CORE_BUILDERS = {"adamw": adamw, "sgd": sgd, "asgd": sgd}
"""Builders of core's own optimizers; a plugin names its builder in `Optimizer.builder`."""
