"""LSTM, GRU and plain RNN language models for transformers 4.46 to 5.x. Needs torch and transformers, nothing else.

`foundry export --standalone` copies this file beside a model; `trust_remote_code=True` opens it. Computes what the
model computed in training: rows may be padded on either side, padding is not read, and the recurrent state is carried
from one generated token to the next. Dropout is that of the model's settings; dropout of words and of recurrent
weights, and penalties on activations, were for its training.

Shapes: B batch, T tokens, E width of the embeddings, H width of states (both directions together) or of the last hidden
states, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

State = tuple[tuple[torch.Tensor, ...], ...]
"""For each layer its hidden state and, of an LSTM, its cell state, each (directions, B, H / directions)."""


class FoundryRnnConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration: `settings` is the section `model:` that the model was trained with.

    Attributes:
        hidden_size: Width of the last hidden states, which the layer onto the vocabulary reads.
        embedding_size: Width of the embeddings, that is of `inputs_embeds`.
        state_size: Width of the states of the last layer, both directions together.
    """

    model_type = "foundry_rnn_standalone"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012 - of the Trainer of transformers

    def __init__(self, settings: dict[str, Any] | None = None, vocab_size: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings, self.vocab_size = settings or {}, vocab_size
        rnn = self.settings.get("rnn", {})
        size, ways = rnn.get("hidden_size", 0), 2 if rnn.get("bidirectional") else 1
        # A model without embeddings reads one-hot vectors: its table has the products of its first layer.
        products = ways * size * {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]
        self.embedding_size = rnn.get("embedding_size") or products
        self.state_size = ways * (rnn.get("last_hidden_size") or size)
        self.hidden_size = self.embedding_size if rnn.get("tie_embeddings") else self.state_size
        self.num_hidden_layers = rnn.get("num_layers", 0)

    @property
    def cell(self) -> str:
        """The kind of layer: lstm, gru or rnn."""
        return str(self.settings.get("architecture", "lstm"))


@dataclass
class FoundryRnnStates(ModelOutput):  # type: ignore[misc]
    """Hold what the model without a head returns. It has no `logits`: tools take them wherever they exist.

    Attributes:
        last_hidden_state: What the layer onto the vocabulary reads, (B, T, H).
        hidden_states: What the first layer reads, and what each layer returns, each (B, T, width). The last of them is
            `last_hidden_state`, after dropout and the projection of tied embeddings of another width.
        state: With `use_cache=True` the recurrent state after the last real token of each row.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    state: State | None = None


@dataclass
class FoundryRnnOutput(ModelOutput):  # type: ignore[misc]
    """Hold what a model with a head returns: logits (B, T, V), of a new head (B, labels) or (B, T, labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    state: State | None = None


class FoundryRnnPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What all models here share. `self.model` is the model without a head."""

    config_class = FoundryRnnConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["FoundryRnnModel"]  # noqa: RUF012 - with `device_map`, on one device: layers are not called
    _keys_to_ignore_on_load_unexpected = [r"output_layer\."]  # noqa: RUF012 - of the language model

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a layer that the file of the weights does not have, such as a new head."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embedding = value

    def _answer(self, output: Any, return_dict: bool | None) -> Any:
        asked = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if asked else output.to_tuple()


class FoundryRnnModel(FoundryRnnPreTrainedModel):
    """Embeddings and recurrent layers. head: also has the layer onto the vocabulary, for the classes below."""

    def __init__(self, config: FoundryRnnConfig, head: bool = False):
        super().__init__(config)
        rnn = config.settings["rnn"]
        self.one_hot = rnn["embedding_size"] is None
        self.both, size, last = rnn["bidirectional"], rnn["hidden_size"], rnn["last_hidden_size"]
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        below = rnn["num_layers"] - (1 if last else 0)
        self.recurrent = self._new_layers(config.vocab_size if self.one_hot else config.embedding_size, size, below)
        if last:
            self.last_recurrent = self._new_layers((2 if self.both else 1) * size, last, 1)
        if self.one_hot:  # these weights are the table of embeddings
            for name in ("weight_ih_l0", "weight_ih_l0_reverse")[: 2 if self.both else 1]:
                delattr(self.recurrent, name)
            self.recurrent._init_flat_weights()
        projected = config.state_size != config.hidden_size
        self.projection = nn.Linear(config.state_size, config.hidden_size) if projected else None
        if head:
            self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=rnn["bias"])
        self.post_init()

    def _new_layers(self, width: int, size: int, number: int) -> Any:
        rnn, cell = self.config.settings["rnn"], str(self.config.cell)
        kind = {"nonlinearity": rnn["nonlinearity"]} if cell == "rnn" else {}
        return getattr(nn, cell.upper())(width, size, number, bias=rnn["bias"], bidirectional=self.both, **kind)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: State | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the hidden states.

        Args:
            input_ids: (B, T); or instead `inputs_embeds`, (B, T, E).
            attention_mask: 1 for real tokens, (B, T), or wider: it may also cover the tokens before `state`.
            state: What the model returned after the tokens that come before.
            use_cache: Return the state, too; not by default, for pipelines take every output for a row for each text.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x_BTE = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        real_BT, lengths_B, back_BT = None, None, None
        if attention_mask is not None and not bool(attention_mask[:, -x_BTE.shape[1] :].all()):
            # The recurrence runs over the real tokens of each row: a stable sort moves them to its front.
            real_BT = attention_mask[:, -x_BTE.shape[1] :].bool()
            order_BT = torch.argsort((~real_BT).to(torch.int8), dim=1, stable=True)
            x_BTE, lengths_B, back_BT = _moved(x_BTE, order_BT), real_BT.sum(dim=1), torch.argsort(order_BT, dim=1)
        x_BTE = self.dropped(x_BTE, "input_dropout")
        layers, after = [x_BTE], []
        for number, (module, layer) in enumerate(self._each_layer()):
            if number > 0:
                x_BTE = self.dropped(x_BTE, "hidden_dropout")
            weights = self._weights(module, layer, passes_on=self.one_hot and number == 0)
            before = _zeros(module, x_BTE) if state is None else state[number]
            x_BTE, end = _computed(module, weights, x_BTE, before, lengths_B)
            if lengths_B is not None:  # a row without any token stays in its state
                pairs = zip(end, before, strict=True)
                end = tuple(torch.where((lengths_B > 0)[:, None], new, old) for new, old in pairs)
            layers.append(x_BTE)
            after.append(end)
        if real_BT is not None and back_BT is not None:
            layers = [_moved(each, back_BT) * real_BT.unsqueeze(-1) for each in layers]
        layers[-1] = self.dropped(layers[-1], "output_dropout")
        if self.projection is not None:
            layers[-1] = self.projection(layers[-1])
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = tuple(layers) if asked else None
        carried = tuple(after) if use_cache and not self.both else None
        return self._answer(FoundryRnnStates(layers[-1], hidden_states, carried), return_dict)

    def dropped(self, x_BTE: torch.Tensor, place: str) -> torch.Tensor:
        """Apply the dropout of a place in training; if it is locked, the same to all tokens of a row."""
        rnn = self.config.settings["rnn"]
        share = rnn["dropout"] if rnn[place] is None else rnn[place]
        if not self.training or share == 0:
            return x_BTE
        return x_BTE * F.dropout(torch.ones_like(x_BTE[:, :1] if rnn["locked_dropout"] else x_BTE), share)

    def _each_layer(self) -> Iterator[tuple[nn.RNNBase, int]]:
        yield from ((self.recurrent, layer) for layer in range(self.recurrent.num_layers))
        if hasattr(self, "last_recurrent"):
            yield self.last_recurrent, 0

    def _weights(self, module: nn.RNNBase, layer: int, *, passes_on: bool) -> list[torch.Tensor]:
        """Return the weights of a layer in torch's order.

        passes_on: The layer's input is its products with one-hot vectors, so that its input weights are an identity.
        """
        found = []
        identities = iter(torch.eye(self.config.embedding_size).to(self.embedding.weight).chunk(2 if self.both else 1))
        for way in ("", "_reverse") if self.both else ("",):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]:
                given = passes_on and name == "weight_ih"
                found.append(next(identities) if given else getattr(module, f"{name}_l{layer}{way}"))
        return found


def _moved(x_BTE: torch.Tensor, order_BT: torch.Tensor) -> torch.Tensor:
    return x_BTE.gather(1, order_BT.unsqueeze(-1).expand_as(x_BTE))


def _zeros(module: nn.RNNBase, x_BTE: torch.Tensor) -> tuple[torch.Tensor, ...]:
    zeros = x_BTE.new_zeros(2 if module.bidirectional else 1, len(x_BTE), module.hidden_size)
    return (zeros, zeros) if module.mode == "LSTM" else (zeros,)


def _computed(
    module: nn.RNNBase,
    weights: list[torch.Tensor],
    x_BTE: torch.Tensor,
    before: tuple[torch.Tensor, ...],
    lengths_B: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the states (B, T, H) of one layer, and its state after the last real token of each row.

    lengths_B: The number of real tokens of each row, which come first; None if all are.
    """
    lstm, compute = module.mode == "LSTM", getattr(torch, module.mode.lower())  # torch.rnn_tanh is of RNN_TANH
    settings = (weights, module.bias, 1, 0.0, module.training, module.bidirectional)
    if lengths_B is None:
        states_BTH, *after = compute(x_BTE, before if lstm else before[0], *settings, True)
        return states_BTH, tuple(after)
    packed = pack_padded_sequence(x_BTE, lengths_B.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    order: Any = packed.sorted_indices
    back: Any = packed.unsorted_indices
    start = tuple(each.index_select(1, order) for each in before)
    data, *after = compute(packed.data, packed.batch_sizes, start if lstm else start[0], *settings)
    packed = PackedSequence(data, packed.batch_sizes, order, back)
    states_BTH, _ = pad_packed_sequence(packed, batch_first=True, total_length=x_BTE.shape[1])
    return states_BTH, tuple(each.index_select(1, back) for each in after)


class _LanguageModel(FoundryRnnPreTrainedModel):
    """A model with the layers onto the vocabulary, which are in `self.model`, as in the file of the weights."""

    _tied_weights_keys = {"model.output_layer.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: FoundryRnnConfig):
        super().__init__(config)
        self.model = FoundryRnnModel(config, head=True)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.output_layer

    def set_output_embeddings(self, value: Any) -> None:
        self.model.output_layer = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: State | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the logits and the loss of `labels`, -100 where nothing is predicted.

        Args:
            labels: For the causal model the input ids: they are shifted here.
            num_items_in_batch: From transformers' Trainer: the number by which the sum of the losses is divided.
        """
        carries = self._is_stateful if use_cache is None else use_cache
        states = self.model(input_ids, attention_mask, inputs_embeds, state, output_hidden_states, True, carries)
        logits_BTV = self.model.output_layer(states.last_hidden_state)
        loss = None
        if labels is not None:
            ahead = 1 if self._is_stateful else 0  # in transformers 4 every model is a GenerationMixin
            predictions = logits_BTV[:, : logits_BTV.shape[1] - ahead].flatten(0, 1).float()
            targets = labels[:, ahead:].flatten().to(predictions.device)
            loss = F.cross_entropy(predictions, targets, reduction="mean" if num_items_in_batch is None else "sum")
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        output = FoundryRnnOutput(loss=loss, logits=logits_BTV, hidden_states=states.hidden_states, state=states.state)
        return self._answer(output, return_dict)


class FoundryRnnForCausalLM(_LanguageModel, GenerationMixin):  # type: ignore[misc]
    """Predicts the next token, and generates."""

    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Any, state: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        passed: dict[str, Any] = {key: kwargs[key] for key in ("use_cache", "output_hidden_states") if key in kwargs}
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state, **passed}
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return {**given, "attention_mask": attention_mask, **passed}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return {**updated, "state": outputs["state"]} if "state" in outputs else updated

    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        beams = kwargs.get("num_beams") or (generation_config or self.generation_config).num_beams or 1
        if beams > 1 and kwargs.get("inputs_embeds") is not None:
            raise ValueError("beam search continues input_ids, not inputs_embeds")
        # Beams change places, and transformers does not move a recurrent state along: it is computed again.
        if beams > 1 and generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            generation_config.use_cache = False
        elif beams > 1:
            kwargs["use_cache"] = False
        return super().generate(inputs, generation_config, **kwargs)


class FoundryRnnForMaskedLM(_LanguageModel):
    """Predicts masked tokens."""


class _Classifier(FoundryRnnPreTrainedModel):
    """A model with a new linear layer on its last hidden states."""

    def __init__(self, config: FoundryRnnConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FoundryRnnModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> Any:
        """Return the logits and the loss of `labels`; without a mask all tokens are real."""
        states = self.model(input_ids, attention_mask, inputs_embeds, None, output_hidden_states, True)
        logits = self.score(self._read(states.last_hidden_state, attention_mask))
        loss = None if labels is None else self._loss(logits, labels)
        return self._answer(FoundryRnnOutput(loss=loss, logits=logits, hidden_states=states.hidden_states), return_dict)


class FoundryRnnForSequenceClassification(_Classifier):
    """Classifies texts, labels (B,), by the last real token, which has read the text; both directions by the mean."""

    def _read(self, hidden_BTH: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        # Not of the type of the states: bfloat16 cannot tell places beyond 256 apart.
        every_BT = hidden_BTH.new_ones(hidden_BTH.shape[:2], dtype=torch.bool)
        real_BT = every_BT if attention_mask is None else attention_mask != 0
        if self.model.both:
            real_BT1 = real_BT.unsqueeze(-1).to(hidden_BTH.dtype)
            return (hidden_BTH * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
        places_BT = torch.arange(1, real_BT.shape[1] + 1, device=real_BT.device) * real_BT
        return hidden_BTH[torch.arange(len(real_BT), device=real_BT.device), places_BT.argmax(dim=1)]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kind, whole = self.config.problem_type, not labels.dtype.is_floating_point
        if kind == "regression" or (kind is None and self.num_labels == 1):
            return F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        if kind == "single_label_classification" or (kind is None and whole):
            return F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class FoundryRnnForTokenClassification(_Classifier):
    """Classifies tokens, labels (B, T), -100 where there is none, by the last hidden states there."""

    def _read(self, hidden_BTH: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return hidden_BTH

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
