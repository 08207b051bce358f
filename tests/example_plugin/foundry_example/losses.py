"""Losses that the objectives `smoothed_lm` and `distilled_lm` minimise instead of the cross-entropy.

Shapes: B batch, T tokens, V vocabulary, N predicted tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from foundry_core import BaseLanguageModel, ExperimentConfig

Loss = Callable[[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def smoothed(config: ExperimentConfig) -> Loss:
    """Return the cross-entropy with a target that keeps a share for all tokens (Szegedy et al. 2016)."""
    settings: Any = config.training.objective_settings

    def loss(logits_NV: torch.Tensor, labels_N: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(logits_NV, labels_N, reduction="none", label_smoothing=settings.smoothing)

    return loss


def distilled(config: ExperimentConfig) -> Loss:
    """Return a mean of the cross-entropy and the divergence from a teacher's predictions (Hinton et al. 2015)."""
    settings: Any = config.training.objective_settings
    teacher = BaseLanguageModel.from_pretrained(settings.teacher)

    def loss(logits_NV: torch.Tensor, labels_N: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        teacher.to(logits_NV.device)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        _, chosen = teacher.targets(batch["labels"], batch.get("attention_mask"))
        with torch.no_grad():
            logits_BTV = teacher(**inputs).logits
        hints_NV = logits_BTV[:, : chosen.shape[1]][chosen].log_softmax(dim=-1)
        divergence_N = F.kl_div(logits_NV.log_softmax(dim=-1), hints_NV, reduction="none", log_target=True).sum(dim=-1)
        return divergence_N.lerp(F.cross_entropy(logits_NV, labels_N, reduction="none"), 1 - settings.weight)

    return loss
