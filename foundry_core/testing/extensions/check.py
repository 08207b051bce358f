"""Defines the checks of extensions; a check is that of the conformance kit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from foundry_core.registry.isolation import last_line_in
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import Check, NonconformanceError

Function = Callable[[Any], str | None]
"""A check. Returns None, or a line on what it measured."""

CHECKS: dict[str, dict[str, Check]] = {}
"""Every check by kind and name; the modules of this package fill it when they are imported."""

BENCHES: dict[str, Callable[[Subject], Any]] = {}
"""The functions that prepare the checks of each kind."""


def check(group: str, name: str, *, fix: str, kinds: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Register a check. Its group is the kind that it is for, or "packaging", whose checks are for several `kinds`.

    It is called with what `bench` returns; a check of packaging with the `Subject` itself.
    """

    def register(function: Function) -> Function:
        invariant = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        for kind in kinds or (group,):
            checks = CHECKS.setdefault(kind, {})
            assert name not in checks, name
            checks[name] = Check(name, group, invariant, fix, "architecture", lambda case: None, function)
        return function

    return register


def bench(kind: str) -> Callable[[Callable[[Subject], Any]], Callable[[Subject], Any]]:
    """Register the function that prepares the checks of a kind; what it raises fails all of them."""

    def register(function: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
        BENCHES[kind] = cache(function)
        return function

    return register


def described(error: Exception, subject: Subject) -> str:
    """Return the message of a failure, and for an exception of the extension the line in its package."""
    text = " ".join(str(error).split())
    if not isinstance(error, NonconformanceError):
        text = f"{type(error).__name__}: {text}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = None if subject.home is None else last_line_in(cause, {subject.home: None})
    return text if found is None else f"{text} ({found[1]})"
