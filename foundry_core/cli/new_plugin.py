"""Write a package for a new architecture, or for another kind of plugin, complete
with tests, README and CI.

It works, and passes every check of foundry check NAME: install it, then replace
the small model, objective, optimizer, ... in it with your own.

The folder is foundry-NAME. NAME is the future value in a YAML, such as
model.architecture, or the command: lower-case letters, digits and single
underscores. foundry_core/PLUGINS.md in the installed package is the guide.
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
from typing import NamedTuple

from foundry_core import __version__
from foundry_core.cli.common import path_argument, report
from foundry_core.errors import UsageError
from foundry_core.registry.discovery import ARCHITECTURES, COMMANDS, EXTENSIONS

EXAMPLE = """\
examples:
  foundry new-plugin mine
  pip install -e ./foundry-mine
  foundry plugins show mine
  foundry new-plugin lamb --kind optimizer"""

# Our YAML reads only the first three as values, but editors and other programs read the rest so, too.
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

_LONGEST = 20  # so that no line of the templates grows beyond its 120 columns

# The path of each shared template in the package. README.md ends with the shared one, after that of the kind.
_SHARED = {
    "pyproject.toml": "pyproject.toml",
    "LICENSE": "LICENSE",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
}
_OWN = {"descriptor.py": "$package/__init__.py", "test.py": "tests/test_$name.py"}


class _Kind(NamedTuple):
    """A kind of plugin. files: templates that only it has, which keep their names in the package."""

    description: str
    files: tuple[str, ...] = ()
    group: str = EXTENSIONS
    target: str = "$package"
    data: str = '"py.typed"'


KINDS = {
    "architecture": _Kind(
        "The architecture $name for foundry: a gated running mean of the tokens so far.",
        ("model.py", "state_keys.txt"),
        ARCHITECTURES,
        "$package:$name",
        '"py.typed", "state_keys.txt"',
    ),
    "objective": _Kind("The objective $name for foundry: rows predicted from a beginning.", ("collator.py",)),
    "optimizer": _Kind("The optimizer $name for foundry: the sign of a running mean.", ("optimizer.py",)),
    "schedule": _Kind("The learning-rate schedule $name for foundry: several falls in a row.", ("schedule.py",)),
    "tokenizer": _Kind("The tokenizer type $name for foundry: characters and bytes.", ("tokenizer.py",)),
    "order": _Kind("The order $name for foundry: the rows with few tokens first.", ("order.py",)),
    "step": _Kind("The corpus step $name for foundry: texts of few words are left out.", ("step.py",)),
    "suite": _Kind(
        "The suite $name for foundry: pairs of sentences, and the reader of their file.",
        ("reader.py", "pairs.txt"),
        data='"py.typed", "pairs.txt"',
    ),
    "observer": _Kind("An observer for foundry: losses in a CSV file."),
    "command": _Kind("The command foundry $name: the lowest test loss of a run.", group=COMMANDS),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the architecture, or of what --kind says")
    kinds = ", ".join(KINDS)
    parser.add_argument("--kind", choices=KINDS, default="architecture", metavar="KIND", help=f"one of {kinds}")
    parser.add_argument(
        "--dir", type=path_argument, default=".", metavar="DIR", help="where to create foundry-NAME (default: here)"
    )


def execute(options: argparse.Namespace) -> None:
    from foundry_core.storage.files import write_file

    name = options.name
    _refuse_unusable(name, options.kind)
    folder = Path(options.dir, _distribution(name))
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists and is not overwritten: choose another --dir, or remove it")
    for path, text in plugin_files(name, options.kind).items():
        write_file(folder / path, text.encode())
    # Editable, so that later changes are what is checked. Without a slash in it, pip would look for a package.
    place = shlex.quote(f"{folder}{os.sep}")
    report(f"wrote {folder}; next:\n  pip install -e {place}\n  foundry check {name}")


def plugin_files(name: str, kind: str = "architecture") -> dict[str, str]:
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
    own = KINDS[kind]
    for field in ("description", "group", "target", "data"):
        values[field] = Template(getattr(own, field)).substitute(values)
    templates = resources.files("foundry_core") / "templates" / "plugin"

    def read(*place: str) -> str:
        return templates.joinpath(*place[:-1], f"{place[-1]}.template").read_text("utf-8")

    texts = {path: read(source) for source, path in _SHARED.items()}
    texts |= {path: read(kind, source) for source, path in _OWN.items()}
    texts |= {f"$package/{source}": read(kind, source) for source in own.files}
    texts["README.md"] = read(kind, "README.md") + read("README.md")
    texts["$package/py.typed"] = ""
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in texts.items()}


def _distribution(name: str) -> str:
    return f"foundry-{name.replace('_', '-')}"


def core_versions(version: str) -> tuple[str, str]:
    """Return the bounds that a new plugin requires: this minor version of core, and the first that may break it."""
    major, minor = map(int, version.split(".")[:2])
    return f"{major}.{minor}", f"{major}.{minor + 1}" if major == 0 else f"{major + 1}"


def _refuse_unusable(name: str, kind: str) -> None:
    """Refuse names that are not short lower-case identifiers, conflict with the templates, or are already installed."""
    from foundry_core.cli import VERBS
    from foundry_core.registry.discovery import declared
    from foundry_core.schema import ModelConfig
    from foundry_core.testing.extensions.subjects import names_of, with_article

    thing = with_article(kind)
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST:
        cleaned = re.sub(r"[^a-z0-9]+", "_", name.lower()).lstrip("_0123456789")[:_LONGEST].rstrip("_")
        near = f", such as '{cleaned}'" if cleaned and cleaned != name else ""
        raise UsageError(
            f"{name!r} cannot name {thing}: lower-case letters, digits and single underscores between them, a letter "
            f"first, at most {_LONGEST}{near}"
        )
    # `base` would make a second BaseLanguageModel, `config` a ConfigSection; `model` is the module of the model.
    taken = {"base", "config", "model", *ModelConfig.model_fields, *_YAML_WORDS}
    if name in taken or keyword.iskeyword(name) or hasattr(builtins, name) or hasattr(ModelConfig, name):
        raise UsageError(f"'{name}' already means something in YAML, in Python or in core: choose another name")
    # Disabled plugins count, too: both could not be used together.
    for point in declared(KINDS[kind].group).get(name, ()):
        raise UsageError(f"the {point.kind} '{name}' is shipped by {point}: choose another name")
    taken = set() if kind == "architecture" else set(VERBS) if kind == "command" else names_of(kind)
    if name in taken:
        raise UsageError(f"there is {thing} '{name}': choose another name")
    if any(metadata.distributions(name=_distribution(name))):
        raise UsageError(f"a package {_distribution(name)} is installed: choose another name")
    if importlib.util.find_spec(f"foundry_{name}") is not None:
        raise UsageError(f"there is a module foundry_{name} that Python would import: choose another name")
