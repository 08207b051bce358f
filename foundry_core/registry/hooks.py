"""The hooks of the plugins that are active in a run: who hears, and what a configuration may choose from. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.discovery import GROUPS, installed
from foundry_core.registry.isolation import cause, guarded, isolated
from foundry_core.registry.objective import CORE_OBJECTIVES, Objective
from foundry_core.registry.optimizer import CORE_OPTIMIZERS, Optimizer
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType

if TYPE_CHECKING:
    import pluggy


Kind = Literal["objective", "optimizer", "tokenizer type"]
"""What a plugin may offer by name."""


def hook_manager(modules: Iterable[Any]) -> pluggy.PluginManager:
    """Return a pluggy manager with these modules or observers registered.

    Raises PluginError for hooks that are misspelt or unmarked.
    """
    import pluggy

    from foundry_core.registry import hookspecs

    manager = pluggy.PluginManager("foundry")
    manager.add_hookspecs(hookspecs)
    _register(manager, modules)
    return manager


@contextmanager
def observing(manager: pluggy.PluginManager, observers: Iterable[Any]) -> Iterator[None]:
    """Register observers for the time of a run. Raises PluginError as `hook_manager` does."""
    added = list(observers)
    try:
        _register(manager, added)
        yield
    finally:
        for observer in added:
            if manager.is_registered(observer):
                manager.unregister(observer)


def _register(manager: pluggy.PluginManager, plugins: Iterable[Any]) -> None:
    import pluggy

    try:
        for plugin in plugins:
            manager.register(plugin)
            _refuse_unmarked(plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{reason}. The hooks are listed in foundry_core/registry/hookspecs.py") from error


def hooks_in(module: ModuleType) -> dict[str, bool]:
    """A module's functions that are marked as hooks, and those of its own that have the name of one; which are marked.

    What it has imported from elsewhere is not meant by its name.
    """
    from foundry_core.registry import hookspecs

    found = {}
    for name, value in vars(module).items():
        if isinstance(value, FunctionType):
            marked = hasattr(value, "foundry_impl")
            named = hasattr(getattr(hookspecs, name, None), "foundry_spec") and value.__module__ == module.__name__
            if marked or named:
                found[name] = marked
    return found


def _refuse_unmarked(module: Any) -> None:
    for name, marked in hooks_in(module).items() if isinstance(module, ModuleType) else ():
        if not marked:
            raise PluginError(
                f"the hook {name} of {owner_of(module)} is not marked, and would never be called: "
                f"put @hookimpl of foundry_core before {module.__name__}.{name}, or give it another name"
            )


def owner_of(plugin: Any) -> str:
    """Who is meant by a module or an object with hooks: the distribution that declares it, or its own name."""
    if plugin is None:
        return "foundry-core"
    if not isinstance(plugin, ModuleType):
        return type(plugin).__name__
    points = (point for group in GROUPS for claims in installed(group).values() for point in claims)
    return next((str(point) for point in points if point.module == plugin.__name__), plugin.__name__)


@dataclass(frozen=True)
class Provider:
    """Who offers something by name: the module, and the package or class that an error names."""

    module: str
    owner: str


@dataclass(frozen=True)
class Offers:
    """What a configuration may choose by name: core's own and what active plugins offer.

    providers: the plugin behind each (kind, name); core's own have none.
    """

    objectives: Mapping[str, Objective]
    optimizers: Mapping[str, Optimizer]
    tokenizer_types: Mapping[str, TokenizerType]
    providers: Mapping[tuple[Kind, str], Provider]

    def providers_of(self, chosen: Mapping[Kind, str]) -> dict[Kind, Provider]:
        """Return the providers of what a run has chosen, such as `{"optimizer": "lion"}`, where they are not core."""
        found = {kind: self.providers.get((kind, name)) for kind, name in chosen.items()}
        return {kind: provider for kind, provider in found.items() if provider is not None}


def offers(manager: pluggy.PluginManager) -> Offers:
    """Ask every active plugin once for what it offers.

    Raises:
        PluginError: A hook fails or returns something else than descriptors, two plugins offer one name, or an
            objective names an interface that does not exist.
    """
    providers: dict[tuple[Kind, str], Provider] = {}
    objectives = _offered(manager, "objective", providers)
    _check_interfaces(objectives, providers)
    return Offers(
        objectives,
        _offered(manager, "optimizer", providers),
        _offered(manager, "tokenizer type", providers),
        providers,
    )


def _check_interfaces(objectives: Mapping[str, Objective], providers: Mapping[tuple[Kind, str], Provider]) -> None:
    for name, objective in objectives.items():
        if objective.same_interface_as is None:
            continue
        interface, owner = objective.same_interface_as, _owner(providers, "objective", name)
        where = f"the objective '{name}' of {owner} names '{interface}' as its interface"
        if interface not in objectives:
            raise PluginError(f"{where}, but there is no such objective.{did_you_mean(interface, objectives)}")
        if objectives[interface].causal != objective.causal:
            raise PluginError(f"{where}, but only one of them is causal")


_KINDS: dict[Kind, tuple[str, type[Any], Mapping[str, Any]]] = {
    "objective": ("foundry_objectives", Objective, CORE_OBJECTIVES),
    "optimizer": ("foundry_optimizers", Optimizer, CORE_OPTIMIZERS),
    "tokenizer type": ("foundry_tokenizer_types", TokenizerType, CORE_TOKENIZER_TYPES),
}
"""What a configuration chooses by name: the hook that offers it, its descriptor's class, core's own."""


def _offered(manager: pluggy.PluginManager, kind: Kind, providers: dict[tuple[Kind, str], Provider]) -> dict[str, Any]:
    """Return every descriptor of a kind by name; add who offers those that are not core's to `providers`."""
    hook, descriptor_class, core = _KINDS[kind]
    found = dict(core)
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        plugin = implementation.plugin
        with guarded(partial(_offering_failure, hook, plugin)), isolated():
            descriptors = list(implementation.function())
        for descriptor in descriptors:
            owner = owner_of(plugin)
            if not isinstance(descriptor, descriptor_class):
                raise PluginError(
                    f"the hook {hook} of {owner} gives a {type(descriptor).__name__}, not {descriptor_class.__name__}"
                )
            if descriptor.name in found:
                raise PluginError(
                    f"two plugins offer the {kind} '{descriptor.name}', {_owner(providers, kind, descriptor.name)} and "
                    f"{owner}: one of them must go, or be renamed"
                )
            found[descriptor.name] = descriptor
            providers[kind, descriptor.name] = Provider(getattr(plugin, "__name__", type(plugin).__name__), owner)
    return found


def _owner(providers: Mapping[tuple[Kind, str], Provider], kind: Kind, name: str) -> str:
    provider = providers.get((kind, name))
    return owner_of(None) if provider is None else provider.owner


def _offering_failure(hook: str, plugin: Any, error: BaseException) -> PluginError:
    return PluginError(f"the hook {hook} of {owner_of(plugin)} fails: {cause(error)}")
