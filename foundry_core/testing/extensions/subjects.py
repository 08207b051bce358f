"""Finding an extension by name among core's own, installed packages and files loaded with `--plugin`. Light."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.discovery import COMMANDS, EXTENSIONS, GROUPS, Installed, installed, scan, switched_off
from foundry_core.registry.hooks import Offers, hook_manager, hooks_in, offers, owner_of
from foundry_core.registry.isolation import home_of
from foundry_core.registry.loading import available_architectures, load_module, plugin_files

_OFFERING = (
    "foundry_objectives",
    "foundry_optimizers",
    "foundry_schedules",
    "foundry_tokenizer_types",
    "foundry_orders",
    "foundry_corpus_steps",
    "foundry_suites",
)
_SHORT = {"tokenizer type": "tokenizer", "corpus step": "step"}


@dataclass(frozen=True, eq=False)
class Subject:
    """An architecture or an extension.

    Attributes:
        descriptor: That of what a plugin offers by name; None for other kinds.
        module: The module whose hooks provide it; None for core's own, a command or an architecture.
        point: Its entry point; None for core's own and for files.
        settings: Values for its settings, such as `beta=0.9`.
    """

    kind: str
    name: str
    descriptor: Any = None
    module: ModuleType | None = None
    point: Installed | None = None
    settings: tuple[str, ...] = ()

    @property
    def home(self) -> Path | None:
        """The folder of the package, or the file of a single module; None for core's own."""
        name = self.module.__name__ if self.module is not None else self.point.module if self.point is not None else ""
        return home_of(name)


def find(name: str, kind: str | None = None, settings: Collection[str] = ()) -> Subject:
    """Return what has a name. Raises PluginError if nothing has it, or several kinds do and `kind` is None."""
    problems: list[str] = []
    everything = [subject for subject in _subjects(tuple(settings), problems) if kind in (None, subject.kind)]
    found = [subject for subject in everything if subject.name == name]
    kinds = list(dict.fromkeys(subject.kind for subject in found))
    if len(kinds) > 1:
        raise PluginError(f"'{name}' is {' and '.join(map(with_article, kinds))}: choose with --kind")
    if len(found) > 1:
        owners = " and ".join(owner_of(each.module) if each.module else "model-foundry" for each in found)
        raise PluginError(f"the {kinds[0]} '{name}' is offered by {owners}: one of them must go, or be renamed")
    if found:
        return found[0]
    names = {subject.name for subject in everything}
    line = f"Unknown {kind or 'architecture or extension'}: '{name}'.{did_you_mean(name, names)}"
    more = f" Available: {', '.join(sorted(names)) or 'none'}." if kind else " See foundry plugins list."
    raise PluginError("\n".join([line + more, *problems]))


def names_of(kind: str) -> set[str]:
    """Return the names that a kind has, without those of plugins that do not load."""
    return {subject.name for subject in _subjects((), []) if subject.kind == kind}


def with_article(kind: str) -> str:
    """Return `an optimizer` or `a tokenizer`."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _subjects(settings: tuple[str, ...], problems: list[str]) -> Iterator[Subject]:
    """Yield everything that has a name; add a line to `problems` for each plugin that does not load."""
    for name in available_architectures():
        yield Subject("architecture", name)
    yield from _offered(offers(hook_manager([])), None, None, settings)
    for name, claims in installed(COMMANDS).items():
        yield Subject("command", name, point=claims[0])
    seen: set[str] = set()
    for point in scan():
        if point.group not in GROUPS or point.module in seen or switched_off(point):
            continue
        seen.add(point.module)
        try:
            module = load_module(point)
            offered = offers(hook_manager([module]))
        except PluginError as error:
            problems.append(str(error))
            continue
        yield from _offered(offered, module, point, settings)
        yield from _observers(module, point)
    for name in sorted(plugin_files):
        module = sys.modules[name]
        yield from _offered(offers(hook_manager([module])), module, None, settings)
        yield from _observers(module, None)


def _offered(
    found: Offers, module: ModuleType | None, point: Installed | None, settings: tuple[str, ...]
) -> Iterator[Subject]:
    descriptors: dict[str, dict[str, Any]] = {
        "objective": dict(found.objectives),
        "optimizer": dict(found.optimizers),
        "schedule": dict(found.schedules),
        "tokenizer": dict(found.tokenizer_types),
        "order": dict(found.orders),
        "step": dict(found.corpus_steps),
        "suite": dict(found.suites),
    }
    others = {(_SHORT.get(kind, kind), name) for kind, name in found.providers}
    for kind, by_name in descriptors.items():
        for name, descriptor in by_name.items():
            if ((kind, name) in others) == (module is not None):
                yield Subject(kind, name, descriptor, module, point, settings)


def _observers(module: ModuleType, point: Installed | None) -> Iterator[Subject]:
    """Yield a module with observing hooks, under its own name and that of its entry point."""
    if observing_hooks(module):
        entry = (point.name,) if point is not None and point.group == EXTENSIONS else ()
        for name in dict.fromkeys((module.__name__, *entry)):
            yield Subject("observer", name, module=module, point=point)


def observing_hooks(module: ModuleType) -> list[str]:
    """Return the hooks of a module by which it observes runs."""
    return [name for name in hooks_in(module) if name not in _OFFERING]
