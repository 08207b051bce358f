"""A comparison as one HTML page that needs nothing else: tables, curves, conditions, data, environment, citation.

The page is readable without JavaScript, which sorts the table and draws the curves. Whatever comes from a YAML or a
result is escaped, in the HTML as in the JSON that the script reads.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from foundry_core import __version__
from foundry_core.analysis.comparison import Comparison, Difference
from foundry_core.analysis.conditions import Condition, as_text
from foundry_core.analysis.curves import AXES, COLOURS, charts
from foundry_core.analysis.figures import FIGURES
from foundry_core.analysis.intervals import Estimate
from foundry_core.analysis.runs import Facts, Run
from foundry_core.analysis.tables import PLACES, as_csv, shown
from foundry_core.errors import one_line
from foundry_core.training.console import share

PAGE_START = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="foundry">'
)
_TEMPLATE = "page.html.template"
_CORPORA = {"training_corpus": "training", "validation_corpus": "validation", "test_corpus": "test"}


class Markup(str):
    """HTML; every other text is escaped before it becomes part of a page."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str) -> Markup:
    """Return an element; `class_` is its class."""
    inside = "".join(each if isinstance(each, Markup) else _text(each) for each in content)
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{inside}</{name}>")


def _text(text: str) -> str:
    return escape(one_line(text), quote=True)


def page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    sections = [
        *_head(comparison),
        *_results(comparison),
        *_phenomena(comparison),
        *_curves(comparison),
        *_differences(comparison),
        *_conditions(comparison),
        *_settings(comparison),
        *_data(comparison),
        *_environment(comparison.runs),
        *_citation(comparison.runs),
    ]
    template = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # What is filled in is not searched again: a name may look like a place of the template.
    head, rest = template.split("@title@")
    between, rest = rest.split("@body@")
    script, end = rest.split("@data@")
    return "".join(
        [head, _text(comparison.name), between, "\n".join(sections), script, _embedded(_drawn(comparison)), end]
    )


def _embedded(content: Any) -> str:
    """Return JSON that can stand in a script element: no `<` could end it, and no number is infinite."""
    text = json.dumps(_finite(content), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def _drawn(comparison: Comparison) -> Facts:
    rows = {row.name: at for at, row in enumerate(comparison.rows)}
    found = [
        {
            "title": one_line(chart.title),
            "suite": one_line(chart.suite),
            "percent": chart.percent,
            "log": chart.log,
            "curves": [
                {
                    "row": rows[curve.row],
                    "places": dict(curve.places),
                    "mean": curve.mean,
                    "low": curve.low,
                    "high": curve.high,
                }
                for curve in chart.curves
            ],
        }
        for chart in charts(comparison)
    ]
    axes = {
        axis: title
        for axis, title in (AXES | {"seconds": "time of training"}).items()
        if any(axis in curve["places"] for chart in found for curve in chart["curves"])  # type: ignore[attr-defined]
    }
    return {"rows": [one_line(row.name) for row in comparison.rows], "axes": axes, "charts": found}


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", on_screen: Sequence[bool] = ()
) -> Markup:
    """Return a table; a cell that is not yet an element becomes one, the first of a row its head.

    on_screen: For each row, whether it is left out on paper; none is by default.
    """
    head = tag("tr", *(tag("th", each, scope="col") for each in header))
    body = []
    for (first, *rest), left_out in zip(rows, on_screen or [False] * len(rows), strict=True):
        look = {"class_": "screen"} if left_out else {}
        body.append(tag("tr", _head_cell(first), *(_cell(each) for each in rest), **look))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_=kind)
    return tag("div", table, class_="wide", tabindex="0")


def _head_cell(content: str) -> Markup:
    return tag("th", content, scope="row")


def _cell(content: str) -> Markup:
    return content if isinstance(content, Markup) and content.startswith("<td") else tag("td", content)


def _named(comparison: Comparison, at: int) -> Markup:
    swatch = tag("span", class_="swatch", style=f"--c: var(--c{at % len(COLOURS)})")
    return Markup(swatch + _text(comparison.rows[at].name))


