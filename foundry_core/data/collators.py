"""Rows to batches: padding, labels, and the hiding of tokens, each as one vectorised operation over the batch.

Shapes: B batch, T tokens of the longest row, padded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import PluginError, TokenizerError, UsageError
from foundry_core.models.loss import IGNORED
from foundry_core.random_streams import derive, mix64, uniform
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, torch.Tensor]
Collator = Callable[[Sequence[Any]], Batch]


class _Padding:
    """Rows of unequal length as two arrays (B, T): ids, and a mask that is True for real tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None, max_length: int | None):
        self.pad_id = tokenizer.pad_token_id
        self.left = tokenizer.padding_side == "left"
        self.multiple = pad_to_multiple_of or 1
        # transformers gives a tokenizer without a limit a length of 1e30.
        limit = tokenizer.model_max_length if max_length is None else max_length
        self.longest = limit if limit < 10**9 else None

    def __call__(self, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.asarray(f["input_ids"] if isinstance(f, dict) or hasattr(f, "keys") else f) for f in features]
        lengths = np.array([len(row) for row in rows])
        widest = int(lengths.max())
        if self.longest is not None and widest > self.longest:
            raise UsageError(f"a row of {widest} tokens is longer than the model's longest sequence, {self.longest}")
        width = -(-widest // self.multiple) * self.multiple
        if self.longest is not None:
            width = min(width, self.longest)
        if (lengths == width).all():
            return np.stack(rows).astype(np.int64), np.ones((len(rows), width), dtype=bool)
        if self.pad_id is None:
            raise TokenizerError("rows of unequal length need a tokenizer with a pad_token")
        columns = np.arange(width)
        real = columns >= (width - lengths)[:, None] if self.left else columns < lengths[:, None]
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        ids[real] = np.concatenate(rows)
        return ids, real


class CausalLMDataCollator:
    """Batches for predicting the next token.

    Returns input_ids, attention_mask (1 for real tokens) and labels (B, T): the input ids, with -100 at padding, which
    is found by the mask and not by the id. The model's loss shifts them. max_length: never padded past it; default the
    tokenizer's model_max_length.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        mlm: bool = False,
    ):
        if mlm:
            raise UsageError("CausalLMDataCollator does not mask: use MaskedLMDataCollator")
        self._pad = _Padding(tokenizer, pad_to_multiple_of, max_length)

    def __call__(self, features: Sequence[Any]) -> Batch:
        ids, real = self._pad(features)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(np.where(real, ids, IGNORED)),
        }


class MaskedLMDataCollator:
    """Batches for predicting hidden tokens (Devlin et al. 2019).

    In each row `mlm_probability` of the tokens that are not special are chosen, at least one; 80 % of those become the
    mask token, 10 % a random token that is not special, 10 % stay. labels are the original ids there and -100
    elsewhere. The choice is a function of (seed, epoch, row) when the features carry `epoch` and `row`, as the
    trainer's do; otherwise it follows torch's global generator.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mlm_probability: float = 0.15,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        mlm: bool = True,
    ):
        if not mlm:
            raise UsageError("MaskedLMDataCollator masks: use CausalLMDataCollator")
        if tokenizer.mask_token_id is None:
            raise TokenizerError("masked_lm needs a tokenizer with a mask_token")
        if not 0 < mlm_probability < 1:
            raise UsageError(f"mlm_probability is {mlm_probability}, must be between 0 and 1")
        self._pad = _Padding(tokenizer, pad_to_multiple_of, max_length)
        self.mask_id: int = tokenizer.mask_token_id
        self.probability = mlm_probability
        self.seed = derive(seed, "masking")
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True
        self.ordinary = np.flatnonzero(~self.special)

    def __call__(self, features: Sequence[Any]) -> Batch:
        ids, real = self._pad(features)
        candidates = real & ~self.special[ids]
        keys = self._row_keys(features)
        with np.errstate(over="ignore"):
            # Three independent numbers for each token, and one for each row. Real tokens are counted, not columns: the
            # padding on the left depends on the other rows of the batch.
            position = real.cumsum(axis=1).astype(np.uint64) << np.uint64(2)
            cells = [mix64(keys[:, None] + position + np.uint64(k)) for k in range(3)]
        available = candidates.sum(axis=1)
        # floor(p n + u) keeps the expected share at p also in rows of a few tokens.
        wanted = np.floor(self.probability * available + uniform(mix64(keys))).astype(np.int64)
        wanted = np.clip(wanted, np.minimum(1, available), available)
        rank = np.where(candidates, cells[0] >> np.uint64(1), np.uint64(2**63)).argsort(axis=1).argsort(axis=1)
        chosen = candidates & (rank < wanted[:, None])
        fate = uniform(cells[1])
        random_ids = self.ordinary[(uniform(cells[2]) * len(self.ordinary)).astype(np.int64)]
        hidden = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, random_ids, ids))
        return {
            "input_ids": torch.from_numpy(np.where(chosen, hidden, ids)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(np.where(chosen, ids, IGNORED)),
        }

    def _row_keys(self, features: Sequence[Any]) -> np.ndarray:
        """One uint64 for each row."""
        if isinstance(features[0], dict) and "row" in features[0]:
            place = np.array([(f["epoch"], f["row"]) for f in features], dtype=np.uint64)
            return mix64(mix64(mix64(np.full(len(features), self.seed, np.uint64)) + place[:, 0]) + place[:, 1])
        return mix64(torch.randint(0, 2**62, (len(features),)).numpy().astype(np.uint64))


def causal_lm_collator(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> CausalLMDataCollator:
    """The collator of `causal_lm` for an experiment."""
    return CausalLMDataCollator(tokenizer, max_length=config.data.max_sequence_length)


def masked_lm_collator(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> MaskedLMDataCollator:
    """The collator of `masked_lm` for an experiment."""
    return MaskedLMDataCollator(
        tokenizer,
        mlm_probability=config.training.mlm_probability,
        max_length=config.data.max_sequence_length,
        seed=config.seed("masking"),
    )


def get_data_collator(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """The collator that `training.objective` names.

    Raises TokenizerError for a tokenizer that pads on a side that the architecture does not declare.
    """
    side, accepted = tokenizer.padding_side, config.capabilities.padding_sides
    if side not in accepted:
        raise TokenizerError(
            f"the tokenizer pads on the {side}, which {config.model.architecture} does not take: "
            f"set its padding_side to {' or '.join(accepted)}"
        )
    objective = config.objective
    owner = config.providers.get("objective")
    of_whom = f" of {owner}" if owner else ""
    what = f"the collator of the objective {objective.name}{of_whom}, {objective.collator},"
    make = import_string(objective.collator)
    with failing_as(what):
        collator: Collator = make(config, tokenizer)
    if owner is None:
        return collator
    if not callable(collator):
        raise PluginError(f"{what} is a {type(collator).__name__}, not a function of rows")
    return partial(_held_to_its_word, what, collator, len(tokenizer))


_KEYS = ("input_ids", "attention_mask", "labels")


def _held_to_its_word(what: str, collator: Collator, vocabulary: int, rows: Sequence[Any]) -> Batch:
    """A batch of a plugin's collator. Raises PluginError for what is none.

    Costs 0.14 ms for 32 rows of 128 tokens. What is not found here fails in the model, and is taken for its fault.
    """
    before = _chance()
    with failing_as(what):
        batch: Any = collator(rows)
    # Rows of a caller's own may have no place that chance could follow from.
    drawn = _chance_since(before) if isinstance(rows[0], Mapping) and "row" in rows[0] else None
    if drawn is not None:
        raise PluginError(
            f"{what} draws from the global generator of {drawn}, so that the number of workers would change batches: "
            'draw what a row needs from numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]])'
        )
    problem = _problem(batch, len(rows), vocabulary)
    if problem is not None:
        raise PluginError(f"{what} gives {problem}")
    return batch  # type: ignore[no-any-return]


def _chance() -> tuple[torch.Tensor, Any, Any]:
    """Where the global generators stand."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _chance_since(before: tuple[torch.Tensor, Any, Any]) -> str | None:
    """Whose global generator has been drawn from, or seeded."""
    (of_torch, of_numpy, of_python), now = before, _chance()
    if not torch.equal(of_torch, now[0]):
        return "torch"
    if of_numpy[2:] != now[1][2:] or not np.array_equal(of_numpy[1], now[1][1]):
        return "numpy"
    return None if of_python == now[2] else "Python's random"


def _problem(batch: Any, rows: int, vocabulary: int) -> str | None:
    """What is wrong with a batch of so many rows, which a model for so many tokens is to take."""
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
