"""Mutants of functions: a function that is named is carried out by another one, wherever it was imported to.

A target is named "module:qualname", such as "foundry_core.storage.files:Disk.sync". What replaces it is called with the
original first and then with what the target is called with, so that it can do something else or call the original in
another way. `mutate` changes this process. `mutated_environment` changes a process that is yet to be started, and
those that it starts: `mutating/sitecustomize.py` lets each of them change the function as soon as its module is there.

Light: a process that is mutated from its start imports this first.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

Replacement = Callable[..., Any]

ROOT = Path(__file__).parents[1]
VARIABLE = "FOUNDRY_MUTANT"
"""The environment variable that names target and replacement, with a space between them."""


def named(name: str) -> Any:
    """Return what "module:qualname" names. Raises LookupError when there is no such thing."""
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = inspect.getattr_static(found, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"a mutant changes {name}, which is not there: {error}") from error
    return found


def function(target: str) -> FunctionType:
    """Return the function of a target, without what is wrapped around it. Raises LookupError when it is not one."""
    found = named(target)
    found = inspect.unwrap(getattr(found, "__func__", found))
    if not isinstance(found, FunctionType) or found.__closure__:
        raise LookupError(f"a mutant changes {target}, which is not a plain function")
    return found


def check(target: str, replacement: Replacement) -> None:
    """Check that a target exists, and that the replacement takes its parameters by their names.

    A mutant that fails for a reason of its own must not pass for one that is caught.

    Raises:
        LookupError: there is no such function.
        TypeError: the replacement does not take what it is given.
    """
    expected = list(inspect.signature(function(target)).parameters)
    _, *taken = inspect.signature(replacement).parameters.values()
    by_place = [each.name for each in taken if each.kind is each.POSITIONAL_OR_KEYWORD]
    by_name = {each.name for each in taken if each.kind is each.KEYWORD_ONLY}
    rest = any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in taken)
    fits = by_place == expected[: len(by_place)] and by_name <= {*expected}
    if not fits or not (rest or {*by_place, *by_name} == {*expected}):
        raise TypeError(f"{replacement.__name__}{inspect.signature(replacement)} cannot replace {target}: {expected}")


def _replaced(*arguments: Any, mutant: Callable[[], Replacement], original: FunctionType, **keywords: Any) -> Any:
    """Be the code of a function that was replaced: it is the same object wherever it was imported to."""
    return mutant()(original, *arguments, **keywords)


def mutate(target: str, replacement: Callable[[], Replacement]) -> None:
    """Replace a function in this process for good. replacement: returns it, and is called when it is needed first."""
    changed = function(target)
    original = FunctionType(changed.__code__, changed.__globals__, changed.__name__, changed.__defaults__)
    original.__kwdefaults__ = changed.__kwdefaults__
    changed.__signature__ = inspect.signature(changed)  # type: ignore[attr-defined]
    changed.__code__, changed.__defaults__ = _replaced.__code__, None
    changed.__kwdefaults__ = {"mutant": cache(replacement), "original": original}


def mutated_environment(target: str, replacement: Replacement) -> dict[str, str]:
    """Return this environment with the variables that change a function in every Python process started with them."""
    return unmutated_environment() | {VARIABLE: f"{target} {replacement.__module__}:{replacement.__qualname__}"}


def unmutated_environment() -> dict[str, str]:
    """Return the environment of `mutated_environment` without a mutant."""
    before = {name: value for name, value in os.environ.items() if name != VARIABLE}
    places = [str(ROOT / "tests" / "mutating"), str(ROOT), *filter(None, [before.get("PYTHONPATH")])]
    return before | {"PYTHONPATH": os.pathsep.join(places)}


class _Mutating(MetaPathFinder):
    """Finds one module as everybody else does, and changes a function of it when it has been carried out."""

    def __init__(self, target: str, replacement: str):
        self.module, self.target, self.replacement = target.partition(":")[0], target, replacement

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(spec for finder in others if (spec := finder.find_spec(fullname, path, target)) is not None)
        loader: Any = spec.loader
        carry_out = loader.exec_module

        def carry_out_and_change(module: ModuleType) -> None:
            carry_out(module)
            mutate(self.target, lambda: named(self.replacement))

        loader.exec_module = carry_out_and_change
        return spec


def mutate_when_imported(environment: Mapping[str, str]) -> None:
    """Change the function that the environment names, as soon as its module has been imported."""
    if VARIABLE in environment:
        sys.meta_path.insert(0, _Mutating(*environment[VARIABLE].split(" ")))
