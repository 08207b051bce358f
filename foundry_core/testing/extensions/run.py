"""Runs the checks of an extension; results and messages are those of the conformance kit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any

from foundry_core.errors import UsageError, did_you_mean

# Each registers its checks when it is imported.
from foundry_core.testing.extensions import (  # noqa: F401
    commands,
    corpus_steps,
    objectives,
    observers,
    optimizers,
    orders,
    packages,
    schedules,
    suites,
    tokenizers,
)
from foundry_core.testing.extensions.check import BENCHES, CHECKS, described
from foundry_core.testing.extensions.subjects import Subject, find, with_article
from foundry_core.testing.kit.check import Check, NotApplicableError, NotLookedAtError
from foundry_core.testing.kit.run import Outcome, Result, fixed_conditions


def all_checks(kind: str) -> list[Check]:
    """Return every check of a kind: those of packaging first."""
    return sorted(CHECKS[kind].values(), key=lambda one: one.group != "packaging")


def run(
    subject: Subject, names: Collection[str] = (), expected_failures: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Run the checks of a subject; `names` of checks or groups select some. Raises UsageError for an unknown name."""
    checks, expected = all_checks(subject.kind), expected_failures or {}
    groups = {one.group for one in checks}
    known = [one.name for one in checks]
    for name in (*names, *expected):
        if name not in known and (name not in groups or name in expected):
            near = did_you_mean(name, [*known, *groups])
            raise UsageError(
                f"there is no check '{name}' of {with_article(subject.kind)}.{near} All: {', '.join(known)}"
            )
    faults: list[Exception] = []
    for one in checks:
        if not names or one.name in names or one.group in names:
            yield _run(one, subject, expected.get(one.name), faults)


def _run(one: Check, subject: Subject, expected: str | None, faults: list[Exception]) -> Result:
    """Run a check. faults: what kept the bench from being prepared, if anything; it fails all checks alike."""
    start = time.perf_counter()
    outcome, reason, error = _outcome(one, subject, faults)
    if expected is not None and outcome == "failed":
        outcome, reason = "expected", f"{expected} ({reason})"
    elif expected is not None:
        ended = "was not looked at" if outcome == "not looked at" else outcome
        outcome, reason = "failed", f"is among the expected failures ({expected}) and {ended}: remove it from there"
    return Result(one, outcome, reason, time.perf_counter() - start, error)


def _outcome(one: Check, subject: Subject, faults: list[Exception]) -> tuple[Outcome, str, Exception | None]:
    try:
        with fixed_conditions():
            note = one.function(subject if one.group == "packaging" else _prepared(subject, faults))
    except NotApplicableError as error:
        return "skipped", str(error), None
    except NotLookedAtError as error:
        return "not looked at", str(error), None
    except Exception as error:  # noqa: BLE001 - whatever an extension under test raises is a finding
        return "failed", described(error, subject), error
    return "passed", note or "", None


def _prepared(subject: Subject, faults: list[Exception]) -> Any:
    if faults:
        raise faults[0]
    try:
        return BENCHES[subject.kind](subject)
    except Exception as error:
        faults.append(error)
        raise


def conformance_test(name: str, kind: str, expected_failures: Mapping[str, str]) -> Callable[[Check], None]:
    """See `foundry_core.testing.conformance`."""
    import pytest

    @cache
    def subject() -> Subject:
        return find(name, kind)

    @pytest.mark.parametrize("one", [pytest.param(one, id=f"{one.group}-{one.name}") for one in all_checks(kind)])
    def test_conformance(one: Check) -> None:
        chosen = {name: reason for name, reason in expected_failures.items() if name == one.name}
        (result,) = run(subject(), [one.name], chosen)
        if result.outcome in ("skipped", "not looked at"):
            pytest.skip(result.reason)
        if result.outcome == "expected":
            pytest.xfail(result.reason)
        if result.outcome == "failed":
            pytest.fail(f"{one.name}: {one.invariant}\n{result.reason}\n{one.fix}", pytrace=False)

    return test_conformance
