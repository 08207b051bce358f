"""Check whether runs were trained under equal conditions: what agrees, and what differs as a study means or does not.

Everything is read from the runs themselves: the configuration, the digests and the ledger of their checkpoints, and
run.json. Of a study, `cells.json` records which keys its grid varies. Runs that belong to no study are taken to be
compared for their model and their seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from foundry_core.checkpoints.checkpoint import checkpoint_step, checkpoints
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.config.sections import BUDGETS, TEXT_KEYS
from foundry_core.config.settings import covered, flat
from foundry_core.data.preparation import TEST_DATA, TOKENIZER_DATA, VALIDATION_DATA
from foundry_core.errors import CheckpointError, UsageError
from foundry_core.models.building import read_description
from foundry_core.registry.objective import CORE_OBJECTIVES
from foundry_core.run_folder import CELLS, RECORD
from foundry_core.storage.manifest import parse_json, read_plain_file

_NO_CONDITION = ("experiment_name", "training.output_dir", "tokenizer.output_dir", "logging")
"""Settings that say where a run writes and what it reports."""
COMPARED = ("model", "random_seed", "seeds")
"""Settings in which runs that belong to no study are meant to differ, by default."""
_BUDGET = tuple(f"training.{key}" for key in BUDGETS)

_TEXT = tuple(f"data.{key}" for key in TEXT_KEYS)
_TOKENIZER = (*_TEXT, "tokenizer")
_AMOUNTS = (*_TOKENIZER, *_BUDGET, "data", "training.gradient_accumulation_steps")
_ORDER = (*_AMOUNTS, "random_seed", "seeds.data_order")
_MASKING = ("seeds.masking", "training.mlm_probability", "training.masking")
"""Settings that only an objective with masks reads."""
_MASKS = (*_ORDER, *_MASKING, "training.objective")
IMPLIED = {
    "training text": _TEXT,
    "validation text": ("data.validation_corpus", "data.documents", "data.blank_lines"),
    "test text": ("data.test_corpus", "data.documents", "data.blank_lines"),
    "tokenizer": _TOKENIZER,
    "budget in words": _AMOUNTS,
    "steps": _AMOUNTS,
    "tokens in a row": _AMOUNTS,
    # The last row of an epoch is short, and a seed decides when it is read.
    "words seen": (*_ORDER, "training.early_stopping_patience"),
    "rows in their order": (*_ORDER, "training.early_stopping_patience"),
    "masks": _MASKS,
    "training.objective": ("model.architecture",),
}
"""By condition, the settings that change it: where a study means to vary one of them, the difference is intended."""


@dataclass(frozen=True)
class Condition:
    """One condition, for several runs.

    Attributes:
        name: What is compared: one of `IMPLIED`, the dotted key of a setting, or a fact such as `precision`.
        equal: True if it is the same for all runs that have it.
        values: By the name of the run; None for a run that does not have it, such as masks of a causal model.
        intended: True if every two runs that differ in it differ as the study means, or as follows from that.
        setting: Whether the name is the key of a setting.
    """

    name: str
    equal: bool
    values: Mapping[str, Any] = field(default_factory=dict)
    intended: bool = True
    setting: bool = False

    @property
    def unintended(self) -> bool:
        """Check whether it differs and should not."""
        return not self.equal and not self.intended

    def by_value(self) -> dict[str, list[str]]:
        """Return the runs of each value, the value as text."""
        groups: dict[str, list[str]] = {}
        for run, value in self.values.items():
            groups.setdefault(as_text(value), []).append(run)
        return groups


def as_text(value: Any) -> str:
    """Return the value of a condition or a setting for a reader."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if type(value) is int else json.dumps(value, ensure_ascii=False, default=str)


