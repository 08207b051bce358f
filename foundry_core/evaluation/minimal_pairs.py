"""Minimal pairs: reading them, and which of two sentences a model finds more probable."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.files import kind_of, refuse, shown
from foundry_core.corpus.reader import Corpus
from foundry_core.errors import DataError, warn
from foundry_core.evaluation.prefix_tree import Ids
from foundry_core.evaluation.sentence_scores import id_differences, id_scores, noise, not_scorable
from foundry_core.evaluation.suites.pairs_files import PAIR_FORMAT, read_blimp
from foundry_core.models.base import BaseLanguageModel
from foundry_core.tokenization.encoding import text_ids

_SUFFIXES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$", re.IGNORECASE)
_STEEP = 100.0  # nats that a token costs at most, for a first look at what may be a tie
_NAMED = 3  # pairs that are left out, each in a line of its own


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


def score_pairs(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> list[PairScores]:
    """Return the result for each paradigm, in the order of their first pair.

    Warns of pairs that are left out. Raises DataError if that is every pair.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    ids = list(map(tuple, text_ids(tokenizer, texts)))
    encoded = list(zip(ids[::2], ids[1::2], strict=True))
    problems = [not_scorable(model, good) or not_scorable(model, bad) for good, bad in encoded]
    left_out = [f"{pair.place}: {problem}" for pair, problem in zip(pairs, problems, strict=True) if problem]
    if len(left_out) == len(pairs):
        raise DataError(f"none of {len(pairs):,} pairs can be scored: {left_out[0]}")
    for line in left_out[:_NAMED]:
        warn(f"left out: {line}")
    if len(left_out) > _NAMED:
        warn(f"left out: {len(left_out) - _NAMED:,} more pairs, for such reasons")
    differences = _differences(
        model, tokenizer, {pair for pair, problem in zip(encoded, problems, strict=True) if not problem}
    )
    tallies: dict[str, Counter[str]] = {}
    for pair, (good, bad), problem in zip(pairs, encoded, problems, strict=True):
        tally = tallies.setdefault(pair.paradigm, Counter())
        if problem:
            tally.update(left_out=1)
            continue
        difference, tie = differences[good, bad]
        tally.update(pairs=1, ties=int(tie), right=int(difference > 0 and not tie))
        tally.update(tokens=len(good + bad), unknown=(good + bad).count(tokenizer.unk_token_id))
    return [
        PairScores(
            name,
            accuracy=tally["right"] / tally["pairs"] if tally["pairs"] else None,
            pairs=tally["pairs"],
            ties=tally["ties"],
            left_out=tally["left_out"],
            unknown_share=tally["unknown"] / max(tally["tokens"], 1),
        )
        for name, tally in tallies.items()
    ]


def _differences(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, pairs: Iterable[tuple[Ids, Ids]]
) -> dict[tuple[Ids, Ids], tuple[float, bool]]:
    """Return for each pair by how much the good sentence scores higher, and whether that is a tie.

    What is close is decided by the scores of the whole sentences, on which the noise depends.
    """
    distinct = sorted(pairs)
    found = dict(zip(distinct, id_differences(model, tokenizer, distinct), strict=True))
    close = [pair for pair in distinct if abs(found[pair]) <= max(noise(_STEEP * len(ids), len(ids)) for ids in pair)]
    texts = [ids for pair in close for ids in pair]
    scores = dict(zip(texts, id_scores(model, tokenizer, texts), strict=True))
    decided = {pair: (difference, False) for pair, difference in found.items()}
    for good, bad in close:
        difference = scores[good] - scores[bad]
        decided[good, bad] = difference, abs(difference) <= max(noise(scores[ids], len(ids)) for ids in (good, bad))
    return decided
