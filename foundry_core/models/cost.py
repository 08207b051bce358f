"""The cost of training, estimated before anything is trained: arithmetic, and memory for activations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.models.building import build, build_context
from foundry_core.models.interface import LanguageModel
from foundry_core.models.loss import IGNORED
from foundry_core.random_streams import kept_generators

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Autocast: TypeAlias = Callable[[], AbstractContextManager[None]]

_MEASURED_LENGTH = 1024


def parameter_count(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Count the parameters of a configuration's model, built without memory and without weights (torch's meta device).

    Args:
        config: The experiment.
        tokenizer: The source of the vocabulary's size; without one, the configured size is used.
    """
    context = build_context(config, tokenizer)
    with torch.device("meta"), kept_generators():
        return build(config, context).get_parameter_count().total


def training_flops(model: LanguageModel, rows: int, length: int) -> int:
    """Count the floating-point operations of a training step over (rows, length) tokens, labelled or not."""
    return 3 * model.flops(rows, length)  # a backward pass takes twice as many as a forward pass (Kaplan et al. 2020)


def activation_bytes(
    model: LanguageModel, rows: int, length: int, *, labelled: float = 1.0, autocast: Autocast = nullcontext
) -> int:
    """Estimate the bytes that autograd keeps for the backward pass of (rows, length) tokens.

    Measured with at most 4 rows of at most 1,024 tokens and extrapolated, so that it takes no longer for a batch that
    has no room: every further row adds the same, every further token what it keeps for itself and, with attention, for
    each of the others. labelled: share of predicted tokens.
    """
    # Kernels pad what they keep: oneDNN's LSTM at 32 units keeps 131 kB for the first row, as much for the second, and
    # 90 for the third. From one row and two an estimate was 16 % off, from two and four it is 3 % off.
    counts = (rows,) if rows <= 4 else (2, 4)
    lengths = (length,) if length <= _MEASURED_LENGTH else (256, 512, _MEASURED_LENGTH)

    def measured(count: int) -> int:
        kept = [saved_bytes(model, plain_rows(model, count, each, labelled), autocast) for each in lengths]
        return kept[0] if len(kept) == 1 else _parabola(lengths, kept, length)

    few = measured(counts[0])
    return few if len(counts) == 1 else few + (rows - counts[0]) * (measured(counts[1]) - few) // 2


def _parabola(places: tuple[int, ...], values: list[int], place: int) -> int:
    """Return the value, at a place, of the parabola through three points."""
    total = Fraction(0)
    for at, value in zip(places, values, strict=True):
        others = [each for each in places if each != at]
        total += Fraction(value * prod(place - each for each in others), prod(at - each for each in others))
    return round(total)


def plain_rows(model: LanguageModel, rows: int, length: int, labelled: float = 1.0) -> dict[str, torch.Tensor]:
    """Return a batch (rows, length) without padding, in which the same share of every row has a label."""
    device = next(model.parameters()).device
    ids = torch.randint(0, model.context.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    if not model.context.objective.causal:
        labels[:, max(1, round(labelled * length)) :] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def saved_bytes(model: LanguageModel, batch: dict[str, torch.Tensor], autocast: Autocast = nullcontext) -> int:
    """Count the bytes of the tensors that a training step's forward pass saves for the backward pass, without weights.

    Leaves the model in the mode that it was in.
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
