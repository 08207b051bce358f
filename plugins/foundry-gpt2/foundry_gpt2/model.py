"""GPT-2: wraps the model of transformers and uses core's loss.

Shapes: B batch, T tokens, D width, H heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from foundry_core import WrappedLanguageModel, attention, attention_mask, dropout, projected_tanh_gelu
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
            tie_word_embeddings=self.settings.gpt2.tie_embeddings,
            attn_implementation="sdpa",
        )
        model = GPT2LMHeadModel(inner)
        if not self.settings.gpt2.bias:
            # The class has no switch for them: biases of 0 that nothing trains are as good as none, and any
            # transformers opens the checkpoint.
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.requires_grad_(False)
        return model

    def fast_hidden_states(
        self, input_ids: torch.Tensor, real: torch.Tensor | None, positions: torch.Tensor | None, **asked: Any
    ) -> torch.Tensor | None:
        """Compute the blocks on (B T, D) matrices, with the weights of the inner model and no call for each layer."""
        if asked:
            return None
        base, config = self.model.transformer, self.model.config
        mask = None if real is None else attention_mask(real, causal=True)
        batch, length = input_ids.shape
        epsilon, width, heads = config.layer_norm_epsilon, config.n_embd, config.n_head
        share, of_attention = (config.resid_pdrop, config.attn_pdrop) if self.training else (0.0, 0.0)
        x = F.embedding(input_ids, base.wte.weight)
        x = x + (base.wpe.weight[:length] if positions is None else F.embedding(positions, base.wpe.weight))
        x = dropout(x.view(-1, width), share, self.training)

        tanh = config.activation_function == "gelu_new"

        def computed(block: Any, x: torch.Tensor) -> torch.Tensor:
            attn, mlp = block.attn, block.mlp
            y = F.layer_norm(x, (width,), block.ln_1.weight, block.ln_1.bias, epsilon)
            y = torch.addmm(attn.c_attn.bias, y, attn.c_attn.weight)
            query, key, value = y.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = attention(query, key, value, causal=True, mask=mask, share=of_attention)
            y = torch.addmm(attn.c_proj.bias, y.transpose(1, 2).reshape(-1, width), attn.c_proj.weight)
            x = x + dropout(y, share, self.training)
            y = F.layer_norm(x, (width,), block.ln_2.weight, block.ln_2.bias, epsilon)
            if tanh:
                y = projected_tanh_gelu(y, mlp.c_fc.weight, mlp.c_fc.bias)
            else:
                y = mlp.act(torch.addmm(mlp.c_fc.bias, y, mlp.c_fc.weight))
            y = torch.addmm(mlp.c_proj.bias, y, mlp.c_proj.weight)
            return x + dropout(y, share, self.training)

        for block in base.h:
            x = self.recomputed(computed, block, x)
        x = F.layer_norm(x, (width,), base.ln_f.weight, base.ln_f.bias, epsilon)
        return x.view(batch, length, width)

    def attention_flops(self, batch: int, length: int) -> int:
        """Count the products of queries with keys and of attention with values: 2 T D each per token and layer."""
        settings = self.settings.transformer
        return batch * length * 4 * length * settings.hidden_size * settings.layers
