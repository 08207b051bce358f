"""Score a checkpoint: loss, perplexity and bits per byte on a text, or accuracy on
suites of minimal pairs and of formulas over regions. Without --corpus, --suite
and --pairs it uses the test corpus of its YAML.

Bits per byte and perplexity per word are given if every token of the text is
predicted and none is unknown: an unknown token hides what the text was (in a
pretokenized text it is a word). Words are counted with the ends of lines.

Results of --suite are kept beside the run, in scores/<checkpoint>/<suite>.json
and .tsv (item by item), and reused while checkpoint and suite are unchanged.
Intervals are 95 % of a bootstrap over items. --pairs takes files in the format
of BLiMP and keeps nothing; a pair without a UID belongs to its file.

The score of a sentence is its log-probability after the start of a document
(causal models), or its pseudo-log-likelihood with one token hidden at a time
(masked models). A tie counts as wrong. Scores are tied if they differ by no
more than the noise of fp32: 0.0000005 x (score + number of tokens), which is
0.000025 for 12 tokens with a score of -40. An item is left out if a sentence
has no tokens, or more than the model was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import (
    add_checkpoint_argument,
    large_imports,
    listing,
    open_checkpoint,
    path_argument,
    table,
)
from foundry_core.cli.suite_scores import check_options, evaluate_suites
from foundry_core.errors import UsageError

if TYPE_CHECKING:
    from foundry_core.evaluation.minimal_pairs import PairScores
    from foundry_core.registry.reports import EvaluationReport

EXAMPLE = """\
examples:
  foundry evaluate runs/gpt2
  foundry evaluate runs/gpt2/checkpoint-1000 --corpus other.txt
  foundry evaluate runs/gpt2 --suite blimp/data syntaxgym/json --all
  foundry evaluate runs/gpt2 --pairs blimp/data blimp_supplement/*.jsonl --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    what = "text to score: a file, a folder or a glob"
    parser.add_argument("--corpus", type=path_argument, metavar="PATH", help=what)
    what = "suites: files, folders, 'globs' in quotes or names of installed ones"
    parser.add_argument(
        "--suite", dest="suites", action="extend", nargs="+", default=[], type=path_argument, metavar="SUITE", help=what
    )
    parser.add_argument("--all", action="store_true", help="score the suites on every checkpoint of the run")
    what = "score of a sentence: sum (default), mean, pmi or slor (less the unigrams)"
    measures = ("sum", "mean", "pmi", "slor")
    parser.add_argument("--measure", choices=measures, default="sum", help=what)
    what = "minimal pairs (.jsonl): files, folders or globs; can be repeated"
    parser.add_argument(
        "--pairs", action="extend", nargs="+", default=[], type=path_argument, metavar="PATH", help=what
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> None:
    check_options(options)
    if options.suites:
        evaluate_suites(options)
        return
    with large_imports():
        from foundry_core.evaluation.corpus_loss import evaluate_corpus
        from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs

    pairs = read_pairs(options.pairs) if options.pairs else []
    folder, model, tokenizer = open_checkpoint(options)
    results: dict[str, Any] = {"checkpoint": str(folder)}
    corpus = options.corpus or (None if pairs else model.config.data.test_corpus)
    if corpus is None and not pairs:
        raise UsageError("nothing to score: the checkpoint's YAML has no test corpus, use --corpus or --suite")
    facts = {"checkpoint": str(folder)}
    if corpus is not None:
        report = evaluate_corpus(model, tokenizer, corpus)
        keys = ("loss", "perplexity", "perplexity_per_word", "bits_per_byte", "tokens", "unknown_share")
        results["corpus"] = {"path": corpus} | {key: getattr(report, key) for key in keys}
        facts |= {"corpus": corpus} | _shown(report, causal=model.context.objective.causal)
    if pairs:
        scores = score_pairs(model, tokenizer, pairs)
        results["pairs"] = [asdict(score) for score in scores]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    print(listing(facts.items()))
    if pairs:
        print(_table(scores))


def _shown(report: EvaluationReport, *, causal: bool) -> dict[str, str]:
    from foundry_core.training.console import share

    facts = {"loss": f"{report.loss:.4f}", "perplexity": f"{report.perplexity:.2f}"}
    if report.perplexity_per_word is not None:
        facts["perplexity per word"] = f"{report.perplexity_per_word:.2f}"
    if report.bits_per_byte is not None:
        facts["bits per byte"] = f"{report.bits_per_byte:.4f}"
    elif causal and report.unknown_share:
        facts["bits per byte"] = f"not given: {share(report.unknown_share)} of the tokens are unknown"
    elif causal:
        facts["bits per byte"] = "not given: the objective does not predict every token"
    elif report.unknown_share:
        facts["unknown tokens"] = share(report.unknown_share)
    return facts | {"predictions": f"{report.tokens:,}"}


def _table(scores: Sequence[PairScores]) -> str:
    """Return a row for each paradigm; a column of zeros is left out."""
    from foundry_core.training.console import share

    columns = {
        "minimal pairs": [score.name for score in scores],
        "accuracy": ["-" if score.accuracy is None else f"{score.accuracy:.3f}" for score in scores],
        "pairs": [f"{score.pairs}" for score in scores],
    }
    if any(score.ties for score in scores):
        columns["ties"] = [f"{score.ties}" for score in scores]
    if any(score.left_out for score in scores):
        columns["left out"] = [f"{score.left_out}" for score in scores]
    if any(score.unknown_share for score in scores):
        columns["unknown"] = [share(score.unknown_share) for score in scores]
    return table(tuple(columns), list(zip(*columns.values(), strict=True)))
