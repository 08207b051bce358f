"""Score a checkpoint: loss, perplexity and bits per byte on a text, or accuracy on
minimal pairs. Without --corpus and --pairs it uses the test corpus of its YAML.

Minimal pairs are in the format of BLiMP. The score of a sentence is its
log-probability after the start of a document (causal models), or its
pseudo-log-likelihood with one token hidden at a time (masked models). A tie
counts as wrong.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from foundry_core.cli.common import (
    add_checkpoint_argument,
    large_imports,
    listing,
    open_checkpoint,
    path_argument,
    table,
)
from foundry_core.errors import UsageError

EXAMPLE = """\
examples:
  foundry evaluate runs/gpt2
  foundry evaluate runs/gpt2/checkpoint-1000 --corpus other.txt
  foundry evaluate runs/gpt2 --pairs blimp/anaphor_number_agreement.jsonl --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--corpus", type=path_argument, metavar="PATH", help="text to score: file, folder or glob")
    what = "minimal pairs; can be repeated"
    parser.add_argument("--pairs", action="append", default=[], type=path_argument, metavar="JSONL", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> None:
    with large_imports():
        from foundry_core.evaluation.corpus_loss import evaluate_corpus
        from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs

    pairs = [pair for path in options.pairs for pair in read_pairs(path)]
    folder, model, tokenizer = open_checkpoint(options)
    results: dict[str, Any] = {"checkpoint": str(folder)}
    corpus = options.corpus or (None if pairs else model.config.data.test_corpus)
    if corpus is None and not pairs:
        raise UsageError("nothing to score: the checkpoint's YAML has no test corpus, use --corpus or --pairs")
    if corpus is not None:
        report = evaluate_corpus(model, tokenizer, corpus)
        keys = ("loss", "perplexity", "bits_per_byte", "tokens")
        results["corpus"] = {"path": corpus} | {key: getattr(report, key) for key in keys}
    if pairs:
        scores = score_pairs(model, tokenizer, pairs)
        results["pairs"] = [asdict(score) for score in scores]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    facts = {"checkpoint": str(folder)}
    if corpus is not None:
        facts |= {"corpus": corpus, "loss": f"{report.loss:.4f}", "perplexity": f"{report.perplexity:.2f}"}
        if report.bits_per_byte is not None:
            facts["bits per byte"] = f"{report.bits_per_byte:.4f}"
        facts["predictions"] = f"{report.tokens:,}"
    print(listing(facts.items()))
    if pairs:
        rows = [(score.name, f"{score.accuracy:.3f}", f"{score.pairs}") for score in scores]
        print(table(("minimal pairs", "accuracy", "pairs"), rows))
