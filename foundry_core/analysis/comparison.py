"""Runs side by side: a row for each set of runs that differ in nothing but the seed, and differences between rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from foundry_core.analysis.conditions import COMPARED, Condition, check_conditions
from foundry_core.analysis.figures import (
    FIGURES,
    LOSSES,
    Suite,
    figures_of,
    last_digests,
    last_evaluation,
    last_scores,
    last_text,
    suites_of,
    task,
)
from foundry_core.analysis.intervals import Estimate, accuracy_difference, over_seeds
from foundry_core.analysis.items import Items
from foundry_core.analysis.notes import notes_on
from foundry_core.analysis.runs import Facts, Run
from foundry_core.config.settings import FREE, SEEDS, covered, flat
from foundry_core.errors import CheckpointError, UsageError, warn

_NOT_COMPARED = (*FREE, "experiment_name", "tokenizer.output_dir")
"""Settings that change no weight; the tokenizer itself is compared by its digest."""
_ARCHITECTURE = "model.architecture"
_LONGEST_NAME = 60
_MOST_PAIRS = 15
"""Six rows in pairs; of more rows, each is compared with the first one only."""


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed. figures: without those that no run has."""

    name: str
    runs: tuple[Run, ...]
    figures: Mapping[str, Estimate]

    @property
    def seeds(self) -> list[int | str | None]:
        """The seeds of the runs."""
        return [run.seed_label for run in self.runs]


@dataclass(frozen=True)
class Difference:
    """Holds the difference of a figure, first row less second. p: of a bootstrap, None of a t interval."""

    figure: str
    first: str
    second: str
    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        name: Of the study, or of what was compared.
        rows: The rows, in the order in which the runs were named.
        suites: The suites, by name.
        differences: Between pairs of rows.
        settings: The settings that differ, by key: a value for each row.
        conditions: What has to be equal.
        notes: What a reader has to know about the figures.
    """

    name: str
    rows: tuple[Row, ...]
    suites: tuple[Suite, ...]
    differences: tuple[Difference, ...]
    settings: Mapping[str, tuple[Any, ...]]
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for row in self.rows for run in row.runs]

    @property
    def figures(self) -> dict[str, str]:
        """The figures that some row has, with their titles."""
        found = {name: title for name, title in FIGURES.items() if any(name in row.figures for row in self.rows)}
        return found | {name: title for suite in self.suites for name, title in suite.figures.items()}

    @property
    def overall(self) -> list[str]:
        """The figures of the main table: all but the phenomena."""
        phenomena = {name for suite in self.suites for name in suite.phenomena}
        return [name for name in self.figures if name not in phenomena]

    @property
    def plain(self) -> dict[str, Any]:
        """The table and the differences as plain data."""
        rows = [
            {"name": row.name, "seeds": row.seeds, "runs": [str(run.folder) for run in row.runs]}
            | {name: _plain(estimate) for name, estimate in row.figures.items()}
            for row in self.rows
        ]
        differences = [
            {"figure": each.figure, "first": each.first, "second": each.second, **_plain(each.estimate), "p": each.p}
            for each in self.differences
        ]
        conditions = [
            {"name": each.name, "equal": each.equal, "intended": each.intended, "values": dict(each.values)}
            for each in self.conditions
        ]
        settings = {key: list(values) for key, values in self.settings.items()}
        found = {"rows": rows, "differences": differences, "settings": settings, "conditions": conditions}
        return {"name": self.name, **found, "notes": list(self.notes)}


def _plain(estimate: Estimate) -> Facts:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "over": estimate.over}


def compare(runs: Sequence[Run], name: str | None = None, varied: Sequence[str] = ()) -> Comparison:
    """Compare runs: their table, differences between its rows, and the conditions.

    Args:
        runs: The runs, at least one of which has reported something.
        name: What the comparison is called; by default the names of its rows.
        varied: Settings in which runs of no study are meant to differ, in addition to the model and the seeds.

    Raises:
        CheckpointError: None of the runs has a report.
    """
    begun = [run for run in runs if run.steps or run.evaluated]
    for run in runs:
        if run not in begun:
            warn(f"{run.folder} is left out: it has no report yet")
    if not begun:
        raise CheckpointError("none of these runs has a report yet: there is nothing to compare")
    groups: dict[str, list[Run]] = {}
    for run in begun:
        groups.setdefault(_kind(run), []).append(run)
    members, repeated = [], []
    for group in groups.values():
        kept, others = _distinct(group)
        members.append(kept)
        repeated += others
    begun = [run for run in begun if any(run in group for group in members)]
    suites = suites_of(begun)
    settings = _differing([flat(group[0].config) for group in members])
    names = _names(members, settings)
    rows = tuple(Row(each, tuple(group), figures_of(group, suites)) for each, group in zip(names, members, strict=True))
    return Comparison(
        name or (", ".join(names) if len(names) <= 4 else f"{len(names)} models"),
        rows,
        suites,
        tuple(_differences(rows, suites)),
        settings,
        tuple(_conditions(begun, varied)),
        (*repeated, *notes_on(begun, suites)),
    )


def _conditions(runs: Sequence[Run], varied: Sequence[str]) -> Iterable[Condition]:
    """Return the conditions of two runs or more that have checkpoints: of a study, by what its grid varies."""
    saved = [run.folder for run in runs if run.saved]
    if len(saved) < 2:
        return []
    study = saved[0].parent
    in_one_study = all(run.cell and run.folder.parent == study for run in runs)
    if in_one_study and varied:
        raise UsageError(f"{study} is a study, whose grid says what varies in it: --varied is for other runs")
    return check_conditions(study if in_one_study else saved, (*COMPARED, *varied))


def _kind(run: Run) -> str:
    """Return what two runs have in common that differ in nothing but the seed: settings, texts, tokenizer."""
    settings = {key: value for key, value in flat(run.config).items() if not covered(key, (*_NOT_COMPARED, *SEEDS))}
    return json.dumps([settings, run.state.get("data")], sort_keys=True, default=str)


def _distinct(group: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs of a row, each seed once and as far as it was trained, and a note on each other one.

    A copy of a run is not a second seed: counted as one, it would make the interval narrow.
    """
    kept: dict[str, Run] = {}
    for at, run in enumerate(group):
        seeds = repr(sorted(run.seeds.items())) if run.seeds else str(at)
        kept[seeds] = max(kept.get(seeds, run), run, key=lambda each: each.step)
    others = [run for run in group if run not in kept.values()]
    repeats = "it has the settings and the seeds of another run"
    return list(kept.values()), [f"Left out: {run.folder}, because {repeats}." for run in others]


