"""The figures of runs: costs, losses of the last evaluation, accuracies of the last scoring; means over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundry_core.analysis.intervals import Estimate, over_seeds
from foundry_core.analysis.runs import Facts, Run

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
LOSSES = ("loss", "bits_per_byte", "perplexity_per_word")


@dataclass(frozen=True)
class Suite:
    """A suite that some of the runs were scored on, as its figures with their titles.

    Attributes:
        name: Its name, which is that of its first figure.
        totals: Its accuracy over all items; of several paradigms, the mean of their accuracies too.
        phenomena: The accuracies of its phenomena, in the order of the results; of several, their mean too.
    """

    name: str
    totals: Mapping[str, str]
    phenomena: Mapping[str, str]

    @property
    def figures(self) -> dict[str, str]:
        """All of them."""
        return {**self.totals, **self.phenomena}


def suites_of(runs: Sequence[Run]) -> tuple[Suite, ...]:
    """Return the suites that runs were scored on, by name."""
    rows: dict[str, list[Facts]] = {}
    for run in runs:
        for row in run.scored:
            rows.setdefault(row["suite"], []).append(row)
    return tuple(_suite(name, each) for name, each in sorted(rows.items()))


def _suite(name: str, rows: Sequence[Facts]) -> Suite:
    totals, phenomena = {name: name}, {}
    whole = [row for row in rows if row["level"] == "suite"]
    paradigms = {row["name"] for row in rows if row["level"] == "paradigm"}
    # A line of the metrics does not list the paradigms: there are several if the means over them and over items differ.
    if len(paradigms) > 1 or any(_differ(row["macro"], row["accuracy"]) for row in whole):
        totals[_macro(name)] = f"{name}, macro"
    for row in rows:
        if row["level"] == "phenomenon":
            phenomena[f"{name}/{row['name']}"] = row["name"]
    if len(phenomena) > 1 and any(row["phenomena_macro"] is not None for row in whole):
        phenomena[_mean_of_phenomena(name)] = "mean of the phenomena"
    return Suite(name, totals, phenomena)


def _differ(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and not math.isclose(one, other, abs_tol=1e-9)


def _macro(suite: str) -> str:
    return f"{suite} macro"


def _mean_of_phenomena(suite: str) -> str:
    return f"{suite} phenomena"


def accuracies(run: Run) -> Iterator[tuple[str, Facts]]:
    """Yield each accuracy of a suite or phenomenon as its figure and a row with `accuracy`, `low` and `high`, by step.

    Paradigms are left out.
    """
    for row in run.scored:
        suite = row["suite"]
        if row["level"] == "phenomenon":
            yield f"{suite}/{row['name']}", row
        elif row["level"] == "suite":
            yield suite, row
            low, high = row["macro_low"], row["macro_high"]
            yield _macro(suite), row | {"accuracy": row["macro"], "low": low, "high": high}
            mean = {"accuracy": row["phenomena_macro"], "low": None, "high": None}
            yield _mean_of_phenomena(suite), row | mean


def last_scores(run: Run) -> dict[str, Facts]:
    """Return the rows of the last step at which each suite was scored, by figure."""
    return dict(accuracies(run))


def last_evaluation(run: Run) -> Facts:
    """Return the last evaluation on the test corpus, or without one on the validation corpus."""
    for corpus in ("test", "validation"):
        rows = [row for row in run.evaluated if row["corpus"] == corpus]
        if rows:
            return rows[-1]
    return {}


def last_text(run: Run) -> tuple[str, str] | None:
    """Return what the last evaluation was on: the kind of corpus and its sha256, empty if it was not recorded."""
    if not (last := last_evaluation(run)):
        return None
    corpora: Mapping[str, Any] = dict(run.record.get("corpora") or {})
    return last["corpus"], str(dict(corpora.get(f"{last['corpus']}_corpus") or {}).get("digest", ""))


def task(run: Run) -> tuple[str, Any]:
    """Return what a loss per token depends on besides the text: the objective, and the digest of the tokenizer."""
    return run.objective, dict(run.state.get("data") or {}).get("the tokenizer")


def last_digests(runs: Iterable[Run], suite: str) -> set[str]:
    """Return the digests of the suites of one name on which runs were scored last; those not recorded are left out."""
    rows = (last_scores(run).get(suite) for run in runs)
    return {row["suite_digest"] for row in rows if row is not None and row["suite_digest"]}


def figures_of(runs: Sequence[Run], suites: Sequence[Suite]) -> dict[str, Estimate]:
    """Return the figures of runs that differ in nothing but the seed; those that not all of them have are left out.

    Accuracies on different suites of one name have no mean.
    """
    found: dict[str, Estimate] = {}
    for name in COSTS:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if len(values) == len(runs):
            found[name] = over_seeds(values)
    # A cost is the same for every seed or a matter of the machine: there is nothing to infer about it.
    found = {name: Estimate(estimate.mean, count=estimate.count) for name, estimate in found.items()}
    last = [last_evaluation(run) for run in runs]
    for name in LOSSES:
        values = [row[name] for row in last if row.get(name) is not None]
        if values and len(values) == len(runs):
            found[name] = over_seeds(values)
    scores = [last_scores(run) for run in runs]
    for suite in suites:
        for name in suite.figures if len(last_digests(runs, suite.name)) < 2 else ():
            there = [each[name] for each in scores if name in each and each[name]["accuracy"] is not None]
            if len(there) == len(runs) > 1:
                found[name] = over_seeds([each["accuracy"] for each in there])
            elif len(there) == len(runs):
                found[name] = _of_items(there[0])
    return found


def _of_items(row: Facts) -> Estimate:
    """Return an accuracy with its interval over items; if all are right, or none, a bootstrap cannot give it."""
    low, high = row["low"], row["high"]
    if low is None or low == high:
        return Estimate(row["accuracy"])
    return Estimate(row["accuracy"], low, high, "items")