def _figure(name: str, estimate: Estimate | None, *, bar: bool = False) -> Markup:
    mean, spread = shown(name, estimate)
    if estimate is None:
        return tag("td", "–", data_value="")
    content = [mean, *([tag("span", f" ± {spread}", class_="spread")] if spread else [])]
    look = {"class_": "share", "style": f"--v: {estimate.mean:.4f}"} if bar else {}
    return tag("td", *content, data_value=repr(estimate.mean), **look)


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _head(comparison: Comparison) -> Iterable[Markup]:
    runs, rows = comparison.runs, comparison.rows
    yield tag("h1", comparison.name)
    counts = {len(row.runs) for row in rows}
    seeds = f", {_counted(counts.pop(), 'seed')} each" if len(counts) == 1 else ""
    made = f"{_counted(len(rows), 'model')}, {_counted(len(runs), 'run')}{seeds}"
    yield tag("p", f"{made}. Written by foundry {__version__} on {time.strftime('%Y-%m-%d')}.", class_="soft")
    wrong = [each.name for each in comparison.conditions if each.unintended]
    equal = sum(each.equal for each in comparison.conditions)
    intended = len(comparison.conditions) - equal - len(wrong)
    differ = f", {_counted(intended, 'intended difference')}" if intended else ""
    if wrong:
        text = f"Not equal, and not intended: {', '.join(wrong)}."
        yield tag("p", tag("span", text, class_="bad"), " ", tag("a", "See the conditions.", href="#conditions"))
    elif comparison.conditions:
        text = f"Conditions checked: {equal} equal{differ}."
        yield tag(
            "p", tag("span", text, class_="good"), " ", tag("a", "See them.", href="#conditions", class_="screen")
        )


def _results(comparison: Comparison) -> Iterable[Markup]:
    names = comparison.overall
    several = any(len(row.runs) > 1 for row in comparison.rows)
    header = ["model", *(["seeds"] if several else []), *(comparison.figures[name] for name in names)]
    rows = []
    for at, row in enumerate(comparison.rows):
        seeds = [tag("td", str(len(row.runs)), data_value=str(len(row.runs)))] if several else []
        rows.append([_named(comparison, at), *seeds, *(_figure(name, row.figures.get(name)) for name in names)])
    yield tag("h2", "Results")
    yield _table(header, rows, "sortable")
    yield from (tag("p", note, class_="note small") for note in comparison.notes)
    accuracy = " Accuracies are in percent, over all items of a suite." if comparison.suites else ""
    if any(len(suite.totals) > 1 for suite in comparison.suites):
        accuracy += " Macro is the mean over its paradigms."
    found = (estimate.over for row in comparison.rows for estimate in row.figures.values())
    over = {"seeds": "the seeds (t distribution)", "items": "items for a model with one seed"}
    named = " or ".join(over[each] for each in sorted(set(found) & over.keys(), reverse=True))
    intervals = f" ± is half an interval of 95 % over {named}." if named else ""
    explained = (
        "Losses are those of the last evaluation, on the test corpus if there is one. Time is that of training alone, "
        f"without evaluations and saving.{accuracy}{intervals}"
    )
    link = base64.b64encode(as_csv(comparison).encode()).decode()
    download = tag("a", "Table as CSV", href=f"data:text/csv;base64,{link}", download="comparison.csv", class_="screen")
    yield tag("p", explained, " ", download, class_="soft small")


def _phenomena(comparison: Comparison) -> Iterable[Markup]:
    suites = [suite for suite in comparison.suites if suite.phenomena]
    if not suites:
        return
    columns = len(comparison.rows) + 1
    head = tag("tr", *(tag("th", text, scope="col") for text in ["phenomenon", *(r.name for r in comparison.rows)]))
    body = []
    for suite in suites:
        body.append(tag("tr", tag("th", suite.name, colspan=str(columns), scope="rowgroup"), class_="group"))
        for name, title in suite.phenomena.items():
            cells = [_figure(name, row.figures.get(name), bar=name in row.figures) for row in comparison.rows]
            body.append(tag("tr", _head_cell(title), *cells))
    yield tag("h2", "Accuracy by phenomenon")
    table = tag("table", tag("thead", head), tag("tbody", *body))
    yield tag("div", table, class_="wide", tabindex="0")


