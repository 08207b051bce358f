"""The order of a plugin: its permutations, checked, and the scores of documents that it asks for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.corpus.reader import Corpus
from foundry_core.data.order import GivenOrder, Ints
from foundry_core.data.rows import AnyRows
from foundry_core.data.token_file import TokenFile
from foundry_core.errors import PluginError
from foundry_core.registry.data_order import DataOrder, OrderedRows
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string

Scores = NDArray[np.float64]


def given_order(config: ExperimentConfig, rows: AnyRows, scores: Scores | None) -> GivenOrder:
    """Return the order of `data.order`, which a plugin offers.

    scores: of each row, if the order asks for them.
    """
    facts = OrderedRows(rows.stream_tokens(np.arange(len(rows))), scores, config.data.order_settings)
    return GivenOrder(len(rows), partial(ordered, config.data_order, facts, config.seed("data_order")))


def ordered(kind: DataOrder, rows: OrderedRows, seed: int, epoch: int) -> Ints:
    """Return the rows of an epoch in their order.

    Raises:
        PluginError: The function fails, or does not return a permutation of the rows.
    """
    what, count = _named(kind), len(rows.lengths)
    if kind.order is None:
        raise PluginError(f"{what} has no function: give it an import string")
    function = import_string(kind.order)
    with failing_as(what):
        found = np.asarray(function(rows, seed, epoch))
    whole = found.shape == (count,) and np.issubdtype(found.dtype, np.integer)
    if not whole or not np.array_equal(np.sort(found), np.arange(count)):
        raise PluginError(f"{what} did not return each of the {count:,} rows once in epoch {epoch}")
    return found.astype(np.int64)


def row_scores(kind: DataOrder, corpus: Corpus, tokens: TokenFile, rows: AnyRows) -> Scores | None:
    """Return the score of each row, the mean of those of its documents; None if the order asks for none.

    Raises:
        PluginError: The function of the plugin fails, or returns something that is not a finite number.
    """
    if kind.score is None:
        return None
    what = f"the score of {_named(kind)}"
    function = import_string(kind.score)
    with failing_as(what):
        found = [function(text) for text in corpus.documents()]
    scores = np.array([_number(what, value) for value in found])
    summed = np.concatenate([[0.0], scores.cumsum()])
    # A row has the documents from the one that its first token belongs to, to that of its last.
    numbers = np.arange(len(rows))
    ends = rows.stream_tokens(numbers).cumsum()
    edges = np.asarray(tokens.documents) - 1
    first = np.searchsorted(edges, np.concatenate([[0], ends[:-1]]), side="right") - 1
    last = np.searchsorted(edges, ends, side="left")
    means: Scores = (summed[last] - summed[first]) / (last - first)
    return means


def _named(kind: DataOrder) -> str:
    return f"the order {kind.name}, {kind.order},"


def _number(what: str, value: Any) -> float:
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise PluginError(f"{what} returned {value!r}, not a number")
    return float(value)
