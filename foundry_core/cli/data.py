"""Encode the corpora of a YAML, or compare the training texts of two."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import (
    add_config_arguments,
    add_plugin_argument,
    add_verb,
    load_plugins,
    number,
    path_argument,
    prepare_data,
    read_config,
    report,
    screen_width,
    table,
)
from foundry_core.errors import one_line

if TYPE_CHECKING:
    from foundry_core.corpus.difference import Difference

EXAMPLE = "examples:\n  foundry data prepare configs/gpt2.yaml\n  foundry data diff base.yaml ablation.yaml"
_PREPARE = """Encode the corpora of a YAML into token files, and print what they contain.

foundry train does the same when it starts."""
_PREPARE_EXAMPLE = "example:\n  foundry data prepare configs/gpt2.yaml data.training_corpus=big.txt.gz"
_DIFF = """Show how the training texts of two experiments differ, after the steps of each
(data.steps): counts, what each step does, and examples. With one YAML: how its
steps change its corpus. Nothing is encoded or written.

Experiments that read the same files are compared document by document, others
by the text of their documents, in any order."""
_DIFF_EXAMPLE = (
    "examples:\n  foundry data diff base.yaml ablation.yaml\n  foundry data diff ablation.yaml --examples 20"
)


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    summary = "encode the corpora that have changed or are new"
    add_config_arguments(add_verb(verbs, "prepare", summary, _PREPARE, _PREPARE_EXAMPLE, execute))
    diff = add_verb(verbs, "diff", "show how two training texts differ", _DIFF, _DIFF_EXAMPLE, show_difference)
    diff.add_argument("first", metavar="A.yaml", type=path_argument, help="an experiment")
    diff.add_argument("second", metavar="B.yaml", type=path_argument, nargs="?", help="another one")
    count = number(int, 0, 10_000)
    diff.add_argument("--examples", type=count, default=3, metavar="N", help="examples of each kind (default: 3)")
    diff.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_argument(diff)


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)
    _, data = prepare_data(config)

    from foundry_core.training.console import share

    columns, kinds = {}, []
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
                "bytes added": info.account.get("bytes_added", 0),
                "bytes of text": info.account["bytes_text"],
                "bytes of separators": info.account["bytes_separators"],
                "bytes skipped": info.account["bytes_skipped"],
                "documents": info.documents,
                "empty documents": info.account["empty_documents"],
                "words": info.words,
                "tokens": info.tokens,
                "tokens in holes": info.holes["tokens"] if info.holes else 0,
                "unknown tokens": info.unknown,
                "share of unknown tokens": share(info.unknown_share),
                "rows": len(rows),
            }
            if not config.data.steps:
                del counted["bytes added"], counted["tokens in holes"]
            kinds = list(counted)
            columns[name] = [figure if isinstance(figure, str) else f"{figure:,}" for figure in counted.values()]
    report(table(("corpus", *columns), list(zip(kinds, *columns.values(), strict=True))))
    if data.train.info.account.get("steps"):
        report(f"\n{_steps_table('training', data.train.info.account['steps'])}")
    for name, facts in data.description.items():
        names, files = facts["names"], facts["files"]
        report(f"{name}: {files:,} file{'s' * (files > 1)}: {', '.join(names)}{', ...' * (files > len(names))}")
    report(f"token files in {Path(str(data.train.tokens.filename)).parent}")


def _steps_table(title: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each step with what it did."""

    def figures(step: Mapping[str, Any]) -> Iterator[str]:
        yield _signed(step["documents_dropped"], 0)
        yield f"{step['documents_changed']:,}"
        if lines:
            yield _signed(step["lines_dropped"], 0)
        for unit in ("words", "bytes"):
            yield _signed(step[f"{unit}_removed"], step[f"{unit}_added"])

    lines = any(step["lines_dropped"] for step in steps)
    header = (f"steps of {title}", "documents", "changed", *(["lines"] if lines else []), "words", "bytes")
    return table(header, [[_cut(step["step"], 48), *figures(step)] for step in steps])


def _signed(removed: int, added: int) -> str:
    return " ".join(f"{sign}{number:,}" for sign, number in (("-", removed), ("+", added)) if number) or "0"


def show_difference(options: argparse.Namespace) -> None:
    from foundry_core.config.loading import load_config
    from foundry_core.corpus.difference import difference, training_text

    load_plugins(options)
    first = training_text(load_config(options.first))
    names = (options.first, options.second)
    if options.second is None:
        first, second, names = first.as_read, first, ("as read", options.first)
    else:
        second = training_text(load_config(options.second))
    found = difference(first, second, options.examples)
    if options.json:
        print(json.dumps({"names": names} | found.plain(), indent=1, ensure_ascii=False))
        return
    report(_difference_tables(found, names))
    for name, corpus in zip(names, (first, second), strict=True):
        if corpus.leaves_holes:
            report(f"What {name} drops in place stays in its token stream as holes, which are not trained on.")
    for line in _examples(found, names):
        report(line)


def _difference_tables(found: Difference, names: Sequence[str]) -> str:
    """Return the counts of a difference."""
    columns = ("documents", "words", "bytes")
    totals = [(each.documents, each.words, each.bytes_text) for each in found.accounts]
    rows = dict(zip(names, totals, strict=True))
    if names[0] == names[1]:
        rows = {f"{names[0]} (1)": totals[0], f"{names[1]} (2)": totals[1]}
    rows["in both"] = (found.same.documents, found.same.words, found.same.bytes)
    for name, size in zip(names, found.only, strict=True):
        rows[f"only in {name}"] = (size.documents, size.words, size.bytes)
    for name, size in zip(names, found.changed, strict=True):
        rows[f"changed, in {name}"] = (size.documents, size.words, size.bytes)
    parts = [table(("", *columns), [[name, *(f"{figure:,}" for figure in row)] for name, row in rows.items()])]
    parts += [
        _steps_table(name, account.steps) for name, account in zip(names, found.accounts, strict=True) if account.steps
    ]
    how = "by their number, as both read the same files" if found.by_number else "by their text, in any order"
    return "\n\n".join([*parts, f"Documents were compared {how}."])


def _examples(found: Difference, names: Sequence[str]) -> list[str]:
    width = max(screen_width() - 4, 40)
    lines = []
    for name, kind in zip(names, ("first", "second"), strict=True):
        if found.examples[kind]:
            lines += [f"\nonly in {name}, for instance:", *(f"  {_cut(text, width)}" for text in found.examples[kind])]
    if found.examples["changed"]:
        lines.append("\nchanged, for instance:")
        for before, after in found.examples["changed"]:
            lines += [f"- {_cut(before, width)}", f"+ {_cut(after, width)}"]
    return lines


def _cut(text: str, width: int) -> str:
    line = one_line(text)
    return line if len(line) <= width else f"{line[: width - 4]} ..."
