"""Every installed plugin looked at: whole, or what is wrong with it and the way out, in one line each. Light.

Importing twenty descriptors takes a fifth of a second and more, most of it pydantic's. What was found whole is
therefore remembered in the user's cache folder, for as long as nothing that an import depends on has changed: the
folders of Python's path, the plugin's own files, the versions. A plugin with a problem is looked at anew each time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import FunctionType, ModuleType
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


def examine(*, anew: bool = False, verbs: Collection[str] = ()) -> list[Finding]:
    """Every installed plugin: architectures, extensions, commands.

    anew: nothing that is remembered counts. verbs: names that no command can have.
    """
    claims = [claims for group in ALL_GROUPS for claims in declared(group).values()]
    points = [point for each in claims for point in each]
    contested = {}
    for each in claims:
        active = [point for point in each if not switched_off(point)]
        if len(active) > 1 and active[0].group != EXTENSIONS:
            contested.update(dict.fromkeys(active, clash(active)))
        elif active and active[0].group == COMMANDS and active[0].name in verbs:
            taken = f"the command '{active[0].name}' of {active[0]} has the name of a verb of foundry's own"
            contested[active[0]] = f"{taken}. {way_out(active[0])}"
    memory = _Memory(anew)
    findings = [_finding(point, memory, contested.get(point)) for point in points]
    memory.write()
    return findings


def _finding(point: Installed, memory: _Memory, clashing: str | None) -> Finding:
    off = switched_off(point)
    if off is not None:
        return Finding(point, "disabled", point.package.summary, off)
    if clashing is not None:
        return Finding(point, "unusable", problem=clashing)
    summary = memory.recall(point)
    if summary is None:
        there = memory.modules_before()
        try:
            summary = _summary_of_whole(point)
        except PluginError as error:
            return Finding(point, "unusable", problem=str(error))
        memory.keep(point, summary, there)
    return Finding(point, "fine", summary)


def _summary_of_whole(point: Installed) -> str:
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
        targets = {
            "objective": {name: ("collator", each.collator) for name, each in found.objectives.items()},
            "optimizer": {name: ("builder", each.builder) for name, each in found.optimizers.items()},
            "tokenizer type": {name: ("trainer", each.trainer) for name, each in found.tokenizer_types.items()},
        }
        for kind, name in found.providers:
            part, target = targets[kind][name]
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


class _Memory:
    """Summaries of plugins that were found whole, in a file of the user's cache folder, one for each environment."""

    def __init__(self, anew: bool):
        self.path = _cache_file()
        self.known: dict[str, Any] = {} if anew else self._read()
        self.valid: dict[str, Any] = {}
        self.learned = False
        self.cores_own: set[str] = set()

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_bytes()) if self.path else {}
            return dict(stored["plugins"]) if stored["world"] == _world() else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}  # absent, or not ours: everything is looked at

    def recall(self, point: Installed) -> str | None:
        """The summary of a plugin whose files are those that were imported then."""
        entry = self.known.get(_key(point))
        if not isinstance(entry, dict) or entry.get("files") != _state_of(entry.get("files") or ()):
            return None
        self.valid[_key(point)] = entry
        return str(entry.get("summary"))

    def modules_before(self) -> set[str]:
        """What is imported before a plugin is looked at; what core needs for that is not the plugin's."""
        if not self.cores_own:
            from packaging import requirements  # noqa: F401

            from foundry_core.registry import (
                architecture,  # noqa: F401
                hookspecs,  # noqa: F401
            )

            self.cores_own = set(map(_top, sys.modules)) | sys.stdlib_module_names
        return set(sys.modules)

    def keep(self, point: Installed, summary: str, before: set[str]) -> None:
        """before: the modules that were there when it was not looked at yet."""
        own = [name for name in sys.modules if _top(name) == _top(point.module)]
        names = [*own, *self._depended_on([*own, *(set(sys.modules) - before)])]
        # A package's folder changes when a module in it comes or goes, one that is not imported yet among them.
        files = [file for name in dict.fromkeys(names) for file in _files(sys.modules[name])]
        self.valid[_key(point)] = {"summary": summary, "files": _state_of(files)}
        self.learned = True

    def _depended_on(self, names: list[str]) -> Iterator[str]:
        """These modules and those whose contents they hold, which another plugin may have imported already."""
        seen: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in seen or name not in sys.modules or _top(name) in self.cores_own:
                continue
            seen.add(name)
            yield name
            for value in list(getattr(sys.modules[name], "__dict__", {}).values()):
                kind = type(value)  # not isinstance, which asks the value: it may warn, or import something
                if issubclass(kind, ModuleType):
                    waiting.append(str(value.__name__))
                elif issubclass(kind, type | FunctionType):
                    waiting.append(str(value.__module__))

    def write(self) -> None:
        if not self.learned or self.path is None:
            return
        from foundry_core.storage.files import StorageError, write_file

        with suppress(StorageError):  # a home that cannot be written to costs time, not the answer
            write_file(self.path, json.dumps({"world": _world(), "plugins": self.valid}).encode())


def _top(module: str) -> str:
    return module.partition(".")[0]


def _files(module: ModuleType) -> Iterator[str]:
    names = getattr(module, "__dict__", {})  # a module's own __getattr__ is not asked: it may raise what it likes
    if names.get("__file__") is not None:
        yield str(names["__file__"])
    yield from names.get("__path__", ())


def _cache_file() -> Path | None:
    """One for each Python environment; None where the user has no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "foundry" / f"plugins-{zlib.crc32(sys.prefix.encode()):08x}.json"


def _key(point: Installed) -> str:
    return f"{point.group} {point.name} = {point.target} ({point}) {' '.join(point.package.requires)}"


def _world() -> dict[str, Any]:
    """What decides how an import ends, besides the plugin itself: an installation changes a folder on the path."""
    core = map(str, Path(__file__).parent.glob("*.py"))
    return {"core": _state_of(core), "python": [sys.version, sys.prefix], "path": [sys.path, _state_of(sys.path)]}


def _state_of(files: Iterable[str]) -> dict[str, list[int] | None]:
    """Time of the last change and size, None for what is not there."""
    state: dict[str, list[int] | None] = {}
    for file in files:
        try:
            found = Path(file).stat()
        except OSError:
            state[file] = None
        else:
            state[file] = [found.st_mtime_ns, found.st_size]
    return state


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
