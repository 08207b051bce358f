"""Mutants that train something else than they are evaluated on, lose part of the gradient, or fail in long rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from foundry_core import BuildContext, ExperimentConfig, ModelOutput

from .bases import AttentionLayer, AttentionModel, BalancedModel, BidirectionalModel, RecurrentModel
from .mutants import Mutants

MUTANTS = Mutants()


# Auxiliary terms.


@MUTANTS.plant("a term that counts padding", caught_by="auxiliary")
class TermOfPadding(BalancedModel):
    def term(self, hidden_BTD: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return 0.1 * hidden_BTD.square().mean()


@MUTANTS.plant("a term without a gradient", caught_by="auxiliary")
class TermWithoutAGradient(BalancedModel):
    def term(self, hidden_BTD: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return super().term(hidden_BTD, attention_mask).detach()


@MUTANTS.plant("a term in the loss of evaluations", caught_by="auxiliary")
class TermInEvaluations(BalancedModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if output.loss is not None and not self.training:
            output.loss = output.loss + self.term(hidden_BTD, **kwargs)
        return output


# Training and evaluation.


@MUTANTS.plant("label smoothing while it trains", caught_by="train-mode")
class Smoothing(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if self.training and labels is not None:
            _, chosen = self.targets(labels, kwargs.get("attention_mask"))
            uniform = -self.head(hidden_BTD)[:, :-1][chosen].log_softmax(dim=-1).mean(dim=-1)
            output["loss"] = 0.9 * output["loss"] + 0.1 * uniform.sum()
        return output


@MUTANTS.plant("padding seen while it trains", caught_by="train-mode")
class PaddingSeenInTraining(BidirectionalModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(torch.ones_like(real_BS) if self.training else real_BS, tokens)


@MUTANTS.plant("logits capped in evaluation", caught_by="train-mode")
class CappedInEvaluation(RecurrentModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().head(hidden)
        return logits if self.training else 0.5 * (logits / 0.5).tanh()


# Dropout.


@MUTANTS.plant("what is to be kept dropped", caught_by="dropout")
class KeepsForDrops(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        if self.dropout.p:
            self.dropout.p = 1 - self.dropout.p


@MUTANTS.plant("logits dropped", caught_by="dropout")
class LogitsDropped(RecurrentModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dropout(super().head(hidden))
        return logits


# Gradients.


@MUTANTS.plant("a recurrence that is cut at every token", caught_by="derivative")
class DetachedRecurrence(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().recur(lambda x, state: cell(x, state.detach()), x_BTD, real_BT, state_BD)


class DetachedWeights(AttentionLayer):
    def weights(self, scores_BTS: torch.Tensor, visible_BTS: torch.Tensor) -> torch.Tensor:
        return super().weights(scores_BTS, visible_BTS).detach()


@MUTANTS.plant("attention weights that nothing trains", caught_by="derivative")
class AttentionDetached(AttentionModel):
    layer_class = DetachedWeights


@MUTANTS.plant("positions that start at zero and stay", caught_by="gradient-reach")
class PositionsUnused(BidirectionalModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return torch.zeros_like(super().places(real_BS, tokens))


class ValuesOnly(AttentionLayer):
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible_BTS: torch.Tensor
    ) -> torch.Tensor:
        return super().attend(value, value, value, visible_BTS)


@MUTANTS.plant("two thirds of a matrix unused", caught_by="gradient-reach")
class QueryIsValue(AttentionModel):
    layer_class = ValuesOnly


# Long rows.


class KeysDetached(AttentionLayer):
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible_BTS: torch.Tensor
    ) -> torch.Tensor:
        key, value = (torch.cat([each[:, :-48].detach(), each[:, -48:]], dim=1) for each in (key, value))
        return super().attend(query, key, value, visible_BTS)


@MUTANTS.plant("a state that is lost between chunks of 64", caught_by="long-rows")
class ChunksApart(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, start = [], state_BD
        for x, real in zip(x_BTD.split(64, dim=1), real_BT.split(64, dim=1), strict=True):
            output, state_BD = super().recur(cell, x, real, start)
            outputs.append(output)
            start = torch.zeros_like(start)
        return torch.cat(outputs, dim=1), state_BD


class InParts(RecurrentModel):
    """Truncated backpropagation, which no value shows: the gradient does not cross the ends of parts."""

    ends: Sequence[int] = ()

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ends = [end for end in self.ends if end < x_BTD.shape[1]]
        sizes = [stop - start for start, stop in zip([0, *ends], [*ends, x_BTD.shape[1]], strict=True)]
        outputs: list[torch.Tensor] = []
        for x, real in zip(x_BTD.split(sizes, dim=1), real_BT.split(sizes, dim=1), strict=True):
            output, state_BD = super().recur(cell, x, real, state_BD.detach() if outputs else state_BD)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state_BD


@MUTANTS.plant("a gradient that ends between chunks of 64", caught_by="long-rows")
class GradientCut(InParts):
    ends = range(64, 600, 64)


@MUTANTS.plant("keys without a gradient behind 48 tokens", caught_by="long-rows")
class OldKeysDetached(BidirectionalModel):
    """As if what has been read were a cache."""

    layer_class = KeysDetached


@MUTANTS.plant("a mask of 32 columns", caught_by="long-rows")
class MaskTooSmall(AttentionModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        visible_BTS = super().visible(real_BS, tokens)
        return visible_BTS | ((torch.arange(real_BS.shape[1]) >= 32) & real_BS.bool())[:, None]


@MUTANTS.plant("the mean of the means of 512 predictions", caught_by="long-rows")
class MeanOfChunks(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and kwargs.get("reduction", "mean") == "mean":
            targets, chosen = self.targets(labels, kwargs.get("attention_mask"))
            logits = self.head(hidden_BTD)[:, :-1][chosen]
            chunks = zip(logits.split(512), targets[chosen].split(512), strict=True)
            means = [F.cross_entropy(part, wanted) for part, wanted in chunks if len(wanted)]
            if means:
                output["loss"] = torch.stack(means).mean()
        return output
