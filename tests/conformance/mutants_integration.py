"""Mutants that do not live where they will be used: prompts, crashes, compilers, second processes, other libraries."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator
from torch import nn
from transformers import PreTrainedModel

from foundry_core import BuildContext, Capabilities, ConfigSection, ExperimentConfig, ModelConfig, ModelOutput

from .bases import AttentionModel, BidirectionalModel, RecurrentModel, SmallSection
from .bases_state import RecomputedLayer, RecomputingModel
from .mutants import Mutants

MUTANTS = Mutants()


# Generation.


@MUTANTS.plant("positions that count the padding", caught_by="greedy")
class PositionsCountPadding(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().places(torch.ones_like(real_BS), tokens)


@MUTANTS.plant("the mask ignored when prompts are ragged", caught_by="greedy")
class MaskIgnored(RecurrentModel):
    def recur(self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor) -> Any:
        return super().recur(cell, x_BTD, torch.ones_like(real_BT), state_BD)


@MUTANTS.plant("a state that forgets which tokens were padding", caught_by="step-by-step")
class PaddingForgotten(AttentionModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, state: Any = None, **keywords: Any) -> ModelOutput:
        seen = None if state is None else (torch.ones_like(state[0]), state[1])
        return super().forward(input_ids, *arguments, state=seen, **keywords)  # type: ignore[misc]  # never positional


@MUTANTS.plant("a cache one place off for single tokens", caught_by="step-by-step")
class SingleTokensOnePlaceOff(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        places = super().places(real_BS, tokens)
        return (places - 1).clamp(min=0) if tokens == 1 else places


@MUTANTS.plant("text from a model that cannot write", caught_by="refusal")
class WritesAnyway(BidirectionalModel):
    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        assert input_ids is not None
        return torch.cat([input_ids, self(input_ids).logits[:, -1:].argmax(dim=-1)], dim=1)


@MUTANTS.plant("a refusal without words", caught_by="refusal")
class RefusesWithoutWords(BidirectionalModel):
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError


@MUTANTS.plant("a promise to write", caught_by="refusal")
class PromisesToWrite(BidirectionalModel):
    @property
    def supports_generation(self) -> bool:
        return True


# A crash.


@MUTANTS.plant("a count of batches that only the process knows", caught_by="exact-resume")
class CountsBatches(RecurrentModel):
    """The dropout that grows: nothing of it shows in evaluation."""

    batches = 0

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if self.training:
            self.batches += 1
            hidden_BTD = hidden_BTD * (1 + self.batches / 100)
        return super().finish(hidden_BTD, labels, **kwargs)


@MUTANTS.plant("chance from Python's generator", caught_by="exact-resume")
class ChanceOfPython(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.chance = random.Random(0)

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        scale = 1 + self.chance.random() / 10 if self.training else 1
        return super().finish(hidden_BTD * scale, labels, **kwargs)


# Recomputing, moving, compiling.


class OtherDropout(RecomputedLayer):
    preserve_rng_state = False


@MUTANTS.plant("dropout that falls otherwise when recomputed", caught_by="gradient-checkpointing")
class RecomputesOtherDropout(RecomputingModel):
    layer_class = OtherDropout


@MUTANTS.plant("checkpointing that does nothing", caught_by="gradient-checkpointing")
class RecomputesNothing(RecomputingModel):
    def gradient_checkpointing_enable(self) -> None:
        pass


@MUTANTS.plant("a value read from a tensor while it is built", caught_by="meta-device")
class ReadsAValue(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.largest = self.embedding.weight.abs().max().item()


@MUTANTS.plant("a plain tensor for an attribute", caught_by="meta-device")
class PlainTensor(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.scales = [torch.ones(self.width)]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden * self.scales[0].to(hidden))


@MUTANTS.plant("a mask that is kept where it was made", caught_by="meta-device")
class MaskOfTheFirstDevice(AttentionModel):
    kept: torch.Tensor | None = None

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.ones(64, 64, dtype=torch.bool, device=real_BS.device).tril()
        columns = real_BS.shape[1]
        rows = self.kept[columns - tokens : columns, :columns]
        return rows & real_BS.bool()[:, None, :] if columns <= 64 else super().visible(real_BS, tokens)


@MUTANTS.plant("special tokens of another vocabulary", caught_by="hugging-face")
class SpecialTokensOfAnother(AttentionModel):
    def to_transformers(self) -> PreTrainedModel:
        outer = super().to_transformers()
        outer.config.eos_token_id = 3
        return outer


@MUTANTS.plant("vectors that are taken and not read", caught_by="hugging-face")
class VectorsNotRead(RecurrentModel):
    def forward(
        self, input_ids: Any, *arguments: Any, inputs_embeds: torch.Tensor | None = None, **keywords: Any
    ) -> ModelOutput:
        if inputs_embeds is not None:
            input_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long)
        return super().forward(input_ids, *arguments, **keywords)


@MUTANTS.plant("a tensor made on the CPU", caught_by="meta-device")
class MadeOnTheCPU(RecurrentModel):
    def start(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x_BTD.shape[0], self.width, dtype=x_BTD.dtype)


@MUTANTS.plant("a way for the compiler that is another model", caught_by="compile")
class AnotherModelWhenCompiled(RecurrentModel):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden.tanh() if torch.compiler.is_compiling() else hidden)


@MUTANTS.plant("the mask dropped where it is compiled", caught_by="compile")
class MaskDroppedWhenCompiled(BidirectionalModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(torch.ones_like(real_BS) if torch.compiler.is_compiling() else real_BS, tokens)


class MaskForgottenOnTheWay(RecomputedLayer):
    def forward(self, x_BTD: torch.Tensor, visible_BTS: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        columns = visible_BTS.shape[-1]
        causal_BTS = torch.ones_like(visible_BTS).tril(diagonal=columns - visible_BTS.shape[1])
        return super().forward(x_BTD, causal_BTS if self.recomputing and self.training else visible_BTS, past)


@MUTANTS.plant("the padding mask forgotten where activations are recomputed", caught_by="gradient-checkpointing")
class MaskDroppedWhenRecomputed(RecomputingModel):
    layer_class = MaskForgottenOnTheWay


# Two processes.


@MUTANTS.plant("a parameter that takes no part", caught_by="data-parallel")
class TakesNoPart(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.forgotten = nn.Linear(self.width, self.width)


@MUTANTS.plant("the mean over the batch taken off in training", caught_by="data-parallel")
class MeanOverTheBatch(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        if self.training:
            hidden_BTD = hidden_BTD - hidden_BTD.mean(dim=0)
        return super().finish(hidden_BTD, labels, **kwargs)


# Other libraries.


@dataclass
class PlainOutput:
    """Attributes alone."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: Any = None
    count: torch.Tensor | None = None


