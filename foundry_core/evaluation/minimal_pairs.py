"""Minimal pairs in BLiMP's format: reading them, and scoring them without keeping the results."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.files import kind_of, refuse, shown
from foundry_core.corpus.reader import Corpus
from foundry_core.evaluation.suites.items import BETTER, SuiteItem
from foundry_core.evaluation.suites.pairs_files import PAIR_FORMAT, read_blimp
from foundry_core.evaluation.suites.scoring import score_items, warn_of_left_out
from foundry_core.models.base import BaseLanguageModel

_SUFFIXES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two sentences, the good one first. paradigm: the UID, or else the name of the file. place: file:line."""

    good: str
    bad: str
    paradigm: str
    place: str


@dataclass(frozen=True)
class PairScores:
    """The result on one paradigm.

    accuracy: share of the pairs in which the model prefers the good sentence, None if there are none to score. A tie
    counts as wrong; a difference below `noise` is a tie. left_out: pairs that are not among `pairs`, because a sentence
    has no tokens or too many. unknown_share: unknown tokens among those of the sentences.
    """

    name: str
    accuracy: float | None
    pairs: int
    ties: int
    left_out: int
    unknown_share: float


def read_pairs(spec: str | Path | Sequence[str | Path]) -> list[Pair]:
    """Read minimal pairs in BLiMP's format: one JSON object a line with sentence_good, sentence_bad and perhaps UID.

    Args:
        spec: A file, a folder (searched for .jsonl files as a corpus is), a glob, or several of those.

    Raises:
        DataError: A line is not a minimal pair; names file and line. The text is read as strictly as a corpus.
    """
    specs = [spec] if isinstance(spec, str | Path) else spec
    for path in (Path(os.path.expanduser(one)) for one in specs):  # noqa: PTH111 - leaves ~nobody as it is
        if path.is_file() and kind_of(path) != "jsonl":
            refuse(path, f"not a minimal pairs file: expected {PAIR_FORMAT}.")
    corpus = Corpus.open(specs, name="minimal pairs", pattern="*.jsonl*")
    stems = {path: _SUFFIXES.sub("", path.name) for path in corpus.files}
    shared = Counter(stems.values())
    pairs = []
    for path in corpus.files:
        name = shown(Path(stems[path])) if shared[stems[path]] == 1 else shown(path)
        for item in read_blimp(path, name):
            pairs.append(Pair(item.sentences["good"][0], item.sentences["bad"][0], item.paradigm, item.place))
    return pairs


def pair_item(pair: Pair) -> SuiteItem:
    """Return a pair as the item of a suite."""
    sentences = {"good": (pair.good,), "bad": (pair.bad,)}
    return SuiteItem(pair.place, pair.paradigm, sentences, (BETTER,), pair.place)


def score_pairs(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> list[PairScores]:
    """Return the result for each paradigm, in the order of their first pair.

    Warns of pairs that are left out. Raises DataError if that is every pair.
    """
    scores = score_items(model, tokenizer, [pair_item(pair) for pair in pairs])
    warn_of_left_out(scores.left_out, len(pairs), "pairs")
    tallies: dict[str, Counter[str]] = {pair.paradigm: Counter() for pair in pairs}
    for result in scores.results:
        tallies[result.item.paradigm].update(pairs=1, right=int(result.right), ties=int(result.tie))
    for item, _ in scores.left_out:
        tallies[item.paradigm].update(left_out=1)
    return [
        PairScores(
            name,
            accuracy=tally["right"] / tally["pairs"] if tally["pairs"] else None,
            pairs=tally["pairs"],
            ties=tally["ties"],
            left_out=tally["left_out"],
            unknown_share=unknown / max(tokens, 1),
        )
        for name, tally in tallies.items()
        for unknown, tokens in [scores.unknown.get(name, (0, 0))]
    ]
