"""The language-model loss, computed here for every architecture, and what a model returns.

Shapes: B batch, T tokens, D width, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput as _MappedOutput

from foundry_core.errors import PluginError

IGNORED = -100
"""The label of a position where nothing is to be predicted."""

Reduction = Literal["mean", "sum", "none"]


@dataclass
class ModelOutput(_MappedOutput):  # type: ignore[misc]
    """What a model returns; attribute, key and tuple access, absent values dropped.

    loss: nats, mean or sum over the predicted tokens as asked. logits: (B, T, V), not normalised. state: hand it to
    the next call to go on where this one stopped. count: number of predicted tokens. token_losses: (B, T), the loss of
    the token *at* each position, 0 where nothing is predicted.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Any = None
    attentions: Any = None
    state: Any = None
    count: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None


def prediction_targets(
    labels: torch.Tensor, attention_mask: torch.Tensor | None = None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is predicted at each position, and where anything is (bool): (B, T - 1) causal, (B, T) otherwise."""
    if not causal:
        return labels, labels != IGNORED
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    if attention_mask is not None:
        chosen = chosen & attention_mask[:, -labels.shape[1] : -1].bool()
    return targets, chosen


def language_model_output(
    hidden_BTD: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor | None,
    *,
    causal: bool,
    attention_mask: torch.Tensor | None,
    reduction: Reduction,
    return_logits: bool,
    **extras: Any,
) -> ModelOutput:
    """Return logits and loss; `BaseLanguageModel.lm_output` describes them.

    Args:
        causal: Score position t on label t + 1, rather than on its own.
        extras: Further fields of the output.
    """
    logits_BTV = head(hidden_BTD) if return_logits or labels is None else None
    extras["logits"] = logits_BTV
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}, must be 'mean', 'sum' or 'none'")
    if labels is None:
        return ModelOutput(**extras)
    source = hidden_BTD if logits_BTV is None else logits_BTV
    source = source[:, :-1] if causal else source
    targets, chosen = prediction_targets(labels, attention_mask, causal=causal)
    targets_N = targets[chosen]
    logits_NV = head(source[chosen]) if logits_BTV is None else source[chosen]
    count = torch.tensor(targets_N.numel(), device=targets_N.device)
    # One call with everything: a value that is set later would stand at the end of the tuple, the loss among them.
    if reduction == "none":
        losses_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        losses = torch.zeros(targets.shape, device=losses_N.device, dtype=losses_N.dtype)
        losses = losses.masked_scatter(chosen, losses_N)
        losses = F.pad(losses, (1, 0)) if causal else losses
        mean = losses_N.sum() / max(targets_N.numel(), 1)
        return ModelOutput(loss=mean, **extras, count=count, token_losses=losses)
    total = F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
    loss = total if reduction == "sum" else total / max(targets_N.numel(), 1)
    return ModelOutput(loss=loss, **extras, count=count)


def training_loss(model: nn.Module, output: Any) -> torch.Tensor:
    """Return the loss of a model's output for a batch with labels.

    Raises:
        PluginError: The loss is not a differentiable scalar.
    """
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad:
        return loss
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise PluginError(
            "gradients are disabled in this process (torch.set_grad_enabled(False)): check your observers"
        )
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    shape = f" (its shape is {tuple(loss.shape)})" if isinstance(loss, torch.Tensor) and loss.ndim else ""
    raise PluginError(
        f"{name}.forward did not return a differentiable scalar loss{shape}: "
        "end it with `return self.lm_output(hidden, head, labels, ...)`"
    )
