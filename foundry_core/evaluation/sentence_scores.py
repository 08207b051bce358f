"""Log-probabilities of sentences, the same for equal sentences, and how exact they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import CheckpointError
from foundry_core.evaluation.inference import evaluating
from foundry_core.evaluation.masked_reading import masked_losses
from foundry_core.evaluation.prefix_tree import PREFIXES, Ids, PrefixTree, common_start, prefix_trees
from foundry_core.evaluation.token_losses import TokenLosses
from foundry_core.evaluation.tree_reading import read_tree
from foundry_core.models.base import BaseLanguageModel
from foundry_core.tokenization.encoding import separator_id, text_ids


def sentence_scores(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> list[float]:
    """Return the log-probability of each sentence in nats; see `id_scores`."""
    return id_scores(model, tokenizer, list(map(tuple, text_ids(tokenizer, sentences))))


def id_scores(model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[Ids]) -> list[float]:
    """Return the log-probability of each text, given as its token ids, in nats: the sum over its tokens.

    Causal: each token given those before it, the first given the separator that opens a document in training.
    Masked: pseudo-log-likelihood, one token hidden at a time (Salazar et al. 2020).

    Each distinct text is scored once, what several begin with too, in batches that do not depend on the order of
    `texts`: equal texts get the same float. In another selection its last digits may differ, by less than `noise`.

    Raises:
        CheckpointError: A score is infinite or not a number.
    """
    return [float(scores.sum()) for scores in token_log_probabilities(model, tokenizer, texts)]


def token_log_probabilities(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    progress: Callable[[float], None] | None = None,
) -> list[NDArray[np.float64]]:
    """Return the log-probability of each token of each text, in nats; `id_scores` states of what.

    Args:
        progress: Called with the number of tokens of distinct texts that were scored since the last call.
    """
    distinct = sorted(set(texts))
    with evaluating(model):
        if model.context.objective.causal:
            scores = _causal_scores(model, tokenizer, distinct, progress)
        else:
            scores = [-losses for losses in masked_losses(model, tokenizer, distinct, progress=progress)]
    check_finite([float(each.sum()) for each in scores])
    found = dict(zip(distinct, scores, strict=True))
    return [found[text] for text in texts]


def id_differences(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Ids, Ids]],
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Return how much higher the first text of each pair scores than the second, in nats.

    With a causal model, the vocabulary is projected on only for tokens in which a pair differs: what both texts begin
    with has the same log-probability in both. The differences are those of `id_scores`, within its `noise`.

    Args:
        progress: Called with the number of tokens of distinct texts that were scored since the last call.

    Raises:
        CheckpointError: A difference is infinite or not a number.
    """
    if not model.context.objective.causal:
        texts = [text for pair in pairs for text in pair]
        scores = [float(each.sum()) for each in token_log_probabilities(model, tokenizer, texts, progress)]
        return [good - bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
    distinct = sorted({text for pair in pairs for text in pair})
    number = {text: place for place, text in enumerate(distinct)}
    partners: list[list[int]] = [[] for _ in distinct]
    for one, other in pairs:
        partners[number[one]].append(number[other])
        partners[number[other]].append(number[one])
    own: list[dict[int, float]] = [{} for _ in distinct]
    first = 0
    with evaluating(model):
        for tree in prefix_trees(distinct, separator_id(tokenizer), PREFIXES):
            inside = range(first, first + len(tree.texts))
            alone = {}
            for text in inside:
                for partner in partners[text]:
                    predictions = tree.texts[text - first]
                    others = tree.texts[partner - first] if partner in inside else []
                    alone[text, partner] = predictions[common_start(predictions, others) :]
            losses = _tree_losses(model, tree, sorted({each for asked in alone.values() for each in asked}), progress)
            for (text, partner), asked in alone.items():
                own[text][partner] = -float(losses[asked].sum())
            first = inside.stop
    found = [own[number[one]][number[other]] - own[number[other]][number[one]] for one, other in pairs]
    check_finite(found)
    return found


def check_finite(scores: Sequence[float] | NDArray[np.float64]) -> None:
    """Raise CheckpointError if a score is infinite or not a number."""
    if not np.isfinite(scores).all():  # compared, such a score would count as wrong
        raise CheckpointError("the model's scores are not finite: its weights or its sums have overflowed")


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


def _causal_scores(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Ids],
    progress: Callable[[float], None] | None,
) -> list[NDArray[np.float64]]:
    """Score the tokens of distinct texts, sorted."""
    scores: list[NDArray[np.float64]] = []
    for tree in prefix_trees(texts, separator_id(tokenizer), PREFIXES):
        found = _tree_losses(model, tree, list(range(len(tree.places))), progress)
        scores += [-found[pairs] for pairs in tree.texts]
    return scores


def _tree_losses(
    model: BaseLanguageModel, tree: PrefixTree, asked: Sequence[int], progress: Callable[[float], None] | None
) -> NDArray[np.float64]:
    """Return the losses of the predictions asked for among those of a tree, and 0 for the others."""
    tokens = sum(map(len, tree.texts))

    def read(prefixes: int) -> None:
        if progress is not None:
            progress(tokens * prefixes / len(tree.ids))

    found = np.zeros(len(tree.places))
    if asked:
        places, targets = ([numbers[each] for each in asked] for numbers in (tree.places, tree.targets))
        device = next(model.parameters()).device
        losses = TokenLosses(len(tree.ids), places, targets, model.context.vocab_size, device, progress=read)
        read_tree(model, tree, losses)
        found[list(asked)] = losses.losses()
    else:
        read(len(tree.ids))
    return found
