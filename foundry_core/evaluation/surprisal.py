"""Surprisal of the tokens of texts of any length, with the entropy of each prediction and the rank of the token.

A text begins as a document does in training: its first token follows the separator. Its context never reaches into
another text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.evaluation.inference import evaluating
from foundry_core.evaluation.masked_reading import masked_losses
from foundry_core.evaluation.prefix_tree import PREFIXES, Ids, Numbers, prefix_trees
from foundry_core.evaluation.sentence_scores import check_finite
from foundry_core.evaluation.token_losses import Measure, TokenLosses
from foundry_core.evaluation.tree_reading import TOKENS_PER_BATCH, read_tree
from foundry_core.models.base import BaseLanguageModel
from foundry_core.tokenization.encoding import separator_id

CHUNK = 1024
"""Tokens that a recurrent model reads at a time of a text that is longer; the state is carried to the next ones."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenScores:
    """The scores of the T tokens of a text, in nats.

    Attributes:
        surprisal: (T,), minus the log-probability of each token.
        entropy: (T,), of the distribution that each token is predicted with.
        rank: (T,), of each token in that distribution; 1 is the most probable.
        beginnings: (T + 1,), the log-probability that a word begins, or the text ends, where each token is predicted
            and after the last; None unless asked for.
    """

    surprisal: Floats
    entropy: Floats
    rank: Numbers
    beginnings: Floats | None = None


