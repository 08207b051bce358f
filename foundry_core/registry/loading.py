"""Importing the plugins that a configuration or the command line names, and nothing else. Light."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core import __version__
from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.discovery import (
    COMMANDS,
    DISABLED,
    GROUPS,
    Installed,
    declared,
    installed,
    scan,
    switched_off,
    unmet_requirement,
    way_out,
)
from foundry_core.registry.isolation import cause, failing_as, guarded, home_of, isolated, last_line_in, missing_package

if TYPE_CHECKING:
    from foundry_core.registry.architecture import Architecture, Capabilities
    from foundry_core.schema import ModelConfig

plugin_files: set[str] = set()
"""Modules that were loaded from a file with `--plugin` in this process."""


def shipped_by(architecture: str) -> Installed | None:
    """Return the entry point of an architecture, the first of several; None if no installed distribution has it."""
    return next(iter(installed().get(architecture, ())), None)


def available_architectures() -> list[str]:
    """Return the values that `model.architecture` accepts: installed ones and those registered in this process."""
    from foundry_core.registry.architecture import registered_architectures

    return sorted({*installed(), *registered_architectures()})


def get_architecture(name: str) -> Architecture:
    """Return the descriptor of an architecture; import the light module of its plugin and nothing else.

    Raises PluginError for an unknown name, a name with two owners, or a plugin that does not work.
    """
    from foundry_core.registry.architecture import registered_architectures

    active = installed().get(name, [])
    in_process = registered_architectures().get(name)
    if in_process is not None and active:
        raise PluginError(
            f"the architecture '{name}' is registered in this process and shipped by {active[0]}: "
            "register yours under another name"
        )
    if in_process is not None:
        return in_process
    if active:
        return load_architecture(sole(active))
    if name in declared():
        raise PluginError(f"the architecture '{name}' is disabled: {switched_off(declared()[name][0])}")
    known = available_architectures()
    line = f"Unknown architecture: '{name}'.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}."
    raise PluginError(line if known else f"{line} Install one, for instance: pip install foundry-gpt2")


def sole(claims: Sequence[Installed]) -> Installed:
    """Return the only owner of a name. Raises PluginError if several distributions claim it."""
    first = claims[0]
    if len(claims) > 1:
        raise PluginError(
            f"the {first.kind} '{first.name}' is claimed by {' and '.join(map(str, claims))}: uninstall one, "
            f"pip uninstall {first.distribution}, or switch it off, {DISABLED}={first.distribution}"
        )
    return first


def load_architecture(point: Installed) -> Architecture:
    """Return the descriptor that an entry point leads to. Raises PluginError with the cause and how to fix it."""
    from foundry_core.registry.architecture import PLUGIN_API_VERSION, Architecture

    module = load_module(point)
    with _importing(point):
        descriptor: Any = getattr(module, point.target.partition(":")[2])
    with blamed_on(point):
        if not isinstance(descriptor, Architecture):
            raise PluginError(f"{point.target} is a {type(descriptor).__name__}, not an Architecture descriptor")
        if descriptor.name != point.name:
            raise PluginError(f"its entry point '{point.name}' leads to an architecture '{descriptor.name}'")
    if descriptor.plugin_api_version not in (None, PLUGIN_API_VERSION):
        raise PluginError(
            f"the plugin {point} is made for plugin API {descriptor.plugin_api_version}, this core has "
            f"{PLUGIN_API_VERSION}: pip install --upgrade model-foundry {point.distribution}"
        )
    return descriptor


def load_module(point: Installed) -> ModuleType:
    """Import the module that an entry point names. Raises PluginError with the cause and how to fix it."""
    refuse_unfit(point)
    there = sys.modules.get(point.module)
    if there is not None:  # nothing of it runs that could change the settings of the process
        return there
    with _importing(point), isolated():
        return importlib.import_module(point.module)


def refuse_unfit(point: Installed) -> None:
    """Raise PluginError for a plugin made for another core, before its import fails with a less useful message."""
    requirement = unmet_requirement(point)
    if requirement is not None:
        raise PluginError(
            f"the plugin {point} needs {requirement}, this core is {__version__}: "
            f"pip install --upgrade model-foundry {point.distribution}"
        )


def _importing(point: Installed) -> AbstractContextManager[None]:
    what = f"the plugin {point} ('{point.name}' from {point.target}) fails to import"

    def failure(error: BaseException) -> PluginError:
        return PluginError(f"{what}: {cause(error)}" + ("" if missing_package(error) else f". {way_out(point)}"))

    return guarded(failure)


@contextmanager
def blamed_on(point: Installed | None) -> Iterator[None]:
    """Add the plugin and how to fix it to a PluginError; None: a plugin without a package, whose error is unchanged."""
    try:
        yield
    except PluginError as error:
        if point is None:
            raise
        raise PluginError(f"the plugin {point}: {error}. {way_out(point)}") from error


def blame(error: BaseException) -> str | None:
    """Return the plugin whose code an error came through last, with cause and place; None if there is none."""
    owners = {name: f"--plugin {sys.modules[name].__file__}" for name in plugin_files}
    for point in scan():
        if point.module in sys.modules:
            descriptor = vars(sys.modules[point.module]).get(point.target.partition(":")[2])
            model_class = getattr(descriptor, "model_class", None)
            heavy = model_class.partition(":")[0] if isinstance(model_class, str) else point.module
            owners |= dict.fromkeys((point.module, heavy), f"the plugin {point}")
    homes = {home: owner for name, owner in owners.items() if (home := home_of(name)) is not None}
    found = last_line_in(error, homes)
    return None if found is None else f"{found[0]} fails: {cause(error)} ({found[1]})"


def capabilities_of(architecture: Architecture, section: ModelConfig, *, example: str | None = None) -> Capabilities:
    """Return what an architecture can do with a `model:` section; `example` is the section's name in an error."""
    from foundry_core.registry.architecture import Capabilities

    what = f"the capabilities of '{architecture.name}'" + (f" with '{example}'" if example else "")
    with failing_as(f"the function for {what}", passing=()), isolated():
        found: Any = architecture.capabilities(section)
    if not isinstance(found, Capabilities):
        raise PluginError(f"{what} are a {type(found).__name__}, not Capabilities")
    return found


