"""Check every installed plugin: fine, or what is wrong with it and how to fix it, in one line each. Light."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from foundry_core.errors import PluginError, traced
from foundry_core.registry.discovery import (
    ALL_GROUPS,
    ARCHITECTURES,
    COMMANDS,
    EXTENSIONS,
    Installed,
    declared,
    scan,
    switched_off,
    way_out,
)
from foundry_core.registry.hooks import Offers, hook_manager, offers
from foundry_core.registry.isolation import cause, failing_as, isolated
from foundry_core.registry.loading import (
    blamed_on,
    capabilities_of,
    get_architecture,
    get_command,
    import_string,
    load_architecture,
    load_module,
    refuse_unfit,
    shipped_by,
    sole,
)
from foundry_core.registry.objective import CORE_OBJECTIVES

if TYPE_CHECKING:
    from foundry_core.registry.architecture import Architecture, Capabilities


@dataclass(frozen=True)
class Finding:
    """The state of an installed plugin. `disabled`: by an environment variable. problem: lines with the fix."""

    point: Installed
    state: Literal["fine", "disabled", "unusable"]
    summary: str = ""
    problem: str | None = None


def examine(verbs: Collection[str] = (), *, deep: bool = False) -> list[Finding]:
    """Check every installed plugin.

    Args:
        verbs: The names of foundry's own verbs, which a command cannot have.
        deep: Also import what the import strings of the descriptors name, and the modules of commands.
    """
    by_name = [claims for group in ALL_GROUPS for claims in declared(group).values()]
    return [_finding(point, claims, verbs, deep) for claims in by_name for point in claims]


def _finding(point: Installed, claims: list[Installed], verbs: Collection[str], deep: bool) -> Finding:
    off = switched_off(point)
    if off is not None:
        return Finding(point, "disabled", point.summary, off)
    try:
        if point.group != EXTENSIONS:
            sole([claim for claim in claims if not switched_off(claim)])
        summary = _summary(point, verbs)
        problem = "\n".join(_unresolved(point)) if deep else ""
        if not problem:
            return Finding(point, "fine", summary)
    except PluginError as error:
        traced(error)
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a descriptor contains, the other plugins are listed
        traced(error)
        problem = f"the check of the plugin {point} fails: {cause(error)}. {way_out(point)}"
    return Finding(point, "unusable", problem=problem)


def _summary(point: Installed, verbs: Collection[str]) -> str:
    """Return the summary of a plugin. Raises PluginError if it does not load, or would fail later."""
    if point.group == COMMANDS:
        refuse_unfit(point)
        with blamed_on(point):
            if point.name in verbs:
                raise PluginError(f"the command '{point.name}' has the name of a verb of foundry")
            _find("the module of its command", point.module)
        return point.summary
    module = load_module(point)
    with blamed_on(point):
        if point.group == EXTENSIONS and point.target != point.module:
            raise PluginError(
                f"its entry point names {point.target}, but hooks are functions of a module: "
                f'use {point.name} = "{point.module}"'
            )
        if not _hooks(module) and point.group == EXTENSIONS:
            raise PluginError(f"{point.module} does not have a hook: no function is marked with @hookimpl")
        tokenizer_types = _check_offers(module)
    if point.group == EXTENSIONS:
        return point.summary
    architecture = load_architecture(point)
    with blamed_on(point):
        by_example(architecture)
        if isinstance(architecture.model_class, str):
            _find("the module of its model", architecture.model_class)
        if architecture.default_tokenizer not in tokenizer_types:
            name = architecture.default_tokenizer
            raise PluginError(f"its default_tokenizer '{name}' is not a tokenizer type of model-foundry or this plugin")
    return " ".join(architecture.summary.split())


def _hooks(module: ModuleType) -> list[str]:
    """Return the hooks that a module implements. Raises PluginError for one that does not exist."""
    return sorted(caller.name for caller in hook_manager([module]).get_hookcallers(module) or [])


def _check_offers(module: ModuleType) -> Collection[str]:
    """Check what a plugin offers; return the tokenizer types that are available where it is active."""
    found = offers(hook_manager([module]))
    parts = {"objective": "collator", "optimizer": "builder", "schedule": "function"}
    parts |= {"tokenizer type": "trainer", "order": "order", "corpus step": "function", "suite": "reader"}
    for kind, descriptor in _descriptors(found):
        part = parts[kind]
        lent = getattr(descriptor, "same_interface_as", None) in CORE_OBJECTIVES
        if getattr(descriptor, part) is None and not lent:
            raise PluginError(f"its {kind} '{descriptor.name}' does not name a {part}")
        for field, target in _import_strings(descriptor):
            _find(f"the {field} of its {kind} '{descriptor.name}'", target)
    return found.tokenizer_types.keys()


def _descriptors(found: Offers) -> Iterator[tuple[str, Any]]:
    """Yield each descriptor that is not core's, after its kind."""
    offered: dict[str, Mapping[str, Any]] = {
        "objective": found.objectives,
        "optimizer": found.optimizers,
        "schedule": found.schedules,
        "tokenizer type": found.tokenizer_types,
        "order": found.orders,
        "corpus step": found.corpus_steps,
        "suite": found.suites,
    }
    for kind, name in found.providers:
        yield kind, offered[kind][name]


