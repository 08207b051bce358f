"""Mutants that are another model where several processes divide the micro-batches of a step."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import torch

from foundry_core import BuildContext, ExperimentConfig, ModelOutput

from .bases import AttentionModel, BidirectionalModel, RecurrentModel, SmallModel
from .mutants import Mutants

MUTANTS = Mutants()

CHANCE = torch.Generator().manual_seed(0)


def scales(defect: str, base: type[SmallModel], number: Any) -> None:
    """Plant a model that scales its hidden states in training, by a little more for each unit of a number."""

    class Scaling(base):  # type: ignore[misc, valid-type]
        def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
            if self.training:
                hidden_BTD = hidden_BTD * (1 + float(number()) / 10)
            output: ModelOutput = super().finish(hidden_BTD, labels, **kwargs)
            return output

    Scaling.__name__ = Scaling.__qualname__ = "".join(word.capitalize() for word in defect.split())
    globals()[Scaling.__name__] = Scaling
    MUTANTS.plant(defect, caught_by="two-processes")(Scaling)


scales("chance from a generator of its own", AttentionModel, lambda: torch.rand((), generator=CHANCE))
scales("chance of numpy in training", RecurrentModel, np.random.random)
scales("a number that is that of the process", RecurrentModel, lambda: os.getpid() % 10)


@MUTANTS.plant("layers in an order of the rank", caught_by="two-processes")
class LayersOfTheRank(AttentionModel):
    """Nothing shows in one process."""

    def forward(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> ModelOutput:
        layers = self.layers
        self.layers = layers[::-1] if self.training and os.environ.get("RANK") == "1" else layers
        try:
            return super().forward(input_ids, *arguments, **keywords)
        finally:
            self.layers = layers


@MUTANTS.plant("positions turned round in every third call", caught_by="two-processes")
class EveryThirdCall(BidirectionalModel):
    calls: ClassVar[int] = 0

    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        places = super().places(real_BS, tokens)
        type(self).calls += self.training
        return places.max() - places if self.training and self.calls % 3 == 0 else places


class Counting(RecurrentModel):
    """Counts its batches, and trains otherwise later on. The count is saved: an interruption changes nothing."""

    batches: torch.Tensor

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if self.training:
            self.batches += 1
            hidden_BTD = hidden_BTD * (1 + self.batches / 1000)
        return super().finish(hidden_BTD, labels, **kwargs)


MUTANTS.plant("a count of batches that is saved", caught_by="two-processes")(Counting)


class Averaging(AttentionModel):
    """Keeps a running mean of its hidden states over the rows of the batches."""

    persistent = True
    mean: torch.Tensor

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.register_buffer("mean", torch.zeros(self.width), persistent=self.persistent)

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if self.training:
            self.mean = self.mean.lerp(hidden_BTD.detach().mean(dim=(0, 1)), 0.1)
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("statistics of its batches that are saved", caught_by="two-processes")
class SavedStatistics(Averaging):
    pass


@MUTANTS.plant("statistics of its batches that evaluation takes off", caught_by="two-processes")
class StatisticsInEvaluation(Averaging):
    """Not saved: the weights are the same, and only the evaluations differ."""

    persistent = False

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden if self.training else hidden - self.mean)


@MUTANTS.plant("a state kept from one micro-batch to the next", caught_by="two-processes")
class KeepsItsState(RecurrentModel):
    kept: torch.Tensor | None = None

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training and self.kept is not None and self.kept.shape == state_BD.shape:
            state_BD = self.kept
        outputs, last_BD = super().recur(cell, x_BTD, real_BT, state_BD)
        self.__dict__["kept"] = last_BD.detach()
        return outputs, last_BD
