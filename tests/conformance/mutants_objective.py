"""Mutants that learn another task than the one they are said to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from foundry_core import BuildContext, ExperimentConfig, ModelOutput

from .bases import AttentionLayer, AttentionModel, BidirectionalModel, RecurrentModel, WindowedModel
from .mutants import Mutants

MUTANTS = Mutants()


@MUTANTS.plant("a misspelt attribute", caught_by="runs")
class MisspeltAttribute(RecurrentModel):
    def forward(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> ModelOutput:
        self.embeding(input_ids)  # type: ignore[operator]
        return super().forward(input_ids, *args, **kwargs)


@MUTANTS.plant("no keywords but the usual ones", caught_by="runs")
class NoFurtherKeywords(AttentionModel):
    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> ModelOutput:  # type: ignore[override]
        return super().forward(input_ids, attention_mask, labels)


@MUTANTS.plant("a window that is not declared", caught_by="causal-leak")
class UndeclaredWindow(WindowedModel):
    capabilities = AttentionModel.capabilities  # type: ignore[assignment]


@MUTANTS.plant("a reach that ends too early", caught_by="causal-leak")
class ReachTooShort(RecurrentModel):
    capabilities = replace(RecurrentModel.capabilities, receptive_field=3)


@MUTANTS.plant("mask off by one", caught_by="causal-leak")
class MaskOffByOne(AttentionModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return real_BS.bool()[:, None, :].expand(-1, tokens, -1).tril(diagonal=real_BS.shape[1] - tokens + 1)


@MUTANTS.plant("one layer reversed in time", caught_by="causal-leak")
class ReversedLayer(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if cell is not self.layers[-1]:
            return super().recur(cell, x_BTD, real_BT, state_BD)
        output_BTD, state_BD = super().recur(cell, x_BTD.flip(1), real_BT.flip(1), state_BD)
        return output_BTD.flip(1), state_BD


@MUTANTS.plant("causal mask in a model of both directions", caught_by="causal-leak")
class OneDirection(BidirectionalModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(real_BS, tokens).tril()


class NoPlaces(nn.Module):
    """In the place of a table of positions."""

    def forward(self, places_BT: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


@MUTANTS.plant("no positions", caught_by="word-order")
class Unordered(BidirectionalModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.positions = NoPlaces()  # type: ignore[assignment]


class OneSidedBias(AttentionLayer):
    """Distances as T5 counts them in its decoder."""

    def __init__(self, width: int, dropout: nn.Dropout):
        super().__init__(width, dropout)
        self.bias = nn.Embedding(8, 1)

    def weights(self, scores_BTS: torch.Tensor, visible_BTS: torch.Tensor) -> torch.Tensor:
        places = torch.arange(scores_BTS.shape[-1])
        distances = (places[:, None] - places).clamp(0, 7)
        return super().weights(scores_BTS + self.bias(distances)[..., 0], visible_BTS)


@MUTANTS.plant("distances to the right clamped at 0", caught_by="word-order")
class OneSidedDistances(Unordered):
    """With two layers the first tells the second."""

    layer_class = OneSidedBias


@MUTANTS.plant("looks ahead while it trains", caught_by="noise-floor")
class LooksAheadInTraining(AttentionModel):
    """No comparison of logits in evaluation sees it."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        ahead = hidden_BTD.roll(-1, dims=1) if self.training else 0
        return super().finish(hidden_BTD + ahead, labels, **kwargs)


