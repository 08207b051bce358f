"""Which plugins are installed, read from package metadata; nothing of theirs is imported. Light.

A distribution that stands on the path twice counts once: its first copy hides the others. Two environment variables,
each with names of distributions, entry points or their modules between commas, say which plugins count:
FOUNDRY_PLUGINS, where it is not empty, those alone; FOUNDRY_PLUGINS_DISABLE, all but those.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from foundry_core import __version__
from foundry_core.errors import PluginError, did_you_mean

ARCHITECTURES = "foundry.architectures"
EXTENSIONS = "foundry.plugins"
COMMANDS = "foundry.commands"
GROUPS = (ARCHITECTURES, EXTENSIONS)
"""The groups whose modules may have hooks."""
ALL_GROUPS = (*GROUPS, COMMANDS)

ONLY = "FOUNDRY_PLUGINS"
DISABLED = "FOUNDRY_PLUGINS_DISABLE"


@dataclass(frozen=True)
class Package:
    """An installed distribution.

    folder: where its modules are; of an editable installation, its sources. damage: which of its own files cannot be
    read, and why; None where all can.
    """

    name: str
    version: str
    folder: Path
    editable: bool
    summary: str
    requires: tuple[str, ...]
    damage: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Installed:
    """An entry point of an installed distribution. target: `"package.module:attribute"`."""

    group: str
    name: str
    target: str
    package: Package

    @property
    def kind(self) -> str:
        """`architecture`, `command`, or `extension`: a module that is active where `plugins:` of a YAML names it."""
        return {ARCHITECTURES: "architecture", COMMANDS: "command"}.get(self.group, "extension")

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def distribution(self) -> str:
        return self.package.name

    @property
    def version(self) -> str:
        return self.package.version

    def __str__(self) -> str:
        return str(self.package)


def scan() -> tuple[Installed, ...]:
    """Return the entry points of every installed plugin, in the order of the path.

    The packages are read again when a folder of the path has changed, which is how `importlib.metadata` keeps what it
    has found: a notebook that installs a package can use it at once, and a run reads the packages once.
    """
    return read_packages(tuple(sys.path), tuple(map(_last_change, sys.path)))


def _last_change(folder: str) -> int | None:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=1)
def read_packages(path: tuple[str, ...], changes: tuple[int | None, ...]) -> tuple[Installed, ...]:
    """Read what the packages on a path declare. Call `scan`, which knows the arguments.

    Args:
        path: The folders, as in `sys.path`.
        changes: When each of them last changed.
    """
    return tuple(point for copy, first, points in _plugin_packages() if copy == first for point in points)


def declared(group: str = ARCHITECTURES) -> dict[str, list[Installed]]:
    """Return the entry points of a group by name, each name with every distribution that claims it."""
    found: dict[str, list[Installed]] = {}
    for point in scan():
        if point.group == group:
            found.setdefault(point.name, []).append(point)
    return dict(sorted(found.items()))


def installed(group: str = ARCHITECTURES) -> dict[str, list[Installed]]:
    """Return what is declared, without the plugins that an environment variable disables."""
    active = {name: [point for point in claims if not switched_off(point)] for name, claims in declared(group).items()}
    return {name: claims for name, claims in active.items() if claims}


def _plugin_packages() -> Iterator[tuple[Package, Package, list[Installed]]]:
    """Each copy of a distribution that declares plugins, the first copy of the same name, and what it declares.

    `metadata.entry_points()` would parse what every distribution declares, and one that is damaged would stop it.
    """
    seen: set[Package] = set()
    for distribution in metadata.distributions():
        text, unreadable = _read(distribution, "entry_points.txt")
        if not any(f"[{group}]" in text for group in ALL_GROUPS):
            continue
        try:
            declared_points = list(distribution.entry_points)
        except (TypeError, ValueError):
            declared_points = []
            unreadable = unreadable or _unreadable(distribution, "entry_points.txt")
        package = _package(distribution, unreadable)
        if package in seen:  # its folder stands on the path twice
            continue
        seen.add(package)
        copies = list(metadata.distributions(name=package.name))
        first = _package(copies[0]) if len(copies) > 1 else package
        points = [Installed(point.group, point.name, point.value, package) for point in declared_points]
        if unreadable is not None:
            points = [Installed(ARCHITECTURES, package.name, "", package)]  # so that somebody is told: see refuse_unfit
        # A line that is there twice says nothing new.
        yield package, first, list(dict.fromkeys(point for point in points if point.group in ALL_GROUPS))


def _read(distribution: metadata.Distribution, name: str) -> tuple[str, str | None]:
    """A file of a distribution's notes, empty where there is none, and what keeps it from being read as it is."""
    try:
        return distribution.read_text(name) or "", None
    except UnicodeDecodeError as error:
        # Enough of it to tell whether it is about a plugin.
        return error.object.decode("utf-8", "replace"), _unreadable(distribution, name)


def _unreadable(distribution: metadata.Distribution, name: str) -> str:
    place = getattr(distribution, "_path", None)  # there is no public way to it, and not every kind has one
    return f"its {name if place is None else Path(str(place)) / name} cannot be read"


def _package(distribution: metadata.Distribution, damage: str | None = None) -> Package:
    # The headers alone: the body is the README of the package.
    text, unreadable = _read(distribution, "METADATA")
    text = text or _read(distribution, "PKG-INFO")[0]
    headers = HeaderParser().parsestr(text)
    folder = Path(str(distribution.locate_file("")))
    sources = _editable_sources(distribution)
    return Package(
        # An uninstallation that was interrupted leaves a folder without metadata, which importlib lists all the same.
        name=headers.get("Name") or f"(a package without metadata in {folder})",
        version=headers.get("Version") or "(no version)",
        folder=sources or folder,
        editable=sources is not None,
        summary=headers.get("Summary") or "",
        requires=tuple(headers.get_all("Requires-Dist") or ()),
        damage=damage or unreadable,
    )


