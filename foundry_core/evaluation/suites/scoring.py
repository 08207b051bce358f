"""Scores of a suite: which of its items a model gets right, by how much, and which cannot be scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import DataError, UsageError, warn
from foundry_core.evaluation.inference import evaluating
from foundry_core.evaluation.prefix_tree import Ids, Numbers
from foundry_core.evaluation.sentence_scores import (
    id_differences,
    id_scores,
    noise,
    not_scorable,
    token_log_probabilities,
)
from foundry_core.evaluation.suites.formulas import scores_of
from foundry_core.evaluation.suites.items import BETTER, Score, SuiteItem
from foundry_core.evaluation.suites.outcomes import Value, outcome
from foundry_core.evaluation.suites.reading import LoadedSuite
from foundry_core.models.base import BaseLanguageModel
from foundry_core.registry.isolation import failing_as, isolated
from foundry_core.registry.loading import import_string
from foundry_core.tokenization.encoding import text_ids, token_ends

Measure: TypeAlias = Literal["sum", "mean", "pmi", "slor"]
MEASURES: Mapping[Measure, str] = {
    "sum": "sum of the log-probabilities of the tokens",
    "mean": "mean of the log-probabilities of the tokens",
    "pmi": "sum less that of the unigrams of the training text",
    "slor": "mean less that of the unigrams of the training text (Pauls and Klein 2012; Lau et al. 2017)",
}
"""What the score of a region is, instead of its sum. With `pmi` and `slor` rare words cost no more than frequent ones.
"""

_STEEP = 100.0  # nats that a token costs at most, for a first look at what may be a tie
_NAMED = 3  # items that are left out, each in a line of its own


@dataclass(frozen=True)
class ItemResult:
    """What a model makes of an item.

    Attributes:
        item: The item.
        right: Whether all its predictions hold.
        tie: Whether one does not because what it compares is tied.
        margin: By how many nats its predictions hold; negative, by how many the least of them is missed.
        scores: The scores that its formulas compare, in bits, and those of all regions of a sentence of which they
            compare a region. Empty for pairs, of which only the difference is computed.
    """

    item: SuiteItem
    right: bool
    tie: bool
    margin: float
    scores: Mapping[Score, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteScores:
    """The results of the items that can be scored, in their order.

    left_out: The others, and why. unknown: by paradigm, the unknown tokens of the scored sentences, and all of them.
    """

    results: Sequence[ItemResult]
    left_out: Sequence[tuple[SuiteItem, str]]
    unknown: Mapping[str, tuple[int, int]]

    @property
    def unknown_share(self) -> float:
        """Share of the unknown tokens among those of the scored sentences."""
        unknown, tokens = map(sum, zip(*self.unknown.values(), strict=True)) if self.unknown else (0, 0)
        return unknown / max(tokens, 1)


class SuiteScorer:
    """Scores a suite on the checkpoints of a run: its sentences are encoded, and what cannot be scored is named, once.

    Args:
        suite: The suite.
        measure: One of MEASURES.
        unigrams: For `pmi` and `slor`, returns the log-probability of each token by its frequency, in nats (V,).
    """

    def __init__(
        self,
        suite: LoadedSuite,
        measure: Measure = "sum",
        unigrams: Callable[[], NDArray[np.float64]] | None = None,
    ):
        if suite.descriptor.scorer is not None and measure != "sum":
            raise UsageError(f"the suite {suite.name} has a scorer of its own, to which a measure means nothing")
        self.suite, self.measure = suite, measure
        self._unigrams = unigrams
        self._encoded: EncodedSuite | None = None

    def prepare(self, model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
        """Encode the suite, and warn of items that models of this kind cannot score.

        Raises:
            DataError: No item can be scored.
        """
        if self._encoded is None and self.suite.descriptor.scorer is None:
            self._encoded = EncodedSuite.of(tokenizer, self.suite.items)
            warn_of_left_out(self._encoded.left_out(model), len(self.suite.items), "items")

    def scores(
        self,
        model: BaseLanguageModel,
        tokenizer: PreTrainedTokenizerFast,
        progress: Callable[[float], None] | None = None,
    ) -> SuiteScores:
        """Return the results of a model; `progress` as in `EncodedSuite.score`."""
        self.prepare(model, tokenizer)
        if self._encoded is not None:
            unigrams = None if self._unigrams is None else self._unigrams()
            return self._encoded.score(model, tokenizer, measure=self.measure, unigrams=unigrams, progress=progress)
        with failing_as(f"the scorer of the suite '{self.suite.name}'"), isolated(), evaluating(model):
            found = list(import_string(str(self.suite.descriptor.scorer))(model, tokenizer, self.suite.items))
            results = [
                ItemResult(item, bool(right), False, float(margin))
                for item, (right, margin) in zip(self.suite.items, found, strict=True)
            ]
        return SuiteScores(results, [], {})


def warn_of_left_out(left_out: Sequence[tuple[SuiteItem, str]], of: int, what: str) -> None:
    """Print a line for the first items that are left out, and how many more there are.

    Args:
        left_out: The items, and why they cannot be scored.
        of: The number of all items.
        what: What they are called.

    Raises:
        DataError: No item can be scored.
    """
    lines = [f"{item.place}: {reason}" for item, reason in left_out]
    if len(lines) == of:
        raise DataError(
            f"none of {of:,} {what} can be scored: {lines[0]}" if lines else f"there are no {what} to score"
        )
    for line in lines[:_NAMED]:
        warn(f"left out: {line}")
    if len(lines) > _NAMED:
        warn(f"left out: {len(lines) - _NAMED:,} more {what}, for such reasons")


class _Sentence(NamedTuple):
    """A sentence: its tokens, and the region of each, counted from 1, or None where no region is asked for.

    problem: why its tokens cannot be told apart by region.
    """

    ids: Ids
    regions: Numbers | None = None
    problem: str | None = None


@dataclass(frozen=True)
class EncodedSuite:
    """The items of a suite with the tokens of their sentences: the same for all checkpoints of a run."""

    items: Sequence[SuiteItem]
    sentences: Sequence[Mapping[str, _Sentence]]
    """Of each item those that its predictions ask for, by condition."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, items: Sequence[SuiteItem]) -> EncodedSuite:
        """Encode each distinct sentence of a suite once."""
        asked = [_conditions(item) for item in items]
        by_item = [
            {name: (item.join.join(filter(None, item.sentences[name])), regions) for name, regions in names.items()}
            for item, names in zip(items, asked, strict=True)
        ]
        texts = list(dict.fromkeys(text for texts in by_item for text, _ in texts.values()))
        ids = dict(zip(texts, map(tuple, text_ids(tokenizer, texts)), strict=True))
        divided = list(dict.fromkeys(text for texts in by_item for text, regions in texts.values() if regions))
        ends = dict(zip(divided, token_ends(tokenizer, divided), strict=True)) if divided else {}

        def sentence(item: SuiteItem, name: str, text: str, regions: bool) -> _Sentence:
            if not regions:
                return _Sentence(ids[text])
            if len(ends[text]) != len(ids[text]):
                return _Sentence(ids[text], problem="the tokenizer does not locate its tokens in the sentence")
            return _Sentence(ids[text], regions_of_tokens(item.sentences[name], len(item.join), ends[text]))

        return cls(
            items,
            [
                {name: sentence(item, name, text, regions) for name, (text, regions) in texts.items()}
                for item, texts in zip(items, by_item, strict=True)
            ],
        )

    def left_out(self, model: BaseLanguageModel) -> list[tuple[SuiteItem, str]]:
        """Return the items that a model cannot score, and why."""
        problems = (_problem(model, sentences) for sentences in self.sentences)
        return [(item, problem) for item, problem in zip(self.items, problems, strict=True) if problem is not None]

    def score(
        self,
        model: BaseLanguageModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        measure: Measure = "sum",
        unigrams: NDArray[np.float64] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> SuiteScores:
        """Return the results of a model.

        Args:
            model: A model with the vocabulary of the tokenizer.
            tokenizer: The one that the suite was encoded with.
            measure: One of MEASURES.
            unigrams: For `pmi` and `slor` the log-probability of each token by its frequency, in nats (V,).
            progress: Called with the share of the suite that has been scored.
        """
        rows = zip(self.items, self.sentences, strict=True)
        scored = [(item, sentences) for item, sentences in rows if _problem(model, sentences) is None]
        pairs = [measure == "sum" and item.predictions == (BETTER,) for item, _ in scored]
        compared = {
            (sentences["good"].ids, sentences["bad"].ids)
            for (_, sentences), pair in zip(scored, pairs, strict=True)
            if pair
        }
        texts = [
            sentence.ids
            for (_, sentences), pair in zip(scored, pairs, strict=True)
            if not pair
            for sentence in sentences.values()
        ]
        total = sum(map(len, {ids for pair in compared for ids in pair})) + sum(map(len, set(texts)))
        count = None if progress is None else _counting(total, progress)
        differences = _differences(model, tokenizer, compared, count)
        tokens = dict(zip(texts, token_log_probabilities(model, tokenizer, texts, count), strict=True))
        results = []
        for (item, sentences), pair in zip(scored, pairs, strict=True):
            if pair:
                difference, tie = differences[sentences["good"].ids, sentences["bad"].ids]
                results.append(ItemResult(item, difference > 0 and not tie, tie, difference))
            else:
                values = _values(item, sentences, tokens, measure, unigrams)
                results.append(_result(item, values))
        unknown = _unknown(scored, -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)
        return SuiteScores(results, self.left_out(model), unknown)


def score_items(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[SuiteItem],
    *,
    measure: Measure = "sum",
    unigrams: NDArray[np.float64] | None = None,
) -> SuiteScores:
    """Encode items and score them with one model; see `EncodedSuite.score`."""
    return EncodedSuite.of(tokenizer, items).score(model, tokenizer, measure=measure, unigrams=unigrams)


def _counting(total: int, progress: Callable[[float], None]) -> Callable[[float], None]:
    """Return what to call with a number of further tokens, for progress as a share of the total."""
    done = 0.0

    def count(tokens: float) -> None:
        nonlocal done
        done += tokens
        progress(done / total)

    return count


def _conditions(item: SuiteItem) -> dict[str, bool]:
    """Return the conditions that an item compares, and for each whether regions of it are asked for."""
    found: dict[str, bool] = {}
    for prediction in item.predictions:
        for score in scores_of(prediction):
            found[score.condition] = found.get(score.condition, False) or score.region != "*"
    return found


def regions_of_tokens(contents: Sequence[str], join: int, ends: Sequence[int]) -> Numbers:
    """Return the region of each token, counted from 1: that in which its last character lies, as in SyntaxGym.

    What stands between two regions belongs to the second one.

    Args:
        contents: The regions of a sentence; an empty one has no token.
        join: Number of characters between two that are not empty.
        ends: With which character each token ends, counted from 1.
    """
    filled = [number for number, content in enumerate(contents, 1) if content]
    lengths = [len(contents[number - 1]) + (join if place else 0) for place, number in enumerate(filled)]
    places = np.searchsorted(np.cumsum(lengths), np.asarray(ends, dtype=np.int64), side="left")
    return np.asarray(filled, dtype=np.int64)[np.minimum(places, len(filled) - 1)]


def _problem(model: BaseLanguageModel, sentences: Mapping[str, _Sentence]) -> str | None:
    reasons = (sentence.problem or not_scorable(model, sentence.ids) for sentence in sentences.values())
    return next((reason for reason in reasons if reason), None)


def _unknown(
    scored: Iterable[tuple[SuiteItem, Mapping[str, _Sentence]]], unknown_id: int
) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for item, sentences in scored:
        unknown, tokens = found.get(item.paradigm, (0, 0))
        unknown += sum(sentence.ids.count(unknown_id) for sentence in sentences.values())
        found[item.paradigm] = unknown, tokens + sum(len(sentence.ids) for sentence in sentences.values())
    return found


def _differences(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: set[tuple[Ids, Ids]],
    progress: Callable[[float], None] | None,
) -> dict[tuple[Ids, Ids], tuple[float, bool]]:
    """Return for each distinct pair how much higher its first text scores, in nats, and whether that is a tie.

    What is close is decided by the scores of the whole texts, on which the noise depends.
    """
    distinct = sorted(pairs)
    found = dict(zip(distinct, id_differences(model, tokenizer, distinct, progress), strict=True))
    close = [pair for pair in distinct if abs(found[pair]) <= max(noise(_STEEP * len(ids), len(ids)) for ids in pair)]
    texts = [ids for pair in close for ids in pair]
    scores = dict(zip(texts, id_scores(model, tokenizer, texts), strict=True))
    decided = {pair: (difference, False) for pair, difference in found.items()}
    for good, bad in close:
        difference = scores[good] - scores[bad]
        decided[good, bad] = difference, abs(difference) <= max(noise(scores[ids], len(ids)) for ids in (good, bad))
    return decided


def _values(
    item: SuiteItem,
    sentences: Mapping[str, _Sentence],
    tokens: Mapping[Ids, NDArray[np.float64]],
    measure: Measure,
    unigrams: NDArray[np.float64] | None,
) -> dict[Score, Value]:
    """Return the value of each score that `ItemResult.scores` has."""
    found = {}
    regions = [
        Score(region, condition)
        for condition, sentence in sentences.items()
        if sentence.regions is not None
        for region in range(1, len(item.sentences[condition]) + 1)
    ]
    compared = [each for prediction in item.predictions for each in scores_of(prediction)]
    for score in dict.fromkeys([*regions, *compared]):
        sentence = sentences[score.condition]
        chosen: Any = slice(None) if score.region == "*" else sentence.regions == score.region
        scores = tokens[sentence.ids][chosen]
        nats, rounding = float(scores.sum()), noise(float(scores.sum()), len(scores))
        if measure in ("pmi", "slor"):
            assert unigrams is not None, "the frequencies of the tokens are missing"
            nats -= float(unigrams[np.asarray(sentence.ids)[chosen]].sum())
        if measure in ("mean", "slor"):
            nats, rounding = nats / max(len(scores), 1), rounding / max(len(scores), 1)
        found[score] = Value(-nats / math.log(2), rounding / math.log(2))
    return found


def _result(item: SuiteItem, values: Mapping[Score, Value]) -> ItemResult:
    outcomes = [outcome(prediction, values) for prediction in item.predictions]
    right, margin = all(each.right for each in outcomes), min(each.bits for each in outcomes)
    tie = not right and any(each.tie for each in outcomes)
    return ItemResult(item, right, tie, margin * math.log(2), {score: value.bits for score, value in values.items()})
