"""Calls the hooks of every observer; none can change training, and one that raises is muted."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import IO, Any

import pluggy

from foundry_core.errors import PluginError, tell
from foundry_core.registry.hooks import owner_of
from foundry_core.registry.isolation import cause, guarded
from foundry_core.registry.surroundings import kept_surroundings
from foundry_core.storage.files import StorageError
from foundry_core.training.sinks import MetricsFile


class _Muted(PluginError):  # noqa: N818 - what becomes of the observer
    """An observer that failed."""


class Notifier:
    """Tells every observer; a failing one is reported on stderr once and muted.

    Whatever an observer does before it returns, training goes on as if it had not been there: it gets copies, and what
    `kept_surroundings` names is put back. It can take time, and it can touch files: a checkpoint's are not to be
    changed.
    """

    def __init__(self, manager: pluggy.PluginManager, stream: IO[str] | None = None):
        self._manager = manager
        self._stream = stream
        self._muted: set[int] = set()

    def tell(self, hook: str, **facts: Any) -> None:
        """Call a hook, such as `foundry_step_ended`, on every observer that is not muted."""
        with kept_surroundings():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if id(implementation.plugin) not in self._muted:
                    self._tell(implementation, hook, facts)

    def _tell(self, implementation: pluggy.HookImpl, hook: str, facts: Mapping[str, Any]) -> None:
        plugin = implementation.plugin

        def failure(error: BaseException) -> BaseException:
            # A disk that refuses the metrics will refuse the checkpoint too.
            fatal = isinstance(error, StorageError) and isinstance(plugin, MetricsFile)
            return (
                error if fatal else _Muted(f"observer {owner_of(plugin)} failed in {hook} and is muted: {cause(error)}")
            )

        try:
            with guarded(failure):
                implementation.function(**{name: deepcopy(facts[name]) for name in implementation.argnames})
        except _Muted as muted:
            self._muted.add(id(plugin))
            tell(f"warning: {muted}\n", self._stream)
