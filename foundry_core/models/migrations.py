"""Opening models that an older version of a plugin saved: the migrations of its descriptor, applied to names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from packaging.version import Version

from foundry_core.registry.architecture import Migration
from foundry_core.registry.loading import get_architecture

_PREFIX = "model."


def pending(description: Mapping[str, Any]) -> list[Migration]:
    """Return the migrations since the version of the plugin that wrote a description, the oldest first.

    Raises:
        PluginError: The architecture is not installed.
        ValueError: The description has no valid version.
    """
    plugin = description.get("plugin")
    migrations = get_architecture(description["experiment"]["model"]["architecture"]).migrations
    if not isinstance(plugin, dict) or not migrations:
        return []
    written_by = Version(plugin["version"])
    return [migrations[version] for version in sorted(migrations, key=Version) if Version(version) > written_by]


def migrated(section: Mapping[str, Any], steps: Sequence[Migration]) -> dict[str, Any]:
    """Return a `model:` section with its keys under their present names."""
    found = deepcopy(dict(section))
    for step in steps:
        for old, new in step.keys.items():
            *path, key = old.split(".")
            place = _inner(found, path)
            if key in place:
                value = place.pop(key)
                *path, key = new.split(".")
                _inner(found, path)[key] = value
    return found


def _inner(section: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for part in path:
        section = section.setdefault(part, {})
    return section


def present_names(written: Iterable[str], steps: Sequence[Migration], *, adapted: bool) -> dict[str, str]:
    """Return the names of a file's weights, by their present names there.

    Migrations rename what the plugin's class calls its weights, as in state_keys.txt. In the file of an adapted model
    these names have a prefix; in that of a wrapped model one is missing.
    """
    found = {}
    for name in written:
        own = name.removeprefix(_PREFIX) if adapted else f"{_PREFIX}{name}"
        for step in steps:
            for pattern, replacement in step.weights.items():
                own = re.sub(pattern, replacement, own)
        found[f"{_PREFIX}{own}" if adapted else own.removeprefix(_PREFIX)] = name
    return found


def own_shapes(file: Any, stored: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a file under the names that an adapted model has for them.

    stored: the name in the file of each present name.
    """
    return {name.removeprefix(_PREFIX): tuple(file.get_slice(old).get_shape()) for name, old in stored.items()}
