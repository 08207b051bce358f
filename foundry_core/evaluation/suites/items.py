"""What every suite consists of, whatever its files look like: items, their sentences in regions, and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Region: TypeAlias = int | Literal["*"]
"""A region of a sentence, counted from 1, or all of it."""


@dataclass(frozen=True)
class Score:
    """The score of a region of a sentence: its surprisal in bits, summed over its tokens.

    condition: one of the item's sentences.
    """

    region: Region
    condition: str


@dataclass(frozen=True)
class Operation:
    """A part of a prediction. sign: one of + - * / for numbers, > < = for comparisons, & | for what was compared."""

    sign: str
    left: Formula
    right: Formula


Formula: TypeAlias = Score | Operation | float


@dataclass(frozen=True)
class SuiteItem:
    """One item of a suite.

    Attributes:
        name: Its number or name, unique in its paradigm.
        paradigm: What is averaged first: a file of BLiMP, a test suite of SyntaxGym.
        sentences: By condition, the regions of each sentence; a text is its regions without the empty ones, joined by
            `join`. A pair has the conditions "good" and "bad", each of one region.
        predictions: Each a formula; the item is right if all hold. A comparison that ties does not hold.
        place: file:line, for messages.
        phenomenon: What paradigms are averaged to; empty if the suite has none.
    """

    name: str
    paradigm: str
    sentences: Mapping[str, tuple[str, ...]]
    predictions: tuple[Formula, ...]
    place: str
    phenomenon: str = ""
    join: str = field(default=" ")


BETTER: Formula = Operation("<", Score("*", "good"), Score("*", "bad"))
"""What a minimal pair predicts: the good sentence is less surprising."""
