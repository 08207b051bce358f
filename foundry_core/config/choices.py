"""What the names in a configuration lead to, found once: architecture, objective, optimizer, tokenizer type. Light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.hooks import Offers, hook_manager, offers
from foundry_core.registry.loading import active_modules, blamed_on, capabilities_of, get_architecture, shipped_by
from foundry_core.schema import ModelConfig

if TYPE_CHECKING:
    import pluggy


@dataclass(frozen=True)
class ActivePlugins:
    """The plugins whose hooks count in a run, with everything they offer by name.

    Attributes:
        modules: Their modules: the one of the architecture, and those that `plugins:` names.
        manager: The one hook manager of the run.
        offers: What a configuration may choose by name, core's own included.
    """

    modules: tuple[ModuleType, ...]
    manager: pluggy.PluginManager
    offers: Offers

    @classmethod
    def of(cls, architecture: Architecture, names: Sequence[str]) -> ActivePlugins:
        """Import the modules, register their hooks and ask for their offers, each once.

        Raises:
            PluginError: A module is not declared by any package, fails to import, or offers what cannot be used.
        """
        modules = tuple(active_modules(architecture, names))
        manager = hook_manager(modules)
        return cls(modules, manager, offers(manager))


@dataclass(frozen=True)
class Choices:
    """What the names in a configuration lead to. Copying it gives the same object: modules cannot be copied."""

    architecture: Architecture
    capabilities: Capabilities
    plugins: ActivePlugins

    @classmethod
    def of(cls, model: ModelConfig, names: Sequence[str]) -> Choices:
        """Look up the architecture of a `model:` section and the plugins that `plugins:` names."""
        architecture = get_architecture(model.architecture)
        return cls(architecture, settled_capabilities(architecture, model), ActivePlugins.of(architecture, names))

    def __deepcopy__(self, memo: Any) -> Choices:
        return self


def settled_capabilities(architecture: Architecture, model: ModelConfig) -> Capabilities:
    """Return what an architecture can do with these settings. Raises PluginError that names the package."""
    with blamed_on(shipped_by(architecture.name)):
        return capabilities_of(architecture, model)
