"""Show the text of the rows of a training step, or how often text had been seen
up to each checkpoint.

Both are computed from the order of the rows, which is a function of seed and
position: nothing is replayed, and the model is not read. Counts read the
training corpus, which must be unchanged.

An occurrence counts in the row in which it ends, so that an epoch has each
once. With --step and --grep only the rows with an occurrence are shown. Rows,
epochs and positions are counted from 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import (
    add_plugin_argument,
    large_imports,
    load_plugins,
    number,
    path_argument,
    table,
    text_argument,
)
from foundry_core.errors import UsageError, one_line, warn

if TYPE_CHECKING:
    from foundry_core.analysis.occurrences import Occurrences
    from foundry_core.analysis.seen import Exposure, SeenRow, SeenRun

EXAMPLE = """\
examples:
  foundry seen runs/gpt2 --step 1000
  foundry seen runs/gpt2 --grep '\\bwere\\b' --step 1000
  foundry seen runs/gpt2 --words verbs.txt --tsv > seen.tsv"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_argument, metavar="RUN", help="the folder of a run (training.output_dir)")
    step = "an optimizer step: show its rows; with --grep or --words, count up to it, too"
    parser.add_argument("--step", type=number(int, 1, 10**12), metavar="N", help=step)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--grep", type=text_argument, metavar="PATTERN", help="count a regular expression of Python")
    what.add_argument("--words", type=path_argument, metavar="FILE", help="count each of these words, one a line")
    parser.add_argument("--ignore-case", action="store_true", help="count upper and lower case as the same")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tsv", action="store_true", help="print tab-separated values, a line for each row or count")
    form.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    if options.step is None and options.grep is None and options.words is None:
        raise UsageError("give --step N for the rows of a step, or --grep PATTERN or --words FILE for counts")
    load_plugins(options)
    with large_imports():
        from foundry_core.analysis.seen import SeenRun

    run = SeenRun(options.run)
    if run.started_from is not None:
        warn(f"{options.run} started from the weights of {run.started_from}: what those had seen is not counted")
    if options.step is not None and options.step > run.newest:
        warn(
            f"step {options.step:,} is after the newest checkpoint, of step {run.newest:,}: what follows is what "
            "training would see if it went on"
        )
    found = None if options.grep is None and options.words is None else _found(options, run)
    rows = [] if options.step is None else run.rows_of(options.step)
    if found is None:
        _print_rows(options, rows)
        return
    steps = [] if options.step is None else [options.step]
    exposures = run.exposures(found, steps)
    if options.grep is not None and rows:
        rows = run.with_any(rows, found)
    _print_counts(options, exposures, rows if options.grep is not None else [])


def _found(options: argparse.Namespace, run: SeenRun) -> Occurrences:
    """Find what the options ask for in the corpus of a run, with a progress bar."""
    from foundry_core.analysis.occurrences import occurrences, pattern_finder, word_finder
    from foundry_core.training.progress import reading

    if options.grep is not None:
        names: Sequence[str] = [options.grep]
        find = pattern_finder(options.grep, ignore_case=options.ignore_case)
    else:
        names = _words(options.words)
        find = word_finder(names, ignore_case=options.ignore_case)
    corpus = run.data.corpus()
    with reading("searching", corpus.bytes) as progress:
        return occurrences(names, find, corpus, run.data.tokens, run.data.tokenizer, progress)


def _words(path: str) -> list[str]:
    """Return the words of a file, one a line, each once."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--words {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--words {path}: byte {error.start} is not UTF-8") from error
    words = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not words:
        raise UsageError(f"--words {path}: it does not contain a word")
    return words


def _print_rows(options: argparse.Namespace, rows: Sequence[SeenRow]) -> None:
    if options.json:
        print(json.dumps({"step": options.step, "rows": list(map(asdict, rows))}, indent=1, ensure_ascii=False))
    elif options.tsv:
        _print_tsv([{"step": options.step, **asdict(row)} for row in rows])
    else:
        print("\n".join(_shown(row) for row in rows))


def _shown(row: SeenRow) -> str:
    """Return a row as a person reads it: its lines below its number."""
    of = f" of {row.corpus}" if row.corpus is not None else ""
    lines = "\n".join(f"  {one_line(line)}" for line in row.text.split("\n"))
    return f"row {row.row}{of}, epoch {row.epoch}, position {row.position}:\n{lines}"


def _print_counts(options: argparse.Namespace, exposures: Sequence[Exposure], rows: Sequence[SeenRow]) -> None:
    if options.json:
        plain = {"counts": list(map(asdict, exposures)), "rows": list(map(asdict, rows))}
        print(json.dumps(plain, indent=1, ensure_ascii=False))
    elif options.tsv:
        _print_tsv([each for exposure in exposures for each in _lines_of(exposure)])
    else:
        columns = list(exposures[0].counts)
        header = ("step", "checkpoint", "epochs", "words seen", *columns)
        if len(columns) > 4:  # a line for each word; the columns are the steps
            header = ("word", *(f"step {each.step:,}" for each in exposures))
            body = [[word, *(f"{each.counts[word]:,}" for each in exposures)] for word in columns]
        else:
            body = [
                [
                    *(f"{each.step:,}", each.checkpoint or "none", f"{each.epochs:,.3f}", f"{each.words_seen:,}"),
                    *(f"{count:,}" for count in each.counts.values()),
                ]
                for each in exposures
            ]
        print(table(header, body))
        if rows:
            print("\n" + "\n".join(map(_shown, rows)))


def _lines_of(exposure: Exposure) -> list[dict[str, Any]]:
    facts = {name: value for name, value in asdict(exposure).items() if name != "counts"}
    return [{"pattern": pattern, **facts, "count": count} for pattern, count in exposure.counts.items()]


def _print_tsv(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print lines with a header."""
    from foundry_core.evaluation.score_table import tsv

    print(tsv([list(lines[0]), *(line.values() for line in lines)]), end="")
