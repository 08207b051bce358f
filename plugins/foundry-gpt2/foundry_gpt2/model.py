"""GPT-2: transformers' own model inside, core's loss outside."""

from transformers import GPT2Config, GPT2LMHeadModel

from foundry_core import WrappedLanguageModel
from foundry_gpt2 import GPT2ModelConfig


class GPT2LanguageModel(WrappedLanguageModel[GPT2ModelConfig]):
    """GPT-2 of the size that `model.transformer` gives. State: the key-value cache."""

    def inner_model(self) -> GPT2LMHeadModel:
        settings, context = self.settings.transformer, self.context
        inner = GPT2Config(
            vocab_size=context.vocab_size,
            n_positions=context.max_sequence_length,
            n_layer=settings.layers,
            n_embd=settings.hidden_size,
            n_inner=settings.intermediate_hidden_size,
            n_head=settings.attention_heads,
            activation_function=settings.activation_function,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.attention_dropout,
            # The library's default ids are those of the published tokenizer (50256), outside a small vocabulary.
            **context.special_ids,
            attn_implementation="sdpa",
        )
        return GPT2LMHeadModel(inner)

    def attention_flops(self, batch: int, length: int) -> int:
        """Queries with keys, and attention with values: 2 T D each for every token and layer."""
        settings = self.settings.transformer
        return batch * length * 4 * length * settings.hidden_size * settings.layers
