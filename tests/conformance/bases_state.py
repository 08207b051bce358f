"""Further small architectures that are right in every respect: tied, recomputing, with positions that are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundry_core import BuildContext, ExperimentConfig

from .bases import AttentionLayer, AttentionModel


class TiedModel(AttentionModel):
    """The output weights are the input embeddings."""

    capabilities = replace(AttentionModel.capabilities, tied_embeddings=True)
    spread = 0.1

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.tie()

    def tie(self) -> None:
        self.output_layer.weight = self.embedding.weight

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        super().resize_token_embeddings(new_num_tokens)
        self.tie()


class RecomputedLayer(AttentionLayer):
    """Forgets what it has computed, and computes it again for the backward pass."""

    recomputing = False
    preserve_rng_state = True

    def forward(self, x_BTD: torch.Tensor, visible_BTS: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        plain = super().forward
        if not (self.recomputing and self.training):
            return plain(x_BTD, visible_BTS, past)
        found: tuple[torch.Tensor, Any] = checkpoint(
            plain, x_BTD, visible_BTS, past, use_reentrant=False, preserve_rng_state=self.preserve_rng_state
        )
        return found


class RecomputingModel(AttentionModel):
    """Attention with gradient checkpointing."""

    capabilities = replace(AttentionModel.capabilities, gradient_checkpointing=True)
    layer_class = RecomputedLayer

    def gradient_checkpointing_enable(self) -> None:
        for layer in self.layers:
            layer.recomputing = True  # type: ignore[assignment]


class Waves(nn.Module):
    """Positions that are computed, once, into a buffer that is not stored (Vaswani et al. 2017)."""

    def __init__(self, length: int, width: int):
        super().__init__()
        angles = torch.arange(length)[:, None] / 100 ** torch.linspace(0, 1, width // 2)
        self.register_buffer("values_LD", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)

    def forward(self, places_BT: torch.Tensor) -> torch.Tensor:
        return self.values_LD[places_BT]  # type: ignore[index]


class SinusoidalModel(AttentionModel):
    """Attention with positions that nothing learns."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.positions = Waves(context.max_sequence_length, self.width)  # type: ignore[assignment]


BASES_STATE = (TiedModel, RecomputingModel, SinusoidalModel)
