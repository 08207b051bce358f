"""Runs side by side: a row for each set of runs that differ in nothing but the seed, and differences between rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from foundry_core.analysis.conditions import COMPARED, Condition, check_conditions
from foundry_core.analysis.intervals import Estimate, accuracy_difference, over_seeds
from foundry_core.analysis.items import Items
from foundry_core.analysis.runs import Facts, Run
from foundry_core.config.settings import FREE, SEEDS, covered, flat
from foundry_core.errors import CheckpointError, warn

_NOT_COMPARED = (*FREE, "experiment_name", "tokenizer.output_dir")
"""Settings that change no weight; the tokenizer itself is compared by its digest."""
_ARCHITECTURE = "model.architecture"
_LONGEST_NAME = 60
_MOST_PAIRS = 15
"""Six rows in pairs; of more rows, each is compared with the first one only."""

FIGURES = {
    "parameters": "parameters",
    "tokens": "tokens",
    "words": "words",
    "flops": "FLOPs",
    "seconds": "time",
    "loss": "loss",
    "bits_per_byte": "bits per byte",
    "perplexity_per_word": "perplexity per word",
}
"""The figures of a row besides accuracies, with their titles."""
COSTS = ("parameters", "tokens", "words", "flops", "seconds")
_LOSSES = ("loss", "bits_per_byte", "perplexity_per_word")


@dataclass(frozen=True)
class Suite:
    """A suite that some of the runs were scored on. phenomena: in the order of the results."""

    name: str
    phenomena: tuple[str, ...]

    @property
    def figures(self) -> dict[str, str]:
        """The names of its accuracies in a row, with what each is of."""
        return {self.name: self.name} | self.phenomena_figures

    @property
    def phenomena_figures(self) -> dict[str, str]:
        """Those of its phenomena."""
        return {f"{self.name}/{each}": each for each in self.phenomena}


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed. figures: without those that no run has."""

    name: str
    runs: tuple[Run, ...]
    figures: Mapping[str, Estimate]

    @property
    def seeds(self) -> list[int | None]:
        """The seeds of the runs."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Difference:
    """What the first row has more than the second. p: of a bootstrap, None of a t interval."""

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
    members = list(groups.values())
    settings = _differing([flat(group[0].config) for group in members])
    names = _names(members, settings)
    rows = tuple(Row(each, tuple(group), _figures(group)) for each, group in zip(names, members, strict=True))
    suites = _suites(begun)
    return Comparison(
        name or (", ".join(names) if len(names) <= 4 else f"{len(names)} models"),
        rows,
        suites,
        tuple(_differences(rows, suites)),
        settings,
        tuple(_conditions(begun, varied)),
        tuple(_notes(begun)),
    )


def _conditions(runs: Sequence[Run], varied: Sequence[str]) -> Iterable[Condition]:
    """Return the conditions of two runs or more that have checkpoints: of a study, by what its grid varies."""
    saved = [run.folder for run in runs if run.saved]
    if len(saved) < 2:
        return []
    study = saved[0].parent
    in_one_study = all(run.cell and run.folder.parent == study for run in runs)
    return check_conditions(study if in_one_study else saved, (*COMPARED, *varied))


def _kind(run: Run) -> str:
    """Return what two runs have in common that differ in nothing but the seed: settings, texts, tokenizer."""
    settings = {key: value for key, value in flat(run.config).items() if not covered(key, (*_NOT_COMPARED, *SEEDS))}
    return json.dumps([settings, run.state.get("data")], sort_keys=True, default=str)


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


def _figures(runs: Sequence[Run]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for name in COSTS:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if len(values) == len(runs):
            found[name] = over_seeds(values)
    # A cost is the same for every seed or a matter of the machine: there is nothing to infer about it.
    found = {name: Estimate(estimate.mean, count=estimate.count) for name, estimate in found.items()}
    last = [_last_evaluation(run) for run in runs]
    for name in _LOSSES:
        values = [row[name] for row in last if row.get(name) is not None]
        if values and len(values) == len(runs):
            found[name] = over_seeds(values)
    scores = [_last_scores(run) for run in runs]
    for name in dict.fromkeys(name for each in scores for name in each):
        there = [each[name] for each in scores if name in each and each[name]["accuracy"] is not None]
        if len(there) == len(runs):
            found[name] = over_seeds([each["accuracy"] for each in there])
            if len(there) == 1:
                low, high = there[0]["low"], there[0]["high"]
                found[name] = Estimate(found[name].mean, low, high, "items" if low is not None else "")
    return found


def _last_evaluation(run: Run) -> Facts:
    """Return the last evaluation on the test corpus, or without one on the validation corpus."""
    for corpus in ("test", "validation"):
        rows = [row for row in run.evaluated if row["corpus"] == corpus]
        if rows:
            return rows[-1]
    return {}


def _last_scores(run: Run) -> dict[str, Facts]:
    """Return the results of each suite and phenomenon at the last checkpoint that was scored on it, by figure."""
    return {figure(row): row for row in run.scored if row["level"] != "paradigm"}


def figure(row: Mapping[str, Any]) -> str:
    """Return the name of the figure that a result of a suite or a phenomenon is."""
    return str(row["suite"]) if row["level"] == "suite" else f"{row['suite']}/{row['name']}"


def _suites(runs: Sequence[Run]) -> tuple[Suite, ...]:
    phenomena: dict[str, dict[str, None]] = {}
    for run in runs:
        for row in run.scored:
            names = phenomena.setdefault(row["suite"], {})
            if row["level"] == "phenomenon":
                names[row["name"]] = None
    return tuple(Suite(name, tuple(each)) for name, each in sorted(phenomena.items()))


def _differences(rows: Sequence[Row], suites: Sequence[Suite]) -> Iterable[Difference]:
    pairs, items = list(combinations(rows, 2)), Items()
    for first, second in pairs if len(pairs) <= _MOST_PAIRS else [(rows[0], other) for other in rows[1:]]:
        for name in _LOSSES:
            if estimate := _loss_difference(name, first, second):
                yield Difference(name, first.name, second.name, estimate, None)
        for suite in suites:
            if found := _score_difference(suite.name, first, second, items):
                yield Difference(suite.name, first.name, second.name, *found)


def _loss_difference(name: str, first: Row, second: Row) -> Estimate | None:
    """Return the difference over seeds that both rows have, at least two.

    The loss in nats a token is compared only between models of one objective and one tokenizer.
    """
    if name == "loss" and len({_task(run) for row in (first, second) for run in row.runs}) > 1:
        return None
    ones, twos = _paired(first, second)
    values = [[_last_evaluation(run).get(name) for run in row] for row in (ones, twos)]
    if len(ones) < 2 or any(value is None for each in values for value in each):
        return None
    return over_seeds([one - two for one, two in zip(*values, strict=True)])


def _task(run: Run) -> tuple[str, Any]:
    return run.objective, dict(run.state.get("data") or {}).get("the tokenizer")


def _paired(first: Row, second: Row) -> tuple[list[Run], list[Run]]:
    """Return the runs of both rows with the same seeds, in the order of the seeds."""
    ones, twos = ({run.seed: run for run in row.runs} for row in (first, second))
    both = sorted(seed for seed in ones.keys() & twos.keys() if seed is not None)
    return [ones[seed] for seed in both], [twos[seed] for seed in both]


def _score_difference(suite: str, first: Row, second: Row, items: Items) -> tuple[Estimate, float] | None:
    """Return the difference of the accuracy on the items that all runs were scored on."""
    ones, twos = _paired(first, second)
    paired = len(ones) == len(first.runs) == len(second.runs)
    rows = (ones, twos) if paired else (first.runs, second.runs)
    last = [_last_scores(run).get(suite) for row in rows for run in row]
    if any(each is None or not each["items"] for each in last):
        return None
    right = items.right([run for row in rows for run in row], suite)
    if not right.shape[1]:
        return None
    return accuracy_difference(right[: len(rows[0])], right[len(rows[0]) :], paired=paired)


def _notes(runs: Sequence[Run]) -> Iterable[str]:
    objectives = {run.objective for run in runs}
    if len(objectives) > 1:
        yield (
            f"The loss is in nats per predicted token, and the objectives differ ({', '.join(sorted(objectives))}): "
            "their losses answer different questions."
        )
    tokenizers = {_task(run)[1] for run in runs} - {None}
    if len(tokenizers) > 1:
        yield "The tokenizers differ: compare bits per byte and perplexity per word, not the loss per token."
    by_corpus: dict[str, list[str]] = {}
    for run in runs:
        if (last := _last_evaluation(run)).get("corpus"):
            by_corpus.setdefault(last["corpus"], []).append(run.folder.name)
    if len(by_corpus) > 1:
        on = "; ".join(f"{corpus}: {', '.join(names)}" for corpus, names in by_corpus.items())
        yield f"The losses are not of one text. {on}."
    if unfinished := [run for run in runs if not run.finished]:
        steps = ", ".join(f"{run.folder.name} at step {run.step:,}" for run in unfinished)
        yield f"Not trained to the end of the plan: {steps}."
    left_out = [
        f"{row['left_out']:,} of {row['suite']} by {run.folder.name}"
        for run in runs
        for row in _last_scores(run).values()
        if row["level"] == "suite" and row["left_out"]
    ]
    if left_out:
        yield f"Items left out, because a model cannot score them: {', '.join(left_out)}."
    behind = [
        f"{run.folder.name} at step {max(row['step'] for row in run.scored):,} of {run.step:,}"
        for run in runs
        if run.scored and max(row["step"] for row in run.scored) < run.step
    ]
    if behind:
        yield f"Accuracies are those of the last checkpoint that was scored: {', '.join(behind)}."
