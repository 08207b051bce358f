"""pydantic's findings in a user's words, each with the key it is about. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.yaml_source import KeyPath, dotted
from foundry_core.errors import did_you_mean


def findings(error: ValidationError, section: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield each finding of the validation of a section as (key, message). prefix: the key of the section."""
    words: set[KeyPath] = set()  # keys that are one of some words or else a section: one finding is enough
    for finding in error.errors(include_url=False):
        # Parts that pydantic adds for a wrapped value and for the key of a mapping name nothing in the file.
        place = tuple(part for part in finding["loc"] if not str(part).startswith(("function-", "[", "literal[")))
        if len(place) < len(finding["loc"]) and str(finding["loc"][-1]).startswith("literal["):
            if isinstance(finding["input"], Mapping):
                continue
            words.add(place)
        elif place in words:
            continue
        yield (*prefix, *place), _message(finding, section, place, prefix)


def _message(finding: Any, section: type[BaseModel], place: KeyPath, prefix: KeyPath) -> str:
    kind, value, context = finding["type"], finding.get("input"), finding.get("ctx", {})
    match kind:
        case "missing":
            return "missing"
        case "string_unicode":
            return f"is not UTF-8: rename it, or use a UTF-8 locale (LC_ALL=C.UTF-8): {_shown(value)}"
        case "extra_forbidden":
            return _unknown_key(str(place[-1]), section, place[:-1], prefix)
        case "value_error":
            return str(context.get("error", finding["msg"]))
        case "literal_error":
            expected = context["expected"]
            known = re.findall(r"'([^']+)'", expected)
            near = did_you_mean(str(value), known)
            if finding["loc"][-1] == "[key]":
                return f"unknown key.{near} Known here: {', '.join(known)}."
            return f"is {_shown(value)}, must be {expected}{'.' if near else ''}{near}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "is empty: give it its keys" if value is None else f"must be a section, not {_shown(value)}"
    return f"{_lower(finding['msg'])}, not {_shown(value)}"


def _unknown_key(name: str, section: type[BaseModel], place: KeyPath, prefix: KeyPath) -> str:
    own = dict(_sections(section, dotted(prefix, "")))
    here = own.get(dotted((*prefix, *place), ""), [])
    near = did_you_mean(name, here)
    homes = [home for home, keys in (*own.items(), *_sections(ExperimentConfig)) if name in keys]
    if near:
        return f"unknown key.{near}"
    if homes:
        return f"unknown key. It belongs {f'under {homes[0]}' if homes[0] else 'at the top level'}."
    return "unknown key." + (f" Known here: {', '.join(here)}." if here else "")


_WORDS = {
    "Input should be": "must be",
    "a valid integer": "an integer",
    "a valid tuple": "a list",
    "a valid ": "a ",
    "String should": "text should",
}


def _lower(text: str) -> str:
    for pydantics, ours in _WORDS.items():
        text = text.replace(pydantics, ours)
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    shown = "nothing (null)" if value is None else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _sections(
    section: type[BaseModel], name: str = "", within: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield every section with its dotted name and its keys; one that contains its own class is entered once."""
    yield name, list(section.model_fields)
    for key, field in section.model_fields.items():
        candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if inner is not None and inner not in (*within, section):
            yield from _sections(inner, f"{name}.{key}".strip("."), (*within, section))
