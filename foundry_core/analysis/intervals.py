"""Means over seeds with their intervals, and the bootstrap over seeds and items. All intervals are of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: The mean.
        low: The lower end of the interval; None if there is no interval.
        high: The upper end.
        over: What the interval is over: seeds (t distribution), items, or both (bootstrap), where one of two rows may
            have a single seed; empty without an interval.
        count: Number of values in the mean; of a difference, the smaller one of the two.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    over: Literal["", "seeds", "items", "seeds and items", "items, and seeds of one"] = ""
    count: int = 1

    @property
    def spread(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@cache
def t_quantile(freedom: int) -> float:
    """Return the value that the absolute t exceeds in one of 20 cases, for so many degrees of freedom."""
    low, high = 1.0, 13.0  # it is 12.7 for one degree, 1.96 for infinitely many
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < _LEVEL else (low, middle)
    return (low + high) / 2


def _t_inside(value: float, freedom: int) -> float:
    """Return the probability of [-value, value]: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan2(value, math.sqrt(freedom))
    term, total = (math.cos(angle), 0.0) if freedom % 2 else (1.0, 0.0)
    for power in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if freedom % 2 else total


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of one value for each seed; the interval is that of the t distribution.

    There is none if all values are the same, such as accuracies of 100 %: no seed has shown how far others may be.
    """
    mean = math.fsum(values) / len(values)
    if len(set(values)) < 2 or not all(map(math.isfinite, values)):
        return Estimate(mean, count=len(values))
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, "seeds", len(values))


def accuracy_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, paired: bool, seed: int = 0
) -> tuple[Estimate, float]:
    """Return by how much the accuracy of the first is higher, and a p-value, by a bootstrap over seeds and items.

    Each resample draws seeds and items with replacement. Both rows get the same items, and the same seeds if `paired`.

    Args:
        first: Which items are right, of shape (seeds, items).
        second: The same for the other row, on the same items.
        paired: The seeds of both are the same ones, in the same order.
        seed: Seeds the resampling.

    Returns:
        The difference, and the two-sided p-value of the resamples: twice the share on the other side of 0, at least 2 /
        (resamples + 1).
    """
    rng, items = np.random.default_rng(seed), first.shape[1]
    # Items that are right for the same seeds count alike, so drawing items is drawing how often each pattern occurs.
    patterns, counts = np.unique(np.concatenate([first, second]), axis=1, return_counts=True)
    drawn = rng.multinomial(items, counts / items, size=RESAMPLES) / items
    ones, twos = patterns[: len(first)].astype(float), patterns[len(first) :].astype(float)
    of_first = _seed_weights(rng, len(first))
    of_second = of_first if paired else _seed_weights(rng, len(second))
    differences = np.einsum("rs,sp,rp->r", of_first, ones, drawn) - np.einsum("rs,sp,rp->r", of_second, twos, drawn)
    low, high = np.quantile(differences, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    fewest, most = sorted((len(first), len(second)))
    over: Literal["items", "seeds and items", "items, and seeds of one"]
    over = "seeds and items" if fewest > 1 else "items" if most == 1 else "items, and seeds of one"
    estimate = Estimate(float(first.mean() - second.mean()), float(low), float(high), over, fewest)
    return estimate, min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))


def _seed_weights(rng: np.random.Generator, seeds: int) -> NDArray[np.float64]:
    """Return weights of shape (resamples, seeds): how often each is drawn."""
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
