"""The loss that training optimises: that of the language model or the objective, and the model's auxiliary terms.

Shapes: B batch, T tokens, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.workers import Batch
from foundry_core.errors import PluginError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.carried import CarriedState
from foundry_core.models.loss import language_loss, training_loss
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string

TokenLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]
"""A function of logits (N, V) in fp32, labels (N,) and the batch that returns the loss of each predicted token (N,)."""

AUXILIARY = "auxiliary/"
"""Prefix of the names of auxiliary terms, here and in the metrics."""


def objective_loss(config: ExperimentConfig) -> TokenLoss | None:
    """Return the loss function of the experiment's objective; None for core's, the cross-entropy.

    Raises:
        PluginError: It cannot be made.
    """
    objective = config.objective
    if objective.loss is None:
        return None
    what = f"the loss of the objective {objective.name}, {objective.loss},"
    make = import_string(objective.loss)
    with failing_as(what):
        function = make(config)
    if not callable(function):
        raise PluginError(f"{what} is a {type(function).__name__}, not a function of logits, labels and the batch")

    def checked(logits_NV: torch.Tensor, labels_N: torch.Tensor, batch: Batch) -> torch.Tensor:
        with failing_as(what):
            losses_N = function(logits_NV, labels_N, batch)
        if not isinstance(losses_N, torch.Tensor) or losses_N.shape != labels_N.shape:
            found = tuple(losses_N.shape) if isinstance(losses_N, torch.Tensor) else type(losses_N).__name__
            raise PluginError(f"{what} returned {found}, not a loss for each of {len(labels_N)} labels")
        return losses_N

    return checked


def summed_losses(
    model: BaseLanguageModel,
    forward: Callable[..., Any],
    batch: Batch,
    own: TokenLoss | None,
    carried: tuple[CarriedState, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return what a micro-batch adds to a step, summed over its predicted tokens.

    Args:
        forward: The model, or what torch has compiled it to.
        own: The loss of the objective, which needs the logits of all positions; by default the cross-entropy.
        carried: The state that rows continue from, and that is replaced by the one after them; and their lengths.

    Returns:
        The sum to differentiate, and the figures to report: `loss`, the cross-entropy; `optimised`, that sum, if it is
        another one; and the auxiliary terms by name.
    """
    given = batch if carried is None else carried[0].given(batch, carried[1])
    output = forward(**given, reduction="sum", return_logits=own is not None)
    if carried is not None:
        carried[0].advance(output.state)
    optimised, loss = training_loss(model, output), language_loss(output)
    terms: dict[str, torch.Tensor] = getattr(output, "auxiliary", None) or {}
    if own is not None:
        targets, chosen = model.targets(given["labels"], given.get("attention_mask"), given["input_ids"].shape[1])
        losses_N = own(output.logits[:, : targets.shape[1]][chosen].float(), targets[chosen], batch)
        optimised = losses_N.sum() + len(losses_N) * sum(terms.values())
    figures = {"loss": loss.detach()}
    if optimised is not loss:
        figures["optimised"] = optimised.detach()
    return optimised, figures | {AUXILIARY + name: term.detach() * output.count for name, term in terms.items()}
