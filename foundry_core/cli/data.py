"""Encode the corpora of a YAML into token files, and print what they contain.

foundry train does the same when it starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry_core.cli.common import add_config_arguments, add_verb, prepare_data, read_config, report, table

EXAMPLE = "example:\n  foundry data prepare configs/gpt2.yaml data.training_corpus=big.txt.gz"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    summary = "encode the corpora that have changed or are new"
    add_config_arguments(add_verb(verbs, "prepare", summary, __doc__, EXAMPLE, execute))


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)
    _, data = prepare_data(config)

    from foundry_core.training.console import share

    columns = {}
    corpora = (
        ("training", data.train, data.train_rows),
        ("validation", data.validation, data.validation_rows),
        ("test", data.test, data.test_rows),
    )
    for name, tokens, rows in corpora:
        if tokens is not None and rows is not None:
            info = tokens.info
            counted = {
                "bytes": info.account["bytes_in"],
                "bytes of text": info.account["bytes_text"],
                "bytes of separators": info.account["bytes_separators"],
                "bytes skipped": info.account["bytes_skipped"],
                "documents": info.documents,
                "empty documents": info.account["empty_documents"],
                "words": info.words,
                "tokens": info.tokens,
                "unknown tokens": info.unknown,
                "share of unknown tokens": share(info.unknown_share),
                "rows": len(rows),
            }
            columns[name] = [figure if isinstance(figure, str) else f"{figure:,}" for figure in counted.values()]
    report(table(("corpus", *columns), list(zip(counted, *columns.values(), strict=True))))
    for name, facts in data.description.items():
        names, files = facts["names"], facts["files"]
        report(f"{name}: {files:,} file{'s' * (files > 1)}: {', '.join(names)}{', ...' * (files > len(names))}")
    report(f"token files in {Path(str(data.train.tokens.filename)).parent}")
