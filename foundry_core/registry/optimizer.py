"""Descriptors of optimizers: core's `adamw`, `sgd` and `asgd`, and those of the hook `foundry_optimizers`. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry_core.registry.checks import check_import_string, check_name

if TYPE_CHECKING:
    from foundry_core.schema import ConfigSection


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer. Raises PluginError for an invalid name or builder.

    Whatever an optimizer keeps from step to step belongs in its `state` and its `param_groups`: tensors, numbers and
    text there are saved, so that a resumed run is bit-exact. Anything else there is refused after the first step.

    Attributes:
        name: The value of `training.optimizer`.
        builder: Import string of a function `f(parameter_groups, training)` that returns a `torch.optim.Optimizer`.
            There is a group for each role of the model's parameters (`BaseLanguageModel.parameter_roles`), or two if
            only a part of them decays, with `params`, their `names`, `role` and `weight_decay`. Core sets `lr` of each
            group before each step; `training` is the section of the configuration, and its learning_rate the peak.
            None: core's own.
        settings: Schema of `training.optimizer_settings`, for settings that `training:` has no key for; the builder
            finds an instance there. None: it takes none.
    """

    name: str
    summary: str
    builder: str | None = None
    settings: type[ConfigSection] | None = None

    def __post_init__(self) -> None:
        check_name("optimizer", self.name)
        if self.builder is not None:
            check_import_string(f"the optimizer '{self.name}': its builder", self.builder)


ADAMW = Optimizer("adamw", "Adam with decoupled weight decay (Loshchilov and Hutter 2019)")
SGD = Optimizer("sgd", "stochastic gradient descent, with momentum if sgd_momentum is set")

ASGD = Optimizer("asgd", "sgd whose averaged weights are evaluated and saved (Merity et al. 2018)")

CORE_OPTIMIZERS = {optimizer.name: optimizer for optimizer in (ADAMW, SGD, ASGD)}
