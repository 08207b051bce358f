"""Training a transformers model as one of ours: `WrappedLanguageModel`.

The wrapped model keeps its keys and its class on disk. The loss is core's, and so is the choice of the positions whose
vocabulary projection is computed: cost and conventions are those of every other architecture.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import FoundryError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.inner import GivenHiddenStates, Skeleton, called_as_layer, copied_cache, layers_of, skeleton_of
from foundry_core.models.interface import Settings_co, TransformersForm
from foundry_core.models.isolation import document_mask, document_positions
from foundry_core.models.kernels import WORTH_SAVING, tied_rows
from foundry_core.models.loss import ModelOutput
from foundry_core.registry.architecture import BuildContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The name of a state in transformers: since 5.24, before that, and before that in recurrent models.
_STATE_NAMES = ("cache", "past_key_values", "cache_params")

# What a caller may ask of a base model, and the name of the answer; keywords of `lm_output` that no base model has.
_ASKED = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}
_OF_THE_LOSS = {"reduction", "return_logits", "auxiliary", "read"}

# What there is of a wrapped model only when its inner model has been built.
_OF_INNER = {"model", "arguments", "_base_arguments", "_state_name", "_only_head", "_projection"}


class WrappedLanguageModel(BaseLanguageModel[Settings_co]):
    """Base for an architecture that transformers has: a plugin defines `inner_model`, which builds that model.

    `model` is what `inner_model` built, `arguments` its forward's parameter names; a carried `state` is its cache.
    """

    branches: ClassVar[bool] = False
    """Check whether only an attention mask (B, 1, T, T) and `position_ids` decide what a token continues."""

    model: Any
    arguments: AbstractSet[str]

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self._recomputes = False
        self._shared_table: torch.Tensor | None = None
        self._layers: Callable[..., torch.Tensor | None] | None = None
        self._postponed = skeleton_of(self)
        if self._postponed is None:
            self._take(self.inner_model())
        else:
            self.model = self._postponed.weights

    def _take(self, inner: PreTrainedModel) -> None:
        """Make a transformers model the inner one, and ask it what its forward takes."""
        from foundry_core.models.activations import replace_activations

        if inner.base_model is inner:
            raise FoundryError(f"{type(inner).__name__} cannot be trained here: it has no base model besides a head")
        self.model = inner
        self.arguments = frozenset(inspect.signature(inner.forward).parameters)
        # A base model accepts any keyword and ignores those it does not name. Without segments of its own, GPT-2 adds
        # the embedding of token 0 or 1 for `token_type_ids`.
        segments = {"token_type_ids"} if getattr(inner.config, "type_vocab_size", 0) else set()
        named = inspect.signature(inner.base_model.forward).parameters
        self._base_arguments = {*named, *_ASKED} - {"token_type_ids"} | segments
        self._state_name = next((name for name in _STATE_NAMES if name in self.arguments), None)
        # transformers gives the padding id a row that never learns. Padding is masked anyway, and a wrong padding id
        # would keep a real token from learning: every row is trained.
        embeddings: Any = self.get_input_embeddings()
        embeddings.padding_idx = None
        replace_activations(self, inner)
        self._separate_head()

    def __getattr__(self, name: str) -> Any:
        if name in _OF_INNER and self.__dict__.get("_postponed") is not None:
            self._build_inner()
            return getattr(self, name)
        return super().__getattr__(name)

    def _build_inner(self) -> None:
        """Build the inner model around the parameters of its skeleton, which stay the same objects."""
        weights, own = self.weights, dict(self.weights.named_parameters(remove_duplicate=False))
        with torch.device("meta"):
            inner = self.inner_model()
        for name, _ in list(inner.named_parameters(remove_duplicate=False)):
            place, _, key = name.rpartition(".")
            inner.get_submodule(place)._parameters[key] = own.pop(name)
        assert not own
        assert not list(inner.buffers())
        self._postponed = None
        self._take(inner.train(weights.training))
        if self._recomputes:
            self._let_inner_recompute()

    @property
    def weights(self) -> nn.Module:
        """The inner model, or its skeleton as long as that is enough."""
        weights = self._modules["model"]
        assert weights is not None
        return weights

    @abstractmethod
    def inner_model(self) -> PreTrainedModel:
        """Build the transformers model with its language-model head, from `self.settings` and `self.context`.

        A model whose head is not separate from its base model is refused with a FoundryError.
        """

    def skeleton(self) -> Skeleton | None:
        """Return the parameters that `inner_model` would have; None: build it at once.

        For an architecture with `fast_hidden_states`, which then reads them from `self.weights`: to import and build
        the model of transformers takes 2 s of processor time and 100 MB, and most runs never call it. It is built as
        soon as anything asks for `self.model`.
        """
        return None

    def _separate_head(self) -> None:
        """Keep a copy of the inner model without its base: same class, same head, hidden states as its input.

        Not registered as a module: its parameters are the inner model's, and are counted and saved there.
        """
        base = {self.model.base_model_prefix: GivenHiddenStates(self.model.base_model)}
        only_head = copy(self.model)
        only_head.__dict__["_modules"] = {**self.model._modules, **base}
        self._only_head = (only_head,)
        self._projection: tuple[nn.Linear | None] | None = None

    def fast_head(self, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the head as `lm_output` can compute it in parts: the output layer, if that is all the head does.

        width: That of the hidden states.
        """
        if self._postponed is not None:
            return cast("nn.Linear", cast("Any", self.weights).get_output_embeddings())
        if torch.compiler.is_compiling():
            return self.head
        if self._projection is None:  # in a tuple, so that it is not registered a second time
            self._projection = (self._plain_projection(width),)
        return self._projection[0] or self.head

    def _plain_projection(self, width: int) -> nn.Linear | None:
        last: Any = self.model.get_output_embeddings()
        if type(last) is not nn.Linear or last.in_features != width:
            return None
        with torch.no_grad():
            hidden = torch.linspace(-9, 9, width, dtype=last.weight.dtype, device=last.weight.device)[None]
            return last if torch.equal(last(hidden), self.head(hidden)) else None

    def fast_hidden_states(
        self, input_ids: torch.Tensor, real: torch.Tensor | None, positions: torch.Tensor | None, **asked: Any
    ) -> torch.Tensor | None:
        """Return the last hidden states, (B, T, D), by a formulation of the plugin's own; None: by transformers'.

        Equal to the base model's up to rounding, dropout apart. Called where nothing is carried over or cached.

        Args:
            real: True for real tokens, (B, T); None if all are. With `branches` perhaps a mask (B, 1, T, T).
            positions: Those of the tokens, (B, T); None: counted from 0.
            asked: What else a caller has given to the base model, such as token_type_ids.
        """
        return None

    def recomputed(self, block: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
        """Call a block of `fast_hidden_states`; under gradient checkpointing the backward pass computes it again.

        given: Its arguments; first the layer whose weights it reads, if `blocks_to_shard` names that one.
        """
        if self._recomputes and self.training:
            block = partial(checkpoint, block, use_reentrant=False)
        return called_as_layer(block, *given)

    def looked_up(self, input_ids: torch.Tensor, embeddings: nn.Module) -> torch.Tensor:
        """Return the rows of the embeddings for `fast_hidden_states`; if the output layer shares them, for less memory.

        Then their gradient is added to that of the output layer in its place.
        """
        table = cast("torch.Tensor", embeddings.weight)
        shared = table.requires_grad and table.device.type == "cpu" and torch.is_grad_enabled()
        if table.numel() < WORTH_SAVING or torch.compiler.is_compiling() or not shared:
            return F.embedding(input_ids, table)
        rows, self._shared_table = tied_rows(input_ids, table)
        return rows

    def _with_shared_table(
        self, head: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a head, an `nn.Linear` with the table that `looked_up` has given it, if it has."""
        table, self._shared_table = self._shared_table, None
        if table is None or type(head) is not nn.Linear or table.data_ptr() != head.weight.data_ptr():
            return head
        shared = copy(head)
        shared.__dict__["_parameters"] = {**head._parameters, "weight": table}
        return shared

    def _fast(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, asked: Any) -> torch.Tensor | None:
        if attention_mask is not None and attention_mask.ndim == 4:
            return self._fast_branches(input_ids, attention_mask, **asked)
        layers = self._layers or self.fast_hidden_states
        real_BT = self.real_tokens(input_ids, attention_mask)
        positions = None if real_BT is None else self.position_ids(input_ids, real_BT, 0)
        given = {name: each for name, each in asked.items() if each is not None and each is not False}
        if "position_ids" in given:
            return None
        return layers(input_ids, real_BT, positions, **given)

    def with_compiled_layers(self) -> Callable[..., ModelOutput] | None:
        """Return a forward pass whose `fast_hidden_states` is compiled, and the loss is not; None if there is none.

        Compiled, the loss has all logits: 0.2 GB of the 1.1 GB that a small GPT-2 takes.
        """
        own = type(self).fast_hidden_states is not WrappedLanguageModel.fast_hidden_states
        if self.kernels != "fast" or not own:
            return None
        layers = torch.compile(self.fast_hidden_states)

        def forward(*arguments: Any, **keywords: Any) -> ModelOutput:
            self._layers = layers
            try:
                output: ModelOutput = self(*arguments, **keywords)
            finally:
                self._layers = None
            return output

        return forward

    def _fast_branches(
        self, input_ids: torch.Tensor, mask: torch.Tensor, *, position_ids: torch.Tensor | None = None, **asked: Any
    ) -> torch.Tensor | None:
        return self.fast_hidden_states(input_ids, mask, position_ids, **asked) if self.branches else None

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Project (..., D) -> (..., V), by the part of the inner model's own forward that follows its base model.

        That may be more than a projection: the transform of a masked model, scaled or capped logits.
        """
        *places, width = hidden.shape
        logits: torch.Tensor = self._only_head[0](inputs_embeds=hidden.reshape(1, math.prod(places), width)).logits
        # Some heads end in fp32 whatever their input is, which would make a float64 model one of fp32.
        return logits.reshape(*places, logits.shape[-1]).to(torch.promote_types(logits.dtype, hidden.dtype))

    def position_ids(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int
    ) -> torch.Tensor | None:
        """Return the position of each token, (B, T) or (1, T), after `past` tokens; None: counted from 0.

        Positions count real tokens, as in transformers' `generate`: padding on the left shifts none of them.
        """
        length = input_ids.shape[1]
        if attention_mask is not None:
            return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        return torch.arange(past, past + length, device=input_ids.device)[None] if past else None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = False,
        document_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        if document_ids is not None:
            apart_BTD = self._isolated(input_ids, attention_mask, document_ids)
            return self.lm_output(apart_BTD, self._head_of(apart_BTD), labels, attention_mask=attention_mask, **kwargs)
        asked: dict[str, Any] = {}
        if kwargs.keys() - _OF_THE_LOSS:
            asked = {name: kwargs.pop(name) for name in self._base_arguments & kwargs.keys()}
        past = self._past(state, input_ids.shape[1])
        if self.kernels == "fast" and state is None and not use_cache:
            hidden_BTD = self._fast(input_ids, attention_mask, asked)
            if hidden_BTD is not None:
                head = self._head_of(hidden_BTD)
                return self.lm_output(hidden_BTD, head, labels, attention_mask=attention_mask, **kwargs)
        if state is not None:
            state = copied_cache(state)
            if attention_mask is not None and attention_mask.shape[1] == input_ids.shape[1]:
                # transformers takes a mask that covers what the state has read, too.
                attention_mask = nn.functional.pad(attention_mask, (int(state.get_seq_length()), 0), value=1)
        if self._state_name is not None and (use_cache or state is not None):
            asked |= {self._state_name: state, "use_cache": True}
        elif "use_cache" in self.arguments:
            asked["use_cache"] = False
        if "position_ids" in self.arguments and "position_ids" not in asked:
            asked["position_ids"] = self.position_ids(input_ids, attention_mask, past)
        inner = self.model.base_model(input_ids, attention_mask=attention_mask, return_dict=True, **asked)
        for keyword, name in _ASKED.items():
            if asked.get(keyword) and not inner.get(name):
                raise FoundryError(f"{type(self.model).__name__} does not return {name} here")
            kwargs[name] = inner.get(name)
        if self._state_name is not None:
            kwargs["state"] = inner.get(self._state_name)
        # What is left are keywords of core, which refuses any other.
        hidden_BTD = inner.last_hidden_state
        head = self._head_of(hidden_BTD)
        return self.lm_output(hidden_BTD, head, labels, attention_mask=attention_mask, **kwargs)

    def _head_of(self, hidden_BTD: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.kernels != "fast":
            return self.head
        return self._with_shared_table(self.fast_head(hidden_BTD.shape[-1]))

    def _isolated(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, document_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states of tokens that attend to their own document, where positions begin again."""
        real_BT = self.real_tokens(input_ids, attention_mask)
        mask = document_mask(document_ids, real_BT, causal=self.context.objective.causal)
        positions = document_positions(document_ids)
        hidden_BTD = self.fast_hidden_states(input_ids, mask, positions) if self.kernels == "fast" else None
        if hidden_BTD is not None:
            return hidden_BTD
        dtype = next(self.model.parameters()).dtype
        added = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        first = self.position_ids(input_ids[:, :1], None, 0)  # some types count from another number than 0
        asked: dict[str, Any] = {"position_ids": positions + (0 if first is None else first)}
        if "use_cache" in self.arguments:
            asked["use_cache"] = False
        inner = self.model.base_model(input_ids, attention_mask=added, return_dict=True, **asked)
        return cast("torch.Tensor", inner.last_hidden_state)

    @property
    def max_positions(self) -> int:
        """The number of tokens that there are positions for: by default those of a row of training."""
        return self.context.max_sequence_length

    def _past(self, state: Any, length: int) -> int:
        """Count the tokens that the state has read. Raises FoundryError if `length` more of them cannot follow."""
        if state is not None and length > 1 and getattr(self.model, "_is_stateful", False):
            raise FoundryError(
                f"this {self.model_type} continues from a state by one token at a time: {type(self.model).__name__} "
                "reads several as if nothing came before them"
            )
        if self.config.capabilities.unbounded_length:
            return 0
        past, most = int(state.get_seq_length()) if state is not None else 0, self.max_positions
        if past + length > most:
            key = "data.max_sequence_length" if most == self.context.max_sequence_length else "max_positions"
            raise FoundryError(
                f"{past + length} tokens are more than this {self.model_type} was built for ({key}: {most})"
            )
        return past

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._postponed is None:
            self._only_head[0].training = mode
        return self

    def get_input_embeddings(self) -> nn.Module:
        return cast("nn.Module", cast("Any", self.weights).get_input_embeddings())

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        # mean_resizing draws new rows from the old ones' distribution, at the cost of a covariance matrix.
        self.model.resize_token_embeddings(new_num_tokens, mean_resizing=False)
        self._separate_head()
        self.set_vocabulary_size(new_num_tokens)

    def gradient_checkpointing_enable(self) -> None:
        self._recomputes = True
        if self._postponed is None:
            self._let_inner_recompute()

    def blocks_to_shard(self) -> Sequence[nn.Module]:
        return layers_of(self.model)

    def _let_inner_recompute(self) -> None:
        # The name since transformers 5.24, and the one before it.
        name = "activation_checkpointing_enable"
        enable = getattr(self.model, name if hasattr(self.model, name) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})

    def to_transformers(self) -> PreTrainedModel:
        inner: PreTrainedModel = self.model
        return inner

    def transformers_form(self) -> TransformersForm:
        if self._postponed is None:
            return super().transformers_form()
        return TransformersForm(self.weights, self._postponed.class_name, self._postponed.config.to_dict())
