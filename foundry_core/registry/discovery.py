"""Which plugins are installed, read from package metadata without importing any of them. Light.

Of a distribution that is on the path twice the first copy counts. Two environment variables, each with names of
distributions, entry points or their modules between commas, choose among the installed plugins: FOUNDRY_PLUGINS, if it
is not empty, enables these only; FOUNDRY_PLUGINS_DISABLE disables these.
"""

from __future__ import annotations

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
from foundry_core.errors import did_you_mean, warn

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

    folder: where its modules are; of an editable installation, its sources.
    """

    name: str
    version: str
    folder: Path
    editable: bool
    summary: str
    requires: tuple[str, ...]

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
    """Read what the packages on a path declare. Call `scan`, which finds the arguments.

    A package whose metadata cannot be read is named in a warning: libraries that read the metadata of every package,
    as torch does when it is imported, fail because of it.

    Args:
        path: The folders, as in `sys.path`.
        changes: When each of them last changed.
    """
    found: dict[str, list[Installed]] = {}
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group in ALL_GROUPS]
            package = _package(distribution) if points else None
        except (TypeError, ValueError) as error:
            place = getattr(distribution, "_path", "a package")  # there is no public way to it
            warn(f"{place}: cannot read its metadata ({error}): reinstall or remove the package")
            continue
        if package is not None:
            first = [Installed(point.group, point.name, point.value, package) for point in points]
            found.setdefault(_normal(package.name), first)
    return tuple(point for points in found.values() for point in points)


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


def _package(distribution: metadata.Distribution) -> Package:
    # The headers alone: the body is the README of the package.
    headers = HeaderParser().parsestr(distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "")
    folder = Path(str(distribution.locate_file("")))
    sources = _editable_sources(distribution)
    return Package(
        name=headers.get("Name") or f"(a package without metadata in {folder})",
        version=headers.get("Version") or "(no version)",
        folder=sources or folder,
        editable=sources is not None,
        summary=headers.get("Summary") or "",
        requires=tuple(headers.get_all("Requires-Dist") or ()),
    )


def _editable_sources(distribution: metadata.Distribution) -> Path | None:
    """Return the sources of an editable installation, from what the installer noted (PEP 610)."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return Path(unquote(urlsplit(origin["url"]).path)) if origin.get("dir_info", {}).get("editable") else None


def switched_off(point: Installed) -> str | None:
    """Return which environment variable disables a plugin and the way out; None for an enabled plugin."""
    names = set(map(_normal, _names(point)))
    if not names.isdisjoint(map(_normal, _listed(DISABLED))):
        return f"{DISABLED}={os.environ[DISABLED]} switches {point} off: take it out of that variable"
    if _listed(ONLY) and names.isdisjoint(map(_normal, _listed(ONLY))):
        return f"{ONLY}={os.environ[ONLY]} leaves {point} out: add it to that variable"
    return None


def misnamed_in_environment() -> Iterator[str]:
    """Yield a line for each name in the two variables that no plugin has."""
    known = dict.fromkeys(name for point in scan() for name in _names(point))
    there = set(map(_normal, known))
    for variable in (ONLY, DISABLED):
        for name in _listed(variable):
            if _normal(name) not in there:
                yield f"{variable} names '{name}', but no installed plugin has that name.{did_you_mean(name, known)}"


def _names(point: Installed) -> tuple[str, str, str]:
    """Return what the two variables may call a plugin."""
    return point.name, point.distribution, point.module


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _normal(name: str) -> str:
    """Return a name in the form in which package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def unmet_requirement(point: Installed) -> str | None:
    """Return the requirement on foundry-core that this core does not satisfy; None if it satisfies all."""
    for text in point.package.requires:
        if not re.match(r"foundry[-_.]+core\b", text, re.IGNORECASE):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return text
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        fits = requirement.specifier.contains(__version__, prereleases=True)
        if _normal(requirement.name) == "foundry-core" and applies and not fits:
            return f"foundry-core{requirement.specifier}"
    return None


def way_out(point: Installed) -> str:
    """Return what to do about a plugin that does not work."""
    verb = "Fix" if point.package.editable else "Upgrade"
    return f"{verb} or remove it: pip uninstall {point.distribution}"
