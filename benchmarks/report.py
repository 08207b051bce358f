"""The table on the terminal and in README.md, and the plot of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row

_HEADER = ("part", "what", "against", "ratio", "range", "at least", "aim", "reached", "")


def _cells(row: Row) -> tuple[str, ...]:
    def figure(value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.0f} %" if row.unit == "%" else f"{value:.3g}{row.unit}"

    result = row.result
    between = "" if result is None or result.rounds < 2 else f"{figure(result.low)} to {figure(result.high)}"
    limits = figure(row.at_least), figure(row.aim)
    found = figure(result.median if result is not None else None)
    return (row.part, row.what, row.against, found, between, *limits, row.verdict, row.note)


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Return the rows in columns; as Markdown for README.md."""
    cells = [_HEADER, *map(_cells, rows)]
    if markdown:
        lines = ["| " + " | ".join(each) + " |" for each in cells]
        lines.insert(1, "|" + "---|" * len(_HEADER))
        return "\n".join(lines)
    widths = [max(len(each[column]) for each in cells) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip() for each in cells]
    lines.insert(1, "-" * (sum(widths[:-1]) + 2 * len(widths) - 2))
    return "\n".join(lines)


def described(machine: dict[str, Any]) -> str:
    """Return the machine in one line."""
    named = f"{machine['processor']} ({machine['family']}: {', '.join(machine['instructions'])})"
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in machine.get("peak_gflops", {}).items())
    more = f"; matmul peak of one core in GFLOP/s: {peaks}" if peaks else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{named}, {machine['cores']} cores, {machine['memory_gb']} GB{more}; Python {machine['python']}, {versions}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the ratios with their range and limits. matplotlib must be installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.result is not None and row.part not in ("grow", "extrapolated")][::-1]
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.28 * max(len(shown), 4)))
    for place, row in enumerate(shown):
        result = row.result
        assert result is not None
        colour = {"aim": "tab:green", "at least": "tab:olive", "below": "tab:red"}.get(row.verdict, "tab:gray")
        axes.plot([result.low, result.high], [place, place], color=colour, linewidth=4, alpha=0.4)
        axes.plot(result.median, place, "o", color=colour)
        for limit, mark in ((row.at_least, "|"), (row.aim, "*")):
            if limit is not None:
                axes.plot(limit, place, mark, color="black", markersize=9)
    axes.set_yticks(
        range(len(shown)), [f"{row.what} / {row.against}{' (small is good)' * row.lower}" for row in shown], fontsize=7
    )
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xscale("log")
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format(lambda value, _: f"{value:g}")
    axes.set_xlabel("foundry / the other; share of the peak. | at least, * aim")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def plot_losses(training: dict[str, Any], path: Path) -> None:
    """Draw the loss curves of every size, ours and its peers'. matplotlib must be installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    sizes = {name: found for name, found in training.items() if "contenders" in found}
    if not sizes:
        return
    columns = min(len(sizes), 3)
    lines = -(-len(sizes) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(4 * columns, 3 * lines), squeeze=False)
    for axes, (name, found) in zip(grid.flat, sizes.items(), strict=False):
        for contender, each in found["contenders"].items():
            if "losses" in each:
                axes.plot(*zip(*each["losses"], strict=True), label=contender, alpha=0.7)
        axes.set_title(name, fontsize=9)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