def _editable_sources(distribution: metadata.Distribution) -> Path | None:
    """The sources of an editable installation, from what the installer noted (PEP 610)."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        pass  # a damaged note says nothing, and pip ignores it too
    return None


def unreadable_entry_points() -> list[str]:
    """Of every installed distribution, plugins or not: the entry points that cannot be read, and the way out.

    `metadata.entry_points()`, which torch and others call when they are imported, raises for a single one.
    """
    found = []
    for distribution in metadata.distributions():
        try:
            list(distribution.entry_points)
        except (TypeError, ValueError):
            package = _package(distribution, _unreadable(distribution, "entry_points.txt"))
            found.append(f"{package}: {package.damage}. Install it anew or remove it: pip uninstall {package.name}")
    return found


def switched_off(point: Installed) -> str | None:
    """The environment variable that keeps a plugin from counting, and what to do about it; None when it counts."""
    names = set(map(_normal, _names(point)))
    if not names.isdisjoint(map(_normal, _listed(DISABLED))):
        return f"{DISABLED}={os.environ[DISABLED]} switches {point} off: take it out of that variable"
    if _listed(ONLY) and names.isdisjoint(map(_normal, _listed(ONLY))):
        return f"{ONLY}={os.environ[ONLY]} leaves {point} out: add it to that variable"
    return None


def misnamed_in_environment() -> Iterator[str]:
    """Names in the two variables that no plugin has, one line for each."""
    points = [point for group in ALL_GROUPS for claims in declared(group).values() for point in claims]
    known = dict.fromkeys(name for point in points for name in _names(point))
    there = set(map(_normal, known))
    for variable in (ONLY, DISABLED):
        for name in _listed(variable):
            if _normal(name) not in there:
                yield f"{variable} names '{name}', which no installed plugin is called.{did_you_mean(name, known)}"


def _names(point: Installed) -> tuple[str, str, str]:
    """What the two variables may call a plugin."""
    return point.name, point.distribution, point.module


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _normal(name: str) -> str:
    """A name as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def unmet_requirement(point: Installed) -> str | None:
    """The requirement on foundry-core that this core does not satisfy; None when there is none."""
    for text in point.package.requires:
        if not re.match(r"foundry[-_.]+core\b", text, re.IGNORECASE):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise PluginError(
                f"the plugin {point} has a requirement that cannot be read: {text!r}. {way_out(point)}"
            ) from error
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (
            _normal(requirement.name) == "foundry-core"
            and applies
            and not requirement.specifier.contains(__version__, prereleases=True)
        ):
            return f"foundry-core{requirement.specifier}"
    return None


def is_typed(command: str) -> bool:
    """Whether a command's name can be written on a command line and shown on a terminal."""
    return command.isprintable() and not command.startswith("-")


def way_out(point: Installed) -> str:
    """What to do about a plugin that does not work."""
    verb = "Mend" if point.package.editable else "Upgrade"
    return hiding_module(point) or f"{verb} or remove it: pip uninstall {point.distribution}"


@dataclass(frozen=True)
class Hidden:
    """A further copy of a distribution, and the first one on the path, which is the one that counts."""

    first: Package
    copy: Package
    points: tuple[Installed, ...]

    def __str__(self) -> str:
        return (
            f"{self.first} in {self.first.folder} hides {self.copy} in {self.copy.folder}: "
            f"uninstall one (pip uninstall {self.copy.name}), or take its folder off the path"
        )


def hidden_copies() -> list[Hidden]:
    """Copies of plugins' distributions that do not count, other than a second note of the same sources."""
    return [
        Hidden(first, copy, tuple(points))
        for copy, first, points in _plugin_packages()
        if copy != first and not _same_sources(first, copy)
    ]


def _same_sources(one: Package, other: Package) -> bool:
    """Whether one is an editable installation, and the other what building left beside the sources."""
    here, there = one.folder.resolve(), other.folder.resolve()
    within = (one.editable and here in there.parents) or (other.editable and there in here.parents)
    return one.version == other.version and (here == there or within)


def hiding_module(point: Installed) -> str | None:
    """What Python imports in place of a plugin's module, and what to do about it; None when it imports the plugin's.

    A folder of the same name that stands earlier on the path, often the current one, is imported instead. Of an
    editable installation whose sources have been moved there may be nothing, or an old copy.
    """
    if point.package.editable and not point.package.folder.exists():
        return (
            f"The sources of {point} are no longer in {point.package.folder}, where its direct_url.json has them: "
            "install it again from where they are, pip install -e FOLDER, or remove it: "
            f"pip uninstall {point.distribution}"
        )
    top = point.module.partition(".")[0]
    found = _place(top)
    if found is None:
        return None
    folder = point.package.folder
    if point.package.editable:
        at_home = folder.resolve() in found.resolve().parents
    else:
        # Where neither is there, the package is laid out in a way of its own (by a .pth file), and nothing is known.
        laid_out = (folder / top).is_dir() or (folder / f"{top}.py").is_file()
        at_home = not laid_out or found.parent.resolve() == folder.resolve()
    if at_home:
        return None
    return f"`import {top}` finds {found} before the module of {point}: rename or move it, or start somewhere else"


def _place(module: str) -> Path | None:
    """The file, or for a package the folder, that importing a top-level module reads."""
    try:
        loaded = sys.modules.get(module)
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # importing it fails alike, and says why
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None
