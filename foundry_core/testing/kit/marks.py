"""Keys of a `model:` section that are marked by their type (`Dropout`, `Layers`), and settings with other values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal, get_args

from pydantic import BaseModel

from foundry_core.schema import Marked

Path = tuple[str, ...]


def marked(section: BaseModel, meaning: Literal["dropout", "layers"]) -> list[Path]:
    """Return the keys of a section with this meaning; those whose value is None are left out."""
    return list(_marked(section, Marked(meaning)))


def _marked(section: BaseModel, mark: Marked) -> Iterator[Path]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from ((name, *path) for path in _marked(value, mark))
        elif value is not None and (mark in field.metadata or _inside(field.annotation, mark)):
            yield (name,)


def _inside(annotation: Any, mark: Marked) -> bool:
    """Check whether a member of a union is marked: `Dropout | None`."""
    members = get_args(annotation)
    return mark in members or any(_inside(member, mark) for member in members)


def changed_at(settings: Mapping[str, Any], paths: list[Path], value: Any) -> dict[str, Any]:
    """Return settings with a value at each of these keys, whether they are set or not."""
    changed = deepcopy(dict(settings))
    for path in paths:
        section = changed
        for part in path[:-1]:
            section[part] = dict(section.get(part) or {})
            section = section[part]
        section[path[-1]] = value
    return changed


def without_defaults(settings: Mapping[str, Any], section: BaseModel) -> dict[str, Any]:
    """Return settings without the keys for which the schema has a default: what a YAML has to state."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        field, inner = type(section).model_fields.get(name), getattr(section, name, None)
        if isinstance(inner, BaseModel) and isinstance(value, Mapping):
            below = without_defaults(value, inner)
            if below or (field is not None and field.is_required()):
                kept[name] = below
        elif field is None or field.is_required():
            kept[name] = value
    return kept
