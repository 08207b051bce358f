"""Losses of tokens that are hidden one after the other, for masked models: pseudo-log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.evaluation.inference import to_device
from foundry_core.evaluation.prefix_tree import Ids, Numbers
from foundry_core.evaluation.token_losses import Measure, TokenLosses, loss_alone
from foundry_core.evaluation.tree_reading import batches, tensors
from foundry_core.models.base import BaseLanguageModel

_ROWS = 1 << 13  # rows with a token hidden that are compared with each other


class _Window(NamedTuple):
    """The tokens of a text from `begin` to `end`, in which those from `first` to `last` are scored."""

    text: int
    begin: int
    end: int
    first: int
    last: int


def masked_losses(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    *,
    groups: Sequence[Numbers] | None = None,
    measure: Measure = loss_alone,
    progress: Callable[[int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """Return for each text what is measured of each of its tokens where it is hidden, (T, ...).

    A text that is longer than a row is read in windows of whole rows that overlap by half. Each token is scored in the
    window in which it is farther from both ends, with about a quarter of a row or more on either side.

    Args:
        groups: For each text the group of each of its tokens, in ascending order: what follows a hidden token in its
            group is hidden with it. Without groups a token is hidden alone.
        progress: Called with the number of tokens that were scored since the last call.
    """
    most = model.context.max_sequence_length - 2  # between cls and sep
    if model.config.capabilities.unbounded_length:
        most = max(map(len, texts), default=1)
    windows = [each for number, text in enumerate(texts) for each in _windows(number, len(text), most)]
    order = sorted(range(len(windows)), key=lambda number: windows[number].end - windows[number].begin)
    found: dict[int, NDArray[np.float64]] = {}
    block, size = list[int](), 0
    for number in order:
        block.append(number)
        size += windows[number].last - windows[number].first
        if size >= _ROWS or number == order[-1]:
            chosen = [windows[each] for each in block]
            found |= zip(block, _hidden_losses(model, tokenizer, texts, chosen, groups, measure), strict=True)
            if progress is not None:
                progress(size)
            block, size = [], 0
    parts: list[list[NDArray[np.float64]]] = [[] for _ in texts]
    for number, window in enumerate(windows):
        parts[window.text].append(found[number])
    return [np.concatenate(each) if each else np.zeros(0) for each in parts]


def _windows(text: int, length: int, most: int) -> Iterator[_Window]:
    """Yield the windows of a text, of which the last is moved back to be a whole one."""
    begins = [*range(0, length - most, max(most // 2, 1)), max(length - most, 0)]
    # Two windows part in the middle of what they share.
    cuts = [(before + most + after) // 2 for before, after in pairwise(begins)]
    for begin, first, last in zip(begins, [0, *cuts], [*cuts, length], strict=True):
        if first < last:
            yield _Window(text, begin, min(begin + most, length), first, last)


def _hidden_losses(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    windows: Sequence[_Window],
    groups: Sequence[Numbers] | None,
    measure: Measure,
) -> list[NDArray[np.float64]]:
    """Score windows together: those that differ in one token are the same row where it is hidden."""
    rows: dict[tuple[int, Ids], int] = {}
    numbers, targets = [], []
    for window in windows:
        text = texts[window.text]
        row = (tokenizer.cls_token_id, *text[window.begin : window.end], tokenizer.sep_token_id)
        for token in range(window.first, window.last):
            after = token + 1
            if groups is not None:
                own = groups[window.text]
                after = min(int(np.searchsorted(own, own[token], side="right")), window.end)
            place = token - window.begin + 1
            masks = (tokenizer.mask_token_id,) * (after - token)
            hidden = (*row[:place], *masks, *row[place + len(masks) :])
            numbers.append(rows.setdefault((place, hidden), len(rows)))
            targets.append(text[token])
    device = next(model.parameters()).device
    losses = TokenLosses(len(rows), numbers, targets, model.context.vocab_size, device, measure)
    distinct = list(rows)
    for batch in batches([len(row) for _, row in distinct]):
        inputs = tensors([distinct[number][1] for number in batch])
        places = np.array([distinct[number][0] for number in batch])
        places += np.arange(len(batch)) * inputs["input_ids"].shape[1]
        model(**to_device(inputs, device), read=losses.reading(np.array(batch), places))
    ends = np.cumsum([window.last - window.first for window in windows])
    return np.split(losses.losses(), ends[:-1])
