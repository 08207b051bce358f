"""Encode the corpora of a YAML into token files, and print what they contain.

foundry train does the same when it starts.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import add_config_arguments, read_config, report, table

EXAMPLE = "example:\n  foundry data prepare configs/gpt2.yaml data.training_corpus=big.txt.gz"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    prepare = verbs.add_parser(
        "prepare",
        help="encode the corpora that have changed or are new",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(prepare)
    prepare.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)

    from foundry_core.data.preparation import (
        experiment_corpora,
        experiment_rows,
        experiment_tokenizer,
        experiment_tokens,
        tokenizer_folder,
    )
    from foundry_core.training.console import reading

    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    with reading("encoding", corpora.train.bytes) as progress:
        data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora, progress=progress))
    columns = {}
    for name, tokens, rows in (("training", data.train, data.train_rows), ("test", data.test, data.test_rows)):
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
                "rows": len(rows),
            }
            columns[name] = [f"{figure:,}" for figure in counted.values()]
    report(table(("corpus", *columns), list(zip(counted, *columns.values(), strict=True))))
    report(f"token files in {tokenizer_folder(config) / 'tokens'}")
