"""The interface every architecture implements, and the one place where a language-model loss is computed.

Shapes: B batch, T tokens, D width, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput as _MappedOutput

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.devices import model_memory_watched
from foundry_core.errors import FoundryError, PluginError, TokenizerError
from foundry_core.models.folder import build, expose, load_model, save_model, undisturbed_random_state
from foundry_core.random_streams import derive
from foundry_core.registry.architecture import BuildContext
from foundry_core.storage.files import InPlaceFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position where nothing is to be predicted."""

Reduction = Literal["mean", "sum", "none"]


@dataclass
class ModelOutput(_MappedOutput):  # type: ignore[misc]
    """What a model returns; attribute, key and tuple access, absent values dropped.

    loss: nats, mean or sum over the predicted tokens as asked. logits: (B, T, V), not normalised. state: hand it to
    the next call to go on where this one stopped. count: number of predicted tokens. token_losses: (B, T), the loss of
    the token *at* each position, 0 where nothing is predicted.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Any = None
    attentions: Any = None
    state: Any = None
    count: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None


# transformers drops fields that are None and wants None as the default of each; ours are always given.
@dataclass
class ParameterCount(_MappedOutput):  # type: ignore[misc]
    """Numbers of parameters; a tied tensor counts once. embeddings: in the input embeddings."""

    total: int = None  # type: ignore[assignment]
    trainable: int = None  # type: ignore[assignment]
    embeddings: int = None  # type: ignore[assignment]


@dataclass
class MemoryFootprint(_MappedOutput):  # type: ignore[misc]
    """Bytes that training holds for the model, activations aside. optimizer: AdamW's two moments in fp32."""

    parameters: int = None  # type: ignore[assignment]
    buffers: int = None  # type: ignore[assignment]
    gradients: int = None  # type: ignore[assignment]
    optimizer: int = None  # type: ignore[assignment]
    total: int = None  # type: ignore[assignment]


