"""Scoring minimal pairs against minicons at its best batch, with the scores of both as proof of equal work."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import SIZES, Size, lexicon, small_gpt2
from benchmarks.measuring import Contender, Finding, Gate, NotMeasuredError, Ratio, Row, in_process, race

_SMALL = "gpt2 4x256"
_SIZES = {"gpt2": SIZES["gpt2 small"], "lstm": SIZES["lstm 2x650"], _SMALL: small_gpt2(_SMALL, layers=4, width=256)}
_BATCHES = (10, 50, 200)
_PAIR = 2  # minicons has no batch size of its own: its examples score what is compared in one call
_LIMITS = (2.5, 5.0)
_WORDS = 2000


def pairs(count: int) -> list[tuple[str, str]]:
    """Return pairs of sentences that differ in one word, as those of BLiMP do."""
    generator, known = np.random.default_rng(3), lexicon(_WORDS)
    made = []
    for _ in range(count):
        words = [
            known[int(rank)] for rank in np.minimum(generator.zipf(1.3, int(generator.integers(5, 13))), _WORDS) - 1
        ]
        place = int(generator.integers(len(words) // 2, len(words)))
        other = [*words[:place], known[int(generator.integers(_WORDS))], *words[place + 1 :]]
        made.append((" ".join(words).capitalize() + ".", " ".join(other).capitalize() + "."))
    return made


def checkpoint(_: Gate, size: Size, folder: Path, count: int) -> str:
    """Train a step, so that there is a checkpoint, and write the pairs; return the folder of the checkpoint."""
    from benchmarks.contenders import prepared
    from foundry_core import load_config, run

    settings = prepared(_, size, folder, size.batch)["settings"]
    run(load_config(settings, ["training.train_steps=1"]))
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": "pairs"}) for good, bad in pairs(count)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "run" / "checkpoint-1")


def ours(gate: Gate, folder: str, file: Path) -> None:
    """Score as `foundry evaluate --pairs` does."""
    from foundry_core import BaseLanguageModel
    from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs
    from foundry_core.evaluation.sentence_scores import sentence_scores
    from foundry_core.tokenization.tokenizer_folder import load_tokenizer

    model, tokenizer = BaseLanguageModel.from_pretrained(folder), load_tokenizer(Path(folder))
    read = read_pairs(file)
    texts = [text for pair in read for text in (pair.good, pair.bad)]
    gate.pass_(scores=sentence_scores(model, tokenizer, texts))
    while True:
        score_pairs(model, tokenizer, read_pairs(file))
        gate.pass_()


def minicons(gate: Gate, folder: str, file: Path, batch: int) -> None:
    """Score with minicons' IncrementalLMScorer, the sentences in batches in the order of the file."""
    try:
        from minicons.scorer import IncrementalLMScorer
    except ImportError:
        raise NotMeasuredError("minicons is not installed") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    scorer = IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)

    def scored() -> list[float]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        texts = [line[key] for line in lines for key in ("sentence_good", "sentence_bad")]
        found: list[float] = []
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            found += scorer.sequence_score(part, reduction=lambda x: x.sum(0).item(), bos_token=True)
        return found

    gate.pass_(scores=scored())
    while True:
        scored()
        gate.pass_()


def measure(folder: Path, rounds: int, *, quick: bool) -> Iterator[Finding]:
    """Measure the models, one at a time."""
    count = 40 if quick else 1000
    for name, whole in _SIZES.items():
        size = whole.shrunk() if quick else whole
        arguments = {"size": size, "folder": folder / name, "count": count}
        what = f"{count:,} pairs, {whole.name}"
        try:
            saved = in_process("benchmarks.scoring:checkpoint", arguments, threads=2)
        except NotMeasuredError as error:
            yield name, [Row("score", what, "minicons", None, *_LIMITS, note=str(error))], {}
            continue
        arguments = {"folder": saved, "file": folder / name / "pairs.jsonl"}
        own = Contender("foundry", "benchmarks.scoring:ours", arguments)
        batches = (*((_PAIR,) if name == _SMALL else ()), *_BATCHES)
        peers = {
            batch: Contender(f"minicons, batch {batch}", "benchmarks.scoring:minicons", {**arguments, "batch": batch})
            for batch in batches[: 1 if quick else None]
        }
        race([own, *peers.values()], rounds, what)
        found = {each.name: _figures(each, own) for each in (own, *peers.values())}
        limits = (1.5, None) if name == _SMALL else _LIMITS
        rows = [_row(what, own, list(peers.values()), found, limits)]
        if _PAIR in peers:
            rows.append(_row(what, own, [peers[_PAIR]], found, (5.0, None)))
        yield name, rows, found


def _row(
    what: str, own: Contender, peers: list[Contender], found: dict[str, Any], limits: tuple[float, float | None]
) -> Row:
    """Return the row of a model, against the batch at which minicons was fastest."""
    measured = [peer for peer in peers if peer.error is None]
    if own.error or not measured:
        return Row("score", what, "minicons", None, *limits, note=own.error or peers[0].error or "")
    best = min(measured, key=lambda peer: statistics.median(_seconds(peer)))
    apart = found[best.name]["largest_difference"]
    ratio = Ratio.of(_seconds(best), _seconds(own))
    return Row("score", what, best.name, ratio, *limits, note=f"scores within {apart:.1g}")


def _seconds(contender: Contender) -> list[float]:
    return [each["processor"] for each in contender.rounds]


def _figures(contender: Contender, own: Contender) -> dict[str, Any]:
    if contender.error is not None:
        return {"error": contender.error}
    scores, our = contender.warm_up["scores"], own.warm_up.get("scores", [])
    apart = max((abs(a - b) for a, b in zip(scores, our, strict=False)), default=float("nan"))
    peak = contender.rounds[-1]["peak_memory"]
    return {"processor_seconds": _seconds(contender), "largest_difference": apart, "peak_memory": peak}
