"""Runs checks: for pytest as one test with many cases, for `foundry check` as a sequence of results."""

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

from foundry_core.errors import UsageError, did_you_mean, traced
from foundry_core.random_streams import seed_generators
from foundry_core.registry.isolation import last_line_in

# Each registers its checks when it is imported.
from foundry_core.testing.kit import (  # noqa: F401
    cost,
    counting,
    documents,
    experiments,
    generation,
    integration,
    learning,
    long_rows,
    masking,
    numerics,
    objective,
    packaging,
    settings,
    standalone,
    state,
    terms,
    training,
)
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.check import (
    CHECKS,
    GROUPS,
    ROOTS,
    Check,
    NonconformanceError,
    NotApplicableError,
    NotLookedAtError,
    not_looked_at,
    subjects,
    take_unseen,
)
from foundry_core.testing.kit.surroundings import kept_surroundings

Outcome = Literal["passed", "failed", "expected", "skipped", "not looked at"]


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Attributes:
        outcome: "expected" if it failed and was expected to fail, "skipped" if it does not apply, "not looked at" if it
            applies and the kit cannot look.
        reason: The reason for every outcome but "passed", in one line.
        error: The exception behind a failure.
        unseen: Parts of a check that passed at which the kit could not look.
    """

    check: Check
    outcome: Outcome
    reason: str
    seconds: float
    error: Exception | None = None
    unseen: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.outcome != "failed"


def run_check(one: Check, suite: Suite, expected: str | None = None) -> Result:
    """Run a check on everything it applies to, until the first failure. expected: why it is known to fail."""
    start = time.perf_counter()
    take_unseen()
    outcome, reason, error = _outcome(one, suite)
    if expected is not None and outcome == "failed":
        outcome, reason = "expected", f"{expected} ({reason})"
    elif expected is not None:
        ended = "was not looked at" if outcome == "not looked at" else outcome
        outcome, reason = "failed", f"is among the expected failures ({expected}) and {ended}: remove it from there"
    unseen = take_unseen() if outcome == "passed" else []
    return Result(one, outcome, reason, time.perf_counter() - start, error, tuple(unseen))


def _outcome(one: Check, suite: Suite) -> tuple[Outcome, str, Exception | None]:
    subject: object = suite
    blind: dict[object, str] = {}
    try:
        with fixed_conditions():
            chosen, reason = subjects(one, suite)
            if not chosen:
                return "skipped", reason, None
            if one.group != "packaging" and suite.fault is not None:
                return "failed", _message(suite.fault[1], suite.fault[0], suite), suite.fault[1]
            for subject in chosen:
                try:
                    one.function(subject)
                except NotLookedAtError as error:
                    blind[subject] = str(error)
                except NotApplicableError as error:
                    return "skipped", str(error), None
    except Exception as error:  # noqa: BLE001 - whatever a model under test raises is a finding
        if not isinstance(error, NonconformanceError):
            with fixed_conditions():  # suite.fault builds the models, which may change them
                subject, error = suite.fault or (subject, error)
            traced(error)
        return "failed", _message(error, subject, suite), error
    if len(blind) == len(chosen):
        return "not looked at", next(iter(blind.values())), None
    for subject, reason in blind.items():
        not_looked_at(f"{subject}: {reason}")
    return "passed", "", None


def _message(error: Exception, subject: object, suite: Suite) -> str:
    """Return the subject and message of a failure; for an exception of the model also the line in the plugin."""
    text = " ".join(str(error).split())
    if not isinstance(error, NonconformanceError):
        text = f"{type(error).__name__}: {text}"
    if error.__cause__ is not None or not isinstance(error, NonconformanceError):
        text += _place(error, suite.home)
    return text if subject is suite else f"{subject}: {text}"


def _place(error: BaseException, home: Path | None) -> str:
    """Return the innermost line of the plugin's code in the traceback of an error, in parentheses."""
    while error.__cause__ is not None:
        error = error.__cause__
    found = None if home is None else last_line_in(error, {home: None})
    return "" if found is None else f" ({found[1]})"


@contextmanager
def fixed_conditions() -> Iterator[None]:
    """Use one thread, silence warnings of libraries, and restore whatever a model changes in the process.

    So every check starts from the same state, and the check of side effects sees what a model changes.
    """
    verbosity, thresholds = logging.get_verbosity(), gc.get_threshold()
    logging.set_verbosity_error()
    # Hundreds of models are built: with the default thresholds the garbage collector takes a tenth of the kit's time.
    gc.set_threshold(20_000, 20, 20)
    try:
        with kept_surroundings():
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            seed_generators(0)
            yield
    finally:
        gc.set_threshold(*thresholds)
        logging.set_verbosity(verbosity)


@cache
def suite_of(architecture: str) -> Suite:
    """Return the cases of an architecture, built once in a process."""
    return Suite.of(architecture)


def all_checks() -> list[Check]:
    """Return every check, in the order in which they are run: first those on which others depend, then by group."""
    return sorted(CHECKS.values(), key=lambda one: (one.name not in ROOTS, GROUPS.index(one.group)))


def first_cause(one: Check, failed: Collection[str]) -> Check:
    """Return the failed check from which a failure follows; the check itself if it follows from none."""
    cause = next((name for name in one.causes if name in failed), None)
    return one if cause is None else first_cause(CHECKS[cause], failed)


def chosen_checks(names: Collection[str] = ()) -> list[Check]:
    """Return checks by name or group, or all if there are no names. Raises UsageError for an unknown name."""
    known = [*CHECKS, *GROUPS]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no check '{name}'.{did_you_mean(name, known)} All: {', '.join(CHECKS)}")
    return [one for one in all_checks() if not names or one.name in names or one.group in names]


def require_known(expected_failures: Collection[str]) -> None:
    """Raise UsageError for a name that is not the name of a check."""
    for name in expected_failures:
        if name not in CHECKS:
            whole = f" '{name}' is a group: name its checks." if name in GROUPS else did_you_mean(name, CHECKS)
            raise UsageError(f"there is no check '{name}' that could be expected to fail.{whole}")


def results(
    architecture: str, *, names: Collection[str] = (), expected_failures: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Run checks one after the other, each when its result is requested."""
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
        if result.outcome == "not looked at":
            pytest.skip(f"not looked at: {result.reason}")
        if result.outcome == "expected":
            pytest.xfail(result.reason)
        if result.outcome == "failed":
            cause = first_cause(one, [name for name in one.causes if _fails(architecture, name)])
            first = "" if cause is one else f"Follows from {cause.name}, which fails too: begin there.\n"
            pytest.fail(f"{first}{one.name}: {one.invariant}\n{result.reason}\n{one.fix}", pytrace=False)

    return test_conformance


@cache
def _fails(architecture: str, name: str) -> bool:
    return run_check(CHECKS[name], suite_of(architecture)).outcome == "failed"
