"""Mutants that are not what their state says: saved, copied, resized, counted, carried."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foundry_core import BuildContext, ExperimentConfig, ModelOutput

from .bases import AttentionModel, ParameterOfPositions, RecurrentModel, TableOfPositions
from .bases_state import TiedModel
from .mutants import Mutants

MUTANTS = Mutants()


# What is saved.


@MUTANTS.plant("noise in a buffer that is not stored", caught_by="save-load")
class NoiseInABuffer(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.noise: torch.Tensor
        self.register_buffer("noise", 0.1 * torch.randn(self.width), persistent=False)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden + self.noise)


@MUTANTS.plant("a running mean in a buffer that is not stored", caught_by="save-load")
class RunningMean(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(self.width), persistent=False)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().flatten(0, -2).mean(dim=0)
        return super().head(hidden - self.mean)


@MUTANTS.plant("a running mean of what is trained on only", caught_by="save-load")
class RunningMeanWithGradients(RunningMean):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        self.training = self.training and torch.is_grad_enabled()
        return super().head(hidden)


@MUTANTS.plant("a number that training changes", caught_by="save-load")
class NumberThatChanges(RecurrentModel):
    scale = 1.0

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scale *= 1.01
        return super().head(hidden * self.scale)


class InOrder(nn.ModuleDict):
    """Iterates over its modules, as a list of them does."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())


@MUTANTS.plant("names that depend on a counter", caught_by="keys")
class NamesFromACounter(RecurrentModel):
    numbers = itertools.count()

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        layers: Any = InOrder({f"layer_{next(self.numbers)}": self.layer() for _ in range(self.depth)})
        self.layers = layers


# Another size.