def _differing(configurations: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each key that differs; a key that a version lacks has the value None."""
    keys = dict.fromkeys(key for each in configurations for key in each if not covered(key, (*_NOT_COMPARED, *SEEDS)))
    values = {key: tuple(each.get(key) for each in configurations) for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _names(groups: Sequence[Sequence[Run]], settings: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a distinct name for each row: of its cell, its architecture, its experiment, what differs, its folder."""
    candidates = (
        [", ".join(group[0].cell.values()) for group in groups],
        [group[0].architecture for group in groups],
        [group[0].name if len({run.name for run in group}) == 1 else "" for group in groups],
        _described(settings, len(groups)),
        [group[0].folder.resolve().name for group in groups],
    )
    for names in candidates:
        if len(set(names)) == len(names) and all(0 < len(name) <= _LONGEST_NAME for name in names):
            return names
    return [str(group[0].folder) for group in groups]


def _described(settings: Mapping[str, Sequence[Any]], rows: int) -> list[str]:
    """Return what is different about each row; an architecture stands for all settings of its model."""
    if _ARCHITECTURE in settings:
        settings = {key: each for key, each in settings.items() if key == _ARCHITECTURE or not key.startswith("model.")}
    keys = sorted(settings, key=lambda key: key != _ARCHITECTURE)
    texts = [[str(settings[key][at]) for key in keys if settings[key][at] is not None] for at in range(rows)]
    return [", ".join(text.rstrip("/").rpartition("/")[2] for text in each) for each in texts]


def _differences(rows: Sequence[Row], suites: Sequence[Suite]) -> Iterable[Difference]:
    pairs, items = list(combinations(rows, 2)), Items()
    for first, second in pairs if len(pairs) <= _MOST_PAIRS else [(rows[0], other) for other in rows[1:]]:
        for name in LOSSES:
            if estimate := _loss_difference(name, first, second):
                yield Difference(name, first.name, second.name, estimate, None)
        for suite in suites:
            if found := _score_difference(suite.name, first, second, items):
                yield Difference(suite.name, first.name, second.name, *found)


def _loss_difference(name: str, first: Row, second: Row) -> Estimate | None:
    """Return the difference over seeds that both rows have, at least two, if all were evaluated on one text.

    The loss in nats a token is compared only between models of one objective and one tokenizer.
    """
    runs = (*first.runs, *second.runs)
    if len(set(map(last_text, runs))) > 1 or (name == "loss" and len(set(map(task, runs))) > 1):
        return None
    ones, twos = _paired(first, second)
    values = [[last_evaluation(run).get(name) for run in row] for row in (ones, twos)]
    if len(ones) < 2 or any(value is None for each in values for value in each):
        return None
    found = over_seeds([one - two for one, two in zip(*values, strict=True)])
    return None if found.low is None else found


def _paired(first: Row, second: Row) -> tuple[list[Run], list[Run]]:
    """Return the runs of both rows with the same seeds, in the order of the seeds."""
    ones, twos = ({tuple(sorted(run.seeds.items())): run for run in row.runs if run.seeds} for row in (first, second))
    both = sorted(ones.keys() & twos.keys(), key=repr)
    return [ones[seeds] for seeds in both], [twos[seeds] for seeds in both]


def _score_difference(suite: str, first: Row, second: Row, items: Items) -> tuple[Estimate, float] | None:
    """Return the difference of the accuracy on the items that all runs were scored on, if they are of one suite."""
    ones, twos = _paired(first, second)
    paired = len(ones) == len(first.runs) == len(second.runs)
    rows = (ones, twos) if paired else (first.runs, second.runs)
    runs = [run for row in rows for run in row]
    last = [last_scores(run).get(suite) for run in runs]
    # What is only in the metrics has no items.
    if (
        any(each is None or not each["items"] or not each["file"] for each in last)
        or len(last_digests(runs, suite)) > 1
    ):
        return None
    right = items.right(runs, suite)
    if not right.shape[1]:
        return None
    return accuracy_difference(right[: len(rows[0])], right[len(rows[0]) :], paired=paired)
