"""Checks of common mistakes in descriptors, made when a descriptor is created. Light."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from foundry_core.errors import PluginError


def check(holds: bool, field: str, value: Any, wanted: str) -> None:
    """Raise PluginError unless a condition holds; `field` is such as `the objective 'mine': its layout`."""
    if not holds:
        raise PluginError(f"{field} is {reprlib.repr(value)}, not {wanted}")


def check_name(kind: str, name: Any) -> None:
    """Check the name of a descriptor."""
    holds = isinstance(name, str) and name != "" and name.isprintable()
    check(holds, f"the {kind} {name!r}: its name", name, "a name in printable text")


def check_names(field: str, names: Any) -> None:
    """Check that names are a tuple: without its comma, `("masked_lm")` is a string."""
    holds = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    check(holds, field, names, 'a tuple of names such as ("causal_lm",)')


def check_import_string(field: str, target: Any) -> None:
    """Check that a value has the form `"package.module:attribute"`."""
    holds = isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", target) is not None
    check(holds, field, target, 'an import string such as "package.module:name"')


def check_file_name(field: str, path: Any) -> None:
    """Check that a value is the path of a Python file inside a package, such as `parts/standalone.py`."""
    holds = isinstance(path, str) and re.fullmatch(r"(\w+/)*\w+\.py", path) is not None
    check(holds, field, path, 'the path of a Python file in its package such as "standalone.py"')
