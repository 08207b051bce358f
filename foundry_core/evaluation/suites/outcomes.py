"""Predictions: the numbers that a formula computes from scores, and whether what it compares holds, with ties."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from foundry_core.evaluation.suites.items import Formula, Operation, Score


class Value(NamedTuple):
    """A number in bits, and by how much rounding may change it."""

    bits: float
    noise: float


class Outcome(NamedTuple):
    """Whether a prediction holds, whether it does not because of a tie, and by how many bits it does, or is missed."""

    right: bool
    tie: bool
    bits: float


def outcome(formula: Formula, values: Mapping[Score, Value]) -> Outcome:
    """Return what becomes of a comparison, or of several that are joined.

    Two numbers are tied where they differ by no more than the noise of either; then neither is larger.
    """
    match formula:
        case Operation("&" | "|" as sign, left, right):
            both = [outcome(each, values) for each in (left, right)]
            holds, bits = (all, min) if sign == "&" else (any, max)
            found = holds(each.right for each in both)
            return Outcome(found, not found and any(each.tie for each in both), bits(each.bits for each in both))
        case Operation("<" | ">" | "=" as sign, left, right):
            one, other = (number(each, values) for each in (left, right))
            gap, noise = other.bits - one.bits, max(one.noise, other.noise)
            if sign == "=":
                return Outcome(abs(gap) <= noise, False, -abs(gap))
            gap = gap if sign == "<" else -gap
            return Outcome(gap > noise, abs(gap) <= noise, gap)
    raise TypeError(f"{formula} is not a comparison")


def number(formula: Formula, values: Mapping[Score, Value]) -> Value:
    """Return the number that a formula computes. What is divided by zero is not a number, and compares as wrong."""
    match formula:
        case Score():
            return values[formula]
        case Operation("+" | "-" | "*" | "/" as sign, left, right):
            (a, noise_a), (b, noise_b) = (number(each, values) for each in (left, right))
            if sign in "+-":
                return Value(a + b if sign == "+" else a - b, noise_a + noise_b)
            if sign == "*":
                return Value(a * b, abs(b) * noise_a + abs(a) * noise_b)
            if not b:
                return Value(math.nan, math.nan)
            return Value(a / b, (noise_a + abs(a / b) * noise_b) / abs(b))
        case int() | float():
            return Value(float(formula), 0.0)
    raise TypeError(f"{formula} is not a number")