def _import_strings(descriptor: Any) -> Iterator[tuple[str, str]]:
    """Yield each field of a descriptor that is an import string."""
    for field in fields(descriptor):
        target = getattr(descriptor, field.name)
        if field.name not in ("name", "summary") and isinstance(target, str) and ":" in target:
            yield field.name, target


def _unresolved(point: Installed) -> Iterator[str]:
    """Yield a line for each import string of a plugin that does not lead to what its descriptor promises."""
    if point.group == COMMANDS:
        try:
            get_command(point.name)
        except PluginError as error:
            yield str(error)
        return
    targets: list[tuple[str, str, Callable[[Any], bool], str]] = [
        (f"the {field} of its {kind} '{descriptor.name}'", target, callable, "a function or class")
        for kind, descriptor in _descriptors(offers(hook_manager([load_module(point)])))
        for field, target in _import_strings(descriptor)
    ]
    if point.group == ARCHITECTURES:
        own = _import_strings(load_architecture(point))
        targets += [(f"its {field}", target, _is_model, "a subclass of BaseLanguageModel") for field, target in own]
    for what, target, promised, wanted in targets:
        try:
            problem = None if promised(import_string(target)) else f"{target} is not {wanted}"
        except PluginError as error:
            problem = str(error)
        if problem is not None:
            yield f"the plugin {point}: {what}: {problem}. {way_out(point)}"


def _is_model(value: Any) -> bool:
    """Compare by name: importing BaseLanguageModel would import torch."""
    return "BaseLanguageModel" in {base.__name__ for base in getattr(value, "__mro__", ())}


def _find(what: str, target: str) -> None:
    """Check that an import string leads somewhere; its parent packages are imported, a heavy module is not."""
    module, _, attribute = target.partition(":")
    with failing_as(f"{what}, {target},"), isolated():
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named '{module}'")
        if attribute and module in sys.modules:
            getattr(sys.modules[module], attribute)


def by_example(architecture: Architecture) -> dict[str, Capabilities]:
    """Return the capabilities for each example, and for the defaults if every setting has one."""
    from pydantic import ValidationError

    found = {}
    for name, settings in {"defaults": {}, **architecture.examples}.items():
        try:
            section = architecture.config_class.model_validate({"architecture": architecture.name, **settings})
        except ValidationError as error:
            if name == "defaults":
                continue
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise PluginError(f"the example '{name}' of '{architecture.name}' is not valid, {reason}") from error
        found[name] = capabilities_of(architecture, section, example=name)
    return found


def facts(name: str) -> dict[str, Any]:
    """Return what is known of a plugin as plain data; `name` is that of a plugin, or of an extension's module.

    Imports its light module. Raises PluginError if there is no such plugin or it is unusable.
    """
    from foundry_core.registry.architecture import registered_architectures

    point = shipped_by(name)
    others = [other for other in scan() if other.group != ARCHITECTURES and name in (other.name, other.module)]
    if others and name not in declared() and name not in registered_architectures():
        point = min(others, key=lambda other: switched_off(other) is not None)
        off = switched_off(point)
        if off is not None:
            raise PluginError(f"the {point.kind} '{name}' is disabled: {off}")
        known: dict[str, Any] = {"name": point.name, "kind": point.kind, "summary": point.summary}
        module = load_module(point) if point.group == EXTENSIONS else None
    else:
        architecture = get_architecture(name)
        target = architecture.model_class
        capabilities = by_example(architecture)
        known = {
            "name": name,
            "kind": "architecture",
            "summary": " ".join(architecture.summary.split()),
            "model_class": target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}",
            "plugin_api_version": architecture.plugin_api_version,
            "objectives": list(dict.fromkeys(each for able in capabilities.values() for each in able.objectives)),
            "default_tokenizer": architecture.default_tokenizer,
            "capabilities": {example: asdict(able) for example, able in capabilities.items()},
            "schema": architecture.config_class.model_json_schema(),
        }
        module = sys.modules[target.__module__] if point is None else load_module(point)
    origin = ("distribution", "version", "folder", "editable", "requires", "target")
    with blamed_on(point):
        known["hooks"] = [] if module is None else _hooks(module)
    return {key: getattr(point, key, None) for key in origin} | known
