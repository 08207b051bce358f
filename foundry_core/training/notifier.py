"""Calls the hooks of every observer; none can change training, and one that raises is muted."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import IO, Any

import pluggy

from foundry_core.errors import PluginError, tell
from foundry_core.processes import World
from foundry_core.registry.hooks import owner_of
from foundry_core.registry.isolation import cause, guarded, kept_settings
from foundry_core.storage.files import StorageError
from foundry_core.training.sinks import MetricsFile


class _Muted(PluginError):  # noqa: N818 - what becomes of the observer
    """An observer failed and is no longer called."""


class Notifier:
    """Calls a hook on every observer; one that fails is reported on stderr once and muted.

    Training goes on as if no observer had been there: each gets copies, and what `kept_settings` names is restored. An
    observer can take time and touch files; those of a checkpoint must not be changed.

    world: The processes of the run, of which the first one has observers.
    """

    def __init__(self, manager: pluggy.PluginManager, world: World | None = None, stream: IO[str] | None = None):
        self._manager = manager
        self._stream, self._silent = stream, world is not None and not world.first
        self._muted: set[int] = set()

    def tell(self, hook: str, **facts: Any) -> None:
        """Call a hook, such as `foundry_step_ended`, on every observer that is not muted."""
        if self._silent:
            return
        with kept_settings():
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
