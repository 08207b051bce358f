"""The grid of a study: axes of named choices, each of which sets keys of the experiment. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.yaml_source import KeyPath, dotted
from foundry_core.errors import did_you_mean

SEED_AXIS = "seed"
OF_THE_STUDY = ("experiment_name", "training.output_dir", "tokenizer.output_dir")
"""Keys that a study sets for each cell."""

_WORDS = {"True": "true", "False": "false", "None": "null"}
_NAME = re.compile(r"\w[\w.+-]*")
Problems = list[tuple[KeyPath, str]]
"""The key of the study's file that a problem is about, and the problem."""


@dataclass(frozen=True)
class Setting:
    """A value that a choice sets.

    key: Its key in the experiment. place: Its key in the study's file.
    """

    key: KeyPath
    value: Any
    place: KeyPath

    @property
    def lies_over(self) -> bool:
        """Whether the value replaces only the keys that it names: that of a section, unless it is another model."""
        return len(self.key) == 1 and isinstance(self.value, Mapping) and "architecture" not in self.value


@dataclass(frozen=True)
class Choice:
    """One value of an axis."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Axis:
    """What varies independently of the other axes."""

    name: str
    choices: tuple[Choice, ...]

    @property
    def keys(self) -> list[str]:
        """The dotted keys of the experiment that the choices set."""
        return list(dict.fromkeys(dotted(each.key) for choice in self.choices for each in choice.settings))


def axes_of(grid: Mapping[str, Any], seeds: Sequence[int], problems: Problems) -> list[Axis]:
    """Return the axes of `grid:` and `seeds:`; the problems found are added to `problems`."""
    axes = [Axis(key, tuple(_choices(key, values, problems))) for key, values in grid.items()]
    if seeds:
        drawn = (Choice(f"seed{n}", (Setting(("random_seed",), n, ("seeds", at)),)) for at, n in enumerate(seeds))
        axes.append(Axis(SEED_AXIS, tuple(drawn)))
    for axis in axes:
        names = [choice.name for choice in axis.choices]
        for name in sorted({name for name in names if names.count(name) > 1}):
            advice = "give the values names of their own, as a mapping of names to values"
            place: KeyPath = ("seeds",) if axis.name == SEED_AXIS else ("grid", axis.name)
            problems.append((place, f"two values would be called '{name}': {advice}"))
    return axes


def _choices(key: str, values: Any, problems: Problems) -> Iterator[Choice]:
    """Yield the choices of a key of the grid."""
    place, parts = ("grid", key), tuple(key.split("."))
    if not isinstance(values, list | Mapping) or not values:
        problems.append((place, "must be a list of values, or a mapping of names to values"))
        return
    known = parts[0] in ExperimentConfig.model_fields and all(parts)
    together = isinstance(values, Mapping) and all(isinstance(each, Mapping) and each for each in values.values())
    if not known and not together:
        near = did_you_mean(parts[0], ExperimentConfig.model_fields)
        problems.append((place, f"is not a key of an experiment.{near}"))
        return
    if key in OF_THE_STUDY:
        problems.append((place, "is set by the study, for each cell: leave it out"))
    named = values.items() if isinstance(values, Mapping) else [(None, each) for each in values]
    for at, (name, value) in enumerate(named):
        inside: KeyPath = (*place, at if name is None else name)
        if name is not None and not _NAME.fullmatch(name):
            problems.append((inside, "is not a name for a folder: letters, digits and any of _.+- after the first"))
        settings = (Setting(parts, value, inside),) if known else tuple(_settings(value, inside, problems))
        yield Choice(name or _name(parts[-1], value), settings)


def _settings(values: Mapping[str, Any], place: KeyPath, problems: Problems) -> Iterator[Setting]:
    """Yield what a choice sets that sets several keys."""
    for key, value in values.items():
        parts = tuple(key.split("."))
        if parts[0] not in ExperimentConfig.model_fields or not all(parts):
            near = did_you_mean(parts[0], ExperimentConfig.model_fields)
            problems.append(((*place, key), f"is not a key of an experiment.{near}"))
        else:
            yield Setting(parts, value, (*place, key))


def _name(key: str, value: Any) -> str:
    """Return a name for a value: the architecture of a model, a word, the stem of a path, or key and number."""
    if isinstance(value, Mapping):
        parts = [str(value["architecture"])] if "architecture" in value else [_name(*each) for each in value.items()]
        text = "_".join(parts)
    elif isinstance(value, str):
        text = Path(value).stem if "/" in value else value
    elif key == "random_seed":
        text = f"seed{value}"
    else:
        shown = "_".join(map(str, value)) if isinstance(value, list) else str(value)
        text = f"{key}_{_WORDS.get(shown, shown)}"
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.+-") or key


def lay(data: dict[str, Any], setting: Setting) -> None:
    """Set a key of an experiment, in place; sections on the way to it are copied."""
    section = data
    for part in setting.key[:-1]:
        inner = section.get(str(part))
        section[str(part)] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[str(part)]
    last = str(setting.key[-1])
    before = section.get(last)
    section[last] = {**before, **setting.value} if setting.lies_over and isinstance(before, dict) else setting.value