@MUTANTS.plant("an output without keys", caught_by="output")
class OutputWithoutKeys(BidirectionalModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> Any:
        return PlainOutput(**super().finish(hidden_BTD, labels, **kwargs))


@MUTANTS.plant("a loss that is set later", caught_by="output")
class LossSetLater(BidirectionalModel):
    """Set on a dictionary, it is no attribute and stands at the end of the tuple."""

    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> Any:
        found = super().finish(hidden_BTD, labels, **kwargs)
        later = ModelOutput(**{name: value for name, value in found.items() if name != "loss"})
        if "loss" in found:
            dict.__setitem__(later, "loss", found.loss)
        return later


@MUTANTS.plant("logits that nobody asked for", caught_by="output")
class LogitsUnasked(AttentionModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD, labels, **{**kwargs, "return_logits": True})


# Schema and capabilities.


class LaxSection(SmallSection):
    model_config = ConfigDict(extra="ignore")


class LaxConfig(ModelConfig):
    small: LaxSection = Field(LaxSection(), description="sizes")


@MUTANTS.plant("unknown keys accepted", caught_by="schema")
class UnknownKeys(RecurrentModel):
    config_class = LaxConfig


class ConvertingSection(SmallSection):
    model_config = ConfigDict(strict=False)


class ConvertingConfig(ModelConfig):
    small: ConvertingSection = Field(ConvertingSection(), description="sizes")


@MUTANTS.plant("true for an integer", caught_by="schema")
class TrueForAnInteger(RecurrentModel):
    config_class = ConvertingConfig


class InfiniteSection(SmallSection):
    temperature: float = Field(1.0, allow_inf_nan=True, description="of nothing")


class InfiniteConfig(ModelConfig):
    small: InfiniteSection = Field(InfiniteSection(), description="sizes")


@MUTANTS.plant("NaN for a number", caught_by="schema")
class NaNForANumber(RecurrentModel):
    config_class = InfiniteConfig


class SilentSection(SmallSection):
    width: int = Field(16, ge=1)


class SilentConfig(ModelConfig):
    small: SilentSection = Field(SilentSection(), description="sizes")


@MUTANTS.plant("a key without a description", caught_by="schema")
class KeyWithoutDescription(RecurrentModel):
    config_class = SilentConfig


class DoublingSection(SmallSection):
    @field_validator("width")
    @classmethod
    def _doubled(cls, width: int) -> int:
        return width if width == 64 else 2 * width


class DoublingConfig(ModelConfig):
    small: DoublingSection = Field(DoublingSection(), description="sizes")


@MUTANTS.plant("a value that is another one when it is read again", caught_by="schema")
class AnotherWhenReadAgain(RecurrentModel):
    config_class = DoublingConfig


class Odd:
    """No JSON type."""


class OddSection(ConfigSection):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    width: int = Field(16, ge=1, description="width of everything")
    num_layers: int = Field(2, ge=1, description="layers on top of each other")
    dropout: float = Field(0.0, ge=0, lt=1, description="on embeddings and after each layer")
    odd: Odd | None = Field(None, description="nothing that a YAML can hold")


class OddConfig(ModelConfig):
    small: OddSection = Field(OddSection(), description="sizes")


@MUTANTS.plant("a type without a JSON schema", caught_by="schema")
class NoJSONSchema(RecurrentModel):
    config_class = OddConfig


@MUTANTS.plant("an objective that nobody offers", caught_by="capabilities")
class ObjectiveOfNobody(AttentionModel):
    capabilities = replace(AttentionModel.capabilities, objectives=("causal_lm", "prefix_lm"))


@MUTANTS.plant("an objective that it cannot be built with", caught_by="capabilities")
class ObjectiveNotBuilt(AttentionModel):
    capabilities = replace(AttentionModel.capabilities, objectives=("causal_lm", "masked_lm"))

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        if not context.objective.causal:
            raise ValueError("this one is causal")


@MUTANTS.plant("objectives that are a list", caught_by="capabilities")
class ObjectivesAList(AttentionModel):
    """A text is refused where it is made; a list can be read, and changed afterwards."""

    capabilities = Capabilities(objectives=["causal_lm"])  # type: ignore[arg-type]


# Side effects of building.


def touches(defect: str, touch: Any, *, when: str = "building") -> None:
    """Plant a model that does something besides when it is built, trained or evaluated."""

    class Touching(RecurrentModel):
        def __init__(self, config: ExperimentConfig, context: BuildContext):
            super().__init__(config, context)
            if when == "building":
                touch()

        def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
            if when == ("training" if self.training else "evaluation"):
                touch()
            return super().finish(hidden_BTD, labels, **kwargs)

    Touching.__name__ = Touching.__qualname__ = "".join(word.capitalize() for word in defect.split())
    globals()[Touching.__name__] = Touching
    MUTANTS.plant(defect, caught_by="side-effects")(Touching)


def write_a_file() -> None:
    (Path(tempfile.gettempdir()) / "foundry-mutant").write_text("built")


def ask_the_network() -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 1), timeout=0.2):
        pass


def change_the_environment() -> None:
    os.environ["FOUNDRY_MUTANT"] = "built"


touches("the default dtype set", lambda: torch.set_default_dtype(torch.bfloat16))
touches("the number of threads set", lambda: torch.set_num_threads(2))
touches("the environment changed", change_the_environment)
touches("the folder changed", lambda: os.chdir("/"))
touches("a file written", write_a_file)
touches("the network asked", ask_the_network)
touches("torch seeded", lambda: torch.manual_seed(0))
touches("chance of Python drawn", random.random)
touches("a backend switched off", lambda: setattr(torch.backends.mkldnn, "enabled", False))
touches("a process started", lambda: os.system("true"))
touches("a precision set in training", lambda: torch.set_float32_matmul_precision("medium"), when="training")
touches("one thread set in training", lambda: torch.set_num_threads(1), when="training")
touches("numpy seeded in training", lambda: np.random.seed(0), when="training")
touches(
    "a backend switched off in evaluation", lambda: setattr(torch.backends.mkldnn, "enabled", False), when="evaluation"
)
touches("a file written in evaluation", write_a_file, when="evaluation")
