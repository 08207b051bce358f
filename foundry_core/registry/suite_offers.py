"""Who offers which suite: core, the modules of a run, and installed packages that a user names. Light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from foundry_core.errors import PluginError
from foundry_core.registry.discovery import GROUPS, scan, switched_off
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.isolation import home_of
from foundry_core.registry.loading import load_module
from foundry_core.registry.suite import Suite


@dataclass(frozen=True)
class Offered:
    """A suite or format and who offers it. owner: a distribution and its version; core is "model-foundry"."""

    suite: Suite
    owner: str = "model-foundry"
    module: str | None = None

    @property
    def is_core(self) -> bool:
        return self.module is None

    @property
    def folder(self) -> Path:
        """The folder to which `data` is relative: that of the package, or of a file that `--plugin` names."""
        home = home_of(self.module or __name__)
        assert home is not None, "a module with hooks is a file"
        return home if home.is_dir() else home.parent


def offered_suites(modules: Iterable[ModuleType]) -> dict[str, Offered]:
    """Return the suites and formats of core and of some modules by name. Raises PluginError as `offers` does."""
    found = offers(hook_manager(dict.fromkeys(modules)))
    providers = {name: provider for (kind, name), provider in found.providers.items() if kind == "suite"}
    of_core = {name: Offered(suite) for name, suite in found.suites.items() if name not in providers}
    return of_core | {name: Offered(found.suites[name], each.owner, each.module) for name, each in providers.items()}


def suites_of_packages() -> dict[str, Offered]:
    """Return the suites of every installed package whose light module can be imported; of two of a name, the first."""
    found: dict[str, Offered] = {}
    points = {point.module: point for point in scan() if point.group in GROUPS and not switched_off(point)}
    for point in points.values():
        try:
            offered = offered_suites([load_module(point)])
        except PluginError:  # `foundry plugins doctor` reports it
            continue
        found = {each: suite for each, suite in offered.items() if not suite.is_core} | found
    return found
