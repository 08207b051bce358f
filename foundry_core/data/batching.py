"""From a token file to rows in their order, as `data.batching`, `data.order` and the other keys of `data:` ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.given_order import Scores, given_order
from foundry_core.data.order import CropOrder, Ints, LaneOrder, LengthOrder, MixedOrder, Order, SampleOrder
from foundry_core.data.packed_rows import PackedRows
from foundry_core.data.rows import AnyRows, CropRows, DocumentRows, LaneRows, MixedRows, Rows
from foundry_core.data.token_file import TokenFile
from foundry_core.random_streams import derive


def cut_rows(
    tokens: TokenFile, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, *, training: bool = False
) -> AnyRows:
    """Cut a token file into rows that consume `data.tokens_per_row` tokens, in the layout of the objective.

    training: For training; otherwise for an evaluation, in which each token counts once.
    """
    made: tuple[Any, ...] = (config.objective.layout, config.data.consumed_per_row)
    ids: dict[str, Any] = {"holes": tokens.holes}
    if config.objective.layout == "framed":
        ids |= {"start_id": tokenizer.cls_token_id, "end_id": tokenizer.sep_token_id}
    stream, data = tokens.tokens, config.data
    if data.isolate_documents:
        in_order = data.order != "shuffled"
        return PackedRows(stream, *made, documents=np.asarray(tokens.documents), in_order=in_order, **ids)
    if data.batching == "documents":
        return DocumentRows(stream, *made, documents=np.asarray(tokens.documents), **ids)
    if data.batching == "contiguous":
        if training:  # each micro-batch of a step continues lanes of its own
            lanes = data.batch_size * config.training.gradient_accumulation_steps
        else:  # of a short text fewer lanes, each of one row at least
            lanes = max(1, min(data.batch_size, (len(stream) - 1) // data.consumed_per_row))
        return LaneRows(stream, *made, lanes=lanes, **ids)
    if training and data.batching == "crops":
        return CropRows(stream, *made, **ids)
    if training and data.mixture:
        return MixedRows([Rows(part, *made, **ids) for part in tokens.parts()], list(data.mixture))
    return Rows(stream, *made, **ids)


def row_lengths(rows: AnyRows, order: Order, first: int, count: int) -> torch.Tensor:
    """Return how many tokens the rows at some positions have in the layout `overlap`, where one is carried over."""
    _, found = order.at(np.arange(first, first + count))
    assert isinstance(rows, Rows)
    return torch.from_numpy(rows.consumed(found) + 1)


def training_order(config: ExperimentConfig, rows: AnyRows, scores: Scores | None = None) -> Order:
    """Return the order in which a run takes its rows, those of `cut_rows` for training.

    Args:
        scores: For an order of a plugin that asks for it, the score of each row.
    """
    data, seed = config.data, derive(config.seed("data_order"), "data_order")
    if isinstance(rows, MixedRows):
        assert data.mixture is not None
        shares = np.array([each.share for each in data.mixture.values()])
        return MixedOrder([len(part) for part in rows.parts], (shares / shares.sum()).tolist(), seed)
    if isinstance(rows, LaneRows):
        return LaneOrder(len(rows), rows.lanes)
    if isinstance(rows, CropRows):
        return CropOrder(rows.per_epoch, len(rows), seed)
    if data.order not in ("shuffled", "sequential"):
        return given_order(config, rows, scores)
    if isinstance(rows, DocumentRows) and data.order == "shuffled":
        return LengthOrder(rows.row_lengths, data.batch_size * config.training.gradient_accumulation_steps, seed)
    return SampleOrder(len(rows), seed, shuffle=data.order == "shuffled")


def rows_with(rows: AnyRows, places: Ints) -> tuple[Ints, Ints]:
    """Return the rows of training that consume tokens: from the first up to the second; but for crops it is one row.

    Args:
        places: Where the tokens stand in the token file. That of its first separator, 0, is in no row.
    """
    if isinstance(rows, CropRows):
        return np.maximum(places - rows.tokens_per_row, 0), np.minimum(places, len(rows))
    if isinstance(rows, PackedRows):
        found = rows.rows_of(places)
        return found, found + 1
    parts = rows.parts if isinstance(rows, MixedRows) else (rows,)
    ends = np.concatenate([part.consumed(np.arange(len(part))) for part in parts]).cumsum()
    found = np.searchsorted(ends, places - 1, side="right")
    return found, found + 1


def token_changes(rows: AnyRows) -> Ints:
    """Return the rows of training that consume another number of tokens than the row before."""
    if isinstance(rows, CropRows) and rows.total_tokens == len(rows) - 1 + rows.tokens_per_row:
        return np.empty(0, dtype=np.int64)  # without holes all are alike, and there is one for almost every token
    return np.flatnonzero(np.diff(rows.stream_tokens(np.arange(len(rows))))) + 1


class TokensInOrder:
    """Counts the tokens of rows from the beginning of a run, where they are not as many in each row.

    Args:
        order: The order of the rows.
        rows: Those that it takes.
    """

    def __init__(self, order: Order, rows: AnyRows):
        self._order, self._rows = order, rows
        self._made: tuple[int, Ints] | None = None

    def within(self, tokens: int) -> int:
        """Return how many rows hold no more than so many tokens."""
        epoch = tokens // int(self._epoch(0)[-1]) if self._alike else 0
        tokens -= epoch * int(self._epoch(0)[-1])
        while (left := tokens - int(self._epoch(epoch)[-1])) >= 0:
            epoch, tokens = epoch + 1, left
        return epoch * self._order.size + int(np.searchsorted(self._epoch(epoch), tokens, side="right"))

    def of(self, count: int) -> int:
        """Return how many tokens the first rows of a run hold."""
        epochs, rest = divmod(count, self._order.size)
        whole = epochs * int(self._epoch(0)[-1]) if self._alike else sum(int(self._epoch(e)[-1]) for e in range(epochs))
        return whole + (int(self._epoch(epochs)[rest - 1]) if rest else 0)

    @property
    def _alike(self) -> bool:
        """Check whether each epoch has the same rows."""
        return not isinstance(self._rows, MixedRows)

    def _epoch(self, epoch: int) -> Ints:
        if self._made is None or self._made[0] != epoch:
            first = epoch * self._order.size
            _, rows = self._order.at(np.arange(first, first + self._order.size))
            self._made = epoch, self._rows.stream_tokens(rows).cumsum()
        return self._made[1]


def tokens_in_order(order: Order, rows: AnyRows) -> TokensInOrder | None:
    """Return the tokens of rows in their order; None where all rows but the last have as many."""
    return None if type(rows) is Rows else TokensInOrder(order, rows)
