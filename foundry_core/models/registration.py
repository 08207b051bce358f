"""Registration of architectures with transformers' auto classes, which a run of a verb puts off."""

from __future__ import annotations

from foundry_core.models.adapted_config import registration


def postpone_registration() -> None:
    """Register from now on only when the adapter is imported, which takes 2 s: for processes that run a verb."""
    registration.postponed = True


def register_auto_classes(*architectures: str) -> None:
    """Register architectures with transformers' auto classes. Call this at the end of a plugin's model module."""
    registration.asked.update(dict.fromkeys(architectures))
    if not registration.postponed or registration.adapter_is_imported:
        from foundry_core.models.adapter import auto_classes

        for name in architectures:
            auto_classes(name)
