"""Registration of architectures with transformers' auto classes. Light: a run postpones what imports transformers."""

from __future__ import annotations

import sys

_asked: dict[str, None] = {}
_postponing: list[None] = []


def postpone_registration() -> None:
    """Register from now on only when the adapter is imported, which takes 2 s: for processes that run a verb."""
    _postponing.append(None)


def register_auto_classes(*architectures: str) -> None:
    """Register architectures with transformers' auto classes. Call this at the end of a plugin's model module."""
    _asked.update(dict.fromkeys(architectures))
    if not _postponing or "foundry_core.models.adapter" in sys.modules:
        register_all()


def register_all() -> None:
    """Register every architecture that has asked for it."""
    from foundry_core.models.adapter import auto_classes

    for name in _asked:
        auto_classes(name)
