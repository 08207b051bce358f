"""YAML as data with line numbers: plain scalars, lists and mappings, nothing that runs.

Differences from PyYAML's SafeLoader, each because somebody's experiment was bitten: `1e-4` is a number; equal keys are
refused; only `true` and `false` are booleans (`no` and `off` are text); `010`, `1:30` and dates are text; tags, anchors
and aliases are refused, so a small file cannot unfold into a large one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from foundry_core.errors import COMMAND_LINE, ConfigError, Problem

KeyPath = tuple[str | int, ...]

_MAX_DEPTH = 20
_NESTED = f"nested more than {_MAX_DEPTH} deep"
# libyaml 0.2.6 reads ahead, and gives up by itself at 1,000 levels before the first event reaches us.
_TOO_DEEP = "exceeded maximum nesting depth"
_MAX_BYTES = 1 << 20
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)\Z")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlSource:
    """The content of one YAML file: `data`, and for each key path the line it stands on."""

    def __init__(self, path: str, data: Any, lines: dict[KeyPath, int]):
        self.path = path
        self.data = data
        self.lines = lines

    @classmethod
    def read(cls, path: str | Path) -> YamlSource:
        """Parse a file. Raises ConfigError, with every problem of its syntax that can be told, one line each."""
        name = str(path)
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError([Problem(name, 0, "file", f"cannot be read: {error.strerror}")]) from error
        if len(raw) > _MAX_BYTES:
            raise ConfigError([Problem(name, 0, "file", "is larger than 1 MiB: not an experiment's configuration")])
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError([Problem(name, line, "file", f"invalid UTF-8 at byte {error.start}")]) from error
        return cls.parse(text, name)

    @classmethod
    def parse(cls, text: str, path: str) -> YamlSource:
        """Parse a text; `path` is what problems are reported under."""
        try:
            _refuse_the_unbounded(text, path)
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 1
            message = f"not valid YAML: {error.problem or error.context}"
            if error.problem == _TOO_DEEP:
                message = _NESTED
            raise ConfigError([Problem(path, line, "syntax", message)]) from error
        except yaml.YAMLError as error:
            line = text.count("\n", 0, getattr(error, "position", 0)) + 1
            raise ConfigError(
                [Problem(path, line, "syntax", f"not valid YAML: {str(error).splitlines()[0]}")]
            ) from error
        lines: dict[KeyPath, int] = {}
        problems: list[Problem] = []
        data = _construct(node, (), path, lines, problems) if node is not None else None
        if problems:
            raise ConfigError(problems)
        return cls(path, data, lines)

    def line_of(self, key: KeyPath) -> int:
        """The line of a key, or of the nearest section around it when the key is missing; 1 for the whole file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def override(self, assignment: str) -> None:
        """Apply `section.key=value` from the command line; the value is YAML. Problems then name the command line."""
        dotted, equals, value = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            problem = Problem(COMMAND_LINE, 0, assignment, "an override is section.key=value")
            raise ConfigError([problem])
        try:
            parsed = YamlSource.parse(value, COMMAND_LINE).data
        except ConfigError as error:
            raise ConfigError([Problem(COMMAND_LINE, 0, dotted, each.message) for each in error.problems]) from error
        section = self.data
        for depth, key in enumerate(keys[:-1]):
            if section.get(key) is None:
                section[key] = {}
                self.lines.setdefault(tuple(keys[: depth + 1]), 0)
            section = section[key]
            if not isinstance(section, dict):
                problem = Problem(COMMAND_LINE, 0, dotted, f"{'.'.join(keys[: depth + 1])} is not a section")
                raise ConfigError([problem])
        section[keys[-1]] = parsed
        self.lines = {path: line for path, line in self.lines.items() if path[: len(keys)] != tuple(keys)}
        self.lines[tuple(keys)] = 0


def _refuse_the_unbounded(text: str, path: str) -> None:
    """Depth, tags and aliases are checked on the event stream, before any recursion over the content.

    Only there does a tag that the file writes differ from one that the parser infers.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark: Any = event.start_mark
        line = mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ConfigError([Problem(path, line, "syntax", _NESTED)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        anchor = getattr(event, "anchor", None)
        if anchor:
            raise ConfigError(
                [Problem(path, line, "syntax", f"anchor or alias '{anchor}': write the value out instead")]
            )
        tag = getattr(event, "tag", None)
        if tag:
            raise ConfigError([Problem(path, line, "syntax", f"YAML tag {tag} is not supported: remove it")])


def _construct(node: yaml.Node, key: KeyPath, path: str, lines: dict[KeyPath, int], problems: list[Problem]) -> Any:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(Problem(path, line, _dotted(key), "a key must be plain text"))
                continue
            name = str(key_node.value)
            child = (*key, name)
            duplicate = duplicate_key(path, line, child, lines)
            if duplicate is not None:
                problems.append(duplicate)
                continue
            lines[child] = line
            mapping[name] = _construct(value_node, child, path, lines, problems)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*key, index), path, lines, problems) for index, item in enumerate(node.value)]
    return _scalar(node)


def duplicate_key(path: str, line: int, key: KeyPath, lines: Mapping[KeyPath, int]) -> Problem | None:
    """Return the problem of a key that was read before, None for one that is new."""
    if key not in lines:
        return None
    return Problem(path, line, _dotted(key), f"duplicate key, first on line {lines[key]}: keep one of them")


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.match(text):
        return int(text.replace("_", "")) if len(text) < 40 else text
    special = _SPECIAL_FLOAT.match(text)
    if special:
        return float(special.group(1) + special.group(2))
    if _FLOAT.match(text) and not re.match(r"[-+]?0[0-9]", text):
        return float(text.replace("_", ""))
    return text


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key)) or "file"
