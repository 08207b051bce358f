"""`LanguageModel`: the interface that the rest of core uses, below everything that builds, saves or adapts a model.

Plugins derive from `BaseLanguageModel`, which adds generation, saving and opening to it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, cast

import torch
from torch import nn
from typing_extensions import TypeVar

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError, PluginError
from foundry_core.models.loss import LanguageModelLoss, ModelOutput
from foundry_core.models.roles import derived_roles
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


class TransformersForm(NamedTuple):
    """Content of the folder of a transformers model: weights under its names, its class, and its configuration."""

    weights: nn.Module
    class_name: str
    config: dict[str, Any]


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


_HELD: dict[str, type] = {"config": ExperimentConfig, "context": BuildContext, "kernels": str}
"""Attributes of each model that core sets."""


class LanguageModel(LanguageModelLoss, nn.Module, ABC, Generic[Settings_co]):
    """A model that core can train and evaluate."""

    kernels: str = "fast"
    """Formulation of what several can compute: `fast` or `reference`, see `training.kernels`."""

    _reserved: ClassVar[frozenset[str]]
    """Names that a layer or a tensor of the model cannot have: those that core and torch define for it.

    A method of such a name would be found instead of the layer, and a tensor would be found instead of the method.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("foundry_core", "torch")]
        names = (name for each in (*bases, nn.Module()) for name in vars(each))  # an instance adds `training`
        cls._reserved = frozenset({*names, *_HELD, "output"})

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__()
        self.config = config
        self.context = context

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module | torch.Tensor):
            self._check_name(name)
        elif name in _HELD and not isinstance(value, _HELD[name]):
            raise PluginError(
                f"{_path(self)} sets self.{name} to a {type(value).__name__}, and core keeps its "
                f"{_HELD[name].__name__} there: choose another name"
            )
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a layer, as torch does, unless its name is reserved."""
        self._check_name(name)
        super().add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, as torch does, unless its name is reserved."""
        self._check_name(name)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, as torch does, unless its name is reserved."""
        self._check_name(name)
        super().register_buffer(name, tensor, persistent)

    def _check_name(self, name: str) -> None:
        if name in self._reserved:
            raise PluginError(
                f"{_path(self)} has a layer or a tensor called '{name}', which is a name of BaseLanguageModel's own: "
                f"choose another one, such as {name}_layer"
            )

    @classmethod
    def from_config(cls, config: ExperimentConfig, context: BuildContext) -> Self:
        """Build the model: settings from `self.settings`, sizes and token ids from `context`, never from the YAML.

        Raises:
            PluginError: The class does not take these arguments.
        """
        try:
            inspect.signature(cls).bind(config, context)
        except TypeError as error:
            name = f"{cls.__module__}.{cls.__qualname__}"
            raise PluginError(f"{name} cannot be made of (config, context): {error}") from error
        return cls(config, context)

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
        objective they are the input ids, which `lm_output` shifts. A model that declares `isolates_documents` takes
        document_ids, too: the number of the document of each token, which nothing of another document may reach.
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

    def with_compiled_layers(self) -> Callable[..., ModelOutput] | None:
        """Return a forward pass with compiled layers and a loss as it is; None: the whole is better compiled."""
        return None

    def transformers_form(self) -> TransformersForm:
        """Return what saving needs to know of `to_transformers`, for which a model need not have been built."""
        outer = self.to_transformers()
        return TransformersForm(outer, type(outer).__name__, outer.config.to_dict())

    @property
    def is_adapted(self) -> bool:
        """Check whether transformers opens the model through core's adapter, and not as a class of its own."""
        return False

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

    def count(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Learn from a batch (B, T) by counting what `forward` with the same arguments predicts, that is `targets`.

        In place of a loss and its gradients; architectures that declare `trained_by_counting` override this. What is
        learnt must not depend on how rows are divided into batches, nor on their order.
        """
        raise FoundryError(f"{self.model_type} does not learn by counting")

    def make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give buffers that grow in training the sizes of those about to be loaded, which have these shapes by name.

        Does nothing by default: all tensors have the sizes that they are built with. Shapes come from a file, so that
        any may be wrong: core compares what comes of it with them, and refuses a difference.
        """

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass; architectures that declare the capability override this."""
        raise FoundryError(f"{self.model_type} does not support gradient checkpointing")

    def blocks_to_shard(self) -> Sequence[nn.Module]:
        """Return the modules whose weights are put together one after the other under `training.reduction: sharded`.

        Those that the forward pass calls one by one, such as the blocks of a stack; none shares a parameter with what
        is outside it. By default there are none, and all weights are put together for the time of a forward pass and
        of a backward pass.
        """
        return ()

    def parameter_roles(self) -> dict[str, str]:
        """Return what parameters are for, by name; one that is missing counts as `other`.

        matrix: multiplied with activations; of more than two dimensions, a stack of matrices. output: the same, onto
        the vocabulary, and not tied. filter: of a convolution. embedding: looked up or added, tokens and positions; a
        tied output too. norm: scales of a norm. bias. other: rates, mixes, gates. The first three decay under
        `weight_decay_on: matrices`.

        Core derives the role of every layer's weights. Override this to name those of parameters of several dimensions
        that the model creates itself: `return {**super().parameter_roles(), "positions": "embedding"}`.
        """
        roles = derived_roles(self)
        table = {id(parameter) for parameter in self.get_input_embeddings().parameters(recurse=False)}
        tied = self.config.capabilities.tied_embeddings
        last = None
        for name, parameter in self.named_parameters():
            if roles.get(name) == "matrix" and id(parameter) in table:
                roles[name] = "embedding"
            elif roles.get(name) == "matrix" and len(parameter) == self.context.vocab_size and not tied:
                last = name
        return roles if last is None else {**roles, last: "output"}

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


def _path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
