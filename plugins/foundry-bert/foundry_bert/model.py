"""BERT: wraps the model of transformers and uses core's loss.

Shapes: B batch, T tokens, D width, H heads.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from foundry_bert import BertModelConfig
from foundry_core import WrappedLanguageModel, attention, attention_mask, dropout


class BertLanguageModel(WrappedLanguageModel[BertModelConfig]):
    """BERT with the sizes in `model.transformer`, segment embeddings and a tied output layer."""

    @property
    def max_positions(self) -> int:
        return self.settings.transformer.max_positions or super().max_positions

    def inner_model(self) -> BertForMaskedLM:
        """Build the BERT of transformers."""
        settings, context = self.settings.transformer, self.context
        inner = BertConfig(
            vocab_size=context.vocab_size,
            max_position_embeddings=self.max_positions,
            num_hidden_layers=settings.layers,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_hidden_size,
            num_attention_heads=settings.attention_heads,
            hidden_act=settings.activation_function,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.attention_dropout,
            type_vocab_size=self.settings.bert.type_vocab_size,
            pooler_type=self.settings.bert.pooler_type,
            # Devlin et al. (2019) use 0.02 for 768 units; to keep the size of a signal, weights must scale with
            # 1/sqrt(width). At 128 units, 0.02 left the plateau later: loss 5.79 instead of 5.69 after 200 steps on
            # real text, each at its best learning rate.
            initializer_range=0.02 * math.sqrt(768 / settings.hidden_size),
            **context.special_ids,
            attn_implementation="sdpa",
        )
        return BertForMaskedLM(inner)

    def fast_hidden_states(
        self, input_ids: torch.Tensor, real: torch.Tensor | None, positions: torch.Tensor | None, **asked: Any
    ) -> torch.Tensor | None:
        """Compute the layers on (B T, D) matrices, with the weights of the inner model and no call for each layer."""
        segments = asked.pop("token_type_ids", None)
        if asked:
            return None
        base, config = self.model.bert, self.model.config
        mask = None if real is None else attention_mask(real, causal=False)
        batch, length = input_ids.shape
        width, heads, training = config.hidden_size, config.num_attention_heads, self.training
        share, of_attention = config.hidden_dropout_prob, config.attention_probs_dropout_prob
        of_attention = of_attention if training else 0.0

        def added(norm: nn.LayerNorm, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(dropout(y, share, training) + x, (width,), norm.weight, norm.bias, norm.eps)

        def split(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, layer.weight, layer.bias).view(batch, length, heads, -1).transpose(1, 2)

        def computed(layer: Any, x: torch.Tensor) -> torch.Tensor:
            own, out = layer.attention.self, layer.attention.output
            query, key, value = split(own.query, x), split(own.key, x), split(own.value, x)
            y = attention(query, key, value, causal=False, mask=mask, share=of_attention)
            x = added(out.LayerNorm, x, out.dense(y.transpose(1, 2).reshape(-1, width)))
            y = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x))
            return added(layer.output.LayerNorm, x, layer.output.dense(y))

        tables = base.embeddings
        x = F.embedding(input_ids, tables.word_embeddings.weight)
        of_segments = tables.token_type_embeddings.weight
        x = x + (of_segments[0] if segments is None else F.embedding(segments, of_segments))
        of_positions = tables.position_embeddings.weight
        x = x + (of_positions[:length] if positions is None else F.embedding(positions, of_positions))
        norm = tables.LayerNorm
        x = F.layer_norm(x.view(-1, width), (width,), norm.weight, norm.bias, norm.eps)
        x = dropout(x, share, training)
        for layer in base.encoder.layer:
            x = self.recomputed(computed, layer, x)
        return x.view(batch, length, width)

    def fast_head(self, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the transform and the projection of the inner model."""
        last = self.model.cls.predictions
        return nn.Sequential(last.transform, last.decoder)

    def sentence_representation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Return one vector for each row, (B, D), pooled over the last hidden states according to `pooler_type`.

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: 1 for real tokens, (B, T); all tokens by default. Padding does not change the result.
            kwargs: Further arguments of the model, such as token_type_ids.
        """
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inner = {"position_ids": self.position_ids(input_ids, mask_BT, 0), **kwargs}
        hidden_BTD: torch.Tensor = self.model.base_model(input_ids, attention_mask=mask_BT, **inner).last_hidden_state
        if self.settings.bert.pooler_type == "first":
            first_B = mask_BT.long().argmax(dim=1)
            return hidden_BTD[torch.arange(len(first_B), device=first_B.device), first_B]
        weights_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD)
        return (hidden_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)

    def attention_flops(self, batch: int, length: int) -> int:
        """Count the products of queries with keys and of attention with values: 2 T D each per token and layer."""
        settings = self.settings.transformer
        return batch * length * 4 * length * settings.hidden_size * settings.layers
