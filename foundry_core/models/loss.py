"""The language-model loss, computed here for every architecture, and the output that carries it.

Shapes: B batch, T tokens, D width, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput as _MappedOutput

from foundry_core.errors import PluginError
from foundry_core.models.kernels import summed_cross_entropy
from foundry_core.registry.architecture import BuildContext

IGNORED = -100
"""The label of a position where nothing is to be predicted."""


@dataclass
class ModelOutput(_MappedOutput):  # type: ignore[misc]
    """The output of a model; attribute, key and tuple access, absent values dropped.

    loss: nats, mean or sum over the predicted tokens as asked; in training mode with the auxiliary terms. logits:
    (B, T, V), not normalised. state: pass it to the next call to continue from here. count: number of predicted tokens.
    token_losses: (B, T), the loss of the token *at* each position, 0 where nothing is predicted. auxiliary: the terms
    by name. cross_entropy: the loss without them, where it contains them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Any = None
    attentions: Any = None
    state: Any = None
    count: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    auxiliary: dict[str, torch.Tensor] | None = None
    cross_entropy: torch.Tensor | None = None


@runtime_checkable
class TargetHead(Protocol):
    """A head that computes the losses of given tokens without the logits of all others, as a table of counts does."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, (..., D) -> (..., V)."""

    def target_losses(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropies of the logits and the targets, (N,)."""


class LanguageModelLoss:
    """The loss of a language model, for its labels and its objective."""

    context: BuildContext
    training: bool
    kernels: str

    def targets(
        self, labels: torch.Tensor, attention_mask: torch.Tensor | None = None, length: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the target of each position and a mask of those that count: (B, T - 1) causal, (B, T) otherwise.

        length: Number of positions. Causal labels may have one column more: then the last position has a target too.
        """
        if not self.context.objective.causal:
            return labels, labels != IGNORED
        targets = labels[:, 1:]
        chosen = targets != IGNORED
        if attention_mask is not None:
            mask = attention_mask[:, -(length or labels.shape[1]) :]
            chosen = chosen & mask[:, : targets.shape[1]].bool()
        return targets, chosen

    def _linear_end(self, head: Callable[[torch.Tensor], torch.Tensor]) -> nn.Linear | None:
        """Return the projection with which a head ends, if the loss can be computed a part of the logits at a time."""
        last = head[-1] if isinstance(head, nn.Sequential) else head
        # torch.compile fuses projection and loss on its own.
        if self.kernels != "fast" or type(last) is not nn.Linear or torch.compiler.is_compiling():
            return None
        full = last.weight.dtype in (torch.float32, torch.float64)
        return last if full and not torch.is_autocast_enabled(last.weight.device.type) else None

    def lm_output(
        self,
        hidden_BTD: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        return_logits: bool = True,
        hidden_states: Any = None,
        attentions: Any = None,
        state: Any = None,
        token_type_ids: torch.Tensor | None = None,
        auxiliary: Mapping[str, torch.Tensor] | None = None,
        read: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], None] | None = None,
    ) -> ModelOutput:
        """Return the language-model loss and the logits; every architecture's `forward` ends with this.

        The loss is the cross-entropy in fp32 over the labels that are not -100. For a causal objective position t is
        scored on label t + 1, unless attention_mask marks t as padding: nothing is predicted from there. Labels may
        have a column more than the positions, as where a state is carried from row to row. With no label left the loss
        and its gradients are 0.

        Args:
            head: Projects hidden states onto the vocabulary, (..., D) -> (..., V). With an `nn.Linear`, or an
                `nn.Sequential` that ends with one, the loss never needs all logits at a time; with a method
                `target_losses` (hidden_ND, targets_N) -> (N,), it needs none.
            return_logits: If False, only positions with a label are projected, so that a large vocabulary costs memory
                only where a token is predicted.
            token_type_ids: Ignored, so that a model without segments takes all that a tokenizer returns.
            auxiliary: Further terms to minimise, by name: differentiable scalars, weighted already, such as the balance
                of experts. In training mode they are added to the mean loss; to a summed one, times the number of
                predicted tokens, so that a step in micro-batches weighs them as it weighs tokens. Reported apart, and
                never part of an evaluation.
            read: Called with hidden states and head, for a caller that projects them on its own: nothing else is done.

        Raises:
            PluginError: An auxiliary term is not a scalar tensor, or its name is not an identifier.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}, must be 'mean', 'sum' or 'none'")
        output = partial(ModelOutput, hidden_states=hidden_states, attentions=attentions, state=state)
        if read is not None:
            read(hidden_BTD, head)
            return output()
        logits_BTV = head(hidden_BTD) if return_logits or labels is None else None
        if labels is None:
            return output(logits=logits_BTV)
        source = hidden_BTD if logits_BTV is None else logits_BTV
        targets, chosen = self.targets(labels, attention_mask, source.shape[1])
        targets_N, source_N = _chosen(targets, chosen), _chosen(source[:, : targets.shape[1]], chosen)
        token_losses = losses_N = None
        if logits_BTV is None and not torch.compiler.is_compiling() and isinstance(head, TargetHead):
            losses_N = head.target_losses(source_N, targets_N)
        if reduction == "none":
            if losses_N is None:
                logits_NV = (head(source_N) if logits_BTV is None else source_N).float()
                losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
            token_losses = losses_N.new_zeros(targets.shape).masked_scatter(chosen, losses_N)
            token_losses = F.pad(token_losses, (labels.shape[1] - targets.shape[1], 0))
            loss = losses_N.sum()
        elif losses_N is not None:
            loss = losses_N.sum()
        elif logits_BTV is None and (linear := self._linear_end(head)) is not None:
            source_N = head[:-1](source_N) if isinstance(head, nn.Sequential) else source_N
            loss = summed_cross_entropy(source_N, linear, targets_N)
        else:
            logits_NV = (head(source_N) if logits_BTV is None else source_N).float()
            loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        predicted, without = targets_N.numel(), None
        if reduction != "sum":
            loss = loss / max(predicted, 1)
        if auxiliary:
            terms = sum(_scalar(name, term).to(loss.dtype) for name, term in auxiliary.items())
            if self.training:
                without, loss = loss, loss + terms * (predicted if reduction == "sum" else min(predicted, 1))
        return output(
            loss,
            logits_BTV,
            count=torch.tensor(predicted, device=targets_N.device),
            token_losses=token_losses,
            auxiliary=dict(auxiliary) if auxiliary else None,
            cross_entropy=without,
        )


def _chosen(values: torch.Tensor, chosen_BT: torch.Tensor) -> torch.Tensor:
    """Return the values (B, T, ...) at the chosen positions, (N, ...); without a gather where all are chosen."""
    # To ask for a value of a tensor would break a graph that is compiled.
    gather = torch.compiler.is_compiling() or not bool(chosen_BT.all())
    return values[chosen_BT] if gather else values.flatten(0, 1)


def _scalar(name: Any, term: Any) -> torch.Tensor:
    """Return an auxiliary term. Raises PluginError if it cannot be added to a loss and reported under its name."""
    if not (isinstance(name, str) and name.isidentifier()):
        raise PluginError(f"lm_output: {name!r} cannot be the name of an auxiliary term: it must be an identifier")
    if not (isinstance(term, torch.Tensor) and term.ndim == 0):
        shape = f"tensor of shape {tuple(term.shape)}" if isinstance(term, torch.Tensor) else type(term).__name__
        raise PluginError(f"lm_output: the auxiliary term {name} is a {shape}, not a scalar tensor")
    return term


def language_loss(output: Any) -> torch.Tensor:
    """Return the language-model loss of an output with labels, without what training adds to it."""
    added_to = getattr(output, "cross_entropy", None)
    loss: torch.Tensor = output.loss if added_to is None else added_to
    return loss


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
