"""Write a package for a new architecture, complete with tests, README and CI.

Its small model learns, and passes every check: install the package, then
replace the model with your own.

The folder is foundry-NAME. NAME is the future model.architecture: lower-case
letters, digits and single underscores.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import keyword
import os
import re
import shlex
from importlib import metadata, resources
from pathlib import Path
from string import Template

from foundry_core import __version__
from foundry_core.cli.common import path_argument, report
from foundry_core.errors import UsageError

EXAMPLE = """\
example:
  foundry new-plugin mine
  pip install -e ./foundry-mine
  foundry plugins show mine"""

# Our YAML reads only the first three as values, but editors and other programs read the rest so, too.
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

_LONGEST = 20  # so that no line of the templates grows beyond its 120 columns

# The path of each template in the package.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
    "descriptor.py": "$package/__init__.py",
    "model.py": "$package/model.py",
    "state_keys.txt": "$package/state_keys.txt",
    "test.py": "tests/test_$name.py",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the architecture")
    parser.add_argument(
        "--dir", type=path_argument, default=".", metavar="DIR", help="where to create foundry-NAME (default: here)"
    )


def execute(options: argparse.Namespace) -> None:
    from foundry_core.storage.files import write_file

    name = options.name
    _refuse_unusable(name)
    folder = Path(options.dir, _distribution(name))
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists and is not overwritten: choose another --dir, or remove it")
    for path, text in plugin_files(name).items():
        write_file(folder / path, text.encode())
    # Editable, so that later changes are what is checked. Without a slash in it, pip would look for a package.
    place = shlex.quote(f"{folder}{os.sep}")
    report(f"wrote {folder}; next:\n  pip install -e {place}\n  foundry check {name}")


def plugin_files(name: str) -> dict[str, str]:
    """Return the files of a plugin package by their path in it."""
    lowest, below = core_versions(__version__)
    values = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "package": f"foundry_{name}",
        "distribution": _distribution(name),
        "lowest": lowest,
        "below": below,
    }
    templates = resources.files("foundry_core") / "templates" / "plugin"
    texts = {path: (templates / f"{source}.template").read_text("utf-8") for source, path in _FILES.items()}
    texts["$package/py.typed"] = ""
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in texts.items()}


def _distribution(name: str) -> str:
    return f"foundry-{name.replace('_', '-')}"


def core_versions(version: str) -> tuple[str, str]:
    """Return the bounds that a new plugin requires: this minor version of core, and the first that may break it."""
    major, minor = map(int, version.split(".")[:2])
    return f"{major}.{minor}", f"{major}.{minor + 1}" if major == 0 else f"{major + 1}"


def _refuse_unusable(name: str) -> None:
    """Refuse names that are not short lower-case identifiers, conflict with the templates, or are already installed."""
    from foundry_core.registry.discovery import declared
    from foundry_core.schema import ModelConfig

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST:
        cleaned = re.sub(r"[^a-z0-9]+", "_", name.lower()).lstrip("_0123456789")[:_LONGEST].rstrip("_")
        near = f", such as '{cleaned}'" if cleaned and cleaned != name else ""
        raise UsageError(
            f"{name!r} cannot name an architecture: lower-case letters, digits and single underscores between them, "
            f"a letter first, at most {_LONGEST}{near}"
        )
    # `base` would make a second BaseLanguageModel, `config` a ConfigSection; `model` is the module of the model.
    taken = {"base", "config", "model", *ModelConfig.model_fields, *_YAML_WORDS}
    if name in taken or keyword.iskeyword(name) or hasattr(builtins, name) or hasattr(ModelConfig, name):
        raise UsageError(f"'{name}' already means something in YAML, in Python or in core: choose another name")
    # Disabled plugins count, too: both could not be used together.
    for point in declared().get(name, ()):
        raise UsageError(f"the architecture '{name}' is shipped by {point}: choose another name")
    if any(metadata.distributions(name=_distribution(name))):
        raise UsageError(f"a package {_distribution(name)} is installed: choose another name")
    if importlib.util.find_spec(f"foundry_{name}") is not None:
        raise UsageError(f"there is a module foundry_{name} that Python would import: choose another name")
