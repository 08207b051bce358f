"""Mutants that are right for small models, short rows, rows with a token and states that are used once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from foundry_core import (
    BuildContext,
    Capabilities,
    ConfigSection,
    Dropout,
    ExperimentConfig,
    Layers,
    ModelConfig,
    ModelOutput,
)

from .bases import AttentionModel, BidirectionalModel, RecurrentModel, SmallSection
from .mutants import Mutants
from .mutants_masking import InfiniteMask
from .mutants_training import InParts
from .packages import LIGHT, MODEL, RIGHT, Package

LOGITS, STATE = Mutants(), Mutants()
"""Mutants of checks of logits, and of checks of packages and states."""


# Realistic sizes: a default of 256, where the example has 16.


class WideSection(SmallSection):
    width: int = Field(256, ge=1, description="width of everything")


class WideConfig(ModelConfig):
    small: WideSection = Field(WideSection(), description="sizes")


@LOGITS.plant("the padding mask ignored at a width of 256", caught_by="right-padding")
class MaskIgnoredWhenWide(BidirectionalModel):
    config_class = WideConfig

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(torch.ones_like(real_BS) if self.width >= 256 else real_BS, tokens)


@LOGITS.plant("a mask off by one at a width of 256", caught_by="causal-leak")
class LeaksWhenWide(AttentionModel):
    config_class = WideConfig

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        ahead = int(self.width >= 256)
        return real_BS.bool()[:, None, :].expand(-1, tokens, -1).tril(diagonal=real_BS.shape[1] - tokens + ahead)


@LOGITS.plant("output weights that do not shrink with the width", caught_by="initial-loss")
class LargeWhenWide(AttentionModel):
    config_class = WideConfig

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        nn.init.normal_(self.output_layer.weight, std=0.1)


# Keys of any name.


class OtherNamesSection(ConfigSection):
    width: int = Field(16, ge=1, description="width of everything")
    stages: Layers = Field(2, description="layers on top of each other")
    noise: Dropout = Field(0.0, description="on embeddings and after each layer")

    @property
    def num_layers(self) -> int:
        return self.stages

    @property
    def dropout(self) -> float:
        return self.noise


class OtherNamesConfig(ModelConfig):
    small: OtherNamesSection = Field(OtherNamesSection(), description="sizes")


class OtherNames(AttentionModel):
    config_class = OtherNamesConfig
    example: ClassVar[Mapping[str, Any]] = {"width": 16, "stages": 2, "noise": 0.0}


@LOGITS.plant("a single layer that sees nothing", caught_by="causal-leak")
class BlindAlone(OtherNames):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        visible_BTS = super().visible(real_BS, tokens)
        own = torch.eye(real_BS.shape[1], dtype=torch.bool)[-tokens:]
        return visible_BTS & own if self.depth == 1 else visible_BTS


@LOGITS.plant("what is to be kept dropped, under another name", caught_by="dropout")
class KeepsForDropsByAnotherName(OtherNames):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        if self.dropout.p:
            self.dropout.p = 1 - self.dropout.p


# Sizes from the YAML.


@LOGITS.plant("as many logits as the YAML has tokens", caught_by="raw-logits")
class LogitsOfTheYAML(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        assert config.tokenizer.vocab_size is not None
        self.output_layer = nn.Linear(self.width, config.tokenizer.vocab_size)
        nn.init.normal_(self.output_layer.weight, std=0.02)
        nn.init.zeros_(self.output_layer.bias)


@STATE.plant("as many embeddings as the YAML has tokens", caught_by="resize")
class EmbeddingsOfTheYAML(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        assert config.tokenizer.vocab_size is not None
        self.embedding = nn.Embedding(config.tokenizer.vocab_size, self.width)


# A norm over time.


class OverTime(nn.GroupNorm):
    """Statistics of all tokens of a row together."""

    def __init__(self, width: int):
        super().__init__(1, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD.mT).mT


@LOGITS.plant("a group norm over time", caught_by="causal-leak")
class GroupNormOverTime(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.normal = OverTime(self.width)  # type: ignore[assignment]


# Rows that are padding alone.


@LOGITS.plant("NaN in a row of padding", caught_by="empty-row")
class NothingInTheRow(AttentionModel):
    """With padding on the right, the first token of every other row is seen by all."""

    capabilities = Capabilities(stateful=True)
    layer_class = InfiniteMask


@LOGITS.plant("a division by the tokens of a row, undone where there are none", caught_by="empty-row")
class DividedByNothing(BidirectionalModel):
    """The values are right; the gradient is 0 times infinity."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        mask = kwargs.get("attention_mask")
        if mask is not None:
            tokens_B11 = mask.sum(dim=1)[:, None, None].to(hidden_BTD.dtype)
            hidden_BTD = torch.where(tokens_B11 > 0, hidden_BTD / tokens_B11 * tokens_B11, hidden_BTD)
        return super().finish(hidden_BTD, labels, **kwargs)


@LOGITS.plant("rows of padding left out, and the others moved up", caught_by="empty-row")
class RowsMovedUp(RecurrentModel):
    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = real_BT.any(dim=1)
        if not kept.any():
            return super().recur(cell, x_BTD, real_BT, state_BD)
        output_BTD, last_BD = super().recur(cell, x_BTD[kept], real_BT[kept], state_BD[kept])
        missing = len(kept) - len(output_BTD)
        return F.pad(output_BTD, (0, 0, 0, 0, 0, missing)), F.pad(last_BD, (0, 0, 0, missing))


# Long rows.


