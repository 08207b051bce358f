"""Checks that all kinds of extensions share: the package, its light module, its hooks, the schema of its settings."""

from __future__ import annotations

import inspect
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from foundry_core import __version__
from foundry_core.registry import hookspecs
from foundry_core.schema import ConfigSection
from foundry_core.testing.extensions.check import check
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NotApplicableError, listed, require
from foundry_core.testing.kit.processes import fresh

_OFFERS = ("objective", "optimizer", "schedule", "tokenizer", "order", "step", "suite")
_HOOKED = (*_OFFERS, "observer")
_HEAVY = ("torch", "transformers", "numpy")
_LONGEST_IMPORT = 0.25
"""Seconds of processor time that the light module of an extension may take."""


@check(
    "packaging",
    "entry-point",
    kinds=(*_HOOKED, "command"),
    fix='In pyproject.toml, write dependencies = ["model-foundry>=0.1,<0.2"] and, under '
    '[project.entry-points."foundry.plugins"] or, for a command, "foundry.commands", one line NAME = "package.module".',
)
def entry_point(subject: Subject) -> None:
    """The distribution requires model-foundry with an upper bound, and this core satisfies it."""
    if subject.point is None:
        raise NotApplicableError("not provided by an installed package")
    requirements = [Requirement(text) for text in metadata.requires(subject.point.distribution) or ()]
    own = [each for each in requirements if canonicalize_name(each.name) == "model-foundry"]
    require(bool(own), f"{subject.point} does not require model-foundry")
    for each in own:
        bounded = any(part.operator in ("<", "<=", "==", "~=") for part in each.specifier)
        require(bounded, f"{subject.point} requires {each}, without an upper bound")
        satisfied = each.specifier.contains(__version__, prereleases=True)
        require(satisfied, f"{subject.point} requires {each}, not {__version__}")


@check(
    "packaging",
    "light-import",
    kinds=(*_HOOKED, "command"),
    fix="Name the code that needs torch by an import string in the descriptor, or import it inside the function that "
    "uses it: a YAML is read, and `foundry --help` printed, without torch.",
)
def light_import(subject: Subject) -> None:
    """Importing the module that the entry point names does not import torch, transformers or numpy, and takes at most
    250 ms.
    """
    if subject.point is None:
        raise NotApplicableError("not provided by an installed package")
    module = subject.point.module
    times = []
    for _ in range(3):  # other programs can only make it longer
        program = (
            "import sys, time, foundry_core, pydantic, pluggy\nfrom foundry_core.registry import hooks\n"
            f"start = time.process_time()\nimport {module}\n"
            f"print(time.process_time() - start, *sorted({set(_HEAVY)} & set(sys.modules)))"
        )
        seconds, *heavy = fresh(program).splitlines()[-1].split()
        require(not heavy, f"importing {module} imports {listed(heavy)}")
        times.append(float(seconds))
        if times[-1] <= _LONGEST_IMPORT:
            return
    require(False, f"importing {module} takes {1000 * min(times):.0f} ms, allowed is {1000 * _LONGEST_IMPORT:.0f} ms")


@check(
    "packaging",
    "hooks",
    kinds=_HOOKED,
    fix="A hook is a function of the module that the entry point names, with a name and arguments from "
    "foundry_core/registry/hookspecs.py, marked with `@hookimpl` from foundry_core.",
)
def hooks(subject: Subject) -> None:
    """Every function whose name begins with foundry_ is a hook, and takes no default or keyword-only arguments, which
    are never passed.
    """
    if subject.module is None:
        raise NotApplicableError("core's own")
    for name, function in vars(subject.module).items():
        if not inspect.isfunction(function) or function.__module__ != subject.module.__name__:
            continue
        if name.startswith("foundry_") or hasattr(function, "foundry_impl"):
            where = f"{subject.module.__name__}.{name}"
            require(hasattr(hookspecs, name), f"{where} is not a hook")
            for each in inspect.signature(function).parameters.values():
                passed = each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
                require(passed, f"{where} takes {each.name} by keyword or with a default: it is never passed")


@check(
    "packaging",
    "settings",
    kinds=("objective", "optimizer", "schedule", "order", "step"),
    fix="Derive the class of the settings from ConfigSection, and declare every key as Field(default, "
    "description=...) of a plain type: `foundry schema` and users' YAML show the description.",
)
def settings(subject: Subject) -> None:
    """The settings, if there are any, are a subclass of ConfigSection in which every key has a description and a JSON
    schema.
    """
    section = subject.descriptor.settings
    if section is None:
        raise NotApplicableError("takes no settings")
    require(
        inspect.isclass(section) and issubclass(section, ConfigSection),
        f"{section!r} is not a subclass of ConfigSection",
    )
    for name, field in section.model_fields.items():
        require(bool((field.description or "").strip()), f"{section.__name__}.{name} has no description")
    section.model_json_schema()
