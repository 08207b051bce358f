"""How a published run scores: the table of its card, its curve over the revisions, and metadata for the hub."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from foundry_core.analysis.figures import FIGURES, LOSSES, figures_of, last_evaluation, last_scores, suites_of
from foundry_core.analysis.intervals import Estimate
from foundry_core.analysis.notes import notes_on
from foundry_core.analysis.runs import Run
from foundry_core.analysis.tables import shown
from foundry_core.publishing.markdown import NONE, number, plain, table

_METRICS = {"loss": "loss", "bits_per_byte": "bits_per_byte", "perplexity_per_word": "perplexity"}
"""Types of metrics, as metadata names them, of losses."""


class Scores:
    """The last losses of a run and its last accuracies, with their intervals."""

    def __init__(self, run: Run):
        self.run = run
        self.suites = suites_of([run])
        self.evaluation, self._scored = last_evaluation(run), last_scores(run)

    @cached_property
    def _figures(self) -> Mapping[str, Estimate]:
        return figures_of([self.run], self.suites)

    def text(self) -> str:
        """Return the table, and what a reader has to know about it."""
        losses = [name for name in LOSSES if name in self._figures]
        rows = [[f"{FIGURES[name]}, {self._corpus}", *self._cells(name, self.evaluation)] for name in losses]
        for suite in self.suites:
            for name, title in suite.figures.items():
                if name in self._figures:
                    label = title if title.startswith(suite.name) else f"{suite.name}: {title}"
                    rows.append([plain(label), *self._cells(name, self._scored[name])])
        if not rows:
            return "The run has not been evaluated."
        text = table(["measure", "value", "95 % interval", "items", "at step"], rows)
        return f"{text}\n\n{' '.join(self._notes())}"

    def _cells(self, name: str, row: Mapping[str, Any]) -> list[str]:
        estimate = self._figures[name]
        interval = f"{_end(name, estimate.low)} to {_end(name, estimate.high)}" if estimate.spread is not None else NONE
        return [shown(name, estimate)[0], interval, number(row.get("items")), f"{row['step']:,}"]

    @property
    def _corpus(self) -> str:
        return f"{self.evaluation['corpus']} text"

    def _notes(self) -> Iterator[str]:
        if any(name in self._figures for name in LOSSES):
            yield "The loss is in nats per predicted token; a loss of one run has no interval."
        if self.suites:
            yield "Accuracies are in percent, their intervals over the items of the suite (bootstrap)."
            measures = sorted({str(row["measure"]) for row in self.run.scored if row["measure"]})
            yield f"A sentence is scored by the {' or '.join(measures)} of its log-probabilities."
        yield from map(plain, notes_on([self.run], self.suites))

    def summary(self) -> str:
        """Return losses and accuracies over all items in a line."""
        names = [name for name in ("loss", *(suite.name for suite in self.suites)) if name in self._figures]
        values = [f"{shown(name, self._figures[name])[0]}{' %' if name not in LOSSES else ''}" for name in names]
        labels = [f"loss on the {self._corpus}" if name == "loss" else name for name in names]
        return ", ".join(f"{label} {value}" for label, value in zip(labels, values, strict=True))

    def by_step(self) -> dict[str, dict[int, str]]:
        """Return the columns of the curve: by title, the value at each step that has one."""
        columns: dict[str, dict[int, str]] = {}
        for row in self.run.evaluated:
            if row["corpus"] == self.evaluation["corpus"] and row.get("loss") is not None:
                columns.setdefault(f"loss, {self._corpus}", {})[row["step"]] = shown("loss", Estimate(row["loss"]))[0]
        for row in self.run.scored:
            if row["level"] == "suite" and row["accuracy"] is not None:
                value = shown(row["suite"], Estimate(row["accuracy"]))[0]
                columns.setdefault(plain(row["suite"]), {})[row["step"]] = value
        return columns

    def model_index(self, name: str, task: str) -> list[dict[str, Any]]:
        """Return the results as the metadata of a card has them; empty if there are none."""
        results = []
        if losses := [name for name in LOSSES if name in self._figures and math.isfinite(self._figures[name].mean)]:
            facts = dict(self.run.record.get("corpora") or {}).get(f"{self.evaluation['corpus']}_corpus") or {}
            names = ", ".join(list(facts.get("names") or ())[:3])
            metrics = [_metric(_METRICS[each], FIGURES[each], round(self._figures[each].mean, 5)) for each in losses]
            results.append(_result(task, self._corpus + (f": {names}" if names else ""), "text", metrics))
        for suite in self.suites:
            metrics = []
            for figure, title in suite.figures.items():
                if (estimate := self._figures.get(figure)) is not None:
                    interval = f" ({_end(figure, estimate.low)} to {_end(figure, estimate.high)})"
                    label = f"{title}, %" + (interval if estimate.spread is not None else "")
                    metrics.append(_metric("accuracy", label, round(100 * estimate.mean, 2)))
            if metrics:
                results.append(_result(task, suite.name, suite.name, metrics))
        return [{"name": name, "results": results}] if results else []


def _end(name: str, value: float | None) -> str:
    return NONE if value is None else shown(name, Estimate(value))[0]


def _metric(kind: str, name: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": value}


def _result(task: str, name: str, kind: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {"task": {"type": task}, "dataset": {"name": name, "type": kind}, "metrics": metrics}
