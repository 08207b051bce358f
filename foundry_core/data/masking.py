"""The mask of a row: which of its tokens are hidden, and by what; a function of seed, epoch and row.

Shapes: B batch, T tokens of the longest row, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundry_core.errors import TokenizerError, UsageError
from foundry_core.models.loss import IGNORED
from foundry_core.random_streams import derive, mix64, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Masking:
    """Hides tokens as `MaskedLMDataCollator` describes, in one vectorised operation over the batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float, seed: int):
        if tokenizer.mask_token_id is None:
            raise TokenizerError("masked_lm needs a tokenizer with a mask_token")
        if not 0 < probability < 1:
            raise UsageError(f"mlm_probability is {probability}, must be between 0 and 1")
        self._mask_id: int = tokenizer.mask_token_id
        self._probability = probability
        self._seed = derive(seed, "masking")
        self._special = np.zeros(len(tokenizer), dtype=bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._special)
        if not len(self._ordinary):
            raise TokenizerError("its vocabulary has no tokens but special ones, of which none can be masked")

    def __call__(self, ids: np.ndarray, real: np.ndarray, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids with the chosen tokens hidden, and the labels.

        Args:
            ids: Token ids (B, T), padded.
            real: Which of them are not padding (B, T).
            features: The rows themselves, for their `epoch` and `row`.
        """
        candidates = real & ~self._special[ids]
        keys = _row_keys(self._seed, features)
        with np.errstate(over="ignore"):
            # Three independent numbers for each token. Real tokens are counted, not columns: how much padding is on
            # the left depends on the other rows of the batch.
            position = real.cumsum(axis=1).astype(np.uint64) << np.uint64(2)
            cells = [mix64(keys[:, None] + position + np.uint64(k)) for k in range(3)]
        available = candidates.sum(axis=1)
        # floor(p n + u) keeps the expected share at p also in rows of a few tokens.
        wanted = np.floor(self._probability * available + uniform(mix64(keys))).astype(np.int64)
        wanted = np.clip(wanted, np.minimum(1, available), available)
        rank = np.where(candidates, cells[0] >> np.uint64(1), np.uint64(2**63)).argsort(axis=1).argsort(axis=1)
        chosen = candidates & (rank < wanted[:, None])
        fate = uniform(cells[1])
        random_ids = self._ordinary[(uniform(cells[2]) * len(self._ordinary)).astype(np.int64)]
        hidden = np.where(fate < 0.8, self._mask_id, np.where(fate < 0.9, random_ids, ids))
        return np.where(chosen, hidden, ids), np.where(chosen, ids, IGNORED)


def _row_keys(seed: int, features: Sequence[Any]) -> np.ndarray:
    """Return a uint64 for each row: a hash of seed, epoch and row, or drawn from torch for rows without a number."""
    if isinstance(features[0], dict) and "row" in features[0]:
        place = np.array([(f["epoch"], f["row"]) for f in features], dtype=np.uint64)
        return mix64(mix64(mix64(np.full(len(features), seed, np.uint64)) + place[:, 0]) + place[:, 1])
    return mix64(torch.randint(0, 2**62, (len(features),)).numpy().astype(np.uint64))
