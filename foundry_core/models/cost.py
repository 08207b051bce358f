"""What training will cost, before anything is trained: arithmetic, and memory for activations.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from foundry_core.models.interface import LanguageModel
from foundry_core.models.loss import IGNORED
from foundry_core.random_streams import kept_generators


def training_flops(model: LanguageModel, rows: int, length: int) -> int:
    """Floating-point operations of a training step over (rows, length) tokens: a forward pass, and a backward pass that
    takes twice as many (Kaplan et al. 2020). Counts the vocabulary projection at every token, labelled or not.
    """
    return 3 * model.flops(rows, length)


def activation_bytes(
    model: LanguageModel,
    rows: int,
    length: int,
    *,
    labelled: float = 1.0,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Bytes that autograd keeps for the backward pass of (rows, length) tokens.

    Measured with a few rows and drawn out in a line: what every further row adds is the same. labelled: share of the
    tokens that are predicted.
    """

    def measured(count: int) -> int:
        return saved_bytes(model, plain_rows(model, count, length, labelled), autocast)

    # Kernels pad what they keep: oneDNN's LSTM at 32 units keeps 131 kB for the first row, as much for the second, and
    # 90 for the third. From one row and two an estimate was 16 % off, from two and four it is 3 % off.
    few, more = 2, 4
    if rows <= more:
        return measured(rows)
    fewer = measured(few)
    return fewer + (rows - few) * (measured(more) - fewer) // (more - few)


def plain_rows(model: LanguageModel, rows: int, length: int, labelled: float = 1.0) -> dict[str, torch.Tensor]:
    """A batch (B, T) without padding, where the same share of every row has a label."""
    device = next(model.parameters()).device
    ids = torch.randint(0, model.context.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    if not model.context.objective.causal:
        labels[:, max(1, round(labelled * length)) :] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def saved_bytes(
    model: LanguageModel,
    batch: dict[str, torch.Tensor],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Bytes of the tensors that the forward pass of a training step leaves for the backward pass, parameters aside.

    The model is left in the mode that it was in.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = model.training
    model.train()
    try:
        with kept_generators(), autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
            # Alive until everything is counted: an address that is freed is given to the next tensor.
            output = model(**batch, reduction="sum", return_logits=False)
        del output
    finally:
        model.train(training)
    return sum(saved.values())
