"""Compare runs: print their table, and write a page to send to a co-author.

Name runs, the folder of a study, or any folder whose subfolders are runs. Runs
that differ in nothing but the seed are one row, with means and intervals of
95 % over the seeds (t distribution); the interval of an accuracy of one run is
over items. Losses are those of the last evaluation on the test corpus, or
without one on the validation corpus; accuracies those of the last checkpoint
that foundry evaluate --suite has scored. Time is that of training alone.

The page is one HTML file without anything from the network: table, learning
curves, differences between models, conditions checked, settings that differ,
data, environment. With a folder as --output the table is written there too, as
CSV and LaTeX, and each curve as PNG and SVG (needs model-foundry[plots]).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from foundry_core.cli.common import path_argument, screen_width, table, text_argument
from foundry_core.errors import UsageError, warn

if TYPE_CHECKING:
    from foundry_core.analysis.comparison import Comparison

EXAMPLE = """\
examples:
  foundry compare runs/gpt2 runs/lstm
  foundry compare runs/study --output results
  foundry compare runs/slow runs/fast --varied training.learning_rate
  foundry compare runs --output anna.html --csv table.csv --latex table.tex"""

PAGE = "comparison.html"
_TABLES = ("table.csv", "table.tex")
_BEGINNING = 4096
"""Bytes of a file by which it is recognised: the metadata of a picture are among them."""


def configure(parser: argparse.ArgumentParser) -> None:
    what = "folder of a run or of a study, or a folder whose subfolders are runs"
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help=what)
    what = f"page to write, or with another ending a folder for page, tables and pictures (default: {PAGE})"
    parser.add_argument("--output", type=path_argument, metavar="PATH", help=what)
    parser.add_argument("--csv", type=path_argument, metavar="FILE", help="write the table with full precision")
    parser.add_argument("--latex", type=path_argument, metavar="FILE", help="write the table for a paper (booktabs)")
    what = "setting in which the runs are meant to differ, besides model and seeds (repeatable)"
    parser.add_argument("--varied", action="append", default=[], type=text_argument, metavar="KEY", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table, and write no page")


def execute(options: argparse.Namespace) -> None:
    from foundry_core.analysis.comparison import compare
    from foundry_core.analysis.folders import find_runs
    from foundry_core.analysis.tables import as_csv, as_latex
    from foundry_core.config.settings import covered, flat

    files = {options.csv: as_csv, options.latex: as_latex}
    output = None if options.json and not options.output else options.output or PAGE
    page = output if output is None or output.endswith((".html", ".htm")) else str(Path(output) / PAGE)
    beside = [] if page is None or page == output else [str(Path(page).with_name(name)) for name in _TABLES]
    for path in filter(None, (page, *files, *beside)):
        _check_ours(path)
    folders = options.runs
    name = Path(folders[0]).resolve().name if len(folders) == 1 else None
    runs = find_runs(folders)
    for key in options.varied:
        if not any(covered(each, (key,)) for run in runs for each in flat(run.config)):
            raise UsageError(f"--varied {key}: none of the runs has such a setting")
    comparison = compare(runs, name, options.varied)
    for path, text in files.items():
        if path is not None:
            _write(path, text(comparison).encode())
    if page is not None:
        if beside:
            _write_beside(comparison, Path(page).parent)
        write_page(comparison, page)
    if options.json:
        print(json.dumps(comparison.plain, indent=1))
        return
    print(shown(comparison))
    print(f"\npage: {page}")


def shown(comparison: Comparison) -> str:
    """Return the table for the terminal, accuracies by phenomenon below it, and the notes."""
    from foundry_core.analysis import tables

    parts = [table(*each) for each in _side_by_side(comparison)]
    for suite in comparison.suites:
        if suite.phenomena:
            _, rows = tables.terminal(comparison, list(suite.phenomena))
            columns = zip(*(row[1:] for row in rows), strict=True)
            body = [[title, *cells] for title, cells in zip(suite.phenomena.values(), columns, strict=True)]
            parts.append(table([suite.name, *(row[0] for row in rows)], body))
    wrong = [each.name for each in comparison.conditions if each.unintended]
    lines = list(comparison.notes)
    if wrong:
        lines.append(f"NOT EQUAL, and not intended: {', '.join(wrong)}")
        if any(each.unintended and each.setting for each in comparison.conditions):
            lines.append("(A setting that is meant to differ is named with --varied KEY, or varied by a study.)")
    elif comparison.conditions:
        lines.append(f"{len(comparison.conditions)} conditions checked: equal, or different as intended.")
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _side_by_side(comparison: Comparison) -> list[tuple[list[str], list[list[str]]]]:
    """Return the figures as one table, or as several that the screen has room for, the figures of a suite together."""
    from foundry_core.analysis.figures import COSTS
    from foundry_core.analysis.tables import terminal

    def made(names: list[str], first: bool) -> tuple[list[str], list[list[str]]]:
        return terminal(comparison, names, seeds=first and any(len(row.runs) > 1 for row in comparison.rows))

    figures = comparison.overall
    if _width(made(figures, True)) <= screen_width():
        return [made(figures, True)]
    accuracies = [list(suite.totals) for suite in comparison.suites]
    losses = [name for name in figures if name not in (*COSTS, *(name for suite in accuracies for name in suite))]
    found = [[name for name in figures if name in COSTS], losses]
    for names in accuracies:
        joined = [*found[-1], *names]
        if _width(made(joined, False)) <= screen_width():
            found[-1] = joined
        else:
            found.append(names)
    return [made(names, at == 0) for at, names in enumerate(found) if names]


def _width(columns: tuple[list[str], list[list[str]]]) -> int:
    header, rows = columns
    return sum(max(map(len, cells)) + 2 for cells in zip(header, *rows, strict=True)) - 2


def write_page(comparison: Comparison, path: str | Path) -> None:
    """Write the page of a comparison."""
    from foundry_core.analysis.page import page

    _write(path, page(comparison).encode())


def _write(path: str | Path, content: bytes) -> None:
    from foundry_core.storage.files import write_file

    write_file(path, content)


def _write_beside(comparison: Comparison, folder: Path) -> None:
    """Write the tables and the pictures into the folder of the page."""
    from foundry_core.analysis.curves import pictures
    from foundry_core.analysis.tables import as_csv, as_latex

    contents = {
        folder / name: text(comparison).encode() for name, text in zip(_TABLES, (as_csv, as_latex), strict=True)
    }
    try:
        contents |= {folder / "curves" / name: content for name, content in pictures(comparison)}
    except ImportError:
        warn("no pictures of the curves: they need a package, pip install model-foundry[plots]")
    for path in contents:
        _check_ours(path)
    for path, content in contents.items():
        _write(path, content)


def _check_ours(path: str | Path) -> None:
    """Refuse to replace a file that this verb has not written: it may be somebody's paper."""
    from foundry_core.analysis.curves import PICTURE_MARK
    from foundry_core.analysis.page import PAGE_START
    from foundry_core.analysis.tables import CSV_START, LATEX_START

    try:
        with Path(path).open("rb") as file:
            begins = file.read(_BEGINNING)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    starts = tuple(start.encode() for start in (PAGE_START, CSV_START, LATEX_START))
    picture = Path(path).suffix in (".png", ".svg") and PICTURE_MARK.encode() in begins
    if not picture and not begins.startswith(starts):
        raise UsageError(f"{path} was not written by foundry compare and is not overwritten: name another file")
