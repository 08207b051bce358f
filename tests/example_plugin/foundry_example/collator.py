"""A collator that hides spans; which tokens are hidden is a function of (seed, epoch, row).

T5 (Raffel et al. 2020) replaces a span by one sentinel, and a decoder generates the span. For an encoder, each token of
a span is replaced by the mask token and predicted at its position (Joshi et al. 2020).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from foundry_core import CausalLMDataCollator, ExperimentConfig


class SpanCollator:
    """Returns input_ids with hidden spans, attention_mask, and labels: the hidden ids, -100 elsewhere. Each (B, T)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float, mean_span: float, length: int, seed: int):
        # Core's collator pads, and its labels are the ids with -100 at padding.
        self.pad = CausalLMDataCollator(tokenizer, max_length=length)
        self.mask_id = tokenizer.mask_token_id
        self.special = np.array(tokenizer.all_special_ids)
        self.share, self.mean_span, self.seed = share, mean_span, seed

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.pad(rows)
        ids_BT, labels_BT = batch["input_ids"].numpy(), batch["labels"].numpy()
        hidden_BT = np.zeros(ids_BT.shape, dtype=bool)
        for row, ids, labels, hidden in zip(rows, ids_BT, labels_BT, hidden_BT, strict=True):
            (ordinary,) = np.nonzero((labels >= 0) & ~np.isin(ids, self.special))
            generator = np.random.default_rng([self.seed, row["epoch"], row["row"]])
            hidden[ordinary] = hidden_spans(len(ordinary), self.share, self.mean_span, generator)
        batch["input_ids"] = torch.from_numpy(np.where(hidden_BT, self.mask_id, ids_BT))
        batch["labels"] = torch.from_numpy(np.where(hidden_BT, labels_BT, -100))
        return batch


def hidden_spans(count: int, share: float, mean_span: float, generator: np.random.Generator) -> np.ndarray:
    """Choose hidden tokens (bool): at least one, `share` of them on average, in separate spans."""
    if not count:
        return np.zeros(0, dtype=bool)
    wanted = int(np.clip(int(share * count + generator.random()), 1, count))
    spans = min(max(1, round(wanted / mean_span)), wanted, count - wanted + 1)
    lengths = _parts(wanted, spans, generator)
    # There is a token between two spans; before the first and after the last there may be none.
    gaps = _parts(count - wanted + 2, spans + 1, generator)
    gaps[[0, -1]] -= 1
    runs = np.zeros(2 * spans + 1, dtype=np.int64)
    runs[::2], runs[1::2] = gaps, lengths
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _parts(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Split `total` into a sum of positive numbers; all ways to do so are equally likely."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def span_collator(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> SpanCollator:
    """Return the collator of `span_corruption` for an experiment."""
    settings: Any = config.training.objective_settings
    return SpanCollator(
        tokenizer, settings.hidden_share, settings.mean_span, config.data.max_sequence_length, config.seed("masking")
    )
