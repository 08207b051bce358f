"""Texts in JSON objects: those of a jsonl corpus, and those of minimal pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from foundry_core.corpus.account import utf8_bytes

_SCAN = json.JSONDecoder().raw_decode


def json_text(line: str) -> str:
    """Return the value of "text". Raises ValueError with the problem, or RecursionError for too deep a nesting."""
    # The hook halves the speed of reading; the key may be spelt with escapes.
    twice = line.count('"text"') > 1 or "\\u00" in line
    record, end = (None, None) if twice else _quick_json(line)
    if line[end:] not in ("", "\r"):
        record = json.loads(line, object_pairs_hook=_object_with_one_text if twice else None)
    if not isinstance(record, dict):
        raise ValueError('not an object; each line must be {"text": "..."}')
    return plain_text(record, "text")


def _quick_json(line: str) -> tuple[Any, int | None]:
    """Return the value that a line begins with and where it ends: half of the time that `json.loads` takes."""
    try:
        return _SCAN(line)
    except ValueError:  # white space, or an error that `json.loads` reports better
        return None, None


def plain_text(record: Mapping[str, object], key: str) -> str:
    """Return a value of a JSON object that has to be text. Raises ValueError with the problem."""
    if key not in record:
        raise ValueError(f'no key "{key}"; its keys are {", ".join(map(ascii, list(record)[:5])) or "none"}')
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f'"{key}" is {type(text).__name__}, not a string')
    if "\0" in text:
        raise ValueError(f'"{key}" has a NUL character at position {text.index(chr(0))}')
    try:
        utf8_bytes(text)
    except UnicodeEncodeError as error:
        raise ValueError(f'"{key}" has a lone surrogate at position {error.start}, which is not a character') from None
    return text


def _object_with_one_text(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object. Of two equal keys, which are legal JSON, Python would silently keep the last."""
    if [key for key, _ in pairs].count("text") > 1:
        raise ValueError('the key "text" occurs twice in one object')
    return dict(pairs)
