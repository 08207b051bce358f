"""The mask of a row: which of its tokens are hidden, and by what; a function of seed, epoch and row.

Shapes: B batch, T tokens of the longest row, padded, W words of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        shares: tuple[float, float],
        seed: int,
        *,
        whole_words: bool = False,
        samples: int | None = None,
    ):
        if tokenizer.mask_token_id is None:
            raise TokenizerError("masked_lm needs a tokenizer with a mask_token")
        for share in shares:
            if not 0 < share < 1:
                raise UsageError(f"mlm_probability is {share}, must be between 0 and 1")
        self._mask_id: int = tokenizer.mask_token_id
        self._shares, self._samples = shares, samples
        self._words = WordMarks(tokenizer) if whole_words else None
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
            features: The rows themselves, for their `epoch`, `row` and `position`.
        """
        candidates = real & ~self._special[ids]
        keys = _row_keys(self._seed, features)
        with np.errstate(over="ignore"):
            # Three independent numbers for each token. Real tokens are counted, not columns: how much padding is on
            # the left depends on the other rows of the batch.
            position = real.cumsum(axis=1).astype(np.uint64) << np.uint64(2)
            cells = [mix64(keys[:, None] + position + np.uint64(k)) for k in range(4 if self._words else 3)]
        available = candidates.sum(axis=1)
        # floor(p n + u) keeps the expected share at p also in rows of a few tokens.
        wanted = np.floor(self._share(features) * available + uniform(mix64(keys))).astype(np.int64)
        wanted = np.clip(wanted, np.minimum(1, available), available)
        if self._words is None:
            rank = np.where(candidates, cells[0] >> np.uint64(1), np.uint64(2**63)).argsort(axis=1).argsort(axis=1)
            chosen = candidates & (rank < wanted[:, None])
        else:
            begins = self._words.begins(ids, candidates)
            chosen = _chosen_words(begins, candidates, wanted, cells[0], uniform(cells[3]))
        fate = uniform(cells[1])
        random_ids = self._ordinary[(uniform(cells[2]) * len(self._ordinary)).astype(np.int64)]
        hidden = np.where(fate < 0.8, self._mask_id, np.where(fate < 0.9, random_ids, ids))
        return np.where(chosen, hidden, ids), np.where(chosen, ids, IGNORED)

    def _share(self, features: Sequence[Any]) -> float | np.ndarray:
        """Return the share of tokens to hide, of each row where it changes during the run."""
        first, last = self._shares
        if first == last or self._samples is None:
            return last
        if not isinstance(features[0], dict) or "position" not in features[0]:
            raise UsageError("a share of masked tokens that changes during the run needs the position of each row")
        done = np.array([each["position"] for each in features]) / self._samples
        return first + (last - first) * np.clip(done, 0, 1)


def _chosen_words(
    begins: np.ndarray, candidates: np.ndarray, wanted: np.ndarray, order: np.ndarray, luck: np.ndarray
) -> np.ndarray:
    """Return the tokens of the chosen words (B, T), words in random order until a row has as many tokens as wanted.

    A word that has more tokens than are still wanted is taken with the probability that keeps the expected number, and
    the first of a row anyway if nothing else would be.

    Args:
        begins: Which tokens begin a word (B, T); words end at tokens that are not candidates.
        order: A random uint64 for each token, of which those that begin a word decide.
        luck: A random number in [0, 1) for each token, in the same way.
    """
    number = np.cumsum(begins.ravel()).reshape(begins.shape) - 1
    rows_W, sizes_W = np.nonzero(begins)[0], np.bincount(number[candidates], minlength=int(begins.sum()))
    places_W = np.lexsort((order[begins], rows_W))
    rows_W, sizes_W, luck_W = rows_W[places_W], sizes_W[places_W], luck[begins][places_W]
    available = candidates.sum(axis=1)
    before_W = np.cumsum(sizes_W) - sizes_W - (np.cumsum(available) - available)[rows_W]
    left_W = wanted[rows_W] - before_W
    taken_W = np.empty(len(places_W), dtype=bool)
    taken_W[places_W] = (left_W > luck_W * sizes_W) | (before_W == 0)
    chosen: np.ndarray = candidates & np.append(taken_W, False)[number]  # the last for tokens before any word
    return chosen


class WordMarks:
    """Finds where the words of a row begin, by the marks that its tokenizer has for white space.

    Where pieces that continue a word have a prefix (`##`), all others begin one; each token of a tokenizer of words is
    one. Elsewhere a token begins a word if white space is at its beginning or directly before it: as it is
    (characters), as byte-level BPE writes it, or as a suffix of the token before. The space that sentencepiece (U+2581)
    or byte-level BPE writes before a word belongs to it, also as a token of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        model = state["model"]
        prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
        special = set(tokenizer.all_special_tokens)
        texts = [str(text) for text in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        if prefix:
            self._begin, self._end = _flags(not text.startswith(prefix) for text in texts), _flags(False for _ in texts)
            return
        byte_level = "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
        before_a_word, spaces = ("\u2581\u0120", _BYTE_LEVEL) if byte_level else ("\u2581", {0x2581: " "})
        joined = _flags(text[-1:] in before_a_word for text in texts)
        texts = [text.translate(spaces) for text in texts]
        self._begin = _flags(text[:1].isspace() for text in texts)
        self._end = _flags(text[-1:].isspace() or bool(suffix and text.endswith(suffix)) for text in texts) & ~joined
        ordinary = [text for text in texts if text not in special]
        if model.get("type") == "WordLevel" and not any(map(str.isspace, ordinary)):
            self._begin[:] = True

    def begins(self, ids: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Return which of the candidates begin a word (B, T): also those without a candidate directly before them."""
        cut = np.ones_like(candidates)
        cut[:, 1:] = ~candidates[:, :-1] | self._end[ids[:, :-1]]
        found: np.ndarray = candidates & (cut | self._begin[ids])
        return found


_BYTE_LEVEL = str.maketrans("\u0109\u010a\u010d\u0120\u2581", "\t\n\r  ")
"""How the byte-level BPE of GPT-2 writes white space."""


def _flags(values: Iterable[bool]) -> np.ndarray:
    return np.fromiter(values, dtype=bool)


def _row_keys(seed: int, features: Sequence[Any]) -> np.ndarray:
    """Return a uint64 for each row: a hash of seed, epoch and row, or drawn from torch for rows without a number."""
    if isinstance(features[0], dict) and "row" in features[0]:
        place = np.array([(f["epoch"], f["row"]) for f in features], dtype=np.uint64)
        return mix64(mix64(mix64(np.full(len(features), seed, np.uint64)) + place[:, 0]) + place[:, 1])
    return mix64(torch.randint(0, 2**62, (len(features),)).numpy().astype(np.uint64))
