"""`LanguageModel`: the interface that the rest of core uses, below everything that builds, saves or adapts a model.

Plugins derive from `BaseLanguageModel`, which adds generation, saving and opening to it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, cast

import torch
from torch import nn
from typing_extensions import TypeVar

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError, PluginError
from foundry_core.models.loss import LanguageModelLoss, ModelOutput
from foundry_core.registry.architecture import BuildContext
from foundry_core.schema import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Settings_co = TypeVar("Settings_co", bound=ModelConfig, default=ModelConfig, covariant=True)
"""The class of the `model:` section, `Architecture.config_class`."""


class ParameterCount(NamedTuple):
    """Numbers of parameters, a tied tensor counted once; `embeddings` are those of the input embeddings."""

    total: int
    trainable: int
    embeddings: int


class MemoryFootprint(NamedTuple):
    """Bytes that training needs for the model, without activations; `optimizer` is AdamW's two moments in fp32."""

    parameters: int
    buffers: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return sum(self)


class LanguageModel(LanguageModelLoss, nn.Module, ABC, Generic[Settings_co]):
    """A model that core can train and evaluate."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__()
        self.config = config
        self.context = context

    @classmethod
    def from_config(cls, config: ExperimentConfig, context: BuildContext, **kwargs: Any) -> Self:
        """Build the model: settings from `self.settings`, sizes and token ids from `context`, never from the YAML.

        Raises:
            PluginError: The class does not take these arguments.
        """
        try:
            inspect.signature(cls).bind(config, context, **kwargs)
        except TypeError as error:
            given = ", ".join(["config", "context", *kwargs])
            raise PluginError(f"{cls.__module__}.{cls.__qualname__} cannot be made of ({given}): {error}") from error
        return cls(config, context, **kwargs)

    @property
    def settings(self) -> Settings_co:
        """The `model:` section of the YAML."""
        return cast("Settings_co", self.config.model)

    @abstractmethod
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Return loss and logits; the keywords of `lm_output` (reduction, return_logits) are passed on to it.

        All are (B, T). attention_mask is 1 for real tokens. labels are -100 where nothing is predicted; for a causal
        objective they are the input ids, which `lm_output` shifts.
        """

    def real_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return a mask of the real tokens among these, (B, T), or None if all are.

        Args:
            attention_mask: (B, T), or wider: it may also cover the tokens before a carried state.
        """
        real = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        return None if real is None or bool(real.all()) else real

    @abstractmethod
    def get_input_embeddings(self) -> nn.Module:
        """Return the module that turns token ids into vectors."""

    @abstractmethod
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        """Grow or shrink the vocabulary; the rows that stay keep their values, ties stay tied."""

    @abstractmethod
    def to_transformers(self) -> PreTrainedModel:
        """Return this model as a transformers model that shares its weights."""

    def set_vocabulary_size(self, size: int) -> None:
        """Record a resized vocabulary; `resize_token_embeddings` ends with this, so that saving stores the new size."""
        self.context = replace(self.context, vocab_size=size)

    @property
    def model_type(self) -> str:
        """The architecture's name, such as `gpt2`."""
        return self.config.model.architecture

    @property
    def supports_generation(self) -> bool:
        """True if `generate` works with these settings and this objective."""
        return self.config.capabilities.generation and self.context.objective.causal

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass; architectures that declare the capability override this."""
        raise FoundryError(f"{self.model_type} does not support gradient checkpointing")

    def get_parameter_count(self) -> ParameterCount:
        """Count parameters in total, trainable, and in the input embeddings; tied ones once."""
        parameters = list(self.parameters())
        return ParameterCount(
            total=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            embeddings=sum(p.numel() for p in self.get_input_embeddings().parameters()),
        )

    def get_memory_footprint(self) -> MemoryFootprint:
        """Count the bytes of parameters, buffers, gradients and AdamW's state; activations depend on the batch."""
        parameters = sum(p.nbytes for p in self.parameters())
        buffers = sum(b.nbytes for b in self.buffers())
        gradients = sum(p.nbytes for p in self.parameters() if p.requires_grad)
        return MemoryFootprint(parameters, buffers, gradients, optimizer=2 * gradients)

    def flops(self, batch: int, length: int) -> int:
        """Count the floating-point operations of a forward pass over (batch, length) tokens, logits included.

        2 for every entry of a matrix and token; an embedding lookup costs nothing, a tied output layer counts once
        (Kaplan et al. 2020). `attention_flops` is added. Override this if a matrix is not used once per token.
        """
        matrices = {
            id(parameter): parameter.numel()
            for module in self.modules()
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim > 1
        }
        if self.config.capabilities.tied_embeddings:
            matrices |= {id(p): p.numel() for p in self.get_input_embeddings().parameters()}
        return 2 * batch * length * sum(matrices.values()) + self.attention_flops(batch, length)

    def attention_flops(self, batch: int, length: int) -> int:
        """Count those of products between activations, which no parameter shows. Override this for attention."""
        return 0
