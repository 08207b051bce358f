"""A configuration of the format before `model.architecture`, turned into one that means the same. Light.

The old software trained one architecture, GPT-2, causally, on a SentencePiece vocabulary. What it said in a key that
still exists is copied; what it said otherwise is renamed or replaced; what has no counterpart is dropped, with the
reason. Where the same meaning cannot be had without knowing the data, the file is refused or the change says so:
nothing that alters training happens in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foundry_core.config.experiment import load_config
from foundry_core.config.migration_rules import DROPPED, KEPT, MODEL_KEYS, READ_BY_RULES, REQUIRED, RULES, SECTIONS
from foundry_core.config.yaml_source import KeyPath, YamlSource
from foundry_core.errors import ConfigError, Problem, UsageError, did_you_mean


@dataclass(frozen=True)
class Change:
    """What became of one key, and why. key: in the old file, or in the new one where the old had none."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True)
class Migration:
    """data: the new configuration, valid. changes: every key that is not simply the same, in the order of the file."""

    data: dict[str, Any]
    changes: tuple[Change, ...]


def migrate(source: YamlSource) -> Migration:
    """Convert an old file.

    Raises UsageError for a file of the present format, ConfigError with all problems of a file that cannot be
    converted, each at its line in the old file.
    """
    if not isinstance(source.data, dict):
        raise ConfigError([Problem(source.path, 1, "file", "is empty or not a mapping of sections")])
    model = source.data.get("model")
    if isinstance(model, dict) and "architecture" in model:
        raise UsageError(
            f"{source.path} is in the present format already, it has model.architecture: check it with "
            f"foundry validate {source.path}"
        )
    if not isinstance(model, dict) or not set(model) & set(MODEL_KEYS):
        message = "holds none of the old format's keys (layers, hidden_size, ...) and no architecture: see foundry init"
        raise ConfigError([Problem(source.path, source.line_of(("model",)), "model", message)])
    return Migrator(source).migration()


class Migrator:
    """One pass over one file: gathers problems and changes, then gives the migration or raises all problems."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.old: dict[str, Any] = source.data
        self.new: dict[str, Any] = {"experiment_name": None, "random_seed": None, **{name: {} for name in SECTIONS}}
        self.problems: list[Problem] = []
        self.changes: list[tuple[int, Change]] = []
        # Where a key of the new configuration came from, so that what is wrong with its value is told at the old line.
        self.origins: dict[str, KeyPath] = {}

    def migration(self) -> Migration:
        self._sections_and_keys()
        for section, keys in KEPT.items():
            for key in keys:
                self.keep((section, key) if section else (key,))
        for place, reason in DROPPED.items():
            if self.has(place):
                self.changed(place, f"dropped: {reason}")
        for rule in RULES:
            rule(self)
        if self.problems:
            raise ConfigError(self.problems)
        data = {key: value for key, value in self.new.items() if value != {}}
        try:
            load_config(data)
        except ConfigError as error:
            raise ConfigError([self._at_old_line(problem) for problem in error.problems]) from error
        ordered = sorted(self.changes, key=lambda change: change[0])
        return Migration(data, tuple(change for _, change in ordered))

    def _sections_and_keys(self) -> None:
        """Sections that are none, keys that the old format did not have, and keys it could not do without."""
        known = {name: self._known(name) for name in ("", *SECTIONS)}
        known[""] += SECTIONS
        for name in known:
            content = self.old if not name else self.old.get(name)
            if content is None:
                if name in REQUIRED:
                    self.problem((name,), "missing or empty: this section is needed")
                continue
            if not isinstance(content, dict):
                self.problem((name,), f"must be a section, not {content!r}")
                continue
            for key in content:
                place = (name, key) if name else (key,)
                if key not in known[name]:
                    self.problem(place, self._unknown(key, known, name))
            for key in REQUIRED.get(name, ()):
                if content.get(key) is None:
                    self.problem((name, key) if name else (key,), "missing: the old run cannot be told without it")

    @staticmethod
    def _known(section: str) -> list[str]:
        dropped = [place[1] for place in DROPPED if place[0] == section]
        return [*KEPT.get(section, ()), *dropped, *READ_BY_RULES.get(section, ())]

    @staticmethod
    def _unknown(key: str, known: Mapping[str, list[str]], section: str) -> str:
        homes = [name or "the top level" for name, keys in known.items() if key in keys]
        if homes:
            return f"unknown key here. It belongs under {homes[0]}."
        return f"unknown key of the old format.{did_you_mean(key, known[section])} Correct it, or remove it."

    def has(self, place: KeyPath) -> bool:
        return self.value(place, _ABSENT) is not _ABSENT

    def value(self, place: KeyPath, default: Any = None) -> Any:
        value: Any = self.old
        for key in place:
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def switch(self, place: KeyPath) -> bool | None:
        """A key that is on or off; None, with a problem, when it is neither. Left out is off."""
        value = self.value(place, False)
        if isinstance(value, bool):
            return value
        self.problem(place, f"must be true or false, not {value!r}")
        return None

    def keep(self, place: KeyPath) -> None:
        if self.has(place):
            self.put(place, self.value(place), place)

    def put(self, target: KeyPath, value: Any, origin: KeyPath) -> None:
        """Write a key of the new configuration that the old key `origin` decides."""
        section = self.new
        for key in target[:-1]:
            section = section.setdefault(str(key), {})
        section[str(target[-1])] = value
        self.origins[_dotted(target)] = origin

    def changed(self, place: KeyPath, text: str) -> None:
        self.changes.append((self.source.line_of(place), Change(_dotted(place), text)))

    def problem(self, place: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.source.path, self.source.line_of(place), _dotted(place), message))

    def _at_old_line(self, problem: Problem) -> Problem:
        """A finding about the new configuration, told where its cause stands in the old file."""
        origin = self.origins.get(problem.key)
        if origin is None:
            parts: KeyPath = tuple(problem.key.split("."))
            return Problem(self.source.path, self.source.line_of(parts), problem.key, problem.message)
        return Problem(self.source.path, self.source.line_of(origin), _dotted(origin), problem.message)


_ABSENT = object()


def _dotted(place: KeyPath) -> str:
    return ".".join(map(str, place))
