"""Check every installed plugin: whole, or what is wrong with it and the way out, in one line each. Light."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from foundry_core.errors import PluginError
from foundry_core.registry.discovery import (
    ALL_GROUPS,
    COMMANDS,
    EXTENSIONS,
    Installed,
    declared,
    installed,
    switched_off,
    way_out,
)
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.isolation import cause, guarded
from foundry_core.registry.loading import (
    blamed_on,
    capabilities_of,
    clash,
    get_architecture,
    load_architecture,
    load_module,
    refuse_unfit,
)

if TYPE_CHECKING:
    from foundry_core.registry.architecture import Architecture, Capabilities


@dataclass(frozen=True)
class Finding:
    """An installed plugin and how it is.

    state: `disabled` by an environment variable, or `unusable`. problem: one line with the way out.
    """

    point: Installed
    state: Literal["fine", "disabled", "unusable"]
    summary: str = ""
    problem: str | None = None


def examine(verbs: Collection[str] = (), *, schemas: bool = True) -> list[Finding]:
    """Check every installed plugin: architectures, extensions, commands.

    Args:
        verbs: Names of foundry's own verbs, which no command can have.
        schemas: Also make the JSON schema of each section: a second for one that has every model of transformers.
    """
    contested = {}
    for claims in (claims for group in ALL_GROUPS for claims in declared(group).values()):
        active = [point for point in claims if not switched_off(point)]
        if len(active) > 1 and active[0].group != EXTENSIONS:
            contested.update(dict.fromkeys(active, clash(active)))
        elif active and active[0].group == COMMANDS and active[0].name in verbs:
            taken = f"the command '{active[0].name}' of {active[0]} has the name of a verb of foundry's own"
            contested[active[0]] = f"{taken}. {way_out(active[0])}"
    points = [point for group in ALL_GROUPS for claims in declared(group).values() for point in claims]
    return [_finding(point, contested.get(point), schemas) for point in points]


def _finding(point: Installed, clashing: str | None, schemas: bool) -> Finding:
    off = switched_off(point)
    if off is not None:
        return Finding(point, "disabled", point.package.summary, off)
    if clashing is not None:
        return Finding(point, "unusable", problem=clashing)
    try:
        return Finding(point, "fine", _summary_of_whole(point, schemas))
    except PluginError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a descriptor holds, the other plugins are listed
        problem = f"the check of the plugin {point} fails: {cause(error)}. {way_out(point)}"
    return Finding(point, "unusable", problem=problem)


def _summary_of_whole(point: Installed, schemas: bool) -> str:
    """What a plugin says of itself. Raises PluginError when it does not load, or would fail later."""
    if point.group == COMMANDS:
        _look_at_command(point)
        return point.package.summary
    if point.group == EXTENSIONS:
        _look_at_extension(point)
        _look_at_offers(point)
        return point.package.summary
    architecture = load_architecture(point)
    hooks(point)
    tokenizer_types = _look_at_offers(point)
    with blamed_on(point):
        by_example(architecture)
        if isinstance(architecture.model_class, str):
            _look_for("the module of its model", architecture.model_class)
        if architecture.default_tokenizer not in tokenizer_types:
            raise PluginError(
                f"its default_tokenizer '{architecture.default_tokenizer}' is no tokenizer type of core's or its own"
            )
        with guarded(lambda error: PluginError(f"its section has no JSON schema: {cause(error)}")):
            if schemas:
                architecture.config_class.model_json_schema()
    return " ".join(architecture.summary.split())


def _look_at_extension(point: Installed) -> None:
    """Raise PluginError where naming it under `plugins:` would do nothing."""
    able = hooks(point)
    with blamed_on(point):
        if point.target != point.module:
            raise PluginError(
                f"its entry point leads into a module, to {point.target}, where no hook is looked for: "
                f'they are functions of the module, and the entry point is {point.name} = "{point.module}"'
            )
        if not able:
            raise PluginError(f"{point.module} has no hook: no function in it is marked with @hookimpl")


def _look_at_command(point: Installed) -> None:
    """Its module is imported when its name is typed, and may be heavy: whether it is there is all that is asked."""
    refuse_unfit(point)
    with blamed_on(point):
        _look_for("the module of its command", point.module)


def _look_at_offers(point: Installed) -> Collection[str]:
    """Ask a plugin for what it offers; return the tokenizer types that there are where it is active."""
    module = load_module(point)
    with blamed_on(point):
        found = offers(hook_manager([module]))
        targets: dict[str, dict[str, tuple[str, str | None]]] = {
            "objective": {name: ("collator", each.collator) for name, each in found.objectives.items()},
            "optimizer": {name: ("builder", each.builder) for name, each in found.optimizers.items()},
            "tokenizer type": {name: ("trainer", each.trainer) for name, each in found.tokenizer_types.items()},
        }
        for kind, name in found.providers:
            part, target = targets[kind][name]
            if target is None:
                raise PluginError(f"its {kind} '{name}' names no {part}")
            _look_for(f"the {part} of its {kind} '{name}'", target)
    return found.tokenizer_types.keys()


def _look_for(what: str, target: str) -> None:
    """Raise PluginError where an import would find nothing; nothing is imported for it, heavy as it may be."""
    module, _, attribute = target.partition(":")
    if not _is_there(module):
        raise PluginError(f"{what}, {target}, is not there")
    names = vars(sys.modules[module]) if module in sys.modules else None
    if attribute and names is not None and attribute not in names and "__getattr__" not in names:
        raise PluginError(f"{what}, {target}, is not there: the module has no '{attribute}'")


def _is_there(module: str) -> bool:
    """Whether there is a module, its packages not imported as `find_spec` would."""
    folders: Sequence[str] | None = None
    for name in accumulate(module.split("."), "{}.{}".format):
        if name in sys.modules:
            folders = vars(sys.modules[name]).get("__path__")
            continue
        if "." not in name:
            spec = importlib.util.find_spec(name)
        else:
            spec = None if folders is None else importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None:
            return False
        folders = spec.submodule_search_locations
    return True


def hooks(point: Installed) -> list[str]:
    """The hooks that a plugin's module implements. Raises PluginError for one that does not exist."""
    module = load_module(point)
    with blamed_on(point):
        return _hooks(module)


