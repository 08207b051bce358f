"""Learning curves of a comparison: their points, and pictures of them for a paper (matplotlib, the extra `plots`)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundry_core.analysis.comparison import Comparison, Row
from foundry_core.analysis.figures import accuracies
from foundry_core.analysis.runs import Facts, Run

AXES = {"words": "words seen", "tokens": "tokens seen", "flops": "FLOPs", "seconds": "seconds of training"}
"""Maps each figure that a curve can be drawn against to its title."""
_MOST_POINTS = 300
"""Limits the points of a curve in a page: the width of a screen shows no more, and a page is sent by mail."""
PICTURE_MARK = "foundry compare"
"""Marks the metadata of each picture, by which a later call recognises what it may replace."""
COLOURS = ("#2a6fbb", "#d1603d", "#3d8b52", "#8a5bb5", "#b08a1e", "#1f8f99", "#c2477f", "#6b7280")
"""Lists the colours of the rows in their order; the page has its own shades for a dark background."""


@dataclass(frozen=True)
class Curve:
    """The curve of a row: the mean over its seeds, and the lowest and highest of them.

    places: By axis, the places of the points; an axis that a run has not recorded is left out.
    """

    row: str
    places: Mapping[str, tuple[float, ...]]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """The curves of one figure. percent: It is a share. suite: The suite that it is an accuracy of, if it is one."""

    name: str
    title: str
    curves: tuple[Curve, ...]
    percent: bool = False
    suite: str = ""

    @property
    def log(self) -> bool:
        """Check whether its values are drawn on a logarithmic scale: a perplexity falls by orders of magnitude."""
        return "perplexity" in self.title and not self.suite


def charts(comparison: Comparison) -> list[Chart]:
    """Return the charts of a comparison whose curves have at least two points."""
    found = [Chart("train", "training loss (nats per token)", _curves(comparison, _training))]
    titles = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte", "perplexity_per_word": "perplexity"}
    for corpus in ("validation", "test"):
        for name, title in titles.items():
            per = " per word" if name == "perplexity_per_word" else ""
            curves = _curves(comparison, lambda run, c=corpus, n=name: _evaluated(run, c, n))
            found.append(Chart(f"{corpus}-{name}", f"{corpus} {title}{per}", curves))
    for suite in comparison.suites:
        for name, title in suite.figures.items():
            curves = _curves(comparison, lambda run, n=name: _scored(run, n))
            found.append(Chart(name, title, curves, percent=True, suite=suite.name))
    return [chart for chart in found if chart.curves]


def _training(run: Run) -> Iterator[tuple[Facts, float]]:
    yield from ((row, row["loss"]) for row in run.steps)


def _evaluated(run: Run, corpus: str, name: str) -> Iterator[tuple[Facts, float]]:
    yield from ((row, row[name]) for row in run.evaluated if row["corpus"] == corpus and row.get(name) is not None)


def _scored(run: Run, name: str) -> Iterator[tuple[Facts, float]]:
    yield from ((row, row["accuracy"]) for each, row in accuracies(run) if each == name and row["accuracy"] is not None)


def _curves(comparison: Comparison, points: Any) -> tuple[Curve, ...]:
    found = (_curve(row, [dict(_by_step(points(run))) for run in row.runs]) for row in comparison.rows)
    return tuple(curve for curve in found if curve is not None)


def _by_step(points: Iterable[tuple[Facts, float]]) -> Iterator[tuple[int, tuple[Facts, float]]]:
    yield from ((row["step"], (row, value)) for row, value in points if math.isfinite(value))


def _curve(row: Row, runs: Sequence[Mapping[int, tuple[Facts, float]]]) -> Curve | None:
    """Return the curve at the steps that all runs of a row have."""
    steps = sorted(set.intersection(*(set(each) for each in runs)))
    if len(steps) < 2:
        return None
    groups = _thinned(steps)
    values = [[_mean([each[step][1] for step in group]) for each in runs] for group in groups]
    places = {}
    for axis in AXES:
        key = axis if axis in ("flops", "seconds") else f"{axis}_seen"
        of_axis = [[each[group[-1]][0].get(key) for each in runs] for group in groups]
        if all(place is not None for each in of_axis for place in each):
            places[axis] = tuple(_mean([place for place in each if place is not None]) for each in of_axis)
    return Curve(row.name, places, tuple(map(_mean, values)), tuple(map(min, values)), tuple(map(max, values)))


def _thinned(steps: Sequence[int]) -> list[Sequence[int]]:
    """Return the steps in groups, each of which becomes one point."""
    size = math.ceil(len(steps) / _MOST_POINTS)
    return [steps[at : at + size] for at in range(0, len(steps), size)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def pictures(comparison: Comparison) -> Iterator[tuple[str, bytes]]:
    """Yield each chart against each axis as the name of a file and its content, as PNG and as SVG.

    Accuracies of phenomena are left out: the page has them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    # Text stays text, and equal curves are equal files: without a salt, the names inside an SVG are drawn by chance.
    style = {"svg.fonttype": "none", "svg.hashsalt": "foundry", "font.size": 9}
    whole = [chart for chart in charts(comparison) if chart.name in ("", chart.suite) or not chart.suite]
    colours = {row.name: COLOURS[at % len(COLOURS)] for at, row in enumerate(comparison.rows)}
    with matplotlib.rc_context(style):
        for chart in whole:
            for axis, title in AXES.items():
                curves = [curve for curve in chart.curves if axis in curve.places]
                if not curves:
                    continue
                drawn = Figure(figsize=(4.8, 3.2))
                # Margins that are measured for each picture double the time of drawing it.
                drawn.subplots_adjust(left=0.14, right=0.97, bottom=0.15, top=0.97)
                axes = drawn.subplots()
                _draw(axes, chart, curves, axis, title, colours)
                # Without formulas as labels, which take longer than all else in a picture.
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                if chart.log:
                    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    axes.yaxis.set_minor_formatter(NullFormatter())
                for kind, metadata in (
                    ("png", {"Software": PICTURE_MARK}),
                    ("svg", {"Date": None, "Creator": PICTURE_MARK}),
                ):
                    buffer = io.BytesIO()
                    drawn.savefig(buffer, format=kind, dpi=200, metadata=metadata)
                    yield f"{_file_name(chart.name)}-by-{axis}.{kind}", buffer.getvalue()


def _draw(axes: Any, chart: Chart, curves: Sequence[Curve], axis: str, title: str, colours: Mapping[str, str]) -> None:
    scale = 100 if chart.percent else 1
    for curve in curves:
        places, colour = curve.places[axis], colours[curve.row]
        low, high = ([scale * value for value in ends] for ends in (curve.low, curve.high))
        if low != high:
            axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        # A text between dollars would be set as a formula, and one that begins with _ left out of the legend.
        label = curve.row.replace("$", r"\$").replace("_", " ")
        axes.plot(places, [scale * value for value in curve.mean], color=colour, label=label, linewidth=1.5)
    name = f"{chart.title}, accuracy (%)" if chart.percent else chart.title
    axes.set(xlabel=title, ylabel=name.replace("$", r"\$"), yscale="log" if chart.log else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, linewidth=0.5)
    axes.legend(frameon=False)


def _file_name(name: str) -> str:
    """Return a chart's name as part of the name of a file: that of a suite may contain anything."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "_"
