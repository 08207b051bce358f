"""The other half of the kit under its mutants: packaging, state, cost, generation, integration.

`-m slow` carries out the whole kit on each mutant and prints which checks catch it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundry_core.errors import PluginError
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.check import CHECKS
from foundry_core.testing.kit.reopened import elsewhere
from foundry_core.testing.kit.run import run_check
from foundry_core.testing.kit.surroundings import changed, kept_surroundings, settings

from . import (
    mutants_counting,
    mutants_integration,
    mutants_processes,
    mutants_reach,
    mutants_settings,
    mutants_state,
    packages,
)
from .bases import SmallModel
from .bases_state import BASES_STATE
from .mutants import Mutant, failures, whole_kit
from .packages import PACKAGES, RIGHT, Package

GROUPS = ("packaging", "state", "cost", "generation", "integration")
MUTANTS: list[Mutant | Package] = [
    *mutants_state.MUTANTS,
    *mutants_counting.STATE,
    *mutants_integration.MUTANTS,
    *mutants_processes.MUTANTS,
    *mutants_settings.SETTINGS,
    *mutants_settings.PACKAGES,
    *PACKAGES,
    *mutants_reach.STATE,
    *mutants_reach.PACKAGES,
]

IMPORTED = [mutant for mutant in mutants_settings.PACKAGES if mutant.caught_by == "import-effects"]
"""Each has one effect when it is imported; all but the first are also planted together, for one process to import."""

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=str)


def surroundings() -> dict[str, object]:
    """All that a model must not set, without the variable in which pytest says where it is."""
    found = settings()
    del found["the environment"]["PYTEST_CURRENT_TEST"]
    return found


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """What a mutant does to the process that builds it, the kit has undone."""
    before = surroundings()
    yield
    (Path(tempfile.gettempdir()) / "foundry-mutant").unlink(missing_ok=True)
    assert changed(before, surroundings()) == []


def caught(mutant: Mutant | Package, site: Path, *checks: str) -> dict[str, str]:
    """The checks that a mutant fails, each with the reason; where core refuses it, the check that was expected to."""
    try:
        if isinstance(mutant, Package):
            return packages.failures(mutant, site, *checks)
        return {result.check.name: result.reason for result in failures(mutant.model_class, *checks)}
    except PluginError as error:
        return {mutant.caught_by: str(error)}


@pytest.mark.parametrize("base", BASES_STATE, ids=lambda base: base.__name__)
def test_a_model_without_a_defect_passes(base: type[SmallModel]) -> None:
    """Capturing a graph takes as long as all the rest: it is done with the other bases."""
    names = [check.name for check in CHECKS.values() if check.group in GROUPS and check.name != "compile"]
    assert [f"{result.check.name}: {result.reason}" for result in failures(base, *names)] == []


def test_a_package_without_a_defect_passes(tmp_path: Path) -> None:
    right = packages.RIGHT.but(light=packages.ALONE)
    checks = ("packaging", "state", "initial-weights", "hugging-face", "standalone")
    assert packages.failures(right, tmp_path, *checks) == {}


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each not in IMPORTED[1:]], ids=str)
def test_a_planted_defect_is_caught(
    mutant: Mutant | Package, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    reason = caught(mutant, tmp_path, mutant.caught_by).get(mutant.caught_by)
    record_property("figure: mutants of the kit", 1)
    record_property("figure: mutants of the kit caught", int(reason is not None))
    assert reason is not None
    assert "\n" not in reason


def test_every_effect_of_an_import_is_caught(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The process that imports a package takes seconds; `-m slow` starts one for each effect."""
    light = [each.light.removeprefix(packages.LIGHT) for each in IMPORTED[1:] if each.light != RIGHT.light]
    heavy = [each.model.removeprefix(packages.MODEL) for each in IMPORTED[1:] if each.model != RIGHT.model]
    together = RIGHT.but(light=packages.LIGHT + "".join(light), model=packages.MODEL + "".join(heavy))
    with kept_surroundings(), packages.installed(together, tmp_path):
        suite = Suite.of(together.entry)
        result = run_check(CHECKS["import-effects"], suite)
        imports = elsewhere(suite).imports
    assert result.reason.startswith(f"importing {packages.PACKAGE} changes ")
    record_property("figure: mutants of the kit", len(light) + len(heavy))
    assert imports == {
        packages.PACKAGE: [
            "changes the working folder",
            "changes random's state",
            "sets the variable TOKENIZERS_PARALLELISM",
            "moves to the folder /",
            f"writes {tmp_path / packages.PACKAGE / '__init__.log'}",
        ],
        f"{packages.PACKAGE}.model": [
            "changes the working folder",
            "changes oneDNN",
            "changes torch's random state",
            "moves to the folder /usr",
        ],
    }
    record_property("figure: mutants of the kit caught", len(light) + len(heavy))


def test_every_check_catches_a_mutant() -> None:
    caught_by = {mutant.caught_by for mutant in MUTANTS}
    assert {name for name in caught_by if CHECKS[name].group in GROUPS} == {
        check.name for check in CHECKS.values() if check.group in GROUPS
    }
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.slow
@each_mutant
def test_which_checks_catch_it(
    mutant: Mutant | Package, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = caught(mutant, tmp_path, *whole_kit(mutant.caught_by))
    record_property("table", f"{mutant}: {', '.join(found)}")
    assert mutant.caught_by in found
