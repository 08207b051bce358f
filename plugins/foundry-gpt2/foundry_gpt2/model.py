"""GPT-2: wraps the model of transformers and uses core's loss."""

from transformers import GPT2Config, GPT2LMHeadModel

from foundry_core import WrappedLanguageModel
from foundry_gpt2 import GPT2ModelConfig


class GPT2LanguageModel(WrappedLanguageModel[GPT2ModelConfig]):
    """GPT-2 with the sizes in `model.transformer`. Its state is the key-value cache."""

    branches = True

    def inner_model(self) -> GPT2LMHeadModel:
        """Build the GPT-2 of transformers."""
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
        """Count the products of queries with keys and of attention with values: 2 T D each per token and layer."""
        settings = self.settings.transformer
        return batch * length * 4 * length * settings.hidden_size * settings.layers
