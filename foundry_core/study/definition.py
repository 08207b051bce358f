"""A study's YAML: a base experiment and a grid, expanded into cells that are all valid before anything runs. Light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import checked, study_key
from foundry_core.config.problems import findings
from foundry_core.config.sections import TEXT_KEYS, Count, Seed
from foundry_core.config.yaml_source import KeyPath, YamlSource, dotted
from foundry_core.errors import ConfigError, Problem
from foundry_core.run_folder import CELL_CONFIGS, CELL_LOGS, CELLS, STUDY, TOKENIZERS
from foundry_core.schema import ConfigSection, PathText, expand_home
from foundry_core.study.grid import Axis, Choice, Problems, Setting, axes_of, lay

EXPLICIT = {"precision": "fp32", "compile": False, "kernels": "fast"}
"""What a cell computes with where the study leaves it to `auto`, which could decide otherwise for another cell."""
_RESERVED = (STUDY, CELLS, CELL_CONFIGS, CELL_LOGS, TOKENIZERS)
_LONGEST = 120


class MatchSection(ConfigSection):
    """The section `match:` of a study."""

    parameters: Count = Field(description="number of parameters that every cell has, within 1 %, such as 2M")
    by: Any = Field(
        description="the key of a width, or several that keep their ratio to the first; or a mapping of architectures "
        "or of names of the grid to them, null for cells that are left as they are"
    )


class StudySection(ConfigSection):
    """The keys of a study's YAML."""

    output_dir: PathText = Field(description="the study's folder: a run for each cell, and what they share")
    base: Any = Field(description="the experiment: the path of a YAML, or its content")
    grid: dict[str, Any] = Field({}, description="by key of the experiment, its values: a list, or names and values")
    seeds: Annotated[tuple[Seed, ...], Field(strict=False)] = Field((), description="values of random_seed")
    match: MatchSection | None = Field(None, description="widths to find before training: parameters and by")
    suites: Annotated[tuple[PathText, ...], Field(strict=False)] = Field(
        (), description="suites that every checkpoint of a cell is scored on when the cell is done"
    )


class CellSource(YamlSource):
    """The content of a cell, put together from the base and the choices of the grid, with the place of each key."""

    def __init__(self, study: YamlSource, base: YamlSource | None, data: dict[str, Any], settings: Sequence[Setting]):
        super().__init__(study.path, data, {})
        self._study, self._base, self._settings = study, base, settings

    def place_of(self, key: KeyPath) -> tuple[str, int]:
        for setting in reversed(self._settings):
            rest = key[len(setting.key) :]
            elsewhere = setting.lies_over and rest and rest[0] not in setting.value
            if key[: len(setting.key)] == setting.key and not elsewhere:
                return self._study.place_of((*setting.place, *rest))
        return self._base.place_of(key) if self._base is not None else self._study.place_of(("base", *key))

    def with_values(self, values: Mapping[str, Any]) -> CellSource:
        """Return the same content with other values of dotted keys."""
        data = deepcopy(self.data)
        for key, value in values.items():
            lay(data, Setting(tuple(key.split(".")), value, ()))
        return CellSource(self._study, self._base, data, self._settings)


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: Its name, made of those of its values; that of its folder, too.
        values: By axis, the name of its value.
        folder: The run's folder.
        source: The experiment as plain data, with the places of its keys.
        config: The experiment, checked.
        by: The keys of the widths that are found for it; none if it is not matched.
        matched: What was found for them. parameters: What they come to; None as long as nothing was found.
    """

    name: str
    values: Mapping[str, str]
    folder: Path
    source: CellSource
    config: ExperimentConfig
    by: tuple[str, ...] = ()
    matched: Mapping[str, int] | None = None
    parameters: int | None = None

    def changed(self, values: Mapping[str, Any]) -> Cell:
        """Return the cell with other values of dotted keys. Raises ConfigError if it is not valid with them."""
        source = self.source.with_values(values)
        return replace(self, source=source, config=checked(source))

    @property
    def but_for_the_seed(self) -> str:
        """The experiment as text, without its name and its seed: cells that agree in it differ in nothing else."""
        content = {
            key: value for key, value in self.source.data.items() if key not in ("experiment_name", "random_seed")
        }
        content["training"] = {key: value for key, value in content["training"].items() if key != "output_dir"}
        return json.dumps(content, sort_keys=True)


@dataclass(frozen=True)
class Study:
    """A study, expanded. file: The path of its YAML."""

    file: str
    settings: StudySection
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    source: YamlSource

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    @cached_property
    def digest(self) -> str:
        """The sha256 of what the cells follow from."""
        keys = ("grid", "seeds", "match")
        made_from = {"base": self.base} | {key: self.source.data.get(key) for key in keys}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def problem(self, key: KeyPath, message: str) -> ConfigError:
        """Return the error of one problem of a key of the study's file."""
        return ConfigError([Problem(*self.source.place_of(key), dotted(key), message)])


def is_study(path: str | Path) -> bool:
    """Check whether a YAML is a study: it has a key that only a study has. Raises ConfigError if it is not YAML."""
    return study_key(YamlSource.read(path).data) is not None


def read_study(path: str | Path) -> Study:
    """Read a study and expand it.

    Args:
        path: Its YAML, or the folder of a study that has begun.

    Raises:
        ConfigError: All problems of the study and of its cells, each as `file:line: key: problem`.
    """
    file = Path(path) / STUDY if Path(path).is_dir() else Path(path)
    source = YamlSource.read(file)
    source.require_sections("see foundry study --help")
    if study_key(source.data) is None:
        advice = "an experiment is trained with foundry train, and can be the base of a study"
        raise ConfigError([Problem(source.path, 1, "base", f"missing: {advice}")])
    problems: Problems = []
    try:
        settings = StudySection.model_validate(source.data)
    except ValidationError as error:
        _raise(source, list(findings(error, StudySection)))
    base, base_source = _base(settings.base, problems)
    axes = axes_of(settings.grid, settings.seeds, problems)
    _raise(source, problems)
    study = Study(str(file), settings, base, tuple(axes), (), source)
    return replace(study, cells=tuple(_cells(study, base_source)))


