"""Running a model without training it: evaluation mode, batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foundry_core.models.base import BaseLanguageModel


@contextmanager
def evaluating(model: BaseLanguageModel) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a collated batch to the device; leave the attention mask out when no row is padded.

    Without a mask the attention kernels need no mask tensor, and the result is the same.
    """
    if bool(batch["attention_mask"].all()):
        batch = {key: value for key, value in batch.items() if key != "attention_mask"}
    if device.type == "cuda":
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
    return {key: value.to(device) for key, value in batch.items()}
