"""What a gradient is followed with. Light: an `Optimizer` is a frozen description; its builder is named, not imported.

Core ships `adamw` and `sgd`; a plugin adds more through the hook `foundry_optimizers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry_core.registry.checks import check_import_string, check_name

if TYPE_CHECKING:
    from foundry_core.schema import ConfigSection


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    name: the value of `training.optimizer`.
    builder: import string of a function `f(parameter_groups, training)` that gives a `torch.optim.Optimizer`.
        `parameter_groups` are core's, as torch takes them: which parameters decay is not the optimizer's to decide.
        `training` is the configuration's section; `training.learning_rate` is the peak, and the trainer sets `lr` of
        each group before each step. None: core's own.
    settings: schema of `training.optimizer_settings`, for settings that `training:` has no key for; the builder finds
        an instance there. None: it takes none.

    Whatever an optimizer remembers from step to step belongs in its `state` and its `param_groups`: tensors, numbers
    and text there are saved, and a run goes on bit for bit. Anything else there is refused after the first step.

    Raises PluginError for a name or builder that cannot be one.
    """

    name: str
    summary: str
    builder: str | None = None
    settings: type[ConfigSection] | None = None

    def __post_init__(self) -> None:
        check_name("optimizer", self.name)
        check_import_string(f"the optimizer '{self.name}': its builder", self.builder, optional=True)


ADAMW = Optimizer(
    name="adamw",
    summary="Adam with decoupled weight decay (Loshchilov and Hutter 2019)",
)
SGD = Optimizer(
    name="sgd",
    summary="stochastic gradient descent, with momentum where sgd_momentum is set",
)

CORE_OPTIMIZERS = {optimizer.name: optimizer for optimizer in (ADAMW, SGD)}
