"""Three small architectures on torch alone, right in every respect, cut so that a mutant can replace one part.

Shapes: B batch, T tokens of this call, S tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from foundry_core import (
    BaseLanguageModel,
    BuildContext,
    Capabilities,
    ConfigSection,
    Dropout,
    ExperimentConfig,
    FoundryError,
    Layers,
    ModelConfig,
    ModelOutput,
    register_architecture,
)


class SmallSection(ConfigSection):
    """`model.small`."""

    width: int = Field(16, ge=1, description="width of everything")
    num_layers: Layers = Field(2, description="layers on top of each other")
    dropout: Dropout = Field(0.0, description="on embeddings and after each layer")


class SmallModelConfig(ModelConfig):
    """`model:` of all three."""

    small: SmallSection = Field(SmallSection(), description="sizes")


class SmallModel(BaseLanguageModel[SmallModelConfig]):
    """Embedding, `layers`, and an output layer with weights of its own."""

    capabilities: Any = Capabilities()
    spread = 1.0
    """Standard deviation of the embeddings."""
    config_class: type[ModelConfig] = SmallModelConfig
    example: ClassVar[Mapping[str, Any]] = {"width": 16, "num_layers": 2, "dropout": 0.0}

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        settings = self.settings.small
        self.width, self.depth = settings.width, settings.num_layers
        self.embedding = nn.Embedding(context.vocab_size, self.width)
        nn.init.normal_(self.embedding.weight, std=self.spread)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(self.layer() for _ in range(self.depth))
        self.output_layer = nn.Linear(self.width, context.vocab_size)
        nn.init.normal_(self.output_layer.weight, std=0.02)
        nn.init.zeros_(self.output_layer.bias)

    def layer(self) -> nn.Module:
        raise NotImplementedError

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output_layer(hidden)
        return logits

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return self.lm_output(hidden_BTD, self.head, labels, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        kept = min(self.embedding.num_embeddings, new_num_tokens)
        old = self.embedding.weight
        embedding = nn.Embedding(new_num_tokens, self.width).to(old)
        output_layer = nn.Linear(self.width, new_num_tokens).to(old)
        nn.init.normal_(embedding.weight, std=self.spread)
        nn.init.normal_(output_layer.weight, std=0.02)
        nn.init.zeros_(output_layer.bias)
        with torch.no_grad():
            embedding.weight[:kept] = self.embedding.weight[:kept]
            output_layer.weight[:kept] = self.output_layer.weight[:kept]
            output_layer.bias[:kept] = self.output_layer.bias[:kept]
        self.embedding, self.output_layer = embedding, output_layer
        self.set_vocabulary_size(new_num_tokens)


class AttentionLayer(nn.Module):
    """One head of attention and a feed-forward layer, each on a normalised input and added to it."""

    def __init__(self, width: int, dropout: nn.Dropout):
        super().__init__()
        self.normal_1, self.normal_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = dropout

    def forward(self, x_BTD: torch.Tensor, visible_BTS: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        query, key, value = self.query_key_value(self.normal_1(x_BTD)).chunk(3, dim=-1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        x_BTD = x_BTD + self.dropout(self.mixed(self.attend(query, key, value, visible_BTS)))
        return x_BTD + self.dropout(self.feed_forward(self.normal_2(x_BTD))), (key, value)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible_BTS: torch.Tensor
    ) -> torch.Tensor:
        return self.weights(query @ key.mT / math.sqrt(query.shape[-1]), visible_BTS).to(value.dtype) @ value

    def weights(self, scores_BTS: torch.Tensor, visible_BTS: torch.Tensor) -> torch.Tensor:
        """A query that sees nothing sees everything a little: a finite result that nobody reads."""
        return scores_BTS.masked_fill(~visible_BTS, torch.finfo(scores_BTS.dtype).min).softmax(dim=-1)


class AttentionModel(SmallModel):
    """Causal attention with learned positions. State: which tokens were real, and keys and values of each layer."""

    capabilities = Capabilities(stateful=True, left_padding=True)
    layer_class = AttentionLayer

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.positions = nn.Embedding(context.max_sequence_length, self.width)
        self.normal = nn.LayerNorm(self.width)
        nn.init.normal_(self.positions.weight, std=0.1)

    def layer(self) -> nn.Module:
        return self.layer_class(self.width, self.dropout)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> ModelOutput:
        real_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        if state is not None:
            real_BS = torch.cat([state[0], real_BS], dim=1)
        hidden_BTD = self.dropout(self.embedding(input_ids) + self.positions(self.places(real_BS, input_ids.shape[1])))
        visible_BTS = self.visible(real_BS, input_ids.shape[1])
        pasts = []
        for number, layer in enumerate(self.layers):
            hidden_BTD, past = layer(hidden_BTD, visible_BTS, None if state is None else state[1][number])
            pasts.append(past)
        carried = (real_BS, tuple(pasts)) if use_cache or state is not None else None
        return self.finish(self.normal(hidden_BTD), labels, attention_mask=attention_mask, state=carried, **kwargs)

    def attention_flops(self, batch: int, length: int) -> int:
        return 4 * batch * length * length * self.width * self.depth

    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        """(B, T): how many real tokens stand before each."""
        if real_BS.shape[1] > self.context.max_sequence_length:
            raise FoundryError(f"{real_BS.shape[1]} tokens are more than {self.context.max_sequence_length}")
        return (real_BS.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        """(B, T, S): which tokens each one sees."""
        visible_BTS = real_BS.bool()[:, None, :].expand(-1, tokens, -1)
        return visible_BTS.tril(diagonal=real_BS.shape[1] - tokens) if self.context.objective.causal else visible_BTS


class DroppingModel(AttentionModel):
    """With dropout in its example."""

    example: ClassVar[Mapping[str, Any]] = {"width": 16, "num_layers": 2, "dropout": 0.2}


class WindowedModel(AttentionModel):
    """Attention to the last three columns: with every layer two more are within reach."""

    @staticmethod
    def capabilities(config: Any) -> Capabilities:  # type: ignore[override]  # both are allowed
        return replace(AttentionModel.capabilities, receptive_field=1 + 2 * config.small.num_layers)

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(real_BS, tokens).triu(diagonal=real_BS.shape[1] - tokens - 2)


class TableOfPositions(AttentionModel):
    """With a table that does not depend on how long the rows of a run are."""

    capabilities = replace(AttentionModel.capabilities, longest_sequence=512)

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.positions = nn.Embedding(512, self.width)
        nn.init.normal_(self.positions.weight, std=0.1)


class Table(nn.Module):
    """Describes what a row is at each place, as a parameter."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.values_LD = nn.Parameter(0.1 * torch.randn(length, width))

    def forward(self, places_BT: torch.Tensor) -> torch.Tensor:
        return self.values_LD[places_BT]