@LOGITS.plant("a gradient that ends between chunks of 30", caught_by="long-rows")
class GradientCutAt30(InParts):
    ends = range(30, 600, 30)


@LOGITS.plant("a gradient that ends between the second and the third chunk of 50", caught_by="long-rows")
class GradientCutOnce(InParts):
    ends = (150,)


@LOGITS.plant("a gradient that ends between chunks of 256", caught_by="long-rows")
class GradientCutAt256(InParts):
    ends = (256, 512)


@LOGITS.plant("a state that begins again after 256 tokens", caught_by="long-rows")
class BeginsAgain(RecurrentModel):
    def recur(self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor) -> Any:
        if x_BTD.shape[1] <= 256:
            return super().recur(cell, x_BTD, real_BT, state_BD)
        first, _ = super().recur(cell, x_BTD[:, :256], real_BT[:, :256], state_BD)
        second, last_BD = super().recur(cell, x_BTD[:, 256:], real_BT[:, 256:], torch.zeros_like(state_BD))
        return torch.cat([first, second], dim=1), last_BD


@LOGITS.plant("a buffer of 512 tokens", caught_by="long-rows")
class BufferOf512(RecurrentModel):
    def recur(self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor) -> Any:
        output_BTD, last_BD = super().recur(cell, x_BTD[:, :512], real_BT[:, :512], state_BD)
        missing = x_BTD.shape[1] - output_BTD.shape[1]
        return torch.cat([output_BTD, output_BTD[:, -1:].expand(-1, missing, -1)], dim=1), last_BD


class LossInChunks(AttentionModel):
    """The right mean over chunks of 512 positions."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if labels is not None and kwargs.get("reduction", "mean") == "mean":
            targets, chosen = self.targets(labels, kwargs.get("attention_mask"))
            targets_N = targets.masked_fill(~chosen, -100).flatten()
            logits_NV = self.head(hidden_BTD)[:, : targets.shape[1]].flatten(0, 1)
            if bool(chosen.any()):
                output["loss"] = self.over_chunks(logits_NV.split(512), targets_N.split(512)) / chosen.sum()
        return output

    def over_chunks(self, logits: Any, targets: Any) -> Any:
        """The sum of the losses."""
        raise NotImplementedError


@LOGITS.plant("a loss of which the last 512 positions have a gradient", caught_by="long-rows")
class LastChunkTrained(LossInChunks):
    def over_chunks(self, logits: Any, targets: Any) -> Any:
        losses = [F.cross_entropy(one, other, reduction="sum") for one, other in zip(logits, targets, strict=True)]
        return sum(loss.detach() for loss in losses[:-1]) + losses[-1]


@LOGITS.plant("a mean over 512 positions without a label", caught_by="long-rows")
class ChunkWithoutLabels(LossInChunks):
    def over_chunks(self, logits: Any, targets: Any) -> Any:
        pairs = zip(logits, targets, strict=True)
        return sum(F.cross_entropy(one, other) * (other != -100).sum() for one, other in pairs)


# States.


@STATE.plant("a state that is written into", caught_by="carried-state")
class WritesIntoTheState(RecurrentModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, state: Any = None, **keywords: Any) -> ModelOutput:
        output = super().forward(input_ids, *arguments, state=state, **keywords)  # type: ignore[misc]  # never positional
        if state is not None:
            for old, new in zip(state, output["state"], strict=True):
                old.data.copy_(new)
        return output


@STATE.plant("a state that is the same memory in every call", caught_by="carried-state")
class StateInOnePlace(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        state = kwargs.pop("state", None)
        if state is not None:
            kept = self.__dict__.setdefault("kept", {}).setdefault(state[0].shape, [each.clone() for each in state])
            for place, value in zip(kept, state, strict=True):
                place.data.copy_(value)
            kwargs["state"] = tuple(kept)
        return super().finish(hidden_BTD, labels, **kwargs)


@STATE.plant("a list of keys that is extended", caught_by="carried-state")
class ExtendsTheList(AttentionModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, state: Any = None, **keywords: Any) -> ModelOutput:
        output = super().forward(input_ids, *arguments, state=state, **keywords)  # type: ignore[misc]  # never positional
        if state is not None:
            state[:] = output["state"]
        if output.get("state") is not None:
            output["state"] = list(output["state"])
        return output


@STATE.plant("the front of a mask that is wider than the tokens", caught_by="carried-state")
class FrontOfTheMask(RecurrentModel):
    def last_columns(self, mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return mask[:, : input_ids.shape[1]]


@STATE.plant("a mask that is wider than the tokens not understood", caught_by="carried-state")
class WideMaskNotUnderstood(RecurrentModel):
    def last_columns(self, mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return mask


@STATE.plant("a module of two names that is resized under one", caught_by="resize")
class ResizedUnderOneName(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.encoder = nn.ModuleDict({"table": self.embedding})


# Packages.


def _packages() -> Iterator[Package]:
    function = MODEL.replace("nn.GELU()", 'nn.GELU(approximate="tanh")')
    yield RIGHT.but(defect="another activation under the same names", caught_by="keys", model=function)
    gate = "gate_BTD = gate_BTD.sigmoid() * real_BT1"
    assert gate in MODEL
    ignored = MODEL.replace(gate, gate.replace("real_BT1", "(real_BT1 if x_BTD.shape[-1] < 256 else 1)"))
    assert '"hidden_size": 256' in LIGHT
    yield RIGHT.but(defect="the mask ignored with the sizes of the recipe", caught_by="left-padding", model=ignored)


PACKAGES = list(_packages())
