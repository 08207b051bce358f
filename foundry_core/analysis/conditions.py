"""What has to be equal between runs that are compared, checked from what they recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry_core.analysis.runs import Run, is_run


@dataclass(frozen=True)
class Condition:
    """One condition, for several runs.

    Attributes:
        name: What is compared.
        equal: True if it is the same for all runs that have it.
        values: By the name of the run; None for a run that does not have it.
        intended: True if the difference is one that is being compared, such as the seed.
    """

    name: str
    equal: bool
    values: Mapping[str, Any] = field(default_factory=dict)
    intended: bool = True


def check_conditions(study_or_runs: str | Path | Sequence[str | Path]) -> list[Condition]:
    """Compare the data, the tokenizer, the order of the rows, and how much was seen.

    Args:
        study_or_runs: The folder of a study, or the folders of runs.
    """
    if isinstance(study_or_runs, str | Path):
        study_or_runs = sorted(each for each in Path(study_or_runs).iterdir() if is_run(each))
    runs = [Run(folder) for folder in study_or_runs]
    states = {run.folder.name: run.state for run in runs}
    names = sorted({name for state in states.values() for name in state.get("data") or {}})
    digests = {
        name: {run: str((state.get("data") or {}).get(name))[:12] for run, state in states.items()} for name in names
    }
    conditions = [Condition(name, len(set(each.values())) == 1, each, intended=False) for name, each in digests.items()]
    for name, key in (("rows in their order", "ledger"), ("words seen", "words_seen"), ("tokens seen", "tokens_seen")):
        values = {run: state.get(key) for run, state in states.items()}
        values = {run: value[:12] if isinstance(value, str) else value for run, value in values.items()}
        by_seed = {(run.seed, values[run.folder.name]) for run in runs}
        follows = len(by_seed) == len({run.seed for run in runs})  # what the seed decides is meant to differ with it
        conditions.append(Condition(name, len(set(values.values())) == 1, values, intended=follows))
    return conditions
