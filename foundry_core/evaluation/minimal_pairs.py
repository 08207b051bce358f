"""Minimal pairs: which of two sentences a model finds more probable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import DataError
from foundry_core.evaluation.inference import evaluating
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED
from foundry_core.tokenization.encoding import separator_id, text_ids

_PAIRS_PER_BATCH = 64


@dataclass(frozen=True)
class PairScores:
    """Accuracy on minimal pairs: the share in which the model prefers the good sentence. Ties count as wrong."""

    name: str
    accuracy: float
    pairs: int


def read_pairs(path: str | Path) -> list[dict[str, Any]]:
    """Read minimal pairs in BLiMP's format: one JSON object a line with sentence_good and sentence_bad."""
    pairs = []
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                pair = json.loads(line)
                if not (isinstance(pair["sentence_good"], str) and isinstance(pair["sentence_bad"], str)):
                    raise TypeError("not text")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a minimal pair (a JSON object with sentence_good and sentence_bad)"
                ) from error
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} does not contain a minimal pair")
    return pairs


def score_pairs(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[dict[str, Any]]
) -> list[PairScores]:
    """Return the accuracy for each paradigm (`UID`, or all together), in the order of their first pair."""
    good = sentence_scores(model, tokenizer, [pair["sentence_good"] for pair in pairs])
    bad = sentence_scores(model, tokenizer, [pair["sentence_bad"] for pair in pairs])
    right: dict[str, list[bool]] = {}
    for pair, score_good, score_bad in zip(pairs, good, bad, strict=True):
        right.setdefault(str(pair.get("UID", "all")), []).append(score_good > score_bad)
    return [PairScores(name, sum(results) / len(results), len(results)) for name, results in right.items()]


def sentence_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> list[float]:
    """Return the log-probability of each sentence in nats: the sum over its tokens.

    Causal: each token given those before it, the first given the separator that opens a document in training.
    Masked: pseudo-log-likelihood, one token hidden at a time (Salazar et al. 2020).
    """
    with evaluating(model):
        if model.context.objective.causal:
            return list(_causal_scores(model, tokenizer, sentences))
        return list(_pseudo_scores(model, tokenizer, sentences))


def _chunks(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _causal_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> Iterator[float]:
    device = next(model.parameters()).device
    start = separator_id(tokenizer)
    rows = [[start, *ids] for ids in text_ids(tokenizer, sentences)]
    for chunk in _chunks(rows, _PAIRS_PER_BATCH):
        ids, mask = _padded(chunk, start, device)
        labels = torch.where(mask.bool(), ids, IGNORED)
        output = model(ids, attention_mask=mask, labels=labels, reduction="none", return_logits=False)
        yield from (-output.token_losses.double().sum(dim=1)).tolist()


def _pseudo_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> Iterator[float]:
    device = next(model.parameters()).device
    variants: list[tuple[int, list[int], int, int]] = []
    for number, text in enumerate(text_ids(tokenizer, sentences)):
        framed = [tokenizer.cls_token_id, *text, tokenizer.sep_token_id]
        for place in range(1, len(framed) - 1):
            hidden = [*framed[:place], tokenizer.mask_token_id, *framed[place + 1 :]]
            variants.append((number, hidden, place, framed[place]))
    scores = np.zeros(len(sentences))
    # Rows of like length together: less padding, the sums do not depend on the order.
    variants.sort(key=lambda variant: len(variant[1]))
    for chunk in _chunks(variants, 4 * _PAIRS_PER_BATCH):
        ids, mask = _padded([hidden for _, hidden, _, _ in chunk], tokenizer.sep_token_id, device)
        labels = torch.full_like(ids, IGNORED)
        rows = torch.arange(len(chunk))
        labels[rows, [place for _, _, place, _ in chunk]] = torch.tensor([t for *_, t in chunk], device=device)
        output = model(ids, attention_mask=mask, labels=labels, reduction="none", return_logits=False)
        losses = output.token_losses.double().sum(dim=1).cpu().numpy()
        np.add.at(scores, [number for number, *_ in chunk], -losses)
    yield from scores.tolist()
