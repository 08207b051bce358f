"""The table of a comparison as text: for the terminal, as CSV, as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable

from foundry_core.analysis.comparison import COSTS, Comparison
from foundry_core.analysis.intervals import Estimate
from foundry_core.training.console import compact, duration

LATEX_START = "% Written by foundry compare"
CSV_START = "row,seeds,"

_COSTS: dict[str, Callable[[float], str]] = {
    "flops": lambda value: f"{value:.2e}".replace("e+", "e"),
    "seconds": duration,
}
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def digits(name: str, estimate: Estimate, *, more: int = 0) -> int:
    """Return how many decimals a figure is shown with: so many that its interval has two figures, at least `more`."""
    least = {"loss": 3, "bits_per_byte": 3, "perplexity_per_word": 2}.get(name, 1) + more
    spread = estimate.spread
    return least if not spread or spread >= 1 else min(max(least, 1 - math.floor(math.log10(spread))), 5)


def shown(name: str, estimate: Estimate | None) -> tuple[str, str]:
    """Return the mean of a figure and half its interval as text, empty where there is none; accuracies in percent."""
    if estimate is None:
        return "", ""
    if name in COSTS:
        return _COSTS.get(name, compact)(estimate.mean), ""
    scaled = estimate if name in ("loss", "bits_per_byte", "perplexity_per_word") else _percent(estimate)
    places = min(digits(name, scaled), 1 if scaled is not estimate else 5)
    spread = scaled.spread
    return f"{scaled.mean:.{places}f}", "" if spread is None else f"{spread:.{places}f}"


def _percent(estimate: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (estimate.low, estimate.high))
    return Estimate(100 * estimate.mean, low, high, estimate.over, estimate.count)


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
    """Return the table for the package booktabs."""
    titles = comparison.figures
    lines = [
        f"{LATEX_START}; needs \\usepackage{{booktabs}}. Accuracies in percent, intervals of 95 %.",
        rf"\begin{{tabular}}{{l{'r' * len(titles)}}}",
        r"\toprule",
        " & ".join(["model", *map(_escaped, titles.values())]) + r" \\",
        r"\midrule",
    ]
    for row in comparison.rows:
        cells = [_latex_cell(*shown(name, row.figures.get(name))) for name in titles]
        lines.append(" & ".join([_escaped(row.name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(mean: str, spread: str) -> str:
    if not mean:
        return "--"
    if scientific := re.fullmatch(r"([\d.]+)e0*(\d+)", mean):
        return rf"${scientific[1]} \times 10^{{{scientific[2]}}}$"
    return rf"${mean} \pm {spread}$" if spread else mean


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in " ".join(text.split()))
