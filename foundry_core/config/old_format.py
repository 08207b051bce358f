"""A file of the format before `model.architecture`, while it is converted. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foundry_core.config.yaml_source import KeyPath, YamlSource
from foundry_core.errors import Problem

SECTIONS = ("data", "tokenizer", "model", "training", "logging")


@dataclass(frozen=True)
class Change:
    """What became of one key, and why. key: in the old file, or in the new one where the old had none."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class OldFile:
    """An old file, and what it becomes: the new configuration, the changes, and the problems found on the way."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.old: dict[str, Any] = source.data
        self.new: dict[str, Any] = {"experiment_name": None, "random_seed": None, **{name: {} for name in SECTIONS}}
        self.problems: list[Problem] = []
        self.changes: list[tuple[int, Change]] = []
        # Where a key of the new configuration came from: a problem with its value is reported at the old line.
        self._origins: dict[str, KeyPath] = {}

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
        self._origins[_dotted(target)] = origin

    def changed(self, place: KeyPath, text: str) -> None:
        self.changes.append((self.source.line_of(place), Change(_dotted(place), text)))

    def problem(self, place: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.source.path, self.source.line_of(place), _dotted(place), message))

    def at_old_line(self, problem: Problem) -> Problem:
        """Return a problem of the new configuration at the line of its cause in the old file."""
        origin = self._origins.get(problem.key)
        if origin is None:
            parts: KeyPath = tuple(problem.key.split("."))
            return Problem(self.source.path, self.source.line_of(parts), problem.key, problem.message)
        return Problem(self.source.path, self.source.line_of(origin), _dotted(origin), problem.message)


_ABSENT = object()


def _dotted(place: KeyPath) -> str:
    return ".".join(map(str, place))