def _hooks(module: ModuleType) -> list[str]:
    return sorted(caller.name for caller in hook_manager([module]).get_hookcallers(module) or [])


def by_example(architecture: Architecture) -> dict[str, Capabilities]:
    """Capabilities for the settings that its schema defaults to, where it has a default for each, and every example."""
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
    """What is known of one plugin, as plain data; name: of an architecture, or of an extension or its module.

    Imports its light module. Raises PluginError when there is no such plugin or it is unusable.
    """
    from foundry_core.registry.architecture import registered_architectures

    others = [point for group in (EXTENSIONS, COMMANDS) for claims in declared(group).values() for point in claims]
    others = [point for point in others if name in (point.name, point.module)]
    other = min(others, key=lambda point: switched_off(point) is not None, default=None)
    if other is not None and name not in declared() and name not in registered_architectures():
        off = switched_off(other)
        if off is not None:
            raise PluginError(f"the {other.kind} '{name}' is disabled: {off}")
        able = hooks(other) if other.group == EXTENSIONS else []
        return _package_facts(other) | {"summary": other.package.summary, "hooks": able}
    architecture = get_architecture(name)
    point = next(iter(installed().get(name, ())), None)
    target = architecture.model_class
    capabilities = by_example(architecture)
    return _package_facts(point) | {
        "name": name,
        "kind": "architecture",
        "summary": " ".join(architecture.summary.split()),
        "model_class": target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}",
        "plugin_api_version": architecture.plugin_api_version,
        "objectives": list(dict.fromkeys(each for able in capabilities.values() for each in able.objectives)),
        "default_tokenizer": architecture.default_tokenizer,
        "capabilities": {example: asdict(able) for example, able in capabilities.items()},
        "hooks": hooks(point) if point is not None else _hooks(sys.modules[target.__module__]),
        "schema": architecture.config_class.model_json_schema(),
    }


def _package_facts(point: Installed | None) -> dict[str, Any]:
    """Where a plugin comes from; nulls for an architecture that a file or a notebook registered."""
    if point is None:
        return dict.fromkeys(("distribution", "version", "folder", "editable", "requires", "target"))
    package = point.package
    return {
        "name": point.name,
        "kind": point.kind,
        "distribution": package.name,
        "version": package.version,
        "folder": str(package.folder),
        "editable": package.editable,
        "requires": list(package.requires),
        "target": point.target,
    }