def _curves(comparison: Comparison) -> Iterable[Markup]:
    if not charts(comparison):
        return
    yield tag("h2", "Learning curves")
    if any(len(row.runs) > 1 for row in comparison.rows):
        yield tag("p", "A line is the mean over the seeds, its band the lowest and the highest.", class_="soft small")
    yield tag("div", id="controls", class_="controls")
    yield tag("div", id="charts")
    yield tag("noscript", tag("p", "The curves are drawn by JavaScript, which is turned off.", class_="note"))


def _differences(comparison: Comparison) -> Iterable[Markup]:
    if not comparison.differences:
        return
    titles = comparison.figures
    order = list(titles)
    found = sorted(comparison.differences, key=lambda each: order.index(each.figure))
    rows = [_difference(each, titles[each.figure]) for each in found]
    yield tag("h2", "Differences between models")
    yield _table(["figure", "models", "difference", "interval of 95 %", "p", "over"], rows, "sortable")
    explained = (
        "Accuracies in points of percent, by a bootstrap that draws seeds and items again, the same for both models; "
        "losses by a t interval over the seeds that both have. An interval without 0 is printed in bold. Nothing is "
        "corrected for the number of comparisons, and few seeds make a bootstrap too sure of itself."
    )
    yield tag("p", explained, class_="soft small")


def _difference(each: Difference, title: str) -> list[str]:
    scale = 1.0 if each.figure in FIGURES else 100.0
    places = PLACES.get(each.figure, 1)
    mean, low, high = (scale * (end or 0.0) for end in (each.estimate.mean, each.estimate.low, each.estimate.high))
    text, *ends = (f"{value:+.{places}f}".replace("-", "−") for value in (mean, low, high))
    found = tag("strong", text) if low > 0 or high < 0 else text
    value = repr(each.estimate.mean)
    p = "" if each.p is None else f"{each.p:.3f}" if each.p >= 0.001 else "< 0.001"
    count, over = each.estimate.count, str(each.estimate.over)
    over = over.replace("seeds", _counted(count, "seed")) if count > 1 else over
    return [title, f"{each.first} − {each.second}", tag("td", found, data_value=value), " to ".join(ends), p, over]


def _conditions(comparison: Comparison) -> Iterable[Markup]:
    if not comparison.conditions:
        return
    yield tag("h2", "Conditions checked", id="conditions")
    rows = [[each.name, _verdict(each), _values(each)] for each in comparison.conditions]
    # On paper the settings that are meant to differ, dozens for several architectures, are only in their own table.
    both = [each.setting and not each.equal and each.intended for each in comparison.conditions]
    yield _table(["condition", "verdict", "value"], rows, "text", on_screen=both)
    if any(both):
        left = "Settings that differ as intended stand below."
        yield tag("p", left, class_="paper soft small")


def _verdict(condition: Condition) -> Markup:
    if condition.equal:
        return tag("td", tag("span", "equal", class_="good"))
    if condition.intended:
        return tag("td", tag("span", "intended difference", class_="note"))
    return tag("td", tag("span", "not intended", class_="bad"))


def _values(condition: Condition) -> Markup:
    """Return the value, or each value with the runs that have it."""
    if condition.equal:
        found = (value for value in condition.values.values() if value is not None)
        return tag("td", tag("code", as_text(next(found, None))))
    groups = condition.by_value().items()
    return tag("td", *(tag("div", tag("code", value), f" {', '.join(runs)}") for value, runs in groups))


def _settings(comparison: Comparison) -> Iterable[Markup]:
    yield tag("h2", "Settings that differ")
    if not comparison.settings:
        yield tag("p", "None: the runs differ in nothing but the seed, and in where they write.")
        return
    header = ["key", *(row.name for row in comparison.rows)]
    rows = [
        [_key(key), *(tag("code", as_text(value)) if value is not None else "–" for value in values)]
        for key, values in comparison.settings.items()
    ]
    yield _table(header, rows, "text")


def _key(key: str) -> Markup:
    """Return a key that a narrow screen can break where a reader would."""
    return tag("code", Markup(_text(key).replace(".", ".<wbr>").replace("_", "_<wbr>")))


