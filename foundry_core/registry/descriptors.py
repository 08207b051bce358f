"""What a plugin describes itself with, looked at where it is made, so that a mistake is one line. Light."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from foundry_core.errors import PluginError

Role = Literal["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token"]

Rule = tuple[str, Callable[[Any], bool]]
"""What a field must be, in words and as a test."""


def refuse_misfits(kind: str, descriptor: Any, rules: Mapping[str, Rule]) -> None:
    """Raise PluginError for the first field that breaks its rule. kind: what stands before its name."""
    for name, (wanted, holds) in rules.items():
        value = getattr(descriptor, name)
        if not holds(value):
            are = "are" if name.endswith("s") and not name.endswith("ss") else "is"
            whose = f"the {kind} {descriptor.name!r}: its {name}" if hasattr(descriptor, "name") else f"{kind}.{name}"
            raise PluginError(f"{whose} {are} {reprlib.repr(value)}, not {wanted}")


def derived_from(value: Any, module: str, name: str) -> bool:
    """Whether a value is a class derived from one that cannot be imported here: its module lies above, or is heavy."""
    return isinstance(value, type) and any((base.__module__, base.__name__) == (module, name) for base in value.__mro__)


def one_of(*choices: str) -> Rule:
    return f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices


def some_of(*choices: str) -> Rule:
    wanted = f"a tuple of {' and '.join(map(repr, choices))}, or of one of them"
    return wanted, lambda value: isinstance(value, tuple | list) and bool(value) and all(e in choices for e in value)


def _is_import_string(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value) is not None


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(NAME[1](name) for name in value)


def _are_roles(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(role in get_args(Role) for role in value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        role in get_args(Role) and isinstance(token, str) for role, token in value.items()
    )


NAME: Rule = ("a name in printable text", lambda value: isinstance(value, str) and value != "" and value.isprintable())
TEXT: Rule = ("text", lambda value: isinstance(value, str))
NAMES: Rule = ('a tuple of names such as ("causal_lm",)', _are_names)
COUNT: Rule = ("a whole number of at least 1, or None", _is_count)
FLAG: Rule = ("True or False", lambda value: isinstance(value, bool))
FUNCTION: Rule = ("a function", callable)
IMPORT_STRING: Rule = ('an import string such as "package.module:name"', _is_import_string)
SETTINGS: Rule = (
    "a ConfigSection",
    lambda value: value is None or derived_from(value, "foundry_core.schema", "ConfigSection"),
)
ROLES: Rule = ('a tuple of special-token roles such as ("unk_token",)', _are_roles)
TOKENS: Rule = ('names of special tokens by role such as {"unk_token": "<unk>"}', _are_tokens)
