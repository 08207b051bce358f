"""The checks of extensions are proven by defects: each is caught by one check.

What new-plugin writes passes all of them: `tests/test_new_plugin.py` carries them out on each kind.
`-m slow` carries out all checks on each of them, also those that start Python.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foundry_core.testing.extensions.run import all_checks
from tests.each import each

from .extensions import PLANTED, Planted, failures, own_loss

KINDS = ("objective", "optimizer", "schedule", "tokenizer", "observer", "command")
STARTING_PYTHON = {"light-import", "same-bytes", "help", "bad-input"}

each_defect = pytest.mark.parametrize("planted", PLANTED, ids=str)


def test_an_objective_with_a_loss_of_its_own_passes(tmp_path: Path) -> None:
    right = Planted("objective", "", "", new=own_loss("losses"))
    assert [f"{result.check.name}: {result.reason}" for result in failures("objective", tmp_path, right)] == []


def only(planted: Planted, site: Path, without: set[str]) -> None:
    """A defect fails one check; one that keeps an extension from running fails those of its kind with one cause."""
    found = failures(planted.kind, site, planted, without=without)
    assert [result.check.name for result in found][:1] == [planted.caught_by], [result.reason for result in found]
    assert len({id(result.error) for result in found}) == 1, {result.check.name: result.reason for result in found}
    assert len(found) == 1 or planted.caught_by == "runs"
    assert "\n" not in found[0].reason


@each_defect
def test_a_planted_defect_is_caught_by_one_check(
    planted: Planted, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("figure: defects of extensions", 1)
    only(planted, tmp_path, STARTING_PYTHON - {planted.caught_by})
    record_property("figure: defects of extensions caught", 1)


@pytest.mark.slow
@each_defect
def test_no_other_check_catches_it(planted: Planted, tmp_path: Path) -> None:
    only(planted, tmp_path, set())


def test_every_check_catches_a_defect() -> None:
    assert {(planted.kind, planted.caught_by) for planted in PLANTED if planted.caught_by not in PACKAGING} == {
        (kind, one.name) for kind in KINDS for one in all_checks(kind) if one.group != "packaging"
    }
    assert {planted.caught_by for planted in PLANTED} >= PACKAGING
    assert len({str(planted) for planted in PLANTED}) == len(PLANTED)


PACKAGING = {one.name for kind in KINDS for one in all_checks(kind) if one.group == "packaging"}


@each("kind", KINDS)
def test_every_check_says_what_must_hold_and_how_to_fix_it(kind: str) -> None:
    for check in all_checks(kind):
        assert check.invariant.endswith("."), check.name
        assert check.fix.endswith("."), check.name
        assert "\n" not in check.invariant + check.fix, check.name