class ParameterOfPositions(TableOfPositions):
    """The same table, not as an embedding."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.positions = Table(512, self.width)  # type: ignore[assignment]

    def parameter_roles(self) -> dict[str, str]:
        return {**super().parameter_roles(), "positions.values_LD": "embedding"}


class BidirectionalModel(AttentionModel):
    """The same attention to both sides."""

    capabilities = Capabilities(objectives=("masked_lm",), generation=False, left_padding=True, bidirectional=True)


class IsolatingModel(AttentionModel):
    """Keeps the documents of a row apart."""

    capabilities = replace(AttentionModel.capabilities, isolates_documents=True)
    numbers: torch.Tensor | None = None

    def forward(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> ModelOutput:
        self.__dict__["numbers"] = keywords.pop("document_ids", None)
        return super().forward(input_ids, *arguments, **keywords)

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        visible_BTS = super().visible(real_BS, tokens)
        number = self.numbers
        return visible_BTS if number is None else visible_BTS & (number[:, :, None] == number[:, None, :])

    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        places, number = super().places(real_BS, tokens), self.numbers
        if number is None:
            return places
        same = number[:, :, None] == number[:, None, :]
        return (same & torch.ones_like(same).tril(diagonal=-1)).sum(dim=-1)


class RecurrentModel(SmallModel):
    """Gated recurrence over real tokens, a step at a time. State: the hidden state of each layer after the last one."""

    capabilities = Capabilities(stateful=True, unbounded_length=True, left_padding=True)

    def layer(self) -> nn.Module:
        return nn.GRUCell(self.width, self.width)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> ModelOutput:
        hidden_BTD = self.dropout(self.embedding(input_ids))
        real_BT = torch.ones_like(input_ids) if attention_mask is None else self.last_columns(attention_mask, input_ids)
        states = []
        for number, cell in enumerate(self.layers):
            before_BD = self.start(hidden_BTD) if state is None else state[number]
            hidden_BTD, after_BD = self.recur(cell, hidden_BTD, real_BT.bool(), before_BD)
            hidden_BTD = self.dropout(hidden_BTD)
            states.append(after_BD)
        carried = tuple(states) if use_cache else None
        return self.finish(hidden_BTD, labels, attention_mask=attention_mask, state=carried, **kwargs)

    def last_columns(self, mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """The part of a mask that covers these tokens; it may also cover those that the state has read."""
        return mask[:, -input_ids.shape[1] :]

    def start(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.new_zeros(x_BTD.shape[0], self.width)

    def recur(
        self, cell: Callable[..., torch.Tensor], x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token that is not real leaves the state as it is."""
        outputs = []
        for x_BD, real_B in zip(x_BTD.unbind(1), real_BT.unbind(1), strict=True):
            state_BD = torch.where(real_B[:, None], cell(x_BD, state_BD), state_BD)
            outputs.append(state_BD)
        return torch.stack(outputs, dim=1), state_BD


class BalancedModel(RecurrentModel):
    """Keeps its states small by an auxiliary term, the mean over real tokens."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels, auxiliary={"size": self.term(hidden_BTD, **kwargs)}, **kwargs)

    def term(self, hidden_BTD: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        size_BT = hidden_BTD.square().mean(dim=-1)
        real_BT = torch.ones_like(size_BT) if attention_mask is None else attention_mask.to(size_BT)
        return 0.1 * (size_BT * real_BT).sum() / real_BT.sum().clamp(min=1)


BASES = (AttentionModel, RecurrentModel, BidirectionalModel)


def register(name: str, model_class: type[SmallModel]) -> None:
    """Make a base or a mutant of one available under a name, until the test ends."""
    register_architecture(
        name,
        config=model_class.config_class,
        summary="for the tests of the conformance kit",
        capabilities=model_class.capabilities,
        default_tokenizer="character",
        examples={"tiny": {"small": model_class.example}},
    )(model_class)
