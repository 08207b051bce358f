"""YAML as data with line numbers: plain scalars, lists and mappings, nothing that runs.

Differences from PyYAML's SafeLoader, each because it has spoilt an experiment: `1e-4` is a number; equal keys are
refused; only `true` and `false` are booleans (`no` and `off` are text); `010`, `1:30` and dates are text. Tags are
refused: none of them would have an effect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from foundry_core.errors import COMMAND_LINE, ConfigError, Problem
from foundry_core.schema import NotYaml, Override

KeyPath = tuple[str | int, ...]

_MAX_DEPTH = 20
_MAX_BYTES = 1 << 20
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{f"{sign}.{word}": float(sign + word) for sign in ("", "+", "-") for word in ("inf", "Inf", "INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]{,38})\Z")
_FLOAT = re.compile(r"[-+]?(?!0[0-9])(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?\Z")
_UNTAGGED = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own; without them, other tags are the file's


class YamlSource:
    """The content of one YAML file: `data`, and the line of each key path."""

    def __init__(self, path: str, data: Any, lines: dict[KeyPath, int]):
        self.path = path
        self.data = data
        self.lines = lines

    @classmethod
    def read(cls, path: str | Path) -> YamlSource:
        """Parse a file. Raises ConfigError with every problem of its syntax that can be found, one line each."""
        name = str(path)
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except (
            OSError,
            ValueError,
        ) as error:  # a name with a NUL, or that the locale cannot represent, is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise ConfigError([Problem(name, 0, "file", f"cannot be read: {reason}")]) from error
        if len(raw) > _MAX_BYTES:
            raise ConfigError([Problem(name, 1, "file", "is larger than 1 MiB: not an experiment's configuration")])
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError([Problem(name, line, "file", f"invalid UTF-8 at byte {error.start}")]) from error
        return cls.parse(text, name)

    @classmethod
    def parse(cls, text: str, path: str) -> YamlSource:
        """Parse a text; problems are reported under `path`."""
        try:
            node = yaml.compose(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            line = (mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))) + 1
            problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error).splitlines()[0]
            raise ConfigError([Problem(path, line, "syntax", f"not valid YAML: {problem}")]) from error
        reading = _Reading(path)
        data = reading.value(node, ()) if node is not None else None
        if reading.problems:
            raise ConfigError(reading.problems)
        return cls(path, data, reading.lines)

    def require_sections(self, advice: str) -> None:
        """Raise ConfigError unless the file is a mapping."""
        if not isinstance(self.data, dict):
            raise ConfigError([Problem(self.path, 1, "file", f"is empty or not a mapping of sections: {advice}")])

    def line_of(self, key: KeyPath) -> int:
        """Return the line of a key, or of the nearest section around it if it is missing; 1 for the whole file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def place_of(self, key: KeyPath) -> tuple[str, int]:
        """Return the file and the line that a problem of a key is reported under."""
        line = self.line_of(key)
        return (COMMAND_LINE if line == 0 and self.lines else self.path), line

    def override(self, assignment: str) -> None:
        """Apply `section.key=value` from the command line. Problems then name the command line.

        The value is an `Override` until its section is validated: what follows `=` is the text of a key that takes
        text, and YAML for any other.
        """
        name, equals, text = assignment.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            raise ConfigError([Problem(COMMAND_LINE, 0, assignment, "an override is section.key=value")])
        section = self.data
        for depth, key in enumerate(keys[:-1], 1):
            if isinstance(section.get(key), Override):
                try:
                    section[key] = section[key].value()
                except NotYaml as error:
                    raise ConfigError([Problem(COMMAND_LINE, 0, dotted(keys[:depth]), error.problem)]) from error
            if section.get(key) is None:
                section[key] = {}
                self.lines.setdefault(keys[:depth], 0)
            section = section[key]
            if not isinstance(section, dict):
                raise ConfigError([Problem(COMMAND_LINE, 0, name, f"{dotted(keys[:depth])} is not a section")])
        section[keys[-1]] = Override(text, lambda: _yaml(text))
        self.lines = {path: line for path, line in self.lines.items() if path[: len(keys)] != keys} | {keys: 0}


def _yaml(text: str) -> Any:
    try:
        return YamlSource.parse(text, COMMAND_LINE).data
    except ConfigError as error:
        raise NotYaml(error.problems[0].message) from error


class _Reading:
    """Turns the nodes of one file into data, and notes the line of each key and each problem."""

    def __init__(self, path: str):
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: Any, key: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        if len(key) > _MAX_DEPTH:  # an alias may stand inside its own anchor
            raise ConfigError([Problem(self.path, line, "syntax", f"nested more than {_MAX_DEPTH} deep")])
        if node.tag not in _UNTAGGED:
            problem = f"YAML tag {node.tag} is not supported: remove it"
            self.problems.append(Problem(self.path, line, dotted(key), problem))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        return node.value if node.style else _plain(node.value)

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(self.path, line, dotted(key), "a key must be plain text"))
                continue
            name = str(key_node.value)
            duplicate = duplicate_key(self.path, line, (*key, name), self.lines)
            if duplicate is not None:
                self.problems.append(duplicate)
                continue
            self.lines[*key, name] = line
            mapping[name] = self.value(value_node, (*key, name))
        return mapping


def duplicate_key(path: str, line: int, key: KeyPath, lines: Mapping[KeyPath, int]) -> Problem | None:
    """Return the problem of a key that was read before, None for one that is new."""
    if key not in lines:
        return None
    return Problem(path, line, dotted(key), f"duplicate key, first on line {lines[key]}: keep one of them")


def _plain(text: str) -> Any:
    """Return the value of a scalar without quotes."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.match(text):
        return int(text.replace("_", ""))
    return float(text.replace("_", "")) if _FLOAT.match(text) else text


def dotted(key: KeyPath, root: str = "file") -> str:
    """Return `section.key` for a key path, and `root` for the empty one."""
    return ".".join(map(str, key)) or root
