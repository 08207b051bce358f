"""Tests of what a mutant is: a right model with one planted defect, and the check that is to catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from foundry_core.registry.architecture import registered_architectures
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.run import Result, chosen_checks, run_check

from .bases import BASES, SmallModel, register

M = TypeVar("M", bound=type[SmallModel])


@dataclass(frozen=True)
class Mutant:
    """defect: in a few words. caught_by: name of the check that must find it; others may find it too."""

    defect: str
    caught_by: str
    model_class: type[SmallModel]

    @property
    def base(self) -> str:
        mro = self.model_class.__mro__
        return next((each for each in mro if each in BASES), mro[1]).__name__

    def __str__(self) -> str:
        return f"{self.base.removesuffix('Model').lower()}, {self.defect}"


class Mutants(list[Mutant]):
    """A flat list of mutants, filled by decorating their classes."""

    def plant(self, defect: str, *, caught_by: str) -> Callable[[M], M]:
        def add(model_class: M) -> M:
            self.append(Mutant(defect, caught_by, model_class))
            return model_class

        return add


def suite_of(model_class: type[SmallModel]) -> Suite:
    """The cases of a base or a mutant, which is registered under the name of its class until the test ends."""
    name = model_class.__name__.lower()
    if name not in registered_architectures():
        register(name, model_class)
    return Suite.of(name)


def failures(model_class: type[SmallModel], *checks: str) -> list[Result]:
    """Carry out these checks, or the whole kit; those that fail."""
    suite = suite_of(model_class)
    results = [run_check(check, suite) for check in chosen_checks(checks)]
    return [result for result in results if not result.good]


def whole_kit(caught_by: str) -> list[str]:
    """Every check; capturing a graph takes as long as all the others, and is left out where it is to catch nothing."""
    return [check.name for check in chosen_checks() if check.name != "compile" or caught_by == "compile"]
