"""BERT: transformers' own model inside, core's loss outside."""

import math

from transformers import BertConfig, BertForMaskedLM

from foundry_bert import BertModelConfig
from foundry_core import WrappedLanguageModel


class BertLanguageModel(WrappedLanguageModel[BertModelConfig]):
    """BERT of the size that `model.transformer` gives, with segment embeddings and a tied output layer."""

    def inner_model(self) -> BertForMaskedLM:
        settings, context = self.settings.transformer, self.context
        inner = BertConfig(
            vocab_size=context.vocab_size,
            max_position_embeddings=context.max_sequence_length,
            num_hidden_layers=settings.layers,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_hidden_size,
            num_attention_heads=settings.attention_heads,
            hidden_act=settings.activation_function,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.attention_dropout,
            type_vocab_size=self.settings.bert.type_vocab_size,
            # 0.02 is Devlin et al.'s (2019) for 768 units; weights that keep a signal's size go with 1/sqrt(width). At
            # 128 units 0.02 left the plateau later: 5.79 after 200 steps on real text at its best rate; 5.69.
            initializer_range=0.02 * math.sqrt(768 / settings.hidden_size),
            **context.special_ids,
            attn_implementation="sdpa",
        )
        return BertForMaskedLM(inner)

    def attention_flops(self, batch: int, length: int) -> int:
        """Queries with keys, and attention with values: 2 T D each for every token and layer."""
        settings = self.settings.transformer
        return batch * length * 4 * length * settings.hidden_size * settings.layers
