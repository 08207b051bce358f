"""Checks of orders: each epoch is a permutation of the rows, and a function of rows, seed and epoch alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foundry_core.data.given_order import ordered
from foundry_core.registry.data_order import DataOrder, OrderedRows
from foundry_core.registry.loading import import_string
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import experiment
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NotApplicableError, require
from foundry_core.testing.kit.processes import forked

_TEXTS = ("one", "two two", "a longer line, with a comma", "É 日本", "one", " ", "9 8 7 6 5 4 3 2 1")


@dataclass(frozen=True, eq=False)
class OrderBench:
    """An order, and rows for it."""

    subject: Subject

    @property
    def kind(self) -> DataOrder:
        """The descriptor."""
        return self.subject.descriptor  # type: ignore[no-any-return]

    def rows(self, count: int) -> OrderedRows:
        """Return rows of some lengths, of which some are equal."""
        generator = np.random.default_rng(count)
        scores = generator.normal(size=count).round(1) if self.kind.score is not None else None
        settings = experiment(self.subject).data.order_settings
        return OrderedRows(generator.integers(1, 9, count), scores, settings)


@bench("order")
def order_bench(subject: Subject) -> OrderBench:
    """Return rows for an order of a plugin; core's own have tests of their own."""
    made = OrderBench(subject)
    if made.kind.order is None:
        raise NotApplicableError("it is core's own")
    return made


@check(
    "order",
    "permutation",
    fix="Return an array of integers with each number below len(rows.lengths) once, for any number of rows and any "
    "epoch: numpy's argsort and permutation do.",
)
def permutation(bench: OrderBench) -> None:
    """In each epoch each row stands in exactly one place, for 1, 2 and 1,000 rows."""
    for count in (1, 2, 1000):
        for epoch in (0, 1, 100):
            ordered(bench.kind, bench.rows(count), 3, epoch)


@check(
    "order",
    "pure",
    fix="Draw at random only from numpy.random.default_rng([seed, epoch]), and keep nothing from call to call: a run "
    "that is resumed asks in another process, beginning in the middle.",
)
def pure(bench: OrderBench) -> None:
    """The order of an epoch is the same in another process and after other epochs were asked for, and the rows that it
    is given stay as they are.
    """
    rows = bench.rows(50)
    before = rows.lengths.copy(), None if rows.scores is None else rows.scores.copy()
    first = [ordered(bench.kind, rows, 3, epoch).tolist() for epoch in (0, 1, 2)]
    (other,) = forked(lambda: bytes(ordered(bench.kind, bench.rows(50), 3, 2).tobytes()))
    require(np.frombuffer(other, np.int64).tolist() == first[2], "epoch 2 is another one in another process")
    require(ordered(bench.kind, rows, 3, 0).tolist() == first[0], "epoch 0 is another one when it is asked for again")
    changed = not np.array_equal(rows.lengths, before[0]) or not _same(rows.scores, before[1])
    require(not changed, "the function changes the rows that it is given")


@check("order", "score", fix="Return a finite number for any document that is not blank: it may have one word.")
def score(bench: OrderBench) -> None:
    """The score of a document is a finite number, and the same for the same text."""
    if bench.kind.score is None:
        raise NotApplicableError("it asks for no score")
    function = import_string(bench.kind.score)
    found = [function(text) for text in _TEXTS if text.strip()]
    wrong = [value for value in found if not isinstance(value, int | float) or not np.isfinite(value)]
    require(not wrong, f"a score is {wrong[:1]}")
    require(found == [function(text) for text in _TEXTS if text.strip()], "a text has two scores")


def _same(one: Any, other: Any) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
