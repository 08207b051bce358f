"""LSTM, GRU and plain RNN language models on torch's own recurrent layers.

Shapes: B batch, T tokens, E embedding width, H state width (both directions together), V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from foundry_core import (
    BaseLanguageModel,
    BuildContext,
    ExperimentConfig,
    ModelOutput,
    dropout,
    register_auto_classes,
)
from foundry_rnn import RNNModelConfig
from foundry_rnn.documents import parts_of_documents
from foundry_rnn.scan import Between, recurrent_states
from foundry_rnn.states import by_module, flat_state, of_first_rows, where_read

_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RNNLanguageModel(BaseLanguageModel[RNNModelConfig]):
    """Embedding, recurrent layers, output layer. Its state is the recurrent state after a row's last real token."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        settings = self.settings.rnn
        size, last = settings.hidden_size, settings.last_hidden_size
        ways = 2 if settings.bidirectional else 1
        width = ways * (last or size)
        # Without an embedding, its rows are the input weights of the first layer, which one-hot vectors choose.
        embedding = settings.embedding_size or ways * size * {"lstm": 4, "gru": 3, "rnn": 1}[self.model_type]
        self.embedding = nn.Embedding(context.vocab_size, embedding)
        first, between, before_output = settings.shares
        self.dropout, self.output_dropout = nn.Dropout(first), nn.Dropout(before_output)
        below = settings.num_layers - (1 if last else 0)
        self.recurrent = self._layers(settings.embedding_size or context.vocab_size, size, below, between)
        self.last_recurrent = self._layers(ways * size, last, 1, 0.0) if last else None
        if settings.embedding_size is None:
            for name in ("weight_ih_l0", "weight_ih_l0_reverse")[:ways]:
                delattr(self.recurrent, name)
            self.recurrent._init_flat_weights()
        tied = settings.tie_embeddings
        self.projection = nn.Linear(width, embedding) if tied and width != embedding else None
        self.output_layer = nn.Linear(embedding if tied else width, context.vocab_size, bias=settings.bias)
        self._initialise()
        if tied:
            self.output_layer.weight = self.embedding.weight

    def _layers(self, width: int, size: int, number: int, share: float) -> nn.RNNBase:
        """Return torch's own stack of layers, as deep as it can be."""
        settings = self.settings.rnn
        kind = {"nonlinearity": settings.nonlinearity} if self.model_type == "rnn" else {}
        return _LAYERS[self.model_type](
            width,
            size,
            number,
            bias=settings.bias,
            batch_first=True,
            dropout=share if number > 1 else 0.0,
            bidirectional=settings.bidirectional,
            **kind,
        )

    def _stack(self) -> list[nn.RNNBase]:
        return [self.recurrent] if self.last_recurrent is None else [self.recurrent, self.last_recurrent]

    def _initialise(self) -> None:
        """Initialise so that the first loss is ln V, signals keep their size, and forget gates start open.

        The input weights of each gate are Glorot-uniform, and the recurrent weights orthogonal. With torch's default,
        uniform(-1/sqrt(H), 1/sqrt(H)), two layers of LSTM gates damped the signal so much that the loss on real text
        stayed at that of a unigram model for 200 steps. For the same reason embeddings have unit variance; tied
        embeddings are output weights too and must be small. The forget bias of 1 follows Jozefowicz, Zaremba and
        Sutskever (2015); of torch's two bias vectors, one contains it and the other is 0.
        """
        settings = self.settings.rnn
        self._initialise_embedding(self.embedding)
        self._initialise_output(self.output_layer)
        for module in self._stack():
            for name, parameter in module.named_parameters():
                self._initialise_recurrent(name, parameter, module.hidden_size)
        if settings.recurrent_init == "uniform" and self.projection is not None:
            for parameter in self.projection.parameters():
                _uniform(parameter, settings.init_range)

    def _initialise_embedding(self, embedding: nn.Embedding) -> None:
        settings = self.settings.rnn
        if settings.embedding_size is None:
            self._initialise_recurrent("weight_ih", embedding.weight.t(), settings.hidden_size)
        elif settings.init_range is not None:
            _uniform(embedding.weight, settings.init_range)
        else:
            nn.init.normal_(embedding.weight, std=0.1 if settings.tie_embeddings else 1.0)

    def _initialise_output(self, output: nn.Linear) -> None:
        settings = self.settings.rnn
        if settings.init_range is None:
            nn.init.normal_(output.weight, std=0.02)
        else:
            _uniform(output.weight, settings.init_range)
        if output.bias is not None and settings.recurrent_init == "uniform":
            _uniform(output.bias, settings.init_range)
        elif output.bias is not None:
            nn.init.zeros_(output.bias)

    def _initialise_recurrent(self, name: str, parameter: torch.Tensor, size: int) -> None:
        """Initialise a parameter (gates of `size`, ...) of a recurrent layer."""
        settings = self.settings.rnn
        orthogonal = settings.recurrent_init == "orthogonal"
        if not orthogonal:
            _uniform(parameter, settings.init_range if settings.recurrent_init == "uniform" else size**-0.5)
        if "bias" in name:
            forget = 1.0 if settings.forget_bias is None and orthogonal else settings.forget_bias
            if orthogonal:
                nn.init.zeros_(parameter)
            if self.model_type == "lstm" and "bias_ih" in name and forget is not None:
                nn.init.constant_(parameter[size : 2 * size], forget)
        elif orthogonal:
            for gate_HI in torch.split(parameter, size):
                (nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_)(gate_HI)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = True,
        output_hidden_states: bool | None = None,
        document_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute the output. The state costs nothing, so it is returned unless `use_cache` is False.

        Args:
            labels: Like the input, or one column longer: then every token predicts, the last one too.
            output_hidden_states: Return what the first layer reads and the states of every layer, each (B, T, D). The
                last of them is what the output layer reads: after dropout and the projection.
            document_ids: The document of each token: the recurrence begins anew with each, from no state.
            inputs_embeds: In place of the ids, vectors (B, T, E) as of the input embeddings. Of a model that reads
                one-hot vectors, these are what the first layer makes of them.
        """
        if document_ids is not None and input_ids is not None:
            return self._isolated(input_ids, attention_mask, labels, document_ids, **kwargs)
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        length = given.shape[1]
        # In training on rows of their own nothing is predicted from the last token, and no state is needed after it.
        all_predict = labels is None or not self.context.objective.causal or labels.shape[1] > length
        predicting = length if all_predict else length - 1
        needed = not self.training or kwargs.get("return_logits", True) or output_hidden_states
        real_BT = self.real_tokens(given, attention_mask)
        settings, fast = self.settings.rnn, self._fast(given)
        scanned = fast and real_BT is None and not settings.bidirectional
        read = length if needed or not scanned else max(predicting, 1)
        by_layer = scanned or settings.layer_by_layer or bool(output_hidden_states)
        looked_up = inputs_embeds is not None
        embedded_BTE = given[:, :read] if looked_up else self._embedded(given[:, :read])
        layers, dropped_BTH, state = self._states(
            embedded_BTE, real_BT, state, fast=fast, by_layer=by_layer, looked_up=looked_up
        )
        if labels is not None and self.training:
            kwargs["auxiliary"] = self._activation_terms(layers[-1], dropped_BTH, real_BT, predicting)
        carried = use_cache and not settings.bidirectional and read == length
        hidden_BTH = dropped_BTH if self.projection is None else self.projection(dropped_BTH)
        hidden_states = None
        if output_hidden_states:
            # Of one-hot vectors the rows that they choose, which are their `inputs_embeds`.
            one_hot = settings.embedding_size is None and not looked_up
            first_BTE = layers[0] @ self.embedding.weight if one_hot else layers[0]
            hidden_states = (first_BTE, *layers[1:-1], hidden_BTH)
        return self.lm_output(
            hidden_BTH,
            self.output_layer,
            labels,
            attention_mask=attention_mask,
            state=state if carried else None,
            hidden_states=hidden_states,
            **kwargs,
        )

    def _isolated(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        document_ids: torch.Tensor,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute the output of each document by itself, in rows of documents of like length."""
        settings, fast = self.settings.rnn, self._fast(input_ids)
        real_BT = self.real_tokens(input_ids, attention_mask)
        found, terms = [], list[tuple[int, dict[str, torch.Tensor]]]()
        # What both directions read, or is drawn or compared for a whole document, cannot be computed in parts of it.
        whole = settings.bidirectional or settings.layer_by_layer
        state: Any = None
        parts = list(parts_of_documents(document_ids, real_BT, whole=whole))
        # One look-up for all parts: the gradient of each is a table of its own, 16 MB for 8,000 words of 512.
        sizes = [places_SL.numel() for places_SL, _ in parts]
        places_N = torch.cat([places_SL.flatten() for places_SL, _ in parts] or [input_ids.new_zeros(0)])
        embedded = torch.split(self._embedded(input_ids.flatten()[places_N][None])[0], sizes)
        tokens = [places_SL[real_SL] for places_SL, real_SL in parts]
        for number, (_, real_SL) in enumerate(parts):
            shown = None if bool(real_SL.all()) else real_SL
            # What stands after a document does not reach it, unless it is read from right to left.
            masked = shown if settings.bidirectional else None
            by_layer = (fast and masked is None) or settings.layer_by_layer
            before = None if state is None or whole else of_first_rows(state, len(real_SL))
            embedded_SLE = embedded[number].view(*real_SL.shape, -1)
            layers, dropped_SLH, state = self._states(embedded_SLE, masked, before, fast=fast, by_layer=by_layer)
            found.append(dropped_SLH[real_SL])
            if labels is not None and self.training:
                each_term = self._activation_terms(layers[-1], dropped_SLH, shown, real_SL.shape[1])
                terms.append((len(tokens[number]), each_term))
        width = found[0].shape[-1] if found else self.output_layer.in_features
        hidden_NH = self.embedding.weight.new_zeros(input_ids.numel(), width)
        if found:
            hidden_NH = hidden_NH.to(found[0].dtype).index_put((torch.cat(tokens),), torch.cat(found))
        hidden_BTH = hidden_NH.view(*input_ids.shape, width)
        if terms:
            total = sum(count for count, _ in terms)
            kwargs["auxiliary"] = {
                name: sum(count / total * each[name] for count, each in terms) for name in terms[0][1]
            }
        return self.lm_output(
            hidden_BTH if self.projection is None else self.projection(hidden_BTH),
            self.output_layer,
            labels,
            attention_mask=attention_mask,
            **kwargs,
        )

    def _states(
        self,
        embedded_BTE: torch.Tensor,
        real_BT: torch.Tensor | None,
        state: Any,
        *,
        fast: bool,
        by_layer: bool,
        looked_up: bool = False,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, Any]:
        """Return states of the layers, (B, T, H), at least of the last, these after dropout, and the final state.

        looked_up: One-hot vectors have been multiplied with the input weights already.
        """
        if by_layer:
            return self._layer_by_layer(embedded_BTE, real_BT, state, fast=fast, looked_up=looked_up)
        embedded_BTE = self.dropout(embedded_BTE)
        if real_BT is None:
            hidden_BTH, state = self.recurrent(embedded_BTE, state)
        else:
            hidden_BTH, state = self._over_real_tokens(embedded_BTE, real_BT, state)
        return (hidden_BTH,), self.output_dropout(hidden_BTH), state

    def _fast(self, given: torch.Tensor) -> bool:
        return self.kernels == "fast" and given.device.type == "cpu" and not torch.compiler.is_compiling()

    def _embedded(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, T, E) or one-hot vectors; in training those of a share of the words are 0."""
        settings, weight = self.settings.rnn, self.embedding.weight
        if settings.embedding_size is None:
            embedded_BTE = F.one_hot(ids_BT, len(weight)).to(weight.dtype)
        else:
            embedded_BTE = self.embedding(ids_BT)
        if not (self.training and settings.embedding_dropout):
            return embedded_BTE
        kept_V = F.dropout(torch.ones_like(weight[:, 0]), settings.embedding_dropout)
        return embedded_BTE * kept_V[ids_BT].unsqueeze(-1)

    def _dropped(self, x_TBE: torch.Tensor, share: float) -> torch.Tensor:
        """Drop a share in training; with `locked_dropout` the same of each row for all its tokens."""
        if not self.training or share == 0:
            return x_TBE
        if self.settings.rnn.locked_dropout:
            return x_TBE * F.dropout(torch.ones_like(x_TBE[:1]), share)
        return dropout(x_TBE, share, True) if self.kernels == "fast" else F.dropout(x_TBE, share)

    def _layer_by_layer(
        self, embedded_BTE: torch.Tensor, real_BT: torch.Tensor | None, state: Any, *, fast: bool, looked_up: bool
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, Any]:
        """Return what each layer returns after what the first one reads, the last after dropout, and the state."""
        settings, first = self.settings.rnn, None
        if settings.embedding_size is None:
            width = embedded_BTE.shape[-1]
            first = torch.eye(width).to(embedded_BTE) if looked_up else self.embedding.weight.t()
        x_BTE, back, lengths_B = embedded_BTE, None, None
        if real_BT is not None:
            x_BTE, lengths_B, back = _real_tokens_first(x_BTE, real_BT)
        x_TBE = self._dropped(x_BTE.transpose(0, 1), self.dropout.p)
        between = Between(
            partial(self._dropped, share=settings.shares[1]),
            share=(settings.weight_drop or 0.0) if self.training else 0.0,
            input_weights=() if first is None else first.chunk(2 if settings.bidirectional else 1),
            fast=fast,
        )
        modules = self._stack()
        before = by_module(state, len(modules), lstm=self.model_type == "lstm")
        layers, after = recurrent_states(modules, x_TBE, before, between, lengths_B)
        given = [x_TBE, *layers, self._dropped(layers[-1], self.output_dropout.p)]
        *found, dropped_BTH = (each.transpose(0, 1) for each in given)
        last: Any = after[0] if len(after) == 1 else flat_state(after)
        if real_BT is None or back is None or lengths_B is None:
            return tuple(found), dropped_BTH, last
        *found, dropped_BTH = (_put_back(each, back, real_BT) for each in (*found, dropped_BTH))
        return tuple(found), dropped_BTH, where_read(lengths_B > 0, last, state)

    def _activation_terms(
        self, states_BTH: torch.Tensor, dropped_BTH: torch.Tensor, real_BT: torch.Tensor | None, predicting: int
    ) -> dict[str, torch.Tensor]:
        """Return AR and TAR (Merity, McCann and Socher 2017) of the states that predict, each if it has a weight."""
        terms, settings = {}, self.settings.rnn
        real_BT = None if real_BT is None else real_BT[:, :predicting]
        if weight := settings.activation_regularization:
            terms["activation_regularization"] = weight * _mean_square(dropped_BTH[:, :predicting], real_BT)
        if weight := settings.temporal_regularization:
            change_BTH = states_BTH[:, :predicting].diff(dim=1)
            both_BT = None if real_BT is None else real_BT[:, 1:] & real_BT[:, :-1]
            terms["temporal_regularization"] = weight * _mean_square(change_BTH, both_BT)
        return terms

    def _over_real_tokens(
        self, embedded_BTE: torch.Tensor, real_BT: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """Run the recurrence over the real tokens of each row; the output is zero elsewhere."""
        front, lengths_B, back = _real_tokens_first(embedded_BTE, real_BT)
        # A row without any token still needs a length for packing; what is computed for it is replaced below.
        packed = pack_padded_sequence(front, lengths_B.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_output, after = self.recurrent(packed, state)
        output, _ = pad_packed_sequence(packed_output, batch_first=True, total_length=embedded_BTE.shape[1])
        return _put_back(output, back, real_BT), where_read(lengths_B > 0, after, state)

    def flops(self, batch: int, length: int) -> int:
        """Count as core does; one-hot vectors are multiplied with the table that embeddings are looked up in."""
        table = 0 if self.settings.rnn.embedding_size else self.embedding.weight.numel()
        return super().flops(batch, length) + 2 * batch * length * table

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        tied = self.output_layer.weight is self.embedding.weight
        old = self.embedding
        kept = min(old.num_embeddings, new_num_tokens)
        where: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
        embedding = nn.Embedding(new_num_tokens, old.embedding_dim, **where)
        bias = self.output_layer.bias is not None
        output = nn.Linear(self.output_layer.in_features, new_num_tokens, bias=bias, **where)
        self._initialise_embedding(embedding)
        self._initialise_output(output)
        with torch.no_grad():
            embedding.weight[:kept] = old.weight[:kept]
            output.weight[:kept] = self.output_layer.weight[:kept]
            if bias:
                output.bias[:kept] = self.output_layer.bias[:kept]
        self.embedding, self.output_layer = embedding, output
        if tied:
            self.output_layer.weight = self.embedding.weight
        self.set_vocabulary_size(new_num_tokens)


def _uniform(parameter: torch.Tensor, bound: float | None) -> None:
    assert bound is not None, "a rule of the section requires init_range"
    nn.init.uniform_(parameter, -bound, bound)


def _real_tokens_first(x_BTE: torch.Tensor, real_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows with their real tokens at the front, how many there are, and the order that restores them.

    The sort is stable, so that padding on either side, or a masked token in between, affects neither the states of the
    others nor the final one.
    """
    order = torch.argsort((~real_BT).to(torch.int8), dim=1, stable=True)
    front = x_BTE.gather(1, order.unsqueeze(-1).expand_as(x_BTE))
    return front, real_BT.sum(dim=1), torch.argsort(order, dim=1)


def _put_back(x_BTH: torch.Tensor, back_BT: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
    """Return what was computed for tokens at the front in their places; 0 where a token is not real."""
    return x_BTH.gather(1, back_BT.unsqueeze(-1).expand_as(x_BTH)) * real_BT.unsqueeze(-1)


def _mean_square(values_BTH: torch.Tensor, counted_BT: torch.Tensor | None) -> torch.Tensor:
    squares = values_BTH.to(torch.promote_types(values_BTH.dtype, torch.float32)).square()
    if counted_BT is None:
        return squares.sum() / max(squares.numel(), 1)
    return (squares * counted_BT.unsqueeze(-1)).sum() / (counted_BT.sum() * squares.shape[-1]).clamp(min=1)


register_auto_classes("lstm", "gru", "rnn")
