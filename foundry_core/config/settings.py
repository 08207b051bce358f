"""The settings of a resolved configuration under dotted keys, and those that change no weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FREE = (
    *("logging", "plugins", "training.output_dir", "training.checkpoints", "training.num_workers", "training.device"),
    *("tokenizer.path", "tokenizer.pretokenized", "training.suites"),
)
"""Settings that may differ, because they change no weight: what, where and how often a run reports and saves, and the
modules of observers. The packages that ship what is trained with are compared by themselves, and so is the tokenizer.
"""
SEEDS = ("random_seed", "seeds")
"""The seeds: runs that differ in nothing else are repetitions of one experiment."""


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested sections under their dotted keys."""
    found, sections = {}, [("", settings)]
    for prefix, section in sections:  # not recursive: a stranger's may be nested deeply
        for key, value in section.items():
            if isinstance(value, Mapping):
                sections.append((f"{prefix}{key}.", value))
            else:
                found[f"{prefix}{key}"] = value
    return found


def covered(key: str, names: Iterable[str]) -> bool:
    """Check whether a dotted key is among names of keys and sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
