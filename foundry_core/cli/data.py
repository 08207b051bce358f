"""Encode the corpora of a YAML into token files, and say what was read: bytes, documents, words, tokens.

`foundry train` does the same when it starts; this is for doing it beforehand, or for looking.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import add_config_arguments, read_config, report, table

EXAMPLE = "example:\n  foundry data prepare configs/gpt2.yaml data.training_corpus=corpora/big.txt.gz"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    preparing = verbs.add_parser(
        "prepare", help="encode them, or find them unchanged", description=__doc__, epilog=EXAMPLE
    )
    add_config_arguments(preparing)
    preparing.set_defaults(execute=execute)


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
    rows = []
    for name, tokens, cut in (("training", data.train, data.train_rows), ("test", data.test, data.test_rows)):
        if tokens is None or cut is None:
            continue
        info = tokens.info
        account = info.account
        figures = (
            account["bytes_in"],
            account["bytes_text"],
            account["bytes_separators"],
            account["bytes_skipped"],
            info.documents,
            account["empty_documents"],
            info.words,
            info.tokens,
            len(cut),
        )
        rows.append((name, *(f"{figure:,}" for figure in figures)))
    header = ("corpus", "bytes", "text", "separators", "skipped", "documents", "empty", "words", "tokens", "rows")
    report(table(header, rows))
    report(f"token files in {tokenizer_folder(config) / 'tokens'}")
