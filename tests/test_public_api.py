"""Tests of what users and plugins hold on to, as text: it changes only on purpose.

`.venv/bin/python tests/test_public_api.py` writes tests/public_api.txt anew.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import foundry_core
from foundry_core import ExperimentConfig
from foundry_core.registry import discovery, hookspecs
from foundry_core.registry.architecture import PLUGIN_API_VERSION

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "public_api.txt"
POLICY = ROOT / "plugins" / "STABILITY.md"

ADVICE = """
The public API differs from tests/public_api.txt (lines with - were there, lines with + are new):

{difference}

If that is meant, plugins/STABILITY.md says what it takes. In short:
* only new names, new hooks, new arguments with a default: raise the minor version of model-foundry;
* anything removed, renamed or reordered, a new argument without a default, another default: raise PLUGIN_API_VERSION
  in foundry_core/registry/architecture.py as well, and say in CHANGELOG.md what a plugin must do.
Then write the text anew: .venv/bin/python tests/test_public_api.py
"""


def shape(value: Any) -> list[str]:
    """Return what a user of a public name relies on: parameters, fields, methods, values of defaults."""
    if not inspect.isclass(value):
        return [parameters(value)] if inspect.isfunction(inspect.unwrap(value)) else [type(value).__name__]
    if hasattr(value, "model_fields"):
        return [", ".join(f"{name}{given(field)}" for name, field in value.model_fields.items()), *methods(value)]
    if dataclasses.is_dataclass(value):
        return [parameters(value), *methods(value)]
    return [*([parameters(value)] if "__init__" in members(value) else []), *methods(value)]


def members(value: type) -> dict[str, Any]:
    """Names that core's own classes define, the base's first."""
    own = [each for each in value.__mro__ if each.__module__.startswith("foundry_core")]
    return {name: member for each in reversed(own) for name, member in vars(each).items()}


def methods(value: type) -> list[str]:
    lines = []
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    for name, member in sorted(members(value).items()):
        if (name.startswith(("_", "model_")) and name != "model_type") or name in fields:
            continue
        function = getattr(member, "__func__", member)
        lines.append(name + parameters(function) if inspect.isfunction(function) else name)
    return lines


def given(field: Any) -> str:
    """A pydantic field's default."""
    return "" if field.is_required() else f"={plain(field.get_default(call_default_factory=True, validated_data={}))}"


def plain(default: Any) -> str:
    """A default whose value is part of the promise, and `...` for objects."""
    return repr(default) if default is None or isinstance(default, bool | int | float | str | tuple) else "..."


def keys(section: type[BaseModel], place: str = "") -> list[str]:
    """Every key with its default, as `training.checkpoints.keep=None`."""
    found = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name != "model":
            found += keys(inner, f"{place}{name}.")
        else:
            found.append(f"{place}{name}{given(field)}")
    return found


def parameters(function: Any) -> str:
    """Names, kinds and defaults; not the annotations, which may be said more precisely any time."""
    shown: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={plain(parameter.default)}"
        if parameter.kind is parameter.KEYWORD_ONLY and not any(each.startswith("*") for each in shown):
            shown.append("*")
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else "*" * (parameter.kind is parameter.VAR_POSITIONAL)
        shown.append(f"{star}{parameter.name}{default}")
    return f"({', '.join(shown)})"


def public_api() -> str:
    lines = [f"plugin API {PLUGIN_API_VERSION}", ""]
    for name in foundry_core.__all__:
        for line in (name, *(f"    {line}" for line in shape(getattr(foundry_core, name)))):
            lines += textwrap.wrap(line, 110, initial_indent="", subsequent_indent=" " * 8, break_long_words=False)
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("foundry_")}
    lines += ["", "hooks"]
    lines += [
        f"    {name}{parameters(hook)} -> {hook.__annotations__['return']}" for name, hook in sorted(hooks.items())
    ]
    lines += ["", "keys of the YAML, those of model: aside", *(f"    {key}" for key in keys(ExperimentConfig))]
    lines += ["", "entry points"]
    lines += [f"    {group}" for group in sorted((discovery.ARCHITECTURES, discovery.COMMANDS, discovery.EXTENSIONS))]
    return "\n".join(lines) + "\n"


def test_the_public_api_changes_only_on_purpose() -> None:
    before, now = SNAPSHOT.read_text(encoding="utf-8").splitlines(), public_api().splitlines()
    if before != now:
        difference = "\n".join(difflib.unified_diff(before, now, "tests/public_api.txt", "foundry_core", lineterm=""))
        pytest.fail(ADVICE.format(difference=difference), pytrace=False)


def test_the_policy_is_for_this_version_and_names_what_it_covers() -> None:
    policy = POLICY.read_text(encoding="utf-8")
    assert f"plugin API {PLUGIN_API_VERSION}" in policy
    for word in ("PLUGIN_API_VERSION", "tests/public_api.txt", "foundry_core.__all__", "hook", "checkpoint", "YAML"):
        assert word in policy, word


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
