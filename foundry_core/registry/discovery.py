"""Finds installed plugins in package metadata without importing any of them. Light.

Two environment variables, each with names of distributions, entry points or modules between commas, choose among the
installed plugins: FOUNDRY_PLUGINS, if it is not empty, enables these only; FOUNDRY_PLUGINS_DISABLE disables these.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
class Installed:
    """An entry point of an installed distribution.

    target: `"package.module:attribute"`, or a module. folder: where the modules of the distribution are; the sources
    of an editable installation.
    """

    group: str
    name: str
    target: str
    distribution: str
    version: str
    folder: str
    editable: bool
    summary: str
    requires: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`architecture`, `command`, or `extension`: a module that is active if `plugins:` of a YAML names it."""
        return {ARCHITECTURES: "architecture", COMMANDS: "command"}.get(self.group, "extension")

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def scan() -> tuple[Installed, ...]:
    """Return the entry points of every installed plugin, in the order of the path.

    The packages are read again when a folder of the path has changed: a notebook that installs a package can use it at
    once, and a run reads the packages once.
    """
    return read_packages(tuple(sys.path), tuple(map(_last_change, sys.path)))


def _last_change(folder: str) -> int | None:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=1)
def read_packages(path: tuple[str, ...], changes: tuple[int | None, ...]) -> tuple[Installed, ...]:
    """Read what the packages of `sys.path` declare; of a package that is there twice, the first copy counts.

    Both arguments, which `scan` provides, are the key of the cache. A package whose metadata cannot be read is named in
    a warning: libraries that read all metadata, as torch does when it is imported, fail because of it.
    """
    found: dict[str, list[Installed]] = {}
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group in ALL_GROUPS]
            if points:
                claims = _installed(distribution, points)
                found.setdefault(normal(claims[0].distribution), claims)
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is the package's damage
            place = getattr(distribution, "_path", "a package")  # importlib.metadata has no public name for it
            warn(f"{place}: cannot read its metadata ({error}): reinstall or remove the package")
    return tuple(point for claims in found.values() for point in claims)


def _installed(distribution: metadata.Distribution, points: list[metadata.EntryPoint]) -> list[Installed]:
    headers = distribution.metadata
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")  # PEP 610
    editable = bool(origin.get("dir_info", {}).get("editable"))
    folder = unquote(urlsplit(origin["url"]).path) if editable else str(distribution.locate_file(""))
    requires = tuple(headers.get_all("Requires-Dist") or ())
    summary = str(headers.json.get("summary", ""))
    facts = (headers["Name"], headers["Version"], folder, editable, summary, requires)
    return [Installed(point.group, point.name, point.value, *facts) for point in points]


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


def switched_off(point: Installed) -> str | None:
    """Return which environment variable disables a plugin and how to fix it; None for an enabled plugin."""
    names, only = set(map(normal, _names(point))), set(map(normal, _listed(ONLY)))
    if not names.isdisjoint(map(normal, _listed(DISABLED))):
        return f"{DISABLED}={os.environ[DISABLED]} switches {point} off: take it out of that variable"
    if only and names.isdisjoint(only):
        return f"{ONLY}={os.environ[ONLY]} leaves {point} out: add it to that variable"
    return None


def misnamed_in_environment() -> Iterator[str]:
    """Yield a line for each name in the two variables that no plugin has."""
    known = {name: normal(name) for point in scan() for name in _names(point)}
    for variable in (ONLY, DISABLED):
        for name in _listed(variable):
            if normal(name) not in known.values():
                yield f"{variable} names '{name}', but no installed plugin has that name.{did_you_mean(name, known)}"


def _names(point: Installed) -> tuple[str, str, str]:
    """Return the names by which the two variables may refer to a plugin."""
    return point.name, point.distribution, point.module


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def normal(name: str) -> str:
    """Return a name in the form in which package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unmet_requirement(point: Installed) -> str | None:
    """Return the requirement on model-foundry that this core does not satisfy; None if it satisfies all."""
    for text in point.requires:
        if re.match(r"model[-_.]+foundry(?![-_.\w])", text, re.IGNORECASE):
            from packaging.requirements import Requirement

            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and not requirement.specifier.contains(__version__, prereleases=True):
                return f"model-foundry{requirement.specifier}"
    return None


def unmet_requirements(point: Installed) -> list[str]:
    """Return the requirements of a plugin, extras aside, on packages that are not installed."""
    from packaging.requirements import Requirement

    found = map(Requirement, point.requires)
    needed = [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [f"{each.name}{each.specifier}" for each in needed if not any(metadata.distributions(name=each.name))]


def way_out(point: Installed) -> str:
    """Return what to do about a plugin that does not work."""
    return f"{'Fix' if point.editable else 'Upgrade'} or remove it: pip uninstall {point.distribution}"
