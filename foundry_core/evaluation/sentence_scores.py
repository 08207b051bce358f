"""Log-probabilities of sentences, the same for equal sentences, and how exact they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import CheckpointError
from foundry_core.evaluation.inference import evaluating, to_device
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED
from foundry_core.tokenization.encoding import separator_id, text_ids

Ids: TypeAlias = tuple[int, ...]
_Row: TypeAlias = tuple[int, Sequence[int], Sequence[int]]
"""The number of a text, ids that the model reads, and the labels to predict."""

_TOKENS_PER_BATCH = 4096  # with padding; the logits of 50,000 tokens take 0.8 GB


def sentence_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> list[float]:
    """Return the log-probability of each sentence in nats; see `id_scores`."""
    return id_scores(model, tokenizer, list(map(tuple, text_ids(tokenizer, sentences))))


def id_scores(model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Ids]) -> list[float]:
    """Return the log-probability of each text, given as its token ids, in nats: the sum over its tokens.

    Causal: each token given those before it, the first given the separator that opens a document in training.
    Masked: pseudo-log-likelihood, one token hidden at a time (Salazar et al. 2020).

    Each distinct text is scored once, the shortest first, in batches that do not depend on the order of `texts`: equal
    texts get the same float. In another selection of texts its last digits may differ, by less than `noise`.

    Raises:
        CheckpointError: A score is infinite or not a number.
    """
    distinct = sorted(set(texts), key=lambda ids: (len(ids), ids))
    scores = np.zeros(len(distinct))
    rows = _causal_rows if model.context.objective.causal else _masked_rows
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in _batches(rows(distinct, tokenizer)):
            numbers, ids, labels = zip(*batch, strict=True)
            tensors = {
                "input_ids": _padded(ids, 0),
                "attention_mask": _padded([[1] * len(row) for row in ids], 0),
                "labels": _padded(labels, IGNORED),
            }
            output = model(**to_device(tensors, device), reduction="none", return_logits=False)
            np.subtract.at(scores, list(numbers), output.token_losses.double().sum(dim=1).cpu().numpy())
    if not np.isfinite(scores).all():  # compared, such a score would count as wrong
        raise CheckpointError("the model's scores are not finite: its weights or its sums have overflowed")
    found = dict(zip(distinct, scores.tolist(), strict=True))
    return [found[text] for text in texts]


def noise(score: float, tokens: int) -> float:
    """Return the largest difference in nats by which rounding in fp32 may separate two equal scores.

    4 units of fp32 for the score and for each token: 0.000025 for 12 tokens with a score of -40. A score in batches of
    1 to 300 differed by at most 2 units (gpt2, lstm and bert up to 12 layers of 768, trained and not, on a CPU), and
    the difference of two by at most 0.7 from that in fp64. A model that is blind to the order of words, as the first
    checkpoints are, has true differences that are hardly larger: with 16 units, 1.8 % of its pairs would be ties.
    """
    return 4 * torch.finfo(torch.float32).eps * (abs(score) + tokens)


def not_scorable(model: BaseLanguageModel, text: Ids) -> str | None:
    """Return why a text cannot be scored, None if it can."""
    tokens = len(text) + (1 if model.context.objective.causal else 2)
    if not text:
        return "a sentence has no tokens"
    if not model.config.capabilities.unbounded_length and tokens > model.context.max_sequence_length:
        return f"a sentence has {tokens:,} tokens, the model was trained on {model.context.max_sequence_length:,}"
    return None


def _causal_rows(texts: Iterable[Ids], tokenizer: PreTrainedTokenizerFast) -> Iterator[_Row]:
    start = separator_id(tokenizer)
    for number, text in enumerate(texts):
        row = (start, *text)
        yield number, row, row


def _masked_rows(texts: Iterable[Ids], tokenizer: PreTrainedTokenizerFast) -> Iterator[_Row]:
    """Yield each text as often as it has tokens, another one of them hidden each time."""
    for number, text in enumerate(texts):
        row = (tokenizer.cls_token_id, *text, tokenizer.sep_token_id)
        for place in range(1, len(row) - 1):
            labels = [IGNORED] * len(row)
            labels[place] = row[place]
            yield number, (*row[:place], tokenizer.mask_token_id, *row[place + 1 :]), labels


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Yield rows, which do not get shorter, in batches of a bounded size with padding."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[1]) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    ids = np.full((len(rows), len(rows[-1])), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return torch.from_numpy(ids)
