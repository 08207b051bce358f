"""The table of a comparison as text: for the terminal, as CSV, as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence

from foundry_core.analysis.comparison import Comparison, Row
from foundry_core.analysis.figures import COSTS
from foundry_core.analysis.intervals import Estimate
from foundry_core.training.console import compact, duration

LATEX_START = "% Written by foundry compare"
CSV_START = "row,seeds,"

_COSTS: dict[str, Callable[[float], str]] = {
    "flops": lambda value: f"{value:.2e}".replace("e+", "e"),
    "seconds": duration,
}
PLACES = {"loss": 3, "bits_per_byte": 3, "perplexity_per_word": 2}
"""Decimals of a figure whose interval does not decide on them; an accuracy in percent has one."""
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def shown(name: str, estimate: Estimate | None) -> tuple[str, str]:
    """Return the mean of a figure and half its interval as text, empty where there is none; accuracies in percent.

    A figure has so many decimals that its interval has two figures, an accuracy one.
    """
    if estimate is None:
        return "", ""
    if name in COSTS:
        return _COSTS.get(name, compact)(estimate.mean), ""
    spread, places = estimate.spread, PLACES.get(name, 1)
    if name not in PLACES:
        return f"{100 * estimate.mean:.1f}", "" if spread is None else f"{100 * spread:.1f}"
    if spread:
        places = min(max(1 - math.floor(math.log10(spread)), 0), 5)
    return f"{estimate.mean:.{places}f}", "" if spread is None else f"{spread:.{places}f}"


def terminal(comparison: Comparison, names: list[str], *, seeds: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table with these figures."""
    titles = comparison.figures
    header = ["model", *(["seeds"] if seeds else []), *(titles[name].replace(" per ", "/") for name in names)]
    rows = []
    for row in comparison.rows:
        cells = [" ± ".join(filter(None, shown(name, row.figures.get(name)))) or "-" for name in names]
        rows.append([row.name, *([str(len(row.runs))] if seeds else []), *cells])
    return header, rows


def as_csv(comparison: Comparison) -> str:
    """Return the table with full precision: each figure with its interval, accuracies from 0 to 1."""
    names = list(comparison.figures)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "seeds", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
    for row in comparison.rows:
        found = [row.figures.get(name) for name in names]
        figures = [each for one in found for each in ((one.mean, one.low, one.high) if one else (None, None, None))]
        writer.writerow([row.name, len(row.runs), *("" if each is None else repr(each) for each in figures)])
    return stream.getvalue()


def as_latex(comparison: Comparison) -> str:
    """Return the table for the package booktabs, and one of the phenomena of each suite, a row for each."""
    suites, titles = comparison.suites, comparison.figures
    names = comparison.overall
    lines = [f"{LATEX_START}; needs \\usepackage{{booktabs}}. Accuracies in percent, intervals of 95 %."]
    rows = [[_escaped(row.name), *(_latex_cell(row, name) for name in names)] for row in comparison.rows]
    lines += _tabular(["model", *(titles[name] for name in names)], rows)
    for suite in suites:
        rows = [
            [_escaped(title), *(_latex_cell(row, name) for row in comparison.rows)]
            for name, title in suite.phenomena.items()
        ]
        if rows:
            lines += ["", *_tabular([suite.name, *(row.name for row in comparison.rows)], rows)]
    return "\n".join([*lines, ""])


def _tabular(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [" & ".join(cells) + r" \\" for cells in rows]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    head = " & ".join(map(_escaped, header)) + r" \\"
    return [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]


def _latex_cell(row: Row, name: str) -> str:
    mean, spread = shown(name, row.figures.get(name))
    if not mean:
        return "--"
    if scientific := re.fullmatch(r"([\d.]+)e0*(\d+)", mean):
        return rf"${scientific[1]} \times 10^{{{scientific[2]}}}$"
    return rf"${mean} \pm {spread}$" if spread else mean


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in " ".join(text.split()))
