"""Loading a plugin, and explaining what is wrong with one that cannot be had. Light.

Entry points answer *who has this name*: `discovery` reads them from package metadata, nothing is imported. The one
plugin that a configuration names is imported when that configuration is read. Who contributes or wants to hear is asked
in `hooks`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core import __version__
from foundry_core.errors import PluginError, did_you_mean
from foundry_core.registry.discovery import (
    COMMANDS,
    DISABLED,
    GROUPS,
    declared,
    scan,
    switched_off,
    unmet_requirement,
    way_out,
)
from foundry_core.registry.discovery import Installed as Installed
from foundry_core.registry.discovery import installed as installed
from foundry_core.registry.isolation import (
    cause,
    failing_as,
    guarded,
    home_of,
    isolated,
    last_line_in,
)

if TYPE_CHECKING:
    from foundry_core.registry.architecture import Architecture, Capabilities
    from foundry_core.schema import ModelConfig

plugin_files: set[str] = set()
"""Modules that were loaded from a file with `--plugin` in this process."""


def shipped_by(architecture: str) -> Installed | None:
    """The entry point that leads to an architecture, if an installed distribution has it; the first of several."""
    return next(iter(installed().get(architecture, ())), None)


def available_architectures() -> list[str]:
    """Names that `model.architecture` accepts here: installed ones and those registered in this process."""
    from foundry_core.registry.architecture import registered_architectures

    return sorted({*installed(), *registered_architectures()})


def get_architecture(name: str) -> Architecture:
    """The descriptor of one architecture; imports the light module of its plugin and nothing else.

    Raises PluginError for an unknown name, a name with two owners, or a plugin that does not work.
    """
    from foundry_core.registry.architecture import registered_architectures

    claims = declared().get(name, [])
    active = [claim for claim in claims if not switched_off(claim)]
    in_process = registered_architectures().get(name)
    if in_process is not None:
        if active:
            raise PluginError(
                f"the architecture '{name}' is registered in this process and shipped by {active[0]}: "
                "register yours under another name"
            )
        return in_process
    if claims and not active:
        raise PluginError(f"the architecture '{name}' is disabled: {switched_off(claims[0])}")
    if not claims:
        raise PluginError(_unknown(name))
    if len(active) > 1:
        raise PluginError(clash(active))
    return load_architecture(active[0])


def clash(claims: Sequence[Installed]) -> str:
    """Return the error for a name that several distributions claim."""
    kind, name, one = claims[0].kind, claims[0].name, claims[0].distribution
    return (
        f"the {kind} '{name}' is claimed by {' and '.join(map(str, claims))}: uninstall one, "
        f"pip uninstall {one}, or switch it off, {DISABLED}={one}"
    )


def _unknown(name: str) -> str:
    known = available_architectures()
    line = f"Unknown architecture: '{name}'.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}."
    return line + ("" if known else " Install one, for instance: pip install foundry-gpt2")


def load_architecture(point: Installed) -> Architecture:
    """The descriptor that an entry point leads to. Raises PluginError with the cause and the way out."""
    from foundry_core.registry.architecture import PLUGIN_API_VERSION, Architecture

    attribute = point.target.partition(":")[2]
    module = load_module(point)
    with guarded(partial(broken_entry_point, point)):
        descriptor: Any = getattr(module, attribute)
    if not isinstance(descriptor, Architecture):
        kind = type(descriptor).__name__
        raise PluginError(
            f"the plugin {point}: {point.target} is a {kind}, not an Architecture descriptor. {way_out(point)}"
        )
    if descriptor.name != point.name:
        raise PluginError(
            f"the plugin {point}: its entry point '{point.name}' leads to an architecture '{descriptor.name}'. "
            f"{way_out(point)}"
        )
    if descriptor.plugin_api_version != PLUGIN_API_VERSION:
        raise PluginError(
            f"the plugin {point} is made for plugin API {descriptor.plugin_api_version}, this core has "
            f"{PLUGIN_API_VERSION}: {_newer(point)}"
        )
    return descriptor


def load_module(point: Installed) -> ModuleType:
    """Import the module that an entry point names. Raises PluginError with the cause and the way out."""
    refuse_unfit(point)
    with guarded(partial(broken_entry_point, point)):
        return _imported(point.module)


def refuse_unfit(point: Installed) -> None:
    """Raise PluginError for a plugin that is not to be imported at all, with the cause and the way out.

    What a plugin for another core imports from it may not be there, and that would say less.
    """
    requirement = unmet_requirement(point)
    if requirement is not None:
        raise PluginError(f"the plugin {point} needs {requirement}, this core is {__version__}: {_newer(point)}")


def _imported(module: str) -> ModuleType:
    with isolated():
        return importlib.import_module(module)


def broken_entry_point(point: Installed, error: BaseException) -> PluginError:
    """Return the error for an entry point that cannot be imported: package, version, cause and the way out."""
    return PluginError(
        f"the plugin {point} ('{point.name}' from {point.target}) fails to import: {cause(error)}. {way_out(point)}"
    )


def _newer(point: Installed) -> str:
    return f"pip install --upgrade foundry-core {point.distribution}"


@contextmanager
def blamed_on(point: Installed | None) -> Iterator[None]:
    """A PluginError names the plugin and the way out; None: it came with no package, and its text stays."""
    try:
        yield
    except PluginError as error:
        if point is None:
            raise
        raise PluginError(f"the plugin {point}: {error}. {way_out(point)}") from error


def blame(error: BaseException) -> str | None:
    """The plugin through whose code an error came last, and where in it; None when it came through no plugin's."""
    owners = {name: f"--plugin {sys.modules[name].__file__}" for name in plugin_files}
    for point in scan():
        if switched_off(point):
            continue
        module = sys.modules.get(point.module)
        descriptor = None if module is None else vars(module).get(point.target.partition(":")[2])
        target = getattr(descriptor, "model_class", None)
        for name in (point.module, target.partition(":")[0] if isinstance(target, str) else point.module):
            owners.setdefault(name, f"the plugin {point}")
    homes = {home: owner for name, owner in owners.items() if (home := home_of(name)) is not None}
    found = last_line_in(error, homes)
    return None if found is None else f"{found[0]} fails: {cause(error)} ({found[1]})"


