"""LSTM, GRU and plain RNN language models on torch's own recurrent layers.

Shapes: B batch, T tokens, E embedding width, H state width (both directions together), V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
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
from foundry_rnn.scan import recurrent_states

_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RNNLanguageModel(BaseLanguageModel[RNNModelConfig]):
    """Embedding, recurrent layers, output layer. Its state is the recurrent state after a row's last real token."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        settings = self.settings.rnn
        width = settings.hidden_size * (2 if settings.bidirectional else 1)
        self.embedding = nn.Embedding(context.vocab_size, settings.embedding_size)
        self.dropout = nn.Dropout(settings.dropout)
        self.recurrent = _LAYERS[self.model_type](
            settings.embedding_size,
            settings.hidden_size,
            settings.num_layers,
            batch_first=True,
            dropout=settings.dropout if settings.num_layers > 1 else 0.0,
            bidirectional=settings.bidirectional,
        )
        tied = settings.tie_embeddings
        self.projection = (
            nn.Linear(width, settings.embedding_size) if tied and width != settings.embedding_size else None
        )
        self.output_layer = nn.Linear(settings.embedding_size if tied else width, context.vocab_size)
        self._embedding_std = 0.1 if tied else 1.0
        self._initialise()
        if tied:
            self.output_layer.weight = self.embedding.weight

    def _initialise(self) -> None:
        """Initialise so that the first loss is ln V, signals keep their size, and forget gates start open.

        The input weights of each gate are Glorot-uniform, and the recurrent weights orthogonal. With torch's default,
        uniform(-1/sqrt(H), 1/sqrt(H)), two layers of LSTM gates damped the signal so much that the loss on real text
        stayed at that of a unigram model for 200 steps. For the same reason embeddings have unit variance; tied
        embeddings are output weights too and must be small. The forget bias of 1 follows Jozefowicz, Zaremba and
        Sutskever (2015); of torch's two bias vectors, one contains it and the other is 0.
        """
        nn.init.normal_(self.embedding.weight, std=self._embedding_std)
        nn.init.normal_(self.output_layer.weight, std=0.02)
        nn.init.zeros_(self.output_layer.bias)
        size = self.recurrent.hidden_size
        for name, parameter in self.recurrent.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                if self.model_type == "lstm" and "bias_ih" in name:
                    nn.init.ones_(parameter[size : 2 * size])
                continue
            for gate_HI in torch.split(parameter, size):
                (nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_)(gate_HI)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute the output. The state costs nothing, so it is returned unless `use_cache` is False."""
        # In training nothing is predicted from the last token, and no state is needed after it.
        longer = labels is not None and labels.shape[1] > input_ids.shape[1]
        needed = labels is None or longer or not self.training or not self.context.objective.causal
        read = input_ids.shape[1] - (0 if needed or kwargs.get("return_logits", True) else 1)
        real_BT = self.real_tokens(input_ids, attention_mask)
        share = self.dropout.p if self.training else 0.0
        fast = self.kernels == "fast" and input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if fast and real_BT is None and not self.recurrent.bidirectional:
            embedded_TBE = dropout(self.embedding(input_ids[:, :read]).transpose(0, 1), share, True)
            hidden_TBH, state = recurrent_states(self.recurrent, embedded_TBE, state, share)
            hidden_BTH = dropout(hidden_TBH, share, True).transpose(0, 1)
        else:
            read = input_ids.shape[1]
            embedded_BTE = self.dropout(self.embedding(input_ids))
            if real_BT is None:
                hidden_BTH, state = self.recurrent(embedded_BTE, state)
            else:
                hidden_BTH, state = self._over_real_tokens(embedded_BTE, real_BT, state)
            hidden_BTH = self.dropout(hidden_BTH)
        if self.projection is not None:
            hidden_BTH = self.projection(hidden_BTH)
        carried = use_cache and not self.recurrent.bidirectional and read == input_ids.shape[1]
        return self.lm_output(
            hidden_BTH,
            self.output_layer,
            labels,
            attention_mask=attention_mask,
            state=state if carried else None,
            **kwargs,
        )

    def _over_real_tokens(
        self, embedded_BTE: torch.Tensor, real_BT: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """Run the recurrence over the real tokens of each row; the output is zero elsewhere.

        A stable sort moves the real tokens of a row to its front, so that padding on either side, or a masked token in
        between, affects neither their outputs nor the final state.
        """
        order = torch.argsort((~real_BT).to(torch.int8), dim=1, stable=True)
        lengths_B = real_BT.sum(dim=1)
        front = embedded_BTE.gather(1, order.unsqueeze(-1).expand_as(embedded_BTE))
        # A row without any token still needs a length for packing; what is computed for it is replaced below.
        packed = pack_padded_sequence(front, lengths_B.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_output, after = self.recurrent(packed, state)
        output, _ = pad_packed_sequence(packed_output, batch_first=True, total_length=embedded_BTE.shape[1])
        back = torch.argsort(order, dim=1)
        output = output.gather(1, back.unsqueeze(-1).expand_as(output))
        return output * real_BT.unsqueeze(-1), _where_read(lengths_B > 0, after, state)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        tied = self.output_layer.weight is self.embedding.weight
        old = self.embedding
        kept = min(old.num_embeddings, new_num_tokens)
        embedding = nn.Embedding(new_num_tokens, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        nn.init.normal_(embedding.weight, std=self._embedding_std)
        output = nn.Linear(
            self.output_layer.in_features, new_num_tokens, device=old.weight.device, dtype=old.weight.dtype
        )
        nn.init.normal_(output.weight, std=0.02)
        nn.init.zeros_(output.bias)
        with torch.no_grad():
            embedding.weight[:kept] = old.weight[:kept]
            output.weight[:kept] = self.output_layer.weight[:kept]
            output.bias[:kept] = self.output_layer.bias[:kept]
        self.embedding, self.output_layer = embedding, output
        if tied:
            self.output_layer.weight = self.embedding.weight
        self.set_vocabulary_size(new_num_tokens)


def _where_read(read_B: torch.Tensor, after: Any, before: Any) -> Any:
    """Return the states of each row: those after it where it has real tokens, elsewhere those before, by default 0."""
    if isinstance(after, tuple):  # of an LSTM, hidden and cell
        return tuple(_where_read(read_B, *pair) for pair in zip(after, before or (None, None), strict=True))
    return torch.where(read_B[:, None], after, torch.zeros_like(after) if before is None else before)


register_auto_classes("lstm", "gru", "rnn")
