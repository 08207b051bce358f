"""Cross-entropies of tokens without gradients: a position is projected once, and few logits exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from foundry_core.devices import in_float64
from foundry_core.errors import PluginError
from foundry_core.evaluation.prefix_tree import Numbers
from foundry_core.models.loss import TargetHead

Read: TypeAlias = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], None]
"""Takes hidden states (B, T, D) and the head that projects them, as `lm_output` has them."""

Measure: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes log-probabilities (N, V), and of each of M predictions its row and its token; returns values (M, ...)."""

LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that exist at a time: on a CPU 8 MB, which caches hold. All at once took 1.3 times as long."""
_ROWS = 128  # fewer rows make the product slower than the cache makes the rest faster


def loss_alone(chances_NV: torch.Tensor, rows_M: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """Return the loss of each prediction, (M,)."""
    return -chances_NV[rows_M, targets_M]


class TokenLosses:
    """Collects hidden states of numbered positions, and computes the losses of the tokens asked for at each.

    Args:
        positions: How many there are.
        places: The position that predicts each token. One that predicts none is not projected.
        targets: The tokens.
        measure: What is computed for each of them: the loss, or more.
        progress: Called with the number of positions that were read since the last call.
    """

    def __init__(
        self,
        positions: int,
        places: Sequence[int],
        targets: Sequence[int],
        vocabulary: int,
        device: torch.device,
        measure: Measure = loss_alone,
        progress: Callable[[int], None] | None = None,
    ):
        places_M = np.asarray(places, dtype=np.int64)
        self._order = np.argsort(places_M, kind="stable")
        self._targets = np.asarray(targets, dtype=np.int64)
        self._first = np.searchsorted(places_M[self._order], np.arange(positions + 1))
        self._rows = max(_ROWS, LOGITS.get(device.type, LOGITS["cuda"]) // vocabulary)
        self._waiting: list[tuple[Numbers, torch.Tensor]] = []
        self._found: list[tuple[Numbers, torch.Tensor]] = []
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._measure = measure
        self._progress = progress

    def reading(self, positions: Numbers, at: Numbers) -> Read:
        """Return what takes the hidden states of a batch, for `positions`, which are `at` these places of (B T)."""

        def read(hidden_BTD: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
            self._head = head
            asked = self._first[positions + 1] > self._first[positions]
            chosen = torch.from_numpy(at[asked]).to(hidden_BTD.device)
            self._waiting.append((positions[asked], hidden_BTD.flatten(0, 1)[chosen]))
            if sum(len(each) for each, _ in self._waiting) >= self._rows:
                self._project(last=False)
            if self._progress is not None:
                self._progress(len(positions))

        return read

    def losses(self) -> NDArray[np.float64]:
        """Return the loss, or what else is measured, of each token, once all positions have been read."""
        if self._head is None:
            raise PluginError("the model's forward does not pass its keywords on to `self.lm_output`")
        self._project(last=True)
        values = self._found[0][1].shape[1:] if self._found else ()
        losses_M = np.full((len(self._targets), *values), np.nan)
        for numbers, found in self._found:
            losses_M[numbers] = in_float64(found).cpu().numpy()
        return losses_M

    def _project(self, *, last: bool) -> None:
        """Compute the losses at the positions that wait, in whole chunks unless nothing comes after them."""
        if self._head is None or not self._waiting:
            return
        positions = np.concatenate([each for each, _ in self._waiting])
        hidden_ND = torch.cat([each for _, each in self._waiting])
        stop = len(positions) if last else len(positions) - len(positions) % self._rows
        for begin in range(0, stop, self._rows):
            part = slice(begin, min(begin + self._rows, stop))
            first, end = self._first[positions[part]], self._first[positions[part] + 1]
            rows = np.repeat(np.arange(len(first)), end - first)
            numbers = self._order[np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])]
            index = torch.from_numpy(np.stack([rows, self._targets[numbers]])).to(hidden_ND.device)
            if isinstance(self._head, TargetHead) and self._measure is loss_alone:
                self._found.append((numbers, self._head.target_losses(hidden_ND[part][index[0]], index[1])))
                continue
            logits_NV = self._head(hidden_ND[part])
            chances_NV = torch.log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), dim=1)
            self._found.append((numbers, self._measure(chances_NV, index[0], index[1])))
        self._waiting = [(positions[stop:], hidden_ND[stop:].clone())] if stop < len(positions) else []