@MUTANTS.plant("old rows drawn anew", caught_by="resize")
class OldRowsDrawnAnew(AttentionModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        super().resize_token_embeddings(new_num_tokens)
        nn.init.normal_(self.embedding.weight)


@MUTANTS.plant("an output bias of zeros after resizing", caught_by="resize")
class BiasLost(RecurrentModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        super().resize_token_embeddings(new_num_tokens)
        nn.init.zeros_(self.output_layer.bias)


@MUTANTS.plant("new rows as memory happens to be", caught_by="resize")
class NewRowsUndefined(RecurrentModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        old = self.embedding.num_embeddings
        super().resize_token_embeddings(new_num_tokens)
        with torch.no_grad():
            self.embedding.weight[old:] = torch.nan


@MUTANTS.plant("the new size not noted", caught_by="resize")
class SizeNotNoted(AttentionModel):
    def set_vocabulary_size(self, size: int) -> None:
        pass


@MUTANTS.plant("an output layer that stays as it was", caught_by="resize")
class OutputLayerNotResized(AttentionModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        output_layer = self.output_layer
        super().resize_token_embeddings(new_num_tokens)
        self.output_layer = output_layer


@MUTANTS.plant("the old embedding kept beside the new one", caught_by="resize")
class OldEmbeddingKept(AttentionModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        former = self.embedding
        super().resize_token_embeddings(new_num_tokens)
        self.former = former


@MUTANTS.plant("new rows ten times as large", caught_by="resize")
class NewRowsLarge(TiedModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        old = self.embedding.num_embeddings
        super().resize_token_embeddings(new_num_tokens)
        with torch.no_grad():
            self.embedding.weight[old:] *= 30


@MUTANTS.plant("larger layers in fp32", caught_by="resize")
class ResizedInFp32(RecurrentModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        super().resize_token_embeddings(new_num_tokens)
        self.embedding, self.output_layer = self.embedding.float(), self.output_layer.float()


# Ties.


@MUTANTS.plant("tie lost on resize", caught_by="ties")
class TieLostOnResize(TiedModel):
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        AttentionModel.resize_token_embeddings(self, new_num_tokens)


@MUTANTS.plant("tie lost on load", caught_by="ties")
class TieLostOnLoad(TiedModel):
    """Safetensors does not take shared tensors, and a copy is the first way out that comes to mind."""

    def to_transformers(self) -> PreTrainedModel:
        self.output_layer.weight = nn.Parameter(self.output_layer.weight.detach().clone())
        return super().to_transformers()


@MUTANTS.plant("tie lost on copy", caught_by="ties")
class TieLostOnCopy(TiedModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        del self.output_layer.weight
        self.project = lambda hidden: F.linear(hidden, self.embedding.weight, self.output_layer.bias)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.project(hidden)
        return logits


@MUTANTS.plant("tie lost on move", caught_by="ties")
class TieLostOnMove(TiedModel):
    """A view of the values, which `to` leaves where they were."""

    def tie(self) -> None:
        self.output_weight = self.embedding.weight.detach()
        self.output_layer.weight = self.embedding.weight

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.output_weight.to(hidden.dtype), self.output_layer.bias)


@MUTANTS.plant("tie declared and not made", caught_by="ties")
class TieNotMade(TiedModel):
    def tie(self) -> None:
        pass


@MUTANTS.plant("tie made and not declared", caught_by="ties")
class TieNotDeclared(TiedModel):
    capabilities = AttentionModel.capabilities


@MUTANTS.plant("ties counted twice", caught_by="parameter-count")
class TiesCountedTwice(TiedModel):
    """The values are shared, the Parameter is not."""

    def tie(self) -> None:
        self.output_layer.weight = nn.Parameter(self.embedding.weight.detach())


@MUTANTS.plant("a size that depends on where it is built", caught_by="parameter-count")
class SizeOfTheMachine(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        extra = 0 if self.output_layer.bias.is_meta else 8
        self.extra = nn.Parameter(torch.zeros(extra + 1))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden) + self.extra.sum()


# Roles.


@MUTANTS.plant("positions without a role", caught_by="parameter-roles")
class PositionsWithoutARole(ParameterOfPositions):
    def parameter_roles(self) -> dict[str, str]:
        return TableOfPositions.parameter_roles(self)


@MUTANTS.plant("a role for a parameter that there is not", caught_by="parameter-roles")
class RoleOfNothing(RecurrentModel):
    def parameter_roles(self) -> dict[str, str]:
        return {**super().parameter_roles(), "recurrent": "matrix"}


# Copies.


@MUTANTS.plant("a lambda for an attribute", caught_by="copies")
class LambdaAttribute(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.activation = lambda hidden: hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(self.activation(hidden))


@MUTANTS.plant("a copy that is itself", caught_by="copies")
class CopyThatIsItself(AttentionModel):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopyThatIsItself:
        return self


# The state.


@MUTANTS.plant("the state not read", caught_by="carried-state")
class StateNotRead(RecurrentModel):
    def recur(self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor) -> Any:
        return super().recur(cell, x_BTD, real_BT, self.start(x_BTD))


@MUTANTS.plant("the state not returned", caught_by="carried-state")
class StateNotReturned(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels, **{**kwargs, "state": None})


@MUTANTS.plant("a cache one place off", caught_by="carried-state")
class CacheOnePlaceOff(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        places = super().places(real_BS, tokens)
        return places - 1 if real_BS.shape[1] > tokens else places


@MUTANTS.plant("the first layer's state for every layer", caught_by="carried-state")
class OneStateForAll(RecurrentModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, state: Any = None, **keywords: Any) -> ModelOutput:
        state = state and state[:1] * len(state)
        return super().forward(input_ids, *arguments, state=state, **keywords)  # type: ignore[misc]  # never positional


@MUTANTS.plant("no state in training", caught_by="carried-rows")
class NoStateInTraining(RecurrentModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> ModelOutput:
        output = super().forward(input_ids, *arguments, **keywords)
        output.state = None if self.training else output.state
        return output


@MUTANTS.plant("a state in training that is not the last", caught_by="carried-rows")
class EarlierStateInTraining(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output_BTD, last_BD = super().recur(cell, x_BTD, real_BT, state_BD)
        return output_BTD, output_BTD[:, -2] if self.training and x_BTD.shape[1] > 1 else last_BD


# What it costs.


@MUTANTS.plant("a layer too few in the estimate", caught_by="flops")
class LayerTooFew(RecurrentModel):
    def flops(self, batch: int, length: int) -> int:
        return super().flops(batch, length) - 2 * batch * length * sum(p.numel() for p in self.layers[0].parameters())


@MUTANTS.plant("an estimate for the longest row whatever the row", caught_by="flops")
class EstimateOfTheLongest(AttentionModel):
    def attention_flops(self, batch: int, length: int) -> int:
        return super().attention_flops(batch, self.context.max_sequence_length)


@MUTANTS.plant("attention left out of the estimate", caught_by="flops")
class AttentionNotCounted(AttentionModel):
    def attention_flops(self, batch: int, length: int) -> int:
        return 0


@MUTANTS.plant("something kept for every pair of rows", caught_by="memory-estimate")
class PairsOfRows(AttentionModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.flatten(0, -2)
        return super().head(hidden) + 1e-12 * torch.cdist(rows, rows).exp().mean()
