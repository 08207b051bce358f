"""The hooks of the plugins that are active in a run, and what a configuration may choose from. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.core_steps import CORE_CORPUS_STEPS
from foundry_core.registry.corpus_step import CorpusStep
from foundry_core.registry.data_order import CORE_ORDERS, DataOrder
from foundry_core.registry.discovery import scan
from foundry_core.registry.isolation import failing_as, isolated
from foundry_core.registry.objective import CORE_OBJECTIVES, Objective
from foundry_core.registry.optimizer import CORE_OPTIMIZERS, Optimizer
from foundry_core.registry.schedule import CORE_SCHEDULES, LearningRateSchedule
from foundry_core.registry.suite import CORE_SUITES, Suite
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType

if TYPE_CHECKING:
    import pluggy


Kind = Literal["objective", "optimizer", "schedule", "tokenizer type", "order", "corpus step", "suite"]
"""The kinds of things that a plugin may offer by name."""


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
            for name, marked in hooks_in(plugin).items() if isinstance(plugin, ModuleType) else ():
                if not marked:
                    raise PluginError(
                        f"the hook {name} of {owner_of(plugin)} is not marked, and would never be called: put "
                        f"@hookimpl of foundry_core before {plugin.__name__}.{name}, or give it another name"
                    )
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{reason}. The hooks are listed in foundry_core/registry/hookspecs.py") from error


def hooks_in(module: ModuleType) -> dict[str, bool]:
    """Return the functions of a module that are hooks by mark or by name, and whether each is marked.

    By name: only those that the module defines itself, not imported ones.
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


def owner_of(plugin: Any) -> str:
    """Return the distribution that declares a module, such as `foundry-rnn 0.1.0`, or the name of a module or class."""
    if not isinstance(plugin, ModuleType):
        return type(plugin).__name__
    return next((str(point) for point in scan() if point.module == plugin.__name__), plugin.__name__)


class Provider(NamedTuple):
    """A plugin that offers something by name: its module, and the package or class that an error names."""

    module: str
    owner: str


_CORE = Provider("foundry_core", "model-foundry")


@dataclass(frozen=True)
class Offers:
    """Descriptors that a configuration may choose by name, and the provider of each that is not core's."""

    objectives: Mapping[str, Objective]
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, LearningRateSchedule]
    tokenizer_types: Mapping[str, TokenizerType]
    orders: Mapping[str, DataOrder]
    corpus_steps: Mapping[str, CorpusStep]
    suites: Mapping[str, Suite]
    providers: Mapping[tuple[Kind, str], Provider]

    def providers_of(self, chosen: Mapping[Kind, str]) -> dict[Kind, Provider]:
        """Return the providers of what a run has chosen, such as `{"optimizer": "lion"}`, without core."""
        return {kind: self.providers[kind, name] for kind, name in chosen.items() if (kind, name) in self.providers}


def offers(manager: pluggy.PluginManager) -> Offers:
    """Ask every active plugin once for what it offers.

    Raises PluginError for a hook that fails, a wrong descriptor, a name offered twice, or an unknown interface.
    """
    providers: dict[tuple[Kind, str], Provider] = {}
    objectives = _offered(manager, "objective", providers)
    for name, objective in objectives.items():
        interface = objective.same_interface_as
        if interface is None:
            continue
        where = f"the objective '{name}' of {providers['objective', name].owner} names '{interface}' as its interface"
        if interface not in objectives:
            raise PluginError(f"{where}, but there is no such objective.{did_you_mean(interface, objectives)}")
        if objectives[interface].causal != objective.causal:
            raise PluginError(f"{where}, but only one of them is causal")
    return Offers(
        objectives,
        _offered(manager, "optimizer", providers),
        _offered(manager, "schedule", providers),
        _offered(manager, "tokenizer type", providers),
        _offered(manager, "order", providers),
        _offered(manager, "corpus step", providers),
        _offered(manager, "suite", providers),
        providers,
    )


_KINDS: dict[Kind, tuple[str, type[Any], Mapping[str, Any]]] = {
    "objective": ("foundry_objectives", Objective, CORE_OBJECTIVES),
    "optimizer": ("foundry_optimizers", Optimizer, CORE_OPTIMIZERS),
    "schedule": ("foundry_schedules", LearningRateSchedule, CORE_SCHEDULES),
    "tokenizer type": ("foundry_tokenizer_types", TokenizerType, CORE_TOKENIZER_TYPES),
    "order": ("foundry_orders", DataOrder, CORE_ORDERS),
    "corpus step": ("foundry_corpus_steps", CorpusStep, CORE_CORPUS_STEPS),
    "suite": ("foundry_suites", Suite, CORE_SUITES),
}
"""For each kind: the hook that offers it, the class of its descriptors, core's own."""


def _offered(manager: pluggy.PluginManager, kind: Kind, providers: dict[tuple[Kind, str], Provider]) -> dict[str, Any]:
    """Return every descriptor of a kind by name; add the providers of those that are not core's to `providers`."""
    hook, descriptor_class, core = _KINDS[kind]
    found = dict(core)
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        plugin = implementation.plugin
        owner = owner_of(plugin)
        where = f"the hook {hook} of {owner}"
        with failing_as(where, passing=()), isolated():
            descriptors = list(implementation.function())
        for descriptor in descriptors:
            if not isinstance(descriptor, descriptor_class):
                kind_of_it = type(descriptor).__name__
                raise PluginError(f"{where} returned a {kind_of_it}, not a list of {descriptor_class.__name__}")
            name = descriptor.name
            if name in found:
                raise PluginError(
                    f"two plugins offer the {kind} '{name}', {providers.get((kind, name), _CORE).owner} and {owner}: "
                    "one of them must go, or be renamed"
                )
            found[name] = descriptor
            providers[kind, name] = Provider(getattr(plugin, "__name__", type(plugin).__name__), owner)
    return found
