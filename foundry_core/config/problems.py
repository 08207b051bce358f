"""pydantic's findings in a user's words, each with the key it is about. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.yaml_source import KeyPath
from foundry_core.errors import did_you_mean


def findings(
    error: ValidationError, section: type[BaseModel], prefix: KeyPath = (), *, architecture: str | None = None
) -> Iterator[tuple[KeyPath, str]]:
    """Yield each finding as (key, message).

    Args:
        error: What validating a section raised.
        section: The class of the section.
        prefix: Where the section stands in the file.
        architecture: Whose section it is, for what is said of a missing key.
    """
    for finding in error.errors(include_url=False):
        # Parts that pydantic adds for a wrapped value and for the key of a mapping name nothing in the file.
        place = tuple(part for part in finding["loc"] if not str(part).startswith(("function-", "[key]")))
        message = _message(finding, section, place, prefix)
        if message == "missing" and architecture is not None:
            message = f"missing: architecture '{architecture}' requires it"
        yield (*prefix, *place), message


def _message(finding: Any, section: type[BaseModel], place: KeyPath, prefix: KeyPath) -> str:
    kind, value = finding["type"], finding.get("input")
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        return _unknown_key(str(place[-1]), section, place[:-1], prefix)
    if kind == "literal_error" and finding["loc"][-1] == "[key]":
        known = re.findall(r"'([^']+)'", finding["ctx"]["expected"])
        return f"unknown key.{did_you_mean(str(value), known)} Known here: {', '.join(known)}."
    if kind == "value_error":
        return str(finding["ctx"]["error"]) if "ctx" in finding else str(finding["msg"])
    if kind == "literal_error":
        expected = finding["ctx"]["expected"]
        near = did_you_mean(str(value), re.findall(r"'([^']+)'", expected))
        return f"is {_shown(value)}, must be {expected}{'.' if near else ''}{near}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "is empty: give it its keys" if value is None else f"must be a section, not {_shown(value)}"
    return f"{_lower(finding['msg'])}, not {_shown(value)}"


def _unknown_key(name: str, model: type[BaseModel], place: KeyPath, prefix: KeyPath) -> str:
    here = _fields(model, place)
    message = f"unknown key.{did_you_mean(name, here)}"
    if not did_you_mean(name, here):
        sections = (*_sections(model, ".".join(map(str, prefix))), *_sections(ExperimentConfig))
        homes = [home for home, fields in sections if name in fields]
        if homes:
            message += f" It belongs {f'under {homes[0]}' if homes[0] else 'at the top level'}."
        elif here:
            message += f" Known here: {', '.join(here)}."
    return message


def _lower(text: str) -> str:
    text = (
        text.replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("a valid tuple", "a list")
        .replace("a valid ", "a ")
        .replace("String should", "text should")
    )
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    shown = "nothing (null)" if value is None else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _fields(model: type[BaseModel], place: KeyPath) -> list[str]:
    """Return the keys of the section at `place` below `model`."""
    current: type[BaseModel] | None = model
    for part in place:
        field = current.model_fields.get(str(part)) if current is not None else None
        current = _section_class(field.annotation) if field is not None else None
    return list(current.model_fields) if current is not None else []


def _section_class(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _sections(
    model: type[BaseModel], prefix: str = "", within: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield every section with its dotted name and its keys; one that contains its own class is entered once."""
    yield prefix, list(model.model_fields)
    for name, field in model.model_fields.items():
        section = _section_class(field.annotation)
        if section is not None and section not in (*within, model):
            yield from _sections(section, f"{prefix}.{name}".strip("."), (*within, model))
