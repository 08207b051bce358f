"""Any model type of transformers: wraps the library's model, uses core's loss, and checks that they fit together.

Nobody has looked at each of these models. So everything that training relies on is tried out on a few tokens when a
model is built, once per process for the same settings, and a model that fails is refused.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedModel

from foundry_core import BuildContext, ExperimentConfig, FoundryError, WrappedLanguageModel
from foundry_transformers import TransformersModelConfig, catalogue
from foundry_transformers.catalogue import ModelType

_proven: set[tuple[type[PreTrainedModel], str]] = set()
"""Models proved in this process: the library's class, and everything that the model is built from."""


class TransformersLanguageModel(WrappedLanguageModel[TransformersModelConfig]):
    """The model type that `model.transformers` names, with its settings. Its state is the key-value cache."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        # Asked in every forward pass: torch.compile cannot follow the catalogue, which reads files.
        self._counts_from_padding = self.kind.counts_from_padding
        # A proof takes several times as long as building a small model, and its result does not depend on the seed.
        known = f"{self.model.config.to_json_string(use_diff=False)} {config.model} {context}"
        if next(self.parameters()).device.type != "meta" and (type(self.model), known) not in _proven:
            self.prove()
            _proven.add((type(self.model), known))

    @property
    def kind(self) -> ModelType:
        """The catalogue's entry for the model type."""
        kind = catalogue.model_type(self.settings.transformers.model_type)
        assert kind is not None
        return kind

    @property
    def max_positions(self) -> int:
        return getattr(self.settings.transformers, "max_positions", None) or super().max_positions

    def inner_model(self) -> PreTrainedModel:
        kind = self.kind
        name = kind.causal_class if self.context.objective.causal else kind.masked_class
        assert name is not None  # the objective is one that the descriptor declares
        with _refused_in_one_line(f"transformers refuses these settings of a {kind.name}"):
            settings = _settings(self.settings, self.context, kind, self.max_positions)
            return _built(kind, getattr(transformers, name), settings)

    def parameter_roles(self) -> dict[str, str]:
        """Name the roles of the parameters that the library's models create outside layers."""
        unnamed = {name for name, _ in self.named_parameters()} - super().parameter_roles().keys()
        return {**super().parameter_roles(), **{name: catalogue.role(name) for name in unnamed}}

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        with _refused_in_one_line(f"{type(self.model).__name__} cannot be resized"):
            super().resize_token_embeddings(new_num_tokens)
            self(torch.zeros(1, 1, dtype=torch.long, device=next(self.parameters()).device))

    def position_ids(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int
    ) -> torch.Tensor | None:
        """Compute the positions; always pass them to a type that counts from the padding id.

        Such a type would otherwise treat every token with that id as padding, whether it is masked or not.
        """
        positions = super().position_ids(input_ids, attention_mask, past)
        if not self._counts_from_padding:
            return positions
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return positions + _first_position(self.context)

    def attention_flops(self, batch: int, length: int) -> int:
        """Count the products of queries with keys and of attention with values: 2 T for each unit of a head."""
        inner = self.model.config
        heads = getattr(inner, "num_attention_heads", None)
        if heads is None:
            return 0
        width = getattr(inner, "head_dim", None) or inner.hidden_size // heads
        content = batch * length * 4 * length * heads * width
        return int((content + self._flops_of_distances(batch, length)) * inner.num_hidden_layers)

    def _flops_of_distances(self, batch: int, length: int) -> int:
        """Count the products of content with relative positions in one layer (He et al. 2021, equation 4)."""
        inner = self.model.config
        if not getattr(inner, "relative_attention", False):
            return 0
        buckets, longest = getattr(inner, "position_buckets", -1), inner.max_relative_positions
        span = next(size for size in (buckets, longest, inner.max_position_embeddings) if size > 0)
        distances, tokens, width = 2 * span, batch * length, inner.hidden_size
        # The embeddings of distances are projected once, however many tokens there are: by separate matrices, which
        # `flops` has counted for each token, or by those of the content.
        projected = distances if getattr(inner, "share_att_key", False) else distances - tokens
        kinds = len(set(inner.pos_att_type or ()) & {"c2p", "p2c"})
        return int(kinds * 2 * width * (tokens * distances + projected * width))

    @torch.no_grad()
    def prove(self) -> None:
        """Check on a few tokens what the objective and the declared capabilities rely on.

        It draws no random number, and uses the initial weights of the training.

        Raises:
            FoundryError: The model cannot be trained here.
        """
        what = f"{type(self.model).__name__} cannot be trained here"
        self.eval()
        with _refused_in_one_line(what):
            for problem in self._problems():
                raise FoundryError(f"{what}: {problem}")
        self.train()

    def _problems(self) -> Iterator[str]:
        length, vocabulary = self.context.max_sequence_length, self.context.vocab_size
        row = torch.arange(length)[None] % vocabulary
        # Fails if there are too few positions for a row.
        self.forward(row, labels=torch.full_like(row, -100), return_logits=False)
        few = row[:, : min(8, length - 2)]
        logits = self._logits(few)
        if logits.shape != (*few.shape, vocabulary):
            yield f"its logits have shape {tuple(logits.shape)}, not (batch, tokens, vocabulary)"
        given = {"position_ids": self.position_ids(few, None, 0), "use_cache": False}
        whole = self.model(few, **{name: value for name, value in given.items() if name in self.arguments}).logits
        labels = few.masked_fill(torch.arange(few.shape[1]) % 2 == 0, -100)
        losses: list[Any] = [self.forward(few, labels=labels, return_logits=shown).loss for shown in (True, False)]
        if not (torch.allclose(logits, whole, rtol=0, atol=1e-5) and torch.allclose(*losses)):
            yield "its logits do not follow from each hidden state alone"
        if self.context.objective.causal:
            other = few.clone()
            other[:, -1] = (other[:, -1] + 1) % vocabulary
            if not torch.allclose(self._logits(other)[:, :-1], logits[:, :-1], rtol=0, atol=1e-5):
                direction = self.kind.direction
                yield "it sees the tokens that it has to predict" + (f": set {direction}" if direction else "")
        for side in self.config.capabilities.padding_sides:
            columns = (2, 0) if side == "left" else (0, 2)
            mask = F.pad(torch.ones_like(few), columns)
            padded = self._logits(F.pad(few, columns, value=vocabulary - 1), attention_mask=mask)
            if not torch.allclose(padded[:, mask[0] == 1], logits, rtol=0, atol=1e-4):
                yield f"padding on the {side} changes its logits for real tokens"
        if self.config.capabilities.stateful:
            state = self.forward(few[:, :1], use_cache=True).state
            if not torch.allclose(self._logits(few[:, 1:], state=state), logits[:, 1:], rtol=0, atol=1e-4):
                yield "its state does not carry over from one call to the next"
        if self.config.data.isolate_documents:
            half = few.shape[1] // 2
            apart = self._logits(few, document_ids=(torch.arange(few.shape[1]) >= half).long()[None])
            alone = [self._logits(each) for each in (few[:, :half], few[:, half:])]
            if not torch.allclose(apart, torch.cat(alone, dim=1), rtol=0, atol=1e-4):
                yield "it does not keep the documents of a row apart: unset data.isolate_documents"

    def _logits(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the logits. Calls `forward` directly, so that hooks on the model see training only."""
        logits = self.forward(input_ids, **kwargs).logits
        assert logits is not None
        return logits


def _first_position(context: BuildContext) -> int:
    return 0 if context.pad_token_id is None else context.pad_token_id + 1


def _settings(
    config: TransformersModelConfig, context: BuildContext, kind: ModelType, positions: int
) -> dict[str, Any]:
    """Return the arguments of the configuration class: the section, and sizes and ids from the context."""
    section = config.transformers.model_dump(exclude={"model_type", "max_positions"})
    settings = {key: value for key, value in section.items() if value is not None or not kind.settings[key].opaque}
    settings[kind.vocabulary] = context.vocab_size
    if kind.positions is not None:
        first = _first_position(context) if kind.counts_from_padding else 0
        settings[kind.positions] = positions + first
    # An id that this tokenizer lacks is None; the library's default is an id of the published vocabulary.
    for key, setting in kind.settings.items():
        role = catalogue.special_token(key)
        if role is not None and (hasattr(context, f"{role}_id") or type(None) in get_args(setting.annotation)):
            settings[key] = getattr(context, f"{role}_id", None)
    return settings | context.special_ids


def _built(kind: ModelType, model_class: type[PreTrainedModel], settings: dict[str, Any]) -> PreTrainedModel:
    config_class = getattr(transformers, kind.config_class)
    # Set explicitly, not by what is installed: a model computes the same on every machine.
    attention = "sdpa" if model_class._supports_sdpa else "eager"
    return model_class(config_class(**settings, attn_implementation=attention))


@contextmanager
def _refused_in_one_line(what: str) -> Iterator[None]:
    """Raise every exception of the library as a one-line FoundryError."""
    try:
        yield
    except FoundryError:
        raise
    except Exception as error:
        raise FoundryError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