def import_string(target: str) -> Any:
    """Return the object that `"package.module:attribute"` names, for targets written in code, never in a YAML."""
    module, _, attribute = target.partition(":")
    with failing_as(f"the import of {target}"), isolated():
        return getattr(importlib.import_module(module), attribute)


def get_command(name: str) -> tuple[ModuleType, Installed]:
    """Return the module of a command that an installed package adds to `foundry`, and its entry point.

    Raises PluginError for a name with two owners, or a module that does not work.
    """
    point = sole(installed(COMMANDS)[name])
    refuse_unfit(point)
    with failing_as(f"the import of {point.target}, the command '{name}' of {point},"), isolated():
        module = importlib.import_module(point.module)
    if not callable(getattr(module, "configure", None)):
        raise PluginError(f"the command '{name}' of {point}: {point.target} does not define configure(parser)")
    return module, point


def load_plugin_file(path: str | Path) -> ModuleType:
    """Run a Python file that registers architectures (`--plugin my_arch.py`); the user named it on the command line."""
    path = Path(path)
    name = path.stem
    if not path.is_file():
        raise PluginError(f"--plugin {path}: there is no such file")
    if path.suffix != ".py" or not name.isidentifier():
        raise PluginError(f"--plugin {path}: the file's name must be a Python module name, such as my_arch.py")
    other = None if name in plugin_files else importlib.util.find_spec(name)
    if other is not None and Path(other.origin or "").resolve() != path.resolve():
        raise PluginError(f"--plugin {path}: there is another module '{name}', which it would replace: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with failing_as(f"--plugin {path}", passing=PluginError), isolated():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    plugin_files.add(name)
    return module


def active_modules(architecture: Architecture | None, names: Sequence[str] = ()) -> list[ModuleType]:
    """Return the modules whose hooks count in a run: that of the architecture, and those that `plugins:` names.

    A name must be a module that an installed distribution declares as an entry point, or one loaded with `--plugin`:
    a YAML cannot import anything else.
    """
    modules: dict[str, ModuleType] = {}
    if architecture is not None:
        point = shipped_by(architecture.name)
        owner = getattr(architecture.model_class, "__module__", "") if point is None else point.module
        if owner in sys.modules:
            modules[owner] = sys.modules[owner]
    known = {point.module: point for point in scan() if point.group in GROUPS}
    for name in names:
        if name in plugin_files:
            modules[name] = sys.modules[name]
            continue
        if name not in known:
            raise PluginError(
                f"no installed package declares the module '{name}'.{did_you_mean(name, known)} "
                f"Declared: {', '.join(sorted(known)) or 'none'}."
            )
        reason = switched_off(known[name])
        if reason is not None:
            raise PluginError(f"the module '{name}' is disabled: {reason}")
        modules[name] = load_module(known[name])
    return list(modules.values())