class _Run:
    """Reads what a run records of its conditions at the checkpoint that is compared."""

    def __init__(self, name: str, folder: Path, intended: Mapping[str, tuple[str, str]] | Sequence[str]):
        self.name, self.folder = name, folder
        self.intended = intended
        """By dotted key that a study varies, the axis and the name of the value here; without a study, the keys."""
        self.steps = [checkpoint_step(each) for each in checkpoints(folder)]
        if not self.steps:
            raise CheckpointError(f"{folder} does not contain checkpoints: its conditions are not recorded yet")
        self.step = self.steps[-1]
        record = parse_json(folder / RECORD, read_plain_file(folder / RECORD))
        try:
            self.record: dict[str, Any] = dict(record)
            self.plan: dict[str, Any] = dict(record["plan"])
            self.total = int(self.plan["total_steps"])
            self.budget = {str(unit): value for unit, value in dict(self.plan["budget"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / RECORD} is damaged: {error}") from error

    @cached_property
    def state(self) -> TrainState:
        return read_state(self.folder / f"checkpoint-{self.step}")

    @property
    def hides(self) -> bool:
        """Check whether the objective hides tokens, and so reads the settings of masks."""
        return any(key in self.settings for key in _MASKING)

    @cached_property
    def settings(self) -> dict[str, Any]:
        experiment = read_description(self.folder / f"checkpoint-{self.step}")["experiment"]
        found = {key: value for key, value in flat(experiment).items() if not covered(key, _NO_CONDITION)}
        known = CORE_OBJECTIVES.get(str(found.get("training.objective")))
        unread = _MASKING if known is not None and known.causal else ()
        return {key: value for key, value in found.items() if key not in unread}

    @property
    def masks(self) -> str | None:
        """Return what decides which tokens are hidden; None for an objective that hides none."""
        if not self.hides:
            return None
        seed = self.settings.get("seeds.masking")
        seed = self.settings.get("random_seed") if seed is None else seed
        share, kind = self.settings.get("training.mlm_probability"), self.settings.get("training.masking")
        return f"{kind} {share}, seed {seed}, rows {_short(self.state.ledger)}"

    def facts(self) -> dict[str, Any]:
        """Return what is compared besides the settings."""
        state = self.state
        versions = self.record.get("versions")
        return {
            "training text": _short(state.data.get("the training corpus")),
            "validation text": _short(state.data.get(VALIDATION_DATA)),
            "test text": _short(state.data.get(TEST_DATA)),
            "tokenizer": _short(state.data.get(TOKENIZER_DATA)),
            "budget in words": self.budget.get("words"),
            "steps": self.total,
            "tokens in a row": self.plan.get("tokens_per_row"),
            "words seen": state.words_seen,
            "rows in their order": _short(state.ledger),
            "masks": self.masks,
            "precision": state.precision,
            "compiled": state.compile,
            "kernels": state.kernels,
            "device": self.record.get("device"),
            "threads": self.record.get("threads"),
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(dict(versions or {}).items())),
        }


def _short(digest: str | None) -> str | None:
    return digest[:12] if digest else None


def check_conditions(
    study_or_runs: str | Path | Sequence[str | Path], varied: Sequence[str] = COMPARED
) -> list[Condition]:
    """Compare the conditions of runs.

    Runs that have not ended are compared at the newest checkpoint that all of them have.

    Args:
        study_or_runs: The folder of a study, of whose cells those are compared that have checkpoints; or the folders of
            runs.
        varied: Settings and sections in which runs that belong to no study are meant to differ.

    Returns:
        The conditions: those of `IMPLIED`, the facts of the machine, and one for each setting that differs between any
        two runs. What no run has is left out.

    Raises:
        UsageError: There are fewer than two runs to compare.
        CheckpointError: What a run records is missing or damaged.
    """
    if isinstance(study_or_runs, str | Path):
        runs = _cells(Path(study_or_runs))
    else:
        runs = _plain_runs(map(Path, study_or_runs), varied)
    if len(runs) < 2:
        raise UsageError("conditions are compared between two runs or more that have checkpoints")
    _align(runs)
    facts = {run.name: run.facts() for run in runs}
    names = [name for name in facts[runs[0].name] if any(each[name] is not None for each in facts.values())]
    found = [_condition(name, runs, {run.name: facts[run.name][name] for run in runs}) for name in names]
    for key in sorted({key for run in runs for key in run.settings}):
        values = {run.name: run.settings.get(key) for run in runs}
        if any(value != values[runs[0].name] for value in values.values()):
            found.append(_condition(key, runs, values, setting=True))
    return found


def _cells(folder: Path) -> list[_Run]:
    """Return the cells of a study that have checkpoints."""
    if not (folder / CELLS).is_file():
        raise CheckpointError(f"{folder} is not the folder of a study that has begun: it has no {CELLS}")
    stored = parse_json(folder / CELLS, read_plain_file(folder / CELLS))
    try:
        runs = []
        for cell in stored["cells"]:
            varied = {
                str(key): (str(axis["name"]), str(cell["values"][axis["name"]]))
                for axis in stored["axes"]
                for key in axis["keys"]
            }
            varied |= {str(key): ("match", str(width)) for key, width in cell["matched"].items()}
            run = folder / str(cell["folder"])
            if checkpoints(run):
                runs.append(_Run(str(cell["name"]), run, varied))
        return runs
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CELLS} is damaged: {error}") from error


def _plain_runs(folders: Iterable[Path], varied: Sequence[str]) -> list[_Run]:
    """Return runs under the shortest names that tell them apart."""
    paths = list(folders)
    common = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return [_Run(os.path.relpath(path.absolute(), common), path, varied) for path in paths]


def _align(runs: Sequence[_Run]) -> None:
    """Compare at the end of each run, or, where one has not ended, at the newest step that all have saved."""
    if any(run.step < run.total for run in runs) and len({run.step for run in runs}) > 1:
        common = set.intersection(*(set(run.steps) for run in runs))
        for run in runs if common else ():
            run.step = max(common)


def _condition(name: str, runs: Sequence[_Run], values: Mapping[str, Any], *, setting: bool = False) -> Condition:
    """Return a condition. A fact that a run does not have is compared with none; a setting that it lacks differs."""
    differing = [
        (one, other)
        for one, other in combinations(runs, 2)
        if values[one.name] != values[other.name] and (setting or None not in (values[one.name], values[other.name]))
    ]
    intended = all(_is_intended(name, one, other, setting=setting) for one, other in differing)
    return Condition(name, not differing, dict(values), intended, setting)


def _is_intended(name: str, one: _Run, other: _Run, *, setting: bool) -> bool:
    if setting and name in _MASKING and one.hides != other.hides:
        return True  # it follows from the objective, which is compared itself
    meant = _meant(one, other)
    return (setting and name in meant) or any(covered(key, IMPLIED.get(name, ())) for key in meant)


def _meant(one: _Run, other: _Run) -> set[str]:
    """Return the settings in which two runs differ as they are meant to."""
    different = {key for key in {*one.settings, *other.settings} if one.settings.get(key) != other.settings.get(key)}
    if not isinstance(one.intended, Mapping) or not isinstance(other.intended, Mapping):
        return {key for key in different if covered(key, (*one.intended, *other.intended))}
    keys = {*one.intended, *other.intended}
    varied = [key for key in keys if one.intended.get(key) != other.intended.get(key)]
    return {key for key in different if covered(key, varied)}