def _raise(source: YamlSource, problems: Problems) -> None:
    if problems:
        raise ConfigError([Problem(*source.place_of(key), dotted(key), message) for key, message in problems])


def _base(given: Any, problems: Problems) -> tuple[dict[str, Any], YamlSource | None]:
    """Return the base experiment, and its own file if it has one. Raises ConfigError if that cannot be read."""
    if isinstance(given, str):
        try:
            source = YamlSource.read(expand_home(given))
        except ValueError as error:
            problems.append((("base",), str(error)))
            return {}, None
        source.require_sections("see foundry init")
        return source.data, source
    if not isinstance(given, Mapping):
        problems.append((("base",), "must be the path of a YAML, or its content"))
        return {}, None
    return dict(given), None


def _cells(study: Study, base_source: YamlSource | None) -> Iterator[Cell]:
    """Yield the cells of a study, each checked. Raises ConfigError with the problems of all of them."""
    found: dict[Problem, list[str]] = {}
    cells: list[Cell] = []
    rows = [row for row in product(*(axis.choices for axis in study.axes)) if row]
    names = ["-".join(choice.name for choice in row) for row in rows]
    _raise(study.source, _name_problems(names))
    for row, name in zip(rows, names, strict=True):
        values = {axis.name: choice.name for axis, choice in zip(study.axes, row, strict=True)}
        try:
            cells.append(_cell(study, base_source, name, row, values))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(name)
    if found:
        raise ConfigError(
            [
                each if len(where) == len(names) else replace(each, message=f"{each.message} (cell {where[0]})")
                for each, where in found.items()
            ]
        )
    if study.settings.match is not None:
        cells = list(_with_widths(study, study.settings.match.by, cells))
    yield from cells


def _name_problems(names: Sequence[str]) -> Problems:
    if not names:
        return [(("grid",), "has no cells: give it a key with values, or give seeds")]
    seen: set[str] = set()
    problems: Problems = []
    for name in names:
        if len(name) > _LONGEST:
            advice = "give the values shorter names, as a mapping of names to values"
            problems.append((("grid",), f"a cell would be called '{name}', which is too long: {advice}"))
        if name in _RESERVED:
            problems.append((("grid",), f"a cell cannot be called '{name}', which is a file of the study"))
        if name.casefold() in seen:
            advice = "give the values names of their own, as a mapping of names to values"
            problems.append((("grid",), f"two cells would be called '{name}': {advice}"))
        seen.add(name.casefold())
    return problems


def _cell(
    study: Study, base_source: YamlSource | None, name: str, row: Sequence[Choice], values: Mapping[str, str]
) -> Cell:
    data = deepcopy(dict(study.base))
    # A section before its keys, whatever their order in the file.
    settings = sorted((each for choice in row for each in choice.settings), key=lambda each: len(each.key))
    for setting in deepcopy(settings):
        lay(data, setting)
    folder, training = study.folder / name, data.get("training")
    data["experiment_name"] = name
    if isinstance(training, Mapping):
        chosen = {key: value for key, value in EXPLICIT.items() if training.get(key, "auto") == "auto"}
        data["training"] = {**training, **chosen, "output_dir": str(folder)}
    cell = Cell(name, values, folder, source := CellSource(study.source, base_source, data, settings), checked(source))
    return cell.changed({"tokenizer.output_dir": str(study.folder / TOKENIZERS / _tokenizer_name(cell.config))})


def _tokenizer_name(config: ExperimentConfig) -> str:
    """Return a name that two experiments share if they make the same tokenizer."""
    resolved, kind = config.resolved(), config.tokenizer.tokenizer_type or "given"
    made_from = {
        "tokenizer": {key: value for key, value in resolved["tokenizer"].items() if key != "output_dir"},
        "text": {key: resolved["data"][key] for key in TEXT_KEYS},
        # What is missing in a given one depends on the objective; one that is trained has what each of them needs.
        "objective": config.training.objective if kind == "given" else None,
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return f"{kind}-{digest[:12]}"


def _with_widths(study: Study, by: Any, cells: Sequence[Cell]) -> Iterator[Cell]:
    """Yield the cells with the keys of their widths."""
    place: KeyPath = ("match", "by")
    if not isinstance(by, Mapping):
        keys = _keys(study, place, by)
        yield from (replace(cell, by=keys) for cell in cells)
        return
    known = {name for cell in cells for name in (*cell.values.values(), cell.config.model.architecture)}
    for name in by:
        if name not in known:
            raise study.problem((*place, name), "is neither an architecture of this study nor a name in its grid")
    widths = {name: () if value is None else _keys(study, (*place, name), value) for name, value in by.items()}
    for cell in cells:
        names = [name for name in (*cell.values.values(), cell.config.model.architecture) if name in widths]
        if not names:
            problem = f"names nothing of the cell {cell.name}: give the key of its width under"
            raise study.problem(place, f"{problem} '{cell.config.model.architecture}', or null to leave it as it is")
        yield replace(cell, by=widths[names[0]])


def _keys(study: Study, place: KeyPath, value: Any) -> tuple[str, ...]:
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise study.problem(place, "must be a key such as model.rnn.hidden_size, or a list of keys")
    return tuple(keys)
