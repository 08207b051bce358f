"""Score a checkpoint: loss, perplexity and bits per byte on a text, accuracy on minimal pairs.

Without --corpus and --pairs the test corpus of the checkpoint's own configuration is used. A sentence's score is the
sum of its tokens' log-probabilities given the document start of training (causal), or its pseudo-log-likelihood with
one token hidden at a time (masked); a tie counts as wrong.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from foundry_core.cli.common import add_checkpoint_argument, large_imports, open_checkpoint, table

EXAMPLE = """\
examples:
  foundry evaluate runs/gpt2
  foundry evaluate runs/gpt2/checkpoint-1000 --corpus other.txt
  foundry evaluate runs/gpt2 --pairs blimp/anaphor_number_agreement.jsonl --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--corpus", metavar="PATH", help="a file, a folder or a glob, as data.test_corpus")
    parser.add_argument(
        "--pairs", action="append", default=[], metavar="JSONL", help="minimal pairs in BLiMP's format; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.errors import UsageError

    with large_imports():
        from foundry_core.evaluation.corpus_loss import evaluate_corpus
        from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs

    pairs = [pair for path in options.pairs for pair in read_pairs(path)]
    folder, model, tokenizer = open_checkpoint(options)
    results: dict[str, Any] = {"checkpoint": str(folder)}
    corpus = options.corpus or (None if pairs else model.config.data.test_corpus)
    if corpus is None and not pairs:
        raise UsageError(
            "nothing to score: give --corpus or --pairs; the checkpoint's configuration names no test corpus"
        )
    if corpus is not None:
        report = evaluate_corpus(model, tokenizer, corpus)
        results["corpus"] = {
            "path": corpus,
            "loss": report.loss,
            "perplexity": report.perplexity,
            "bits_per_byte": report.bits_per_byte,
            "tokens": report.tokens,
        }
    if pairs:
        scores = score_pairs(model, tokenizer, pairs)
        results["pairs"] = [{"name": s.name, "accuracy": s.accuracy, "pairs": s.pairs} for s in scores]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    print(f"checkpoint {folder}")
    if corpus is not None:
        bits = f", bits per byte {report.bits_per_byte:.4f}" if report.bits_per_byte is not None else ""
        print(
            f"{corpus}: loss {report.loss:.4f}, perplexity {report.perplexity:.2f}{bits}, {report.tokens:,} predictions"
        )
    if pairs:
        rows = [(score.name, f"{score.accuracy:.3f}", f"{score.pairs}") for score in scores]
        print(table(("minimal pairs", "accuracy", "pairs"), rows))
