"""Verify a run: every file of every checkpoint against its manifest, and each
checkpoint against the one before it.

foundry verify recomputes which data training must have seen from the seed and
the position, and compares. Prints one line on stderr for each problem and exits
with code 6. The corpus is not needed; where documents or several corpora decide
the rows, the token file of the run is, and the plugin. Two runs with the same
"text seen" were trained on the same tokens in the same order up to there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry_core.cli.common import path_argument, table
from foundry_core.errors import CheckpointError

EXAMPLE = "example:\n  foundry verify runs/gpt2"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_argument, metavar="RUN", help="the folder of a run (training.output_dir)")


def execute(options: argparse.Namespace) -> None:
    from foundry_core.checkpoints.names import named_checkpoints
    from foundry_core.checkpoints.verification import verify_run

    whole, problems = verify_run(options.run)
    names = [(path.name, target) for path, target in named_checkpoints(Path(options.run)).items()]
    rows = [
        (
            " = ".join([one.folder.name, *(name for name, target in names if target == one.folder.name)]),
            str(len(one.manifest["files"])),
            f"{one.state.tokens_seen:,}",
            f"{one.state.words_seen:,}",
            one.text_seen,
            one.since,
            "kept" if one.resumable else "not kept",
        )
        for one in whole
    ]
    if rows:
        print(
            table(("checkpoint", "files", "tokens seen", "words seen", "text seen", "follows from", "optimizer"), rows)
        )
    for one in whole:
        if one.changed:
            print(f"{one.folder.name} continues with changes: {'; '.join(one.changed)}")
    if problems:
        raise CheckpointError(*problems)
    derived = sum(not one.since.startswith("not deriv") for one in whole)
    follows = "each follows from the one before" if derived == len(whole) else f"{derived} follow from the one before"
    print(f"all {len(whole)} checkpoints are whole, and {follows}")
