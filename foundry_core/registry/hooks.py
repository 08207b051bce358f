"""The hooks of the plugins that are active in a run: who hears, and what a configuration may choose from. Light."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.discovery import ARCHITECTURES, EXTENSIONS, installed
from foundry_core.registry.isolation import cause, guarded, surroundings_kept, undisturbed
from foundry_core.registry.objective import CORE_OBJECTIVES, Objective
from foundry_core.registry.optimizer import CORE_OPTIMIZERS, Optimizer
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType

if TYPE_CHECKING:
    import pluggy


def hook_manager(modules: Iterable[Any]) -> pluggy.PluginManager:
    """A pluggy manager with these modules or observers registered; misspelt, unmarked and misused hooks are refused."""
    import pluggy

    from foundry_core.registry import hookspecs

    manager = pluggy.PluginManager("foundry")
    manager.add_hookspecs(hookspecs)
    try:
        for module in modules:
            manager.register(module)
            _refuse_unmarked(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{reason}. The hooks are listed in foundry_core/hookspecs.py") from error
    for hook in vars(manager.hook).values():
        for implementation in getattr(hook, "get_hookimpls", list)():
            _refuse_misuse(hook.name, implementation)
    return manager


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


def _refuse_misuse(hook: str, implementation: pluggy.HookImpl) -> None:
    """What pluggy lets pass and would never be called as it is meant."""
    function = implementation.function
    parameters = inspect.signature(function).parameters.values()
    offering = hook in {asked for asked, _, _ in _KINDS.values()}
    if implementation.wrapper or implementation.hookwrapper:
        problem = "is a wrapper: foundry asks and tells each plugin by itself"
    elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        problem = "is an async function, whose body would never run: write def"
    elif inspect.isgeneratorfunction(function) and not offering:
        problem = "is a generator, whose body would never run: remove the yield"
    elif any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        problem = "takes arguments by '*', which would hold nothing: name those that it wants"
    elif any(each.default is not each.empty for each in parameters):
        named = next(each.name for each in parameters if each.default is not each.empty)
        problem = f"has a default for its argument '{named}', which it would always get: remove the default"
    elif any(each.kind is each.KEYWORD_ONLY for each in parameters):
        problem = "has an argument behind a '*', which it would never get: remove the '*'"
    else:
        return
    raise PluginError(f"the hook {hook} of {owner_of(implementation.plugin)} {problem}")


def owner_of(plugin: Any) -> str:
    """Who is meant by a module or an object with hooks: the distribution that declares it, or its own name."""
    if plugin is None:
        return "foundry-core"
    if not isinstance(plugin, ModuleType):
        return type(plugin).__name__
    for group in (ARCHITECTURES, EXTENSIONS):
        for points in installed(group).values():
            for point in points:
                if point.module == plugin.__name__:
                    return str(point)
    return plugin.__name__


def available_objectives(manager: pluggy.PluginManager) -> dict[str, Objective]:
    """Core's objectives and those that active plugins offer, by name."""
    offers = _offers(manager, "objective")
    for name, (objective, plugin) in offers.items():
        if objective.like is None:
            continue
        where = f"the objective '{name}' of {owner_of(plugin)} is like '{objective.like}'"
        if objective.like not in offers:
            raise PluginError(f"{where}, which there is not.{did_you_mean(objective.like, offers)}")
        if offers[objective.like][0].causal != objective.causal:
            raise PluginError(f"{where}, but one of them is causal and one is not")
    return {name: objective for name, (objective, _) in offers.items()}


def available_optimizers(manager: pluggy.PluginManager) -> dict[str, Optimizer]:
    """Core's optimizers and those that active plugins offer, by name."""
    return {name: optimizer for name, (optimizer, _) in _offers(manager, "optimizer").items()}


def available_tokenizer_types(manager: pluggy.PluginManager) -> dict[str, TokenizerType]:
    """Core's tokenizer types and those that active plugins offer, by name."""
    return {name: kind for name, (kind, _) in _offers(manager, "tokenizer type").items()}


def providers(manager: pluggy.PluginManager, chosen: Mapping[str, str]) -> dict[str, str]:
    """Who ships what a run has chosen, where that is not core.

    chosen: a name for each kind, such as `{"optimizer": "lion"}`.
    """
    plugins = {kind: _offers(manager, kind)[name][1] for kind, name in chosen.items()}
    return {kind: owner_of(plugin) for kind, plugin in plugins.items() if plugin is not None}


def modules_behind(manager: pluggy.PluginManager, chosen: Mapping[str, str]) -> set[str]:
    """The modules that offer what a run has chosen; chosen as for `providers`."""
    plugins = [_offers(manager, kind)[name][1] for kind, name in chosen.items()]
    return {plugin.__name__ for plugin in plugins if isinstance(plugin, ModuleType)}


def _offering_failure(hook: str, plugin: Any, error: BaseException) -> PluginError:
    return PluginError(f"the hook {hook} of {owner_of(plugin)} fails: {cause(error)}")


def offered(manager: pluggy.PluginManager) -> dict[str, list[Any]]:
    """Descriptors that plugins offer beside core's own, by kind. Raises PluginError as the functions above do."""
    available_objectives(manager)  # what an objective is like
    return {
        kind: [descriptor for descriptor, plugin in _offers(manager, kind).values() if plugin is not None]
        for kind in _KINDS
    }


_KINDS: dict[str, tuple[str, type[Any], Mapping[str, Any]]] = {
    "objective": ("foundry_objectives", Objective, CORE_OBJECTIVES),
    "optimizer": ("foundry_optimizers", Optimizer, CORE_OPTIMIZERS),
    "tokenizer type": ("foundry_tokenizer_types", TokenizerType, CORE_TOKENIZER_TYPES),
}
"""What a configuration chooses by name: the hook that offers it, its descriptor's class, core's own."""


def _offers(manager: pluggy.PluginManager, kind: str) -> dict[str, tuple[Any, Any]]:
    """Every descriptor of a kind by name, each with the plugin that offers it, None for core's own."""
    hook, descriptor_class, core = _KINDS[kind]
    found: dict[str, tuple[Any, Any]] = {name: (descriptor, None) for name, descriptor in core.items()}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        plugin = implementation.plugin
        with guarded(partial(_offering_failure, hook, plugin)), undisturbed(), surroundings_kept():
            offered = list(implementation.function())
        for descriptor in offered:
            if not isinstance(descriptor, descriptor_class):
                raise PluginError(
                    f"the hook {hook} of {owner_of(plugin)} gives a {type(descriptor).__name__}, not "
                    f"{descriptor_class.__name__}"
                )
            if descriptor.name in found:
                owners = " and ".join(owner_of(each) for each in (found[descriptor.name][1], plugin))
                raise PluginError(
                    f"two plugins offer the {kind} '{descriptor.name}', {owners}: one of them must go, or be renamed"
                )
            found[descriptor.name] = (descriptor, plugin)
    return found