def token_scores(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    *,
    beginnings: NDArray[np.bool_] | None = None,
    groups: Sequence[Numbers] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[TokenScores]:
    """Return the scores of the tokens of each text, given as ids without special tokens around them.

    Causal: a text that fits in a row is read at once, what several begin with only once. A longer one is read in
    chunks, from state to state, by a recurrent model; as a whole, by another model of unbounded length; and by any
    other in windows of a whole row, in which every token is scored once, after half a row or more.
    Masked: pseudo-log-likelihoods, see `masked_losses`.

    Args:
        beginnings: (V,), the tokens that `TokenScores.beginnings` sums over, of a causal model.
        groups: Of a masked model, the tokens that are hidden together; see `masked_losses`.
        progress: Called with the number of tokens that were scored since the last call.

    Raises:
        CheckpointError: A score is infinite or not a number.
    """
    measure = _measure(beginnings, next(model.parameters()).device)
    with evaluating(model):
        if model.context.objective.causal:
            found = _causal(model, tokenizer, texts, measure, beginnings is not None, progress)
        else:
            found = masked_losses(model, tokenizer, texts, groups=groups, measure=measure, progress=progress)
    return [_scores(values, len(text)) for values, text in zip(found, texts, strict=True)]


def _scores(values: Floats, tokens: int) -> TokenScores:
    check_finite(values)
    if not len(values):
        return TokenScores(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    surprisal, entropy, rank, *rest = values.T
    return TokenScores(surprisal[:tokens], entropy[:tokens], rank[:tokens].astype(np.int64), rest[0] if rest else None)


def _measure(beginnings: NDArray[np.bool_] | None, device: torch.device) -> Measure:
    """Return what computes surprisal, entropy, rank and, if asked for, the log-probability of the beginnings."""
    chosen = None if beginnings is None else torch.from_numpy(np.flatnonzero(beginnings)).to(device)

    def measure(chances_NV: torch.Tensor, rows_M: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        own_M = chances_NV[rows_M, targets_M]
        # What is impossible adds nothing: 0 times minus infinity is not a number.
        finite_NV = chances_NV.clamp(min=torch.finfo(chances_NV.dtype).min)
        entropy_N = -(chances_NV.exp() * finite_NV).sum(dim=1)
        parts = zip(torch.split(rows_M, len(chances_NV)), torch.split(own_M, len(chances_NV)), strict=True)
        more_probable = [(chances_NV[rows] > own[:, None]).sum(dim=1) for rows, own in parts]
        columns = [-own_M, entropy_N[rows_M], 1 + torch.cat(more_probable).to(own_M.dtype)]
        if chosen is not None:
            columns.append(torch.logsumexp(chances_NV[:, chosen], dim=1)[rows_M])
        return torch.stack(columns, dim=1)

    return measure


def _causal(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    measure: Measure,
    end: bool,
    progress: Callable[[int], None] | None,
) -> list[Floats]:
    """Return what is measured of each token of each text and, if asked for, of the separator that ends it."""
    start = separator_id(tokenizer)
    asked = [(*text, start) if end else tuple(text) for text in texts]
    times, most = Counter(asked), _most_at_once(model)
    found: dict[Ids, Floats] = {(): np.zeros(0)}

    def done(text: Ids, values: Floats) -> None:
        found[text] = values
        if progress is not None:
            progress(times[text] * (len(text) - end))

    short = sorted(text for text in times if 0 < len(text) <= most)
    waiting = iter(short)
    for tree in prefix_trees(short, start, PREFIXES):
        losses = _losses(model, len(tree.ids), tree.places, tree.targets, measure)
        read_tree(model, tree, losses)
        values = losses.losses()
        for pairs, text in zip(tree.texts, waiting, strict=False):
            done(text, values[pairs])
    for text in times:
        if len(text) > most:
            losses = _losses(model, len(text), range(len(text)), text, measure)
            (_read_chunks if model.config.capabilities.unbounded_length else _read_windows)(
                model, np.array([start, *text[:-1]]), losses
            )
            done(text, losses.losses())
    return [found[text] for text in asked]


def _losses(
    model: BaseLanguageModel, positions: int, places: Sequence[int], targets: Sequence[int], measure: Measure
) -> TokenLosses:
    device = next(model.parameters()).device
    return TokenLosses(positions, places, targets, model.context.vocab_size, device, measure)


def _most_at_once(model: BaseLanguageModel) -> float:
    """Return how many tokens of a text are predicted in one reading."""
    capabilities = model.config.capabilities
    if not capabilities.unbounded_length:
        return model.context.max_sequence_length - 1  # in training nothing is predicted from the last token of a row
    return CHUNK if capabilities.stateful else float("inf")


def _read_chunks(model: BaseLanguageModel, ids: Numbers, losses: TokenLosses) -> None:
    """Give the hidden states after every token to `losses`, each chunk read from the state after the one before it."""
    state, device = None, next(model.parameters()).device
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        places = np.arange(len(chunk))
        inputs = torch.from_numpy(chunk[None]).to(device)
        state = model(inputs, state=state, use_cache=True, read=losses.reading(begin + places, places)).state


def _read_windows(model: BaseLanguageModel, ids: Numbers, losses: TokenLosses) -> None:
    """Give the hidden state after every token to `losses`, from the first window that the token is in."""
    length, device = model.context.max_sequence_length - 1, next(model.parameters()).device
    windows = list(_windows(len(ids), length))
    size = max(TOKENS_PER_BATCH // length, 1)
    for first in range(0, len(windows), size):
        batch = windows[first : first + size]
        inputs = torch.from_numpy(np.stack([ids[begin : begin + length] for begin, _ in batch])).to(device)
        new = [np.arange(after, begin + length) for begin, after in batch]
        places = [each - begin + row * length for row, (each, (begin, _)) in enumerate(zip(new, batch, strict=True))]
        model(inputs, read=losses.reading(np.concatenate(new), np.concatenate(places)))


def _windows(tokens: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the begin of each window of a longer text, and from where on its tokens are in no window before it.

    A row has a token more than a window, which is only predicted. Half a row from one window to the next leaves the
    other half, or a token more, before the first new prediction. The last window is moved back to be a whole one.
    """
    step, after = (length + 1) // 2, 0
    for begin in (*range(0, tokens - length, step), tokens - length):
        yield begin, after
        after = begin + length
