"""Checks a plugin's collator, so that its mistakes are not reported as the model's; the kit checks more batches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from foundry_core.data.batches import Collator
from foundry_core.data.workers import Batch
from foundry_core.errors import PluginError
from foundry_core.models.loss import IGNORED
from foundry_core.registry.isolation import failing_as

_KEYS = ("input_ids", "attention_mask", "labels")


class CheckedCollator:
    """A plugin's collator. PluginError is raised when it fails, and, in each process, for a malformed first batch."""

    def __init__(self, what: str, collator: Collator, vocabulary_size: int):
        self._what, self._collator, self._vocabulary_size = what, collator, vocabulary_size
        self._checked = False

    def __call__(self, rows: Sequence[Any]) -> Batch:
        with failing_as(self._what):
            if self._checked:
                return self._collator(rows)
            before = _generator_states()
            batch = self._collator(rows)
        # Rows of a caller's own may lack the place that a draw has to follow from.
        if isinstance(rows[0], Mapping) and "row" in rows[0]:
            for name, state in _generator_states().items():
                if state != before[name]:
                    raise PluginError(
                        f"{self._what} draws from the global generator of {name}, so that the number of workers would "
                        "change batches: draw what a row needs from "
                        'numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]])'
                    )
        problem = _problem(batch, len(rows), self._vocabulary_size)
        if problem is not None:
            raise PluginError(f"{self._what} returned {problem}")
        self._checked = True
        return batch


def _generator_states() -> dict[str, Any]:
    _, keys, *position = np.random.get_state(legacy=True)
    numpy = (np.asarray(keys).tobytes(), *position)
    return {"torch": torch.get_rng_state().tolist(), "numpy": numpy, "Python's random": random.getstate()}


def _problem(batch: Any, rows: int, vocabulary: int) -> str | None:
    """Return what is wrong with a batch of `rows` rows for a model with `vocabulary` tokens."""
    if not isinstance(batch, Mapping):
        return f"a {type(batch).__name__}, not a batch"
    for name in _KEYS:
        tensor = batch.get(name)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or len(tensor) != rows or not tensor.numel():
            return f"a batch whose {name} is not a tensor of {rows} rows"
    shapes = [tuple(batch[name].shape) for name in _KEYS]
    if len(set(shapes)) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in zip(_KEYS, shapes, strict=True))
        return f"a batch whose tensors differ in shape: {named}"
    if extra := ", ".join(repr(name) for name in batch if name not in _KEYS):
        return f"a batch with {extra}, which a model does not take: it takes {', '.join(_KEYS)}"
    for name in ("input_ids", "labels"):
        if batch[name].dtype != torch.int64:
            return f"a batch whose {name} are {batch[name].dtype}, not torch.int64"
        ids = batch[name] if name == "input_ids" else batch[name][batch[name] != IGNORED]
        wrong = ids[(ids < 0) | (ids >= vocabulary)]
        if len(wrong):
            also = "" if name == "input_ids" else f", or {IGNORED} where nothing is predicted"
            return f"a batch whose {name} contain {int(wrong.min())}: a token is from 0 to {vocabulary - 1}{also}"
    return None
