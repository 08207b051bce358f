"""Every installed plugin looked at: whole, or what is wrong with it and the way out, in one line each. Light.

Importing twenty descriptors takes a fifth of a second and more, most of it pydantic's. What was found whole is
therefore remembered in the user's cache folder, for as long as nothing that an import depends on has changed: the
folders of Python's path, the plugin's own files, the versions. A plugin with a problem is looked at anew each time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from foundry_core.discovery import (
    ARCHITECTURES,
    EXTENSIONS,
    GROUPS,
    Installed,
    declared,
    hidden_copies,
    hiding_module,
    installed,
    switched_off,
    way_out,
)
from foundry_core.errors import PluginError
from foundry_core.hooks import hook_manager
from foundry_core.plugins import cause, clash, get_architecture, load_architecture, load_module

if TYPE_CHECKING:
    from foundry_core.architecture import Architecture, Capabilities


@dataclass(frozen=True)
class Finding:
    """An installed plugin and how it is.

    state: `disabled` by an environment variable; `shadowed`, another copy of it, or of its module, stands on the path;
    `unusable`. problem: one line with the way out, None where there is nothing to say.
    """

    point: Installed
    state: Literal["fine", "disabled", "shadowed", "unusable"]
    summary: str = ""
    problem: str | None = None


def examine(*, anew: bool = False) -> list[Finding]:
    """Every installed plugin, architectures first. anew: nothing that is remembered counts."""
    claims = [claims for group in GROUPS for claims in declared(group).values()]
    points = [point for each in claims for point in each]
    contested = {}
    for each in claims:
        active = [point for point in each if not switched_off(point)]
        if len(active) > 1 and active[0].group == ARCHITECTURES:
            contested.update(dict.fromkeys(active, clash(active)))
    memory, hidden = _Memory(anew), hidden_copies()
    findings = []
    for point in points:
        copy = next((str(each) for each in hidden if each.copy.name == point.distribution), None)
        findings.append(_finding(point, memory, contested.get(point), copy))
    memory.write()
    there = {(point.group, point.name) for point in points}
    lost = [(point, str(each)) for each in hidden for point in each.points if (point.group, point.name) not in there]
    return findings + [Finding(point, "shadowed", problem=problem) for point, problem in lost]


def _finding(point: Installed, memory: _Memory, clashing: str | None, copy: str | None) -> Finding:
    off = switched_off(point)
    if off is not None:
        return Finding(point, "disabled", point.package.summary, off)
    if clashing is not None:
        return Finding(point, "unusable", problem=clashing)
    summary = memory.recall(point)
    if summary is None:
        try:
            summary = _summary_of_whole(point)
        except PluginError as error:
            return Finding(point, "unusable", problem=str(error) + (f" {copy}" if copy else ""))
        memory.keep(point, summary)
    shadow = hiding_module(point) or copy
    return Finding(point, "shadowed" if shadow else "fine", summary, shadow)


def _summary_of_whole(point: Installed) -> str:
    """What a plugin says of itself. Raises PluginError when it does not load, or would fail later."""
    if point.group != ARCHITECTURES:
        hooks(point)
        return point.package.summary
    architecture = load_architecture(point)
    hooks(point)
    with _blamed_on(point):
        by_example(architecture)
        target = architecture.model_class
        if isinstance(target, str) and not _is_there(target.partition(":")[0]):
            raise PluginError(f"the module of its model, {target}, is not there")
        try:
            architecture.config_class.model_json_schema()
        except Exception as error:
            raise PluginError(f"its section has no JSON schema: {cause(error)}") from error
    return " ".join(architecture.summary.split())


@contextmanager
def _blamed_on(point: Installed) -> Iterator[None]:
    try:
        yield
    except PluginError as error:
        raise PluginError(f"the plugin {point}: {error}. {way_out(point)}") from error


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what should contain it is not there either
        return False


def hooks(point: Installed) -> list[str]:
    """The hooks that a plugin's module implements. Raises PluginError for one that does not exist."""
    module = load_module(point)
    with _blamed_on(point):
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
        try:
            found[name] = architecture.capabilities(section)
        except Exception as error:
            raise PluginError(
                f"the capabilities of '{architecture.name}' with '{name}' fail: {cause(error)}"
            ) from error
    return found


class _Memory:
    """Summaries of plugins that were found whole, in a file of the user's cache folder, one for each environment."""

    def __init__(self, anew: bool):
        self.path = _cache_file()
        self.known: dict[str, Any] = {} if anew else self._read()
        self.valid: dict[str, Any] = {}
        self.learned = False

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

    def keep(self, point: Installed, summary: str) -> None:
        top = point.module.partition(".")[0]
        modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == top]
        # A package's folder changes when a module in it comes or goes, one that is not imported yet among them.
        files = [file for module in modules for file in _files(module)]
        self.valid[_key(point)] = {"summary": summary, "files": _state_of(files)}
        self.learned = True

    def write(self) -> None:
        if not self.learned or self.path is None:
            return
        from foundry_core.storage import StorageError, write_file

        with suppress(StorageError):  # a home that cannot be written to costs time, not the answer
            write_file(self.path, json.dumps({"world": _world(), "plugins": self.valid}).encode())


def _files(module: ModuleType) -> Iterator[str]:
    if getattr(module, "__file__", None) is not None:
        yield str(module.__file__)
    yield from getattr(module, "__path__", ())


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
    from foundry_core.architecture import registered_architectures

    extensions = [point for claims in installed(EXTENSIONS).values() for point in claims]
    extension = next((point for point in extensions if name in (point.name, point.module)), None)
    if extension is not None and name not in declared() and name not in registered_architectures():
        return _package_facts(extension) | {"summary": extension.package.summary, "hooks": hooks(extension)}
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
