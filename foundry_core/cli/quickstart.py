"""A first look, with no download: writes a corpus of a toy English whose entropy is known exactly, three YAMLs and
minimal pairs; trains a GPT-2, a BERT and an LSTM on it; prints what each has learned.

Takes about three minutes on two cores. The folder is yours to keep: every YAML in it trains again with foundry train.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import large_imports

EXAMPLE = "example:\n  foundry quickstart my-first-models"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", default="quickstart", metavar="DIR", help="where to write (default: quickstart)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the corpus and of training (default 1)")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    with large_imports():
        from foundry_core.cli.quickstart_run import quickstart

    quickstart(options.folder, seed=options.seed)
