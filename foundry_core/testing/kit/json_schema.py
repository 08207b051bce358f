"""Reading JSON schemas: the alternatives and types of one value."""

from __future__ import annotations

from typing import Any


def alternatives(part: Any, whole: Any) -> list[Any]:
    """Return the alternatives of a schema, with references resolved."""
    while "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    choices = part.get("anyOf") or part.get("oneOf") or part.get("allOf")
    return [each for choice in choices for each in alternatives(choice, whole)] if choices else [part]


def kinds(part: Any) -> set[str]:
    """Return the JSON types that a schema without alternatives accepts; empty if it does not state any."""
    if "type" in part:
        return {part["type"]} if isinstance(part["type"], str) else set(part["type"])
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return {names[type(value)] for value in part.get("enum", [part[key] for key in ("const",) if key in part])}
