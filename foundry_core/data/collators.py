"""Rows to batches: padding and labels, and the collator of an experiment; `masking` decides which tokens are hidden.

Shapes: B batch, T tokens of the longest row, padded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Collator
from foundry_core.data.holes import HOLE
from foundry_core.data.masking import Masking
from foundry_core.data.workers import Batch
from foundry_core.errors import PluginError, TokenizerError, UsageError
from foundry_core.models.loss import IGNORED
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEYS = ("input_ids", "attention_mask", "labels")
_APART = "document_ids"
"""Key of a batch whose documents are kept apart: the number of the document of each token, -1 at padding."""


class _Padding:
    """Pads rows of unequal length to three arrays (B, T): ids, which of them are of a row, which of those are real.

    The others of a row are in holes of the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None, max_length: int | None):
        self.pad_id = tokenizer.pad_token_id
        # A special token, so that it is never masked.
        self.empty_id = self.pad_id if self.pad_id is not None else next(iter(tokenizer.all_special_ids), 0)
        self.left = tokenizer.padding_side == "left"
        self.multiple = pad_to_multiple_of or 1
        self.longest = tokenizer.model_max_length if max_length is None else max_length  # 10**30 for no limit

    def __call__(self, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, inside = self._padded(features)
        holes = ids == HOLE
        if not holes.any():
            return ids, inside, inside
        ids[holes] = self.empty_id
        return ids, inside, inside & ~holes

    def _padded(self, features: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.asarray(f["input_ids"] if isinstance(f, dict) or hasattr(f, "keys") else f) for f in features]
        lengths = np.array([len(row) for row in rows])
        widest = int(lengths.max())
        if widest > self.longest:
            raise UsageError(f"a row of {widest} tokens is longer than the model's longest sequence, {self.longest}")
        width = min(-(-widest // self.multiple) * self.multiple, self.longest)
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
    """Makes batches for predicting the next token: input_ids, attention_mask (1: a real token), labels, each (B, T).

    Labels are the input ids, with -100 at padding; the model's loss shifts them. Rows are never padded past
    `max_length`, by default the tokenizer's model_max_length.
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
        ids, inside, real = self._pad(features)
        return _batch(ids, real, np.where(real, ids, IGNORED), features, inside)


class MaskedLMDataCollator:
    """Makes batches for predicting hidden tokens (Devlin et al. 2019); the keys are those of `CausalLMDataCollator`.

    In each row `mlm_probability` of the tokens that are not special are chosen, at least one; 80 % of those become the
    mask token, 10 % a random token that is not special, 10 % stay. Labels are the original ids there and -100
    elsewhere. The choice is a function of (seed, epoch, row) where the features have `epoch` and `row`, as the
    trainer's do; otherwise it follows torch's global generator.

    Args:
        mlm_probability: A share, or a pair: at the beginning and at the end of the run, linear in `position`.
        masking: With `whole_word`, the tokens of a word are chosen together, as many tokens as otherwise on average.
        samples: The number of positions of the run. Without it, as in an evaluation, the share is that at the end.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mlm_probability: float | tuple[float, float] = 0.15,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        mlm: bool = True,
        masking: Literal["token", "whole_word"] = "token",
        samples: int | None = None,
    ):
        if not mlm:
            raise UsageError("MaskedLMDataCollator masks: use CausalLMDataCollator")
        self._pad = _Padding(tokenizer, pad_to_multiple_of, max_length)
        pair = mlm_probability if isinstance(mlm_probability, tuple) else (mlm_probability, mlm_probability)
        self._hide = Masking(tokenizer, pair, seed, whole_words=masking == "whole_word", samples=samples)

    def __call__(self, features: Sequence[Any]) -> Batch:
        ids, inside, real = self._pad(features)
        # Holes count as places, so that the other tokens of the row draw what they would draw without holes.
        input_ids, labels = self._hide(ids, inside, features)
        return _batch(input_ids, real, labels, features, inside)


def _batch(ids: np.ndarray, real: np.ndarray, labels: np.ndarray, features: Sequence[Any], inside: np.ndarray) -> Batch:
    batch = dict(zip(_KEYS, map(torch.from_numpy, (ids, real.astype(np.int64), labels)), strict=True))
    if isinstance(features[0], dict) and "documents" in features[0]:
        documents = np.full(ids.shape, -1, dtype=np.int64)
        documents[inside] = np.concatenate([each["documents"] for each in features])
        batch[_APART] = torch.from_numpy(documents)
    return batch


def causal_lm_collator(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, samples: int | None = None
) -> CausalLMDataCollator:
    """Return the collator of `causal_lm` for an experiment."""
    return CausalLMDataCollator(tokenizer, max_length=config.data.max_sequence_length)


def masked_lm_collator(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, samples: int | None = None
) -> MaskedLMDataCollator:
    """Return the collator of `masked_lm` for an experiment; samples: the positions of its run, where it trains."""
    return MaskedLMDataCollator(
        tokenizer,
        mlm_probability=config.training.mlm_probability,
        max_length=config.data.max_sequence_length,
        seed=config.seed("masking"),
        masking=config.training.masking,
        samples=samples,
    )


CORE_COLLATORS: dict[str, Callable[[ExperimentConfig, PreTrainedTokenizerBase, int | None], Collator]] = {
    "causal_lm": causal_lm_collator,
    "masked_lm": masked_lm_collator,
}
"""Core's own objectives; those of plugins name theirs in `Objective.collator`."""


def get_data_collator(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, samples: int | None = None
) -> Collator:
    """Return the collator that `training.objective` asks for; the first batch of a plugin's is checked.

    Args:
        samples: The number of positions of the run, for one that trains; without it, one that evaluates.

    Raises:
        TokenizerError: The tokenizer pads on a side that the architecture does not declare.
        PluginError: The objective's package does not provide a collator.
    """
    side, accepted = tokenizer.padding_side, config.capabilities.padding_sides
    if side not in accepted:
        raise TokenizerError(
            f"the tokenizer pads on the {side}, which {config.model.architecture} does not accept: "
            f"set its padding_side to {' or '.join(accepted)}"
        )
    objective, owner = config.objective, config.providers.get("objective")
    like = objective.name if owner is None else objective.same_interface_as
    if objective.collator is None and like in CORE_COLLATORS:
        return CORE_COLLATORS[like](config, tokenizer, samples)
    if objective.collator is None:
        raise PluginError(f"the objective {objective.name} of {owner} has no collator: give it an import string")
    what = f"the collator of the objective {objective.name}{f' of {owner}' if owner else ''}, {objective.collator},"
    make = import_string(objective.collator)
    with failing_as(what):
        collator: Collator = make(config, tokenizer)
    if not callable(collator):
        raise PluginError(f"{what} is a {type(collator).__name__}, not a function of rows")
    return CheckedCollator(what, collator, len(tokenizer))


class CheckedCollator:
    """A plugin's collator. Its failure, and a malformed first batch in each process, are reported as PluginError."""

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
    numpy: Any = np.random.get_state()
    states = torch.get_rng_state().tolist(), (numpy[1].tolist(), numpy[2:]), random.getstate()
    return dict(zip(("torch", "numpy", "Python's random"), states, strict=True))


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
    if extra := ", ".join(repr(name) for name in batch if name not in (*_KEYS, _APART)):
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
