"""Results in print: a line for each check, then each first cause with the failures that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from foundry_core.testing.kit.run import Outcome, Result, first_cause


def row(result: Result) -> str:
    """Return the line of a check, with its reason or note; failures are explained at the end."""
    reasons = [result.reason] if result.reason and result.good else []
    reasons += [f"not looked at: {part}" for part in result.unseen]
    line = f"{result.check.group:<12} {result.check.name:<24} {result.outcome:<13} {result.seconds:5.1f} s"
    return "\n  ".join([line, *reasons])


def causes(results: Sequence[Result]) -> list[tuple[Result, list[Result]]]:
    """Return each failure that follows from no other, and the failures that follow from it."""
    failed = {result.check.name: result for result in results if not result.good}
    found: dict[int, tuple[Result, list[Result]]] = {}
    for result in failed.values():
        cause = failed[first_cause(result.check, failed).name]
        # A model that does not run fails every check with the same error.
        cause, following = found.setdefault(id(cause.error or cause), (cause, []))
        if result is not cause:
            following.append(result)
    return list(found.values())


def explained(cause: Result, following: Sequence[Result]) -> str:
    """Return the rule that does not hold, the finding, the fix, and what follows from it."""
    lines = [f"{cause.check.name}: {cause.check.invariant}", cause.reason, cause.check.fix]
    others = [result for result in following if result.reason != cause.reason]
    same = [result.check.name for result in following if result.reason == cause.reason]
    if same:
        lines.append(f"With it fail: {', '.join(same)}.")
    if others:
        lines.append("Consequences, as far as is known:")
        lines += [f"  {result.check.name}: {result.reason}" for result in others]
    return "\n  ".join(lines)


def counts(results: Sequence[Result]) -> str:
    """Return how many checks ended in which way, and the time."""
    outcomes = [result.outcome for result in results]
    numbers = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in get_args(Outcome))
    return f"{numbers} in {sum(result.seconds for result in results):.1f} s"