class BaseLanguageModel(nn.Module, ABC):
    """Base of every architecture; a subclass's `forward` ends with `return self.output(hidden, head, labels, ...)`."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__()
        self.config = config
        self.context = context

    @classmethod
    def from_config(cls, config: ExperimentConfig, context: BuildContext, **kwargs: Any) -> Self:
        """Build the model: settings from `config.model`, sizes and token ids from `context`, never from the YAML.

        Raises PluginError for a class that is not made of these two and the further keywords.
        """
        try:
            inspect.signature(cls).bind(config, context, **kwargs)
        except TypeError as error:
            given = ", ".join(["config", "context", *kwargs])
            raise PluginError(f"{cls.__module__}.{cls.__qualname__} cannot be made of ({given}): {error}") from error
        return cls(config, context, **kwargs)

    @abstractmethod
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """input_ids (B, T); attention_mask (B, T), 1 for real tokens; labels (B, T), -100 where nothing is predicted.

        For a causal objective labels are the input ids: the shift happens inside, in `output`. The keywords of
        `output` (reduction, return_logits) are handed on to it.
        """

    @abstractmethod
    def get_input_embeddings(self) -> nn.Module:
        """The module that turns token ids into vectors."""

    @abstractmethod
    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        """Grow or shrink the vocabulary; the rows that stay keep their values, ties stay tied."""

    def note_vocabulary_size(self, size: int) -> None:
        """Record a resized vocabulary; `resize_token_embeddings` ends with this, so that saving knows the new size."""
        self.context = replace(self.context, vocab_size=size)

    @property
    def model_type(self) -> str:
        """The architecture's name, such as `gpt2`."""
        return self.config.model.architecture

    @property
    def supports_generation(self) -> bool:
        """Whether `generate` works with these settings and this objective."""
        return self.config.capabilities.generation and self.context.objective.causal

    def targets(
        self, labels: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is predicted at each position, and where anything is (bool): (B, T - 1) causal, (B, T) otherwise."""
        if not self.context.objective.causal:
            return labels, labels != IGNORED
        targets = labels[:, 1:]
        chosen = targets != IGNORED
        if attention_mask is not None:
            chosen = chosen & attention_mask[:, -labels.shape[1] : -1].bool()
        return targets, chosen

    def output(
        self,
        hidden_BTD: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        reduction: Reduction = "mean",
        return_logits: bool = True,
        hidden_states: Any = None,
        attentions: Any = None,
        state: Any = None,
    ) -> ModelOutput:
        """The language-model loss, for every architecture.

        Cross-entropy in fp32 over the labels that are not -100; for a causal objective position t is scored on label
        t + 1, unless attention_mask says that t is padding: nothing is predicted from there. Without `return_logits`
        only positions with a label are projected onto the vocabulary, so a large vocabulary costs memory only where a
        token is predicted. With no label left the loss is 0 and its gradients are 0. head: (..., D) -> (..., V).
        """
        logits_BTV = head(hidden_BTD) if return_logits or labels is None else None
        extras = {"logits": logits_BTV, "hidden_states": hidden_states, "attentions": attentions, "state": state}
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}, must be 'mean', 'sum' or 'none'")
        if labels is None:
            return ModelOutput(**extras)
        source = hidden_BTD if logits_BTV is None else logits_BTV
        source = source[:, :-1] if self.context.objective.causal else source
        targets, chosen = self.targets(labels, attention_mask)
        targets_N = targets[chosen]
        logits_NV = head(source[chosen]) if logits_BTV is None else source[chosen]
        count = torch.tensor(targets_N.numel(), device=targets_N.device)
        # One call with everything: a value that is set later would stand at the end of the tuple, the loss among them.
        if reduction == "none":
            losses_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
            losses = torch.zeros(targets.shape, device=losses_N.device, dtype=losses_N.dtype)
            losses = losses.masked_scatter(chosen, losses_N)
            losses = F.pad(losses, (1, 0)) if self.context.objective.causal else losses
            mean = losses_N.sum() / max(targets_N.numel(), 1)
            return ModelOutput(loss=mean, **extras, count=count, token_losses=losses)
        total = F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
        loss = total if reduction == "sum" else total / max(targets_N.numel(), 1)
        return ModelOutput(loss=loss, **extras, count=count)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass; architectures that declare the capability override this."""
        raise FoundryError(f"{self.model_type} does not support gradient checkpointing")

    def get_parameter_count(self) -> ParameterCount:
        """Parameters in total, trainable, and in the input embeddings; ties once."""
        parameters = list(self.parameters())
        return ParameterCount(
            total=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            embeddings=sum(p.numel() for p in self.get_input_embeddings().parameters()),
        )

    def get_memory_footprint(self) -> MemoryFootprint:
        """Bytes of parameters, buffers, gradients and AdamW's state; activations depend on the batch: see `plan`."""
        parameters = sum(p.numel() * p.element_size() for p in self.parameters())
        buffers = sum(b.numel() * b.element_size() for b in self.buffers())
        gradients = sum(p.numel() * p.element_size() for p in self.parameters() if p.requires_grad)
        return MemoryFootprint(
            parameters=parameters,
            buffers=buffers,
            gradients=gradients,
            optimizer=2 * gradients,
            total=parameters + buffers + 3 * gradients,
        )

    def flops(self, batch: int, length: int) -> int:
        """Floating-point operations of a forward pass over (batch, length) tokens, logits included.

        2 for every entry of a matrix and token; looking an embedding up costs none, a tied output layer counts once
        (Kaplan et al. 2020). `mixing_flops` is added. Override it where a matrix is used otherwise than once per token.
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
        return 2 * batch * length * sum(matrices.values()) + self.mixing_flops(batch, length)

    def mixing_flops(self, batch: int, length: int) -> int:
        """Those of products between activations, which no parameter shows; attention overrides this."""
        return 0

    def to_transformers(self) -> PreTrainedModel:
        """This model as a transformers model that shares its weights."""
        return expose(self)

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Continue prompts (B, T), padded on the left; takes the arguments of transformers' `generate`.

        Raises FoundryError for a model that does not generate, and for padded prompts where the architecture does not
        declare padding on the left.
        """
        if not self.supports_generation:
            raise FoundryError(
                f"this {self.model_type} does not generate: it is trained with {self.context.objective.name}"
            )
        mask = kwargs.get("attention_mask")
        if mask is not None and "left" not in self.config.capabilities.padding_sides and not bool(mask.all()):
            raise FoundryError(
                f"{self.model_type} takes no padding on the left: generate from prompts of one length at a time"
            )
        return self.to_transformers().generate(input_ids, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that transformers' auto classes and `from_pretrained` open."""
        save_model(self, InPlaceFolder(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BaseLanguageModel:
        """Open a saved folder; the architecture is found by what the folder says, among those installed."""
        model = load_model(folder)
        if not isinstance(model, cls):
            raise FoundryError(f"{folder} holds a {model.model_type} ({type(model).__name__}), not a {cls.__name__}")
        return model


def build_context(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> BuildContext:
    """Sizes and ids a model is built with: from the tokenizer that exists; without one, the configured vocabulary."""
    length, objective = config.data.max_sequence_length, config.objective
    if tokenizer is None:
        return BuildContext(config.tokenizer.vocab_size, length, objective)
    for role in objective.required_tokens:
        if getattr(tokenizer, role) is None:
            raise TokenizerError(f"{objective.name} needs a tokenizer with a {role}: see tokenizer.special_tokens")
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_id") for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    known = {key: value for key, value in ids.items() if key in BuildContext.__dataclass_fields__}
    return BuildContext(vocab_size=len(tokenizer), max_sequence_length=length, objective=objective, **known)


def create_model(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
) -> BaseLanguageModel:
    """The model of a configuration, with weights drawn from `seeds.initialisation`.

    The process's random state is left as it was. Further keywords go to the plugin's `from_config`.
    """
    context = build_context(config, tokenizer)
    with model_memory_watched(), undisturbed_random_state():
        torch.manual_seed(derive(config.seed("initialisation"), "initialisation"))
        return build(config, context, **kwargs)


create_model_from_config = create_model


def training_loss(model: BaseLanguageModel, output: Any) -> torch.Tensor:
    """The loss that a model gives for a batch with labels.

    Raises PluginError for what is no number that follows from its parameters: its `forward` does not end as it should.
    """
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad:
        return loss
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise PluginError("something has turned the recording of gradients off for the whole process: an observer?")
    found = f"a loss of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) and loss.ndim else "no loss"
    raise PluginError(
        f"{type(model).__module__}.{type(model).__qualname__}.forward gives {found} that its parameters could learn "
        "from: it ends with `return self.output(hidden, head, labels, ...)`"
    )
