"""Carries checks out: for pytest as one test with many cases, for `foundry check` as a list of results."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging

from foundry_core.errors import UsageError, did_you_mean
from foundry_core.registry.isolation import last_line_in

# Each registers its checks when it is imported.
from foundry_core.testing.kit import (  # noqa: F401
    cost,
    generation,
    integration,
    masking,
    numerics,
    objective,
    packaging,
    settings,
    state,
    training,
)
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.check import CHECKS, GROUPS, Check, NonconformanceError, NotApplicableError, subjects
from foundry_core.testing.kit.surroundings import kept_surroundings

Outcome = Literal["passed", "failed", "skipped", "expected"]


@dataclass(frozen=True)
class Result:
    """How a check went. expected: it failed, as was said it would. reason: of a failure or a skip, one line.
    error: that of a failure.
    """

    check: Check
    outcome: Outcome
    reason: str
    seconds: float
    error: Exception | None = None

    @property
    def good(self) -> bool:
        return self.outcome != "failed"


def run_check(one: Check, suite: Suite, expected: str | None = None) -> Result:
    """Carry out one check on all it applies to; ends at the first failure. expected: why it is known to fail."""
    start = time.perf_counter()
    outcome, reason, error = _outcome(one, suite)
    if expected is not None and outcome == "failed":
        outcome, reason = "expected", f"{expected} ({reason})"
    elif expected is not None:
        outcome, reason = "failed", f"is among the expected failures ({expected}) and {outcome}: take it off the list"
    return Result(one, outcome, reason, time.perf_counter() - start, error)


def _outcome(one: Check, suite: Suite) -> tuple[Outcome, str, Exception | None]:
    subject: object = suite
    try:
        chosen, reason = subjects(one, suite)
        if not chosen:
            return "skipped", reason, None
        with fixed_conditions():
            if one.group != "packaging" and suite.fault is not None:
                return "failed", _said(suite.fault[1], suite.fault[0], suite), suite.fault[1]
            for subject in chosen:
                one.function(subject)
    except NotApplicableError as error:
        return "skipped", str(error), None
    except Exception as error:  # noqa: BLE001 - whatever a model under test raises is a finding
        if not isinstance(error, NonconformanceError):
            with fixed_conditions():  # which building the model may change
                subject, error = suite.fault or (subject, error)
        return "failed", _said(error, subject, suite), error
    return "passed", "", None


def _said(error: Exception, subject: object, suite: Suite) -> str:
    """With what a check failed and how; what the model raised comes with its place in the plugin's code."""
    text = " ".join(str(error).split())
    if not isinstance(error, NonconformanceError):
        text = f"{type(error).__name__}: {text}"
    if error.__cause__ is not None or not isinstance(error, NonconformanceError):
        text += _place(error, suite.home)
    return text if subject is suite else f"{subject}: {text}"


def _place(error: BaseException, home: Path | None) -> str:
    """The last line of the plugin's own code that an error came through, in parentheses."""
    while error.__cause__ is not None:
        error = error.__cause__
    found = None if home is None else last_line_in(error, {home: None})
    return "" if found is None else f" ({found[1]})"


@contextmanager
def fixed_conditions() -> Iterator[None]:
    """One thread, and none of the advice that libraries give in passing. What a model sets when it is built is put
    back: the next check finds things as this one did, and the check of side effects finds the model at it.
    """
    verbosity, thresholds = logging.get_verbosity(), gc.get_threshold()
    logging.set_verbosity_error()
    # Models that are built by the hundred make the garbage collector look for cycles all the time, a tenth of the kit.
    gc.set_threshold(20_000, 20, 20)
    try:
        with kept_surroundings():
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            torch.manual_seed(0)
            yield
    finally:
        gc.set_threshold(*thresholds)
        logging.set_verbosity(verbosity)


@cache
def suite_of(architecture: str) -> Suite:
    """The cases of an architecture, made once in a process."""
    return Suite.of(architecture)


def all_checks() -> list[Check]:
    """Every check, in the order of the groups."""
    return sorted(CHECKS.values(), key=lambda one: GROUPS.index(one.group))


def chosen_checks(names: Collection[str] = ()) -> list[Check]:
    """Checks by name or by group; all without names. Raises UsageError for an unknown one."""
    known = [*CHECKS, *GROUPS]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no check '{name}'.{did_you_mean(name, known)} All: {', '.join(CHECKS)}")
    return [one for one in all_checks() if not names or one.name in names or one.group in names]


def require_known(expected_failures: Collection[str]) -> None:
    """Raises UsageError for a name that is not a check's: an expectation that nobody looks at."""
    for name in expected_failures:
        if name not in CHECKS:
            whole = f" '{name}' is a group: name its checks." if name in GROUPS else did_you_mean(name, CHECKS)
            raise UsageError(f"there is no check '{name}' that could be expected to fail.{whole}")


def results(
    architecture: str, *, names: Collection[str] = (), expected_failures: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Carry out checks one after the other, each when it is asked for."""
    require_known(expected_failures or {})
    suite = suite_of(architecture)
    for one in chosen_checks(names):
        yield run_check(one, suite, (expected_failures or {}).get(one.name))


def conformance_test(architecture: str, expected_failures: Mapping[str, str]) -> Callable[[Check], None]:
    """See `foundry_core.testing.conformance`."""
    import pytest

    require_known(expected_failures)

    @pytest.mark.parametrize("one", [pytest.param(one, id=f"{one.group}-{one.name}") for one in all_checks()])
    def test_conformance(one: Check) -> None:
        result = run_check(one, suite_of(architecture), expected_failures.get(one.name))
        if result.outcome == "skipped":
            pytest.skip(result.reason)
        if result.outcome == "expected":
            pytest.xfail(result.reason)
        if result.outcome == "failed":
            pytest.fail(f"{one.name}: {one.invariant}\n{result.reason}\n{one.mend}", pytrace=False)

    return test_conformance