@MUTANTS.plant("no shift", caught_by="noise-floor")
class NoShift(RecurrentModel):
    """Labels rolled to the right make up for core's shift: each position is scored on the token it reads."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels if labels is None else labels.roll(1, dims=1), **kwargs)


@MUTANTS.plant("no shift", caught_by="reference-loss")
class NoShiftInAttention(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels if labels is None else labels.roll(1, dims=1), **kwargs)


@MUTANTS.plant("double shift", caught_by="reference-loss")
class DoubleShift(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, shifted(labels), **kwargs)


@MUTANTS.plant("double shift", caught_by="accumulation")
class DoubleShiftInRecurrence(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, shifted(labels), **kwargs)


@MUTANTS.plant("a shift although the objective is not causal", caught_by="reference-loss")
class ShiftedMaskedLoss(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, shifted(labels), **kwargs)


def shifted(labels: torch.Tensor | None) -> torch.Tensor | None:
    """The label of the next position at each, -100 at the last."""
    return labels if labels is None else nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


@MUTANTS.plant("loss divided by the tokens of the batch", caught_by="reference-loss")
class DividedByTokens(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and kwargs.get("reduction", "mean") == "mean":
            output.loss = output["loss"] * output["count"] / labels.numel()
        return output


@MUTANTS.plant("mean where a sum is asked for", caught_by="accumulation")
class MeanForSum(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels, **{**kwargs, "reduction": "mean"})


@MUTANTS.plant("mean of the means of rows", caught_by="accumulation")
class MeanOfMeans(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and kwargs.get("reduction", "mean") == "mean":
            rows = [
                self.lm_output(hidden_D[None], self.head, row[None])
                for hidden_D, row in zip(hidden_BTD, labels, strict=True)
            ]
            output.loss = torch.stack([row["loss"] for row in rows if int(row["count"])]).mean()
        return output


@MUTANTS.plant("NaN on empty", caught_by="no-labels")
class NaNOnEmpty(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and kwargs.get("reduction", "mean") == "mean":
            output.loss = output["loss"] * output["count"] / output["count"]
        return output


@MUTANTS.plant("a penalty added to the loss", caught_by="no-labels")
class Penalty(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None:
            penalty = 1e-6 * hidden_BTD.square().mean()
            output.loss = output["loss"] + penalty - penalty.detach()
        return output


@MUTANTS.plant("gradient of the trunk reversed", caught_by="learnability")
class ReversedGradient(AttentionModel):
    """Every value is right."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(2 * hidden_BTD.detach() - hidden_BTD, labels, **kwargs)


@MUTANTS.plant("everything but the output layer detached", caught_by="learnability")
class DetachedTrunk(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD.detach(), labels, **kwargs)


@MUTANTS.plant("a head that compares positions", caught_by="loss-without-logits")
class HeadOverTime(AttentionModel):
    """Given only the predicted positions, it normalises over others."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().head(hidden)
        return logits - logits.mean(dim=-2, keepdim=True)


@MUTANTS.plant("logits where none are asked for", caught_by="loss-without-logits")
class AlwaysLogits(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels, **{**kwargs, "return_logits": True})


@MUTANTS.plant("softmaxed output", caught_by="raw-logits")
class SoftmaxedOutput(AttentionModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden).softmax(dim=-1)


@MUTANTS.plant("the logarithm of a softmax of a softmax", caught_by="raw-logits")
class SoftmaxedTwice(RecurrentModel):
    """Normalised, as log-probabilities are, and never further apart than 1."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden).softmax(dim=-1).log_softmax(dim=-1)


@MUTANTS.plant("a sigmoid for each token", caught_by="raw-logits")
class Sigmoids(BidirectionalModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden).sigmoid()


@MUTANTS.plant("last position dropped", caught_by="raw-logits")
class LastPositionDropped(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if "logits" in output:
            output.logits = output["logits"][:, :-1]
        return output


# Losses of single tokens, and special ones.


@MUTANTS.plant("no losses of single tokens", caught_by="reference-loss")
class NoTokenLosses(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        reduction = kwargs.pop("reduction", "mean")
        return super().finish(hidden_BTD, labels, reduction="mean" if reduction == "none" else reduction, **kwargs)


@MUTANTS.plant("losses at the token that predicts", caught_by="reference-loss")
class LossesAtPredictor(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if "token_losses" in output:
            output["token_losses"] = output["token_losses"].roll(-1, dims=1)
        return output


@MUTANTS.plant("predictions counted with logits only", caught_by="reference-loss")
class LeanWithoutCount(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        kept = {key: value for key, value in output.items() if key != "count" or "logits" in output}
        return ModelOutput(**kept)


@MUTANTS.plant("the end of a text never learnt", caught_by="special-tokens")
class SpecialLabelsIgnored(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if labels is not None:
            labels = labels.masked_fill(labels.eq(self.context.eos_token_id or 0), -100)
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("padding told by its token", caught_by="special-tokens")
class PaddingByToken(AttentionModel):
    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> ModelOutput:
        if attention_mask is not None:
            attention_mask = attention_mask * (input_ids != self.context.pad_token_id)
        return super().forward(input_ids, attention_mask, *args, **kwargs)
