"""The check of a plugin's collator: its first batch, and that no chance of the process goes into it.

What is not found here fails in the model, and is taken for its fault. The conformance kit checks more than one batch.
"""

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
    """A plugin's collator, whose first batch is checked in each process.

    Raises (when called):
        PluginError: The collator fails, or its first batch is malformed.
    """

    def __init__(self, what: str, collator: Collator, vocabulary_size: int):
        self._what, self._collator, self._vocabulary_size = what, collator, vocabulary_size
        self._checked = False

    def __call__(self, rows: Sequence[Any]) -> Batch:
        before = None if self._checked else _generator_states()
        with failing_as(self._what):
            batch = self._collator(rows)
        if before is not None:
            self._check(batch, rows, before)
            self._checked = True
        return batch

    def _check(self, batch: Any, rows: Sequence[Any], before: tuple[torch.Tensor, Any, Any]) -> None:
        # Rows of a caller's own may have no place that chance could follow from.
        drawn = _drawn_from(before) if isinstance(rows[0], Mapping) and "row" in rows[0] else None
        if drawn is not None:
            raise PluginError(
                f"{self._what} draws from the global generator of {drawn}, so that the number of workers would change "
                "batches: draw what a row needs from "
                'numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]])'
            )
        problem = _problem(batch, len(rows), self._vocabulary_size)
        if problem is not None:
            raise PluginError(f"{self._what} gives {problem}")


def _generator_states() -> tuple[torch.Tensor, Any, Any]:
    """Return the states of the global generators of torch, numpy and Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _drawn_from(before: tuple[torch.Tensor, Any, Any]) -> str | None:
    """Return whose global generator has been drawn from, or seeded, since then."""
    (of_torch, of_numpy, of_python), now = before, _generator_states()
    if not torch.equal(of_torch, now[0]):
        return "torch"
    if of_numpy[2:] != now[1][2:] or not np.array_equal(of_numpy[1], now[1][1]):
        return "numpy"
    return None if of_python == now[2] else "Python's random"


def _problem(batch: Any, rows: int, vocabulary: int) -> str | None:
    """Return what is wrong with a batch of so many rows for a model with so many tokens."""
    if not isinstance(batch, Mapping):
        return f"a {type(batch).__name__}, not a batch"
    for name in _KEYS:
        tensor = batch.get(name)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or len(tensor) != rows or not tensor.numel():
            return f"a batch whose {name} is no tensor of a row for each of {rows} rows"
    shapes = [tuple(batch[name].shape) for name in _KEYS]
    if len(set(shapes)) > 1:
        return "a batch whose tensors differ in shape: " + ", ".join(
            f"{name} {shape}" for name, shape in zip(_KEYS, shapes, strict=True)
        )
    if len(batch) > len(_KEYS):
        extra = ", ".join(repr(name) for name in batch if name not in _KEYS)
        return f"a batch with {extra}, which a model does not take: it takes {', '.join(_KEYS)}"
    for name in ("input_ids", "labels"):
        if batch[name].dtype != torch.int64:
            return f"a batch whose {name} are {batch[name].dtype}, not torch.int64"
    labels = batch["labels"]
    for name, ids, besides in (
        ("input_ids", batch["input_ids"], ""),
        ("labels", labels.masked_fill(labels == IGNORED, 0), f", or {IGNORED} where nothing is predicted"),
    ):
        wrong = [bound for bound in map(int, ids.aminmax()) if not 0 <= bound < vocabulary]
        if wrong:
            return f"a batch whose {name} hold {wrong[0]}: a token is from 0 to {vocabulary - 1}{besides}"
    return None
