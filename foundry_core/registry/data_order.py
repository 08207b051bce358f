"""Descriptors of orders of the rows: core's `shuffled` and `sequential`, and those of `foundry_orders`. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundry_core.registry.checks import check_import_string, check_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foundry_core.schema import ConfigSection


@dataclass(frozen=True)
class OrderedRows:
    """What an order of a plugin may depend on besides seed and epoch.

    lengths: tokens of each row (int64), with `data.batching: documents` those of a document. scores: of each row
    (float64), the mean over its documents of what the descriptor's `score` returns; None without one. settings: the
    instance of the descriptor's settings class, or None.
    """

    lengths: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    settings: Any = None


@dataclass(frozen=True)
class DataOrder:
    """An order of the rows. Raises PluginError for an invalid name or import string.

    Attributes:
        name: The value of `data.order`.
        order: Import string of a function `f(rows, seed, epoch)` that returns the row at each position of an epoch: a
            permutation of the numbers of `rows` (`OrderedRows`), as an array of integers. It depends on nothing but its
            arguments, so that a run can be resumed anywhere. None: core's own.
        score: Import string of a function of a document's text that returns a number, if the order needs one.
        settings: Schema of `data.order_settings`. None: it takes none.
    """

    name: str
    summary: str
    order: str | None = None
    score: str | None = None
    settings: type[ConfigSection] | None = None

    def __post_init__(self) -> None:
        check_name("order", self.name)
        for which in ("order", "score"):
            if (target := getattr(self, which)) is not None:
                check_import_string(f"the order '{self.name}': its {which}", target)


CORE_ORDERS = {
    order.name: order
    for order in (
        DataOrder("shuffled", "another random order in each epoch"),
        DataOrder("sequential", "as the corpus has them"),
    )
}
