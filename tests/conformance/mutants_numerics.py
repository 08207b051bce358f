"""Mutants whose numbers are unsound."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from foundry_core import BuildContext, Dropout, ExperimentConfig, ModelConfig, ModelOutput

from .bases import AttentionLayer, AttentionModel, BidirectionalModel, RecurrentModel, SmallSection
from .mutants import Mutants

MUTANTS = Mutants()


class SquaresOfSums(nn.LayerNorm):
    """The variance as the mean of squares less the square of the mean, of numbers around `offset`."""

    offset = 4.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rounded(x) + self.offset
        mean = x.mean(dim=-1, keepdim=True)
        variance = (x * x).mean(dim=-1, keepdim=True) - mean * mean
        return (x - mean) / variance.sqrt() * self.weight + self.bias

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16() if torch.is_autocast_enabled("cpu") else x


class Cancelling(SquaresOfSums):
    offset = 100.0

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return x


@MUTANTS.plant("a variance that cancels in bf16", caught_by="bf16")
class CancelsInBF16(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.normal = SquaresOfSums(self.width)


@MUTANTS.plant("a variance that cancels in fp32", caught_by="float64")
class CancelsInFP32(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.normal = Cancelling(self.width)


class BiasOfFP32(AttentionLayer):
    def weights(self, scores_BTS: torch.Tensor, visible_BTS: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(visible_BTS.shape).masked_fill(~visible_BTS, torch.finfo(torch.float32).min)
        return (scores_BTS + bias.to(scores_BTS.dtype)).softmax(dim=-1)


@MUTANTS.plant("the smallest number of fp32 in bf16", caught_by="bf16")
class OverflowsInBF16(AttentionModel):
    """It becomes minus infinity there, and a query that sees nothing NaN."""

    layer_class = BiasOfFP32


@MUTANTS.plant("a number that bf16 rounds away", caught_by="bf16")
class RoundedAway(BidirectionalModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden) + 64 - 64


@MUTANTS.plant("a state of fp32", caught_by="float64")
class StateOfFP32(RecurrentModel):
    def start(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x_BTD.shape[0], self.width, dtype=torch.float32)


@MUTANTS.plant("output weights of unit variance", caught_by="initial-loss")
class LargeOutputWeights(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        nn.init.normal_(self.output_layer.weight)


@MUTANTS.plant("a bias that is NaN for one seed in twelve", caught_by="initial-loss")
class SometimesNaN(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        with torch.no_grad():
            self.output_layer.bias.div_(((torch.rand(()) - 0.5).abs() > 0.04).float())


@MUTANTS.plant("an unused parameter", caught_by="gradient-reach")
class UnusedParameter(BidirectionalModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.forgotten = nn.Linear(self.width, self.width)


@MUTANTS.plant("the first layer detached", caught_by="gradient-reach")
class DetachedLayer(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output_BTD, state_BD = super().recur(cell, x_BTD, real_BT, state_BD)
        return (output_BTD.detach() if cell is self.layers[0] else output_BTD), state_BD


@MUTANTS.plant("padding row frozen", caught_by="gradient-reach")
class FrozenPaddingRow(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.embedding.padding_idx = context.pad_token_id


@MUTANTS.plant("a loss computed in bf16", caught_by="bf16")
class LossInBf16(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and torch.is_autocast_enabled("cpu"):
            output["loss"] = output["loss"].bfloat16().float()
        return output


@MUTANTS.plant("dropout in evaluation", caught_by="pure-evaluation")
class DropoutInEvaluation(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(F.dropout(hidden_BTD, self.dropout.p), labels, **kwargs)


class DropSection(SmallSection):
    drop: Dropout = Field(0.1, description="before the output layer")


class DropModelConfig(ModelConfig):
    small: DropSection = Field(DropSection(), description="sizes")


@MUTANTS.plant("dropout of another name in evaluation", caught_by="pure-evaluation")
class DropInEvaluation(AttentionModel):
    config_class = DropModelConfig
    example: ClassVar[Mapping[str, Any]] = {"width": 16, "num_layers": 2, "drop": 0.0}

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        probability = self.config.model.small.drop  # type: ignore[attr-defined]
        return super().finish(F.dropout(hidden_BTD, probability), labels, **kwargs)


@MUTANTS.plant("state carried between calls", caught_by="pure-evaluation")
class HiddenStateNotReset(RecurrentModel):
    last: torch.Tensor | None = None

    def start(self, x_BTD: torch.Tensor) -> torch.Tensor:
        fits = self.last is not None and len(self.last) == len(x_BTD)
        return self.last if fits else super().start(x_BTD)  # type: ignore[return-value]

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output_BTD, state_BD = super().recur(cell, x_BTD, real_BT, state_BD)
        self.last = state_BD.detach()
        return output_BTD, state_BD


@MUTANTS.plant("labels edited in place", caught_by="pure-evaluation")
class EditsLabels(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if labels is not None:
            labels[:, 0] = -100
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("a random number drawn in evaluation", caught_by="pure-evaluation")
class DrawsInEvaluation(BidirectionalModel):
    """It changes no result, and the next dropout of the training."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        random.random()
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("statistics kept in evaluation", caught_by="pure-evaluation")
class KeepsStatistics(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        self.calls += 1
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("seeding in forward", caught_by="seed")
class SeedsInForward(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if self.training:
            torch.manual_seed(0)
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("seeding in the constructor", caught_by="seed")
class SeedsInConstructor(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        torch.manual_seed(0)
        super().__init__(config, context)


@MUTANTS.plant("initial weights from another generator", caught_by="seed")
class UnseededWeights(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.positions.weight, std=0.1, generator=generator)


@MUTANTS.plant("dropout set and not applied", caught_by="seed")
class IgnoresDropout(BidirectionalModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.dropout.p = 0.0


@MUTANTS.plant("a growing list of tensors", caught_by="memory")
class GrowingList(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        self.__dict__.setdefault("history", []).append(hidden_BTD.detach().mean())
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("a tensor that is extended", caught_by="memory")
class GrowingTensor(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        seen = self.__dict__.get("seen", hidden_BTD.new_zeros(0))
        self.__dict__["seen"] = torch.cat([seen, hidden_BTD.detach().flatten()])
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("a running sum that keeps its graph", caught_by="memory")
class GrowingGraph(BidirectionalModel):
    """One tensor, and behind it all that ever led to it."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        self.__dict__["activity"] = self.__dict__.get("activity", 0.0) + hidden_BTD.square().mean()
        return super().finish(hidden_BTD, labels, **kwargs)