def capabilities_of(architecture: Architecture, section: ModelConfig, *, example: str | None = None) -> Capabilities:
    """What an architecture says that it can do with a `model:` section. Raises PluginError when it does not say.

    example: what the section is called, if it is one of the plugin's own.
    """
    from foundry_core.registry.architecture import Capabilities

    what = f"the capabilities of '{architecture.name}'" + (f" with '{example}'" if example else "")
    with guarded(lambda error: PluginError(f"{what} fail: {cause(error)}")), isolated():
        found: Any = architecture.capabilities(section)
    if not isinstance(found, Capabilities):
        raise PluginError(f"{what} are a {type(found).__name__}, not Capabilities")
    return found


def import_string(target: str) -> Any:
    """The object that `"package.module:attribute"` names, for targets written in code, never in a YAML.

    What `isolation.kept_settings` names is restored after the import.
    """
    module, _, attribute = target.partition(":")
    with failing_as(f"the import of {target}"):
        return getattr(_imported(module), attribute)


def get_command(name: str) -> tuple[ModuleType, Installed]:
    """The module of a command that an installed package adds to `foundry`, and the package.

    Raises PluginError for a name with two owners, or a module that does not work.
    """
    claims = installed(COMMANDS)[name]
    if len(claims) > 1:
        raise PluginError(clash(claims))
    refuse_unfit(claims[0])
    with failing_as(f"the import of {claims[0].target}, the command '{name}' of {claims[0]},"):
        module = _imported(claims[0].module)
    if not callable(getattr(module, "configure", None)):
        raise PluginError(
            f"the command '{name}' of {claims[0]}: {claims[0].target} is no module with a function configure(parser)"
        )
    return module, claims[0]


def load_plugin_file(path: str | Path) -> ModuleType:
    """Run a Python file that registers architectures (`--plugin my_arch.py`); the user named it on the command line."""
    path = Path(path)
    if not path.is_file():
        raise PluginError(f"--plugin {path}: there is no such file")
    if path.suffix != ".py":
        raise PluginError(f"--plugin {path}: the file's name must end in .py")
    name = path.stem
    if not name.isidentifier():
        raise PluginError(f"--plugin {path}: the file's name must be a Python module name")
    if name not in plugin_files and _is_module(name, path):
        raise PluginError(f"--plugin {path}: there is another module '{name}', which it would replace: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with guarded(partial(_file_failure, path)), isolated():
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    plugin_files.add(name)
    return module


def _file_failure(path: Path, error: BaseException) -> PluginError:
    return error if isinstance(error, PluginError) else PluginError(f"--plugin {path} fails: {cause(error)}")


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
    if architecture is not None:
        target, point = architecture.model_class, shipped_by(architecture.name)
        in_process = None if isinstance(target, str) else target.__module__
        owner = in_process if point is None else point.module
        if owner is not None and owner in sys.modules:
            modules[owner] = sys.modules[owner]
    known = {point.module: point for point in scan() if point.group in GROUPS}
    for name in names:
        if name in known:
            reason = switched_off(known[name])
            if reason is not None:
                raise PluginError(f"the module '{name}' is disabled: {reason}")
            modules[name] = load_module(known[name])
        elif name in plugin_files:
            modules[name] = sys.modules[name]
        else:
            raise PluginError(
                f"no installed package declares the module '{name}'.{did_you_mean(name, known)} "
                f"Declared: {', '.join(sorted(known)) or 'none'}."
            )
    return list(modules.values())
