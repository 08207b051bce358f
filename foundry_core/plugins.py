"""Which architectures there are, who ships them, and what is wrong with one that fails. Light.

Entry points answer *who has this name*: read from package metadata, nothing is imported. The one plugin that a
configuration names is imported when that configuration is read. pluggy answers *who contributes or wants to hear*.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    import pluggy

    from foundry_core.architecture import Architecture
    from foundry_core.objective import Objective

ARCHITECTURES = "foundry.architectures"
EXTENSIONS = "foundry.plugins"

_plugin_files: set[str] = set()
"""Modules that were loaded from a file with `--plugin` in this process."""


@dataclass(frozen=True)
class Installed:
    """An entry point of an installed distribution. target: `"package.module:attribute"`."""

    name: str
    target: str
    distribution: str
    version: str

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def installed(group: str = ARCHITECTURES) -> dict[str, list[Installed]]:
    """Entry points of a group by name, each name with every distribution that claims it; from metadata alone."""
    found: dict[str, list[Installed]] = {}
    # The same distribution can stand on the path twice (editable beside a build): entry_points() takes the first one.
    for point in metadata.entry_points(group=group):
        assert point.dist is not None
        claim = Installed(point.name, point.value, point.dist.name, point.dist.version)
        found.setdefault(point.name, []).append(claim)
    return dict(sorted(found.items()))


def shipped_by(architecture: str) -> Installed | None:
    """The entry point that leads to an architecture, if an installed distribution has it; the first of several."""
    return next(iter(installed().get(architecture, ())), None)


def available_architectures() -> list[str]:
    """Names that `model.architecture` accepts here: installed ones and those registered in this process."""
    from foundry_core.architecture import registered_architectures

    return sorted({*installed(), *registered_architectures()})


def get_architecture(name: str) -> Architecture:
    """The descriptor of one architecture; imports the light module of its plugin and nothing else.

    Raises PluginError for an unknown name, a name with two owners, or a plugin that does not work.
    """
    from foundry_core.architecture import registered_architectures

    claims = installed().get(name, [])
    in_process = registered_architectures().get(name)
    if in_process is not None:
        if claims:
            raise PluginError(
                f"the architecture '{name}' is registered in this process and shipped by {claims[0]}: "
                "register yours under another name"
            )
        return in_process
    if not claims:
        known = available_architectures()
        raise PluginError(
            f"Unknown architecture: '{name}'.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}."
            + ("" if known else " Install one, for instance: pip install foundry-gpt2")
        )
    if len(claims) > 1:
        owners = " and ".join(map(str, claims))
        raise PluginError(
            f"the architecture '{name}' is claimed by {owners}: uninstall one, pip uninstall {claims[0].distribution}"
        )
    return _load(claims[0])


def _load(point: Installed) -> Architecture:
    from foundry_core.architecture import PLUGIN_API_VERSION, Architecture

    attribute = point.target.partition(":")[2]
    way_out = f"Upgrade or remove it: pip uninstall {point.distribution}"
    try:
        descriptor: Any = getattr(importlib.import_module(point.module), attribute)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the plugin {point} ('{point.name}' from {point.target}) fails to import: {_cause(error)}. {way_out}"
        ) from error
    if not isinstance(descriptor, Architecture):
        kind = type(descriptor).__name__
        raise PluginError(f"the plugin {point}: {point.target} is a {kind}, not an Architecture descriptor. {way_out}")
    if descriptor.name != point.name:
        raise PluginError(
            f"the plugin {point}: its entry point '{point.name}' leads to an architecture '{descriptor.name}'. "
            f"{way_out}"
        )
    if descriptor.plugin_api_version != PLUGIN_API_VERSION:
        raise PluginError(
            f"the plugin {point} is made for plugin API {descriptor.plugin_api_version}, this core has "
            f"{PLUGIN_API_VERSION}: pip install --upgrade foundry-core {point.distribution}"
        )
    return descriptor


def _cause(error: BaseException) -> str:
    """What was raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def import_string(target: str) -> Any:
    """The object that `"package.module:attribute"` names, for targets written in code, never in a YAML."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_plugin_file(path: str | Path) -> ModuleType:
    """Run a Python file that registers architectures (`--plugin my_arch.py`); the user named it on the command line."""
    path = Path(path)
    if not path.is_file():
        raise PluginError(f"--plugin {path}: there is no such file")
    name = path.stem
    if not name.isidentifier():
        raise PluginError(f"--plugin {path}: the file's name must be a Python module name")
    if name not in _plugin_files and _is_module(name, path):
        raise PluginError(f"--plugin {path}: there is another module '{name}', which it would replace: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, PluginError):
            raise
        raise PluginError(f"--plugin {path} fails: {_cause(error)}") from error
    _plugin_files.add(name)
    return module


def _is_module(name: str, path: Path) -> bool:
    """Whether `import name` gives something else than this file."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and not (spec.origin and Path(spec.origin).resolve() == path.resolve())


def active_modules(architecture: Architecture | None, names: Sequence[str] = ()) -> list[ModuleType]:
    """Modules whose hooks count in a run: that of the architecture in use, and those that `plugins:` names.

    A name must be a module that an installed distribution declares as an entry point, or one loaded with `--plugin`:
    a YAML cannot import anything else.
    """
    modules: dict[str, ModuleType] = {}
    declared = {
        point.module: point
        for group in (ARCHITECTURES, EXTENSIONS)
        for points in installed(group).values()
        for point in points
    }
    if architecture is not None:
        target, point = architecture.model_class, shipped_by(architecture.name)
        in_process = None if isinstance(target, str) else target.__module__
        owner = in_process if point is None else point.module
        if owner is not None and owner in sys.modules:
            modules[owner] = sys.modules[owner]
    for name in names:
        if name in declared:
            try:
                modules[name] = importlib.import_module(name)
            except (Exception, SystemExit) as error:
                raise PluginError(f"the plugin {declared[name]} fails to import: {_cause(error)}") from error
        elif name in _plugin_files:
            modules[name] = sys.modules[name]
        else:
            raise PluginError(
                f"no installed package declares the module '{name}'.{did_you_mean(name, declared)} "
                f"Declared: {', '.join(sorted(declared)) or 'none'}."
            )
    return list(modules.values())


def hook_manager(modules: Iterable[Any]) -> pluggy.PluginManager:
    """A pluggy manager with these modules or observers registered, and misspelt hooks refused."""
    import pluggy

    from foundry_core import hookspecs

    manager = pluggy.PluginManager("foundry")
    manager.add_hookspecs(hookspecs)
    try:
        for module in modules:
            manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{reason}. The hooks are listed in foundry_core/hookspecs.py") from error
    return manager


def available_objectives(manager: pluggy.PluginManager) -> dict[str, Objective]:
    """Core's objectives and those that active plugins offer, by name."""
    from foundry_core.objective import CORE_OBJECTIVES

    objectives = dict(CORE_OBJECTIVES)
    try:
        offers = [list(offered) for offered in manager.hook.foundry_objectives()]
    except Exception as error:
        raise PluginError(f"the hook foundry_objectives of a plugin fails: {_cause(error)}") from error
    for offered in offers:
        for objective in offered:
            if objective.name in objectives:
                raise PluginError(f"two plugins offer the objective '{objective.name}'")
            objectives[objective.name] = objective
    return objectives
