"""GPT-2: wraps the model of transformers and uses core's loss.

Shapes: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from foundry_core import (
    Skeleton,
    WrappedLanguageModel,
    attention,
    attention_mask,
    dropout,
    projected,
    projected_tanh_gelu,
)
from foundry_gpt2 import GPT2ModelConfig

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

_TANH_GELU = "gelu_new"


class _Projection(nn.Module):
    """A matrix (inputs, outputs), as that of transformers' Conv1D, and a bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)


class _Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        width, inner = config.n_embd, config.n_inner
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": _Projection(width, 3 * width), "c_proj": _Projection(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": _Projection(width, inner), "c_proj": _Projection(inner, width)})


class _Weights(nn.Module):
    """The parameters of GPT2LMHeadModel: its names, its order, and its initial values from the same generator.

    It draws everything twice, when a layer is made and in `_init_weights`, and what leads into the residual stream a
    third time; so does this.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        tables = {"wte": nn.Embedding(config.vocab_size, config.n_embd)}
        tables["wpe"] = nn.Embedding(config.n_positions, config.n_embd)
        blocks = nn.ModuleList([_Block(config) for _ in range(config.n_layer)])
        self.transformer = nn.ModuleDict({**tables, "h": blocks, "ln_f": nn.LayerNorm(config.n_embd)})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, device="meta")
        self.lm_head.weight = tables["wte"].weight
        self._draw(config.initializer_range, math.sqrt(2 * config.n_layer))

    @torch.no_grad()
    def _draw(self, deviation: float, additions: float) -> None:
        base: Any = self.transformer
        for table in (base.wte, base.wpe):
            table.weight.normal_(0.0, deviation)
        for block in base.h:
            for first, last in ((block.attn.c_attn, block.attn.c_proj), (block.mlp.c_fc, block.mlp.c_proj)):
                first.weight.normal_(0.0, deviation)
                last.weight.normal_(0.0, deviation)
                last.weight.normal_(0.0, deviation / additions)

    def get_input_embeddings(self) -> nn.Module:
        base: Any = self.transformer
        embeddings: nn.Module = base.wte
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class GPT2LanguageModel(WrappedLanguageModel[GPT2ModelConfig]):
    """GPT-2 with the sizes in `model.transformer`. Its state is the key-value cache."""

    branches = True

    @property
    def max_positions(self) -> int:
        return self.settings.transformer.max_positions or super().max_positions

    def inner_model(self) -> GPT2LMHeadModel:
        """Build the GPT-2 of transformers."""
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel(self._inner_config())
        if not self.settings.gpt2.bias:
            # The class has no switch for them: biases of 0 that nothing trains are as good as none, and any
            # transformers opens the checkpoint.
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.requires_grad_(False)
        return model

    def skeleton(self) -> Skeleton | None:
        """Return its parameters. `fast_hidden_states` needs no more, unless its activation is one of transformers'."""
        config, own = self._inner_config(), self.settings.gpt2
        if config.activation_function != _TANH_GELU or not (own.tie_embeddings and own.bias):
            return None
        return Skeleton(_Weights(config), config, "GPT2LMHeadModel")

    def _inner_config(self) -> GPT2Config:
        from transformers import GPT2Config

        settings, context = self.settings.transformer, self.context
        return GPT2Config(
            vocab_size=context.vocab_size,
            n_positions=self.max_positions,
            n_ctx=self.max_positions,  # the name in published folders, which TransformerLens 2 reads
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

    def fast_hidden_states(
        self, input_ids: torch.Tensor, real: torch.Tensor | None, positions: torch.Tensor | None, **asked: Any
    ) -> torch.Tensor | None:
        """Compute the blocks on (B T, D) matrices, with the weights of the inner model and no call for each layer."""
        if asked:
            return None
        weights: Any = self.weights
        base, config = weights.transformer, weights.config
        mask = None if real is None else attention_mask(real, causal=True)
        batch, length = input_ids.shape
        epsilon, width, heads = config.layer_norm_epsilon, config.n_embd, config.n_head
        share, of_attention = (config.resid_pdrop, config.attn_pdrop) if self.training else (0.0, 0.0)
        x = self.looked_up(input_ids, base.wte)
        x = x + (base.wpe.weight[:length] if positions is None else F.embedding(positions, base.wpe.weight))
        x = dropout(x.view(-1, width), share, self.training)

        tanh = config.activation_function == _TANH_GELU

        def computed(block: Any, x: torch.Tensor) -> torch.Tensor:
            attn, mlp = block.attn, block.mlp
            y = projected(x, attn.c_attn.weight, attn.c_attn.bias, (block.ln_1.weight, block.ln_1.bias, epsilon))
            query, key, value = y.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = attention(query, key, value, causal=True, mask=mask, share=of_attention)
            y = torch.addmm(attn.c_proj.bias, y.transpose(1, 2).reshape(-1, width), attn.c_proj.weight)
            x = x + dropout(y, share, self.training)
            norm = (block.ln_2.weight, block.ln_2.bias, epsilon)
            if tanh:
                y = projected_tanh_gelu(x, mlp.c_fc.weight, mlp.c_fc.bias, norm)
            else:
                y = mlp.act(projected(x, mlp.c_fc.weight, mlp.c_fc.bias, norm))
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