def _data(comparison: Comparison) -> Iterable[Markup]:
    """Return the account of each distinct text, with the models that read it."""
    found: dict[tuple[str, str], tuple[Run, Facts, list[str]]] = {}
    for row in comparison.rows:
        for run in row.runs:
            for key, description in dict(run.record.get("corpora") or {}).items():
                _, _, models = found.setdefault((key, str(description.get("digest"))), (run, description, []))
                if row.name not in models:
                    models.append(row.name)
    rows = []
    for (key, digest), (run, facts, models) in found.items():
        of = "all" if len(models) == len(comparison.rows) else ", ".join(models)
        rows.append([_CORPORA.get(key, key), of, *_account(key, facts, run), tag("code", digest[:12], class_="whole")])
    if rows:
        yield tag("h2", "Data")
        yield _table(["text", "models", "files", "size", "read as", "in training too", "sha256"], rows, "text")


def _account(key: str, facts: Mapping[str, Any], run: Run) -> list[str]:
    names = ", ".join(map(str, facts.get("names") or ()))
    size = facts.get("bytes")
    plan, shared = dict(run.record.get("plan") or {}), facts.get("also_in_training")
    read, both = "", "–"
    if key == "training_corpus" and plan:
        units = [f"{plan[f'{unit}_per_epoch']:,} {unit}" for unit in ("words", "tokens") if f"{unit}_per_epoch" in plan]
        epochs = dict(plan.get("budget") or {}).get("epochs")
        read = f"{', '.join(units)} an epoch" + (f"; {round(epochs, 3):,} epochs" if epochs is not None else "")
        if steps := facts.get("counts_of_steps"):
            read += "; steps: " + ", ".join(str(step.get("step")) for step in steps)
    if isinstance(shared, dict) and shared.get("bytes"):
        part = share(shared["shared_bytes"] / shared["bytes"])
        both = f"{shared['shared']:,} of {shared['documents']:,} documents, {part}"
    return [f"{facts.get('files', '')}: {names}" if names else "", f"{size:,} bytes" if size else "", read, both]


def _environment(runs: Sequence[Run]) -> Iterable[Markup]:
    """Return what the runs computed with: in a sentence what is the same for all, in a table the rest."""
    keys = ("device", "threads", "precision", "compile", "kernels")
    facts = [
        {"seed": run.seed_label, "started": str(run.record.get("started", "")).replace("T", " ")}
        | {key: run.record.get(key) for key in keys}
        | dict(run.record.get("versions") or {})
        for run in runs
    ]
    names = list(dict.fromkeys(name for each in facts for name in each))
    same = {name: facts[0].get(name) for name in names if all(each.get(name) == facts[0].get(name) for each in facts)}
    same = {name: value for name, value in same.items() if name not in ("seed", "started") and value is not None}
    yield tag("h2", "Runs and environment")
    if same:
        yield tag("p", "All runs: " + ", ".join(f"{name} {_plain(value)}" for name, value in same.items()) + ".")
    columns = [name for name in names if name not in same and any(each.get(name) is not None for each in facts)]
    rows = [
        [tag("code", str(run.folder)), *(_plain(each.get(name)) for name in columns)]
        for run, each in zip(runs, facts, strict=True)
    ]
    yield _table(["run", *columns], rows, "text")


def _plain(value: Any) -> str:
    return {True: "on", False: "off", None: "–"}[value] if value is None or isinstance(value, bool) else str(value)


def _citation(runs: Sequence[Run]) -> Iterable[Markup]:
    versions = sorted({str(dict(run.record.get("versions") or {}).get("model-foundry", __version__)) for run in runs})
    lines = [
        "@software{foundry,",
        "  author  = {{the foundry developers}},",
        "  title   = {foundry: small language models of any architecture under equal conditions},",
        f"  version = {{{', '.join(versions)}}},",
        "}",
    ]
    yield tag("h2", "How to cite")
    yield tag("p", "Cite foundry with the version that trained the models, and the papers of the suites you report.")
    yield tag("pre", Markup("\n".join(map(_text, lines))))
    yield tag(
        "footer",
        tag("p", "This page is complete in itself and loads nothing from the network.", class_="soft small"),
        class_="screen",
    )
