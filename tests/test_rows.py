"""Rows: every token of the stream is in one of them, as often as its layout says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from foundry_core.data.rows import Rows
from foundry_core.errors import DataError
from tests.each import each


@each("consumed", [1, 2, 4, 7, 16, 17, 18, 99])
@each("size", [2, 3, 5, 17, 18, 33])
def test_overlapping_rows_predict_all_but_the_first_token_once(size: int, consumed: int) -> None:
    stream = np.arange(size, dtype=np.uint16)
    rows = Rows(stream, "overlap", consumed)
    predicted: Counter[int] = Counter()
    for index in range(len(rows)):
        row = rows.row(index)
        assert 2 <= len(row) <= rows.length <= consumed + 1
        assert row.dtype == np.int64
        assert np.diff(row).tolist() == [1] * (len(row) - 1)
        assert rows.stream_tokens(index) == len(row) - 1
        predicted.update(row[1:].tolist())
    assert predicted == Counter(range(1, size))
    assert rows.total_tokens == size - 1


@each("consumed", [1, 2, 3, 16, 17, 98])
@each("size", [2, 3, 5, 17, 18, 33])
def test_framed_rows_hold_every_token_once_between_start_and_end(size: int, consumed: int) -> None:
    stream = np.arange(size, dtype=np.uint32)
    rows = Rows(stream, "framed", consumed, start_id=1000, end_id=1001)
    content: list[int] = []
    for index in range(len(rows)):
        row = rows.row(index)
        assert 3 <= len(row) <= rows.length <= consumed + 2
        assert len(row) == consumed + 2 or index == len(rows) - 1
        assert (row[0], row[-1]) == (1000, 1001)
        assert row.dtype == np.int64
        assert rows.stream_tokens(index) == len(row) - 2
        content += row[1:-1].tolist()
    assert content == list(range(1, size))
    assert rows.total_tokens == size - 1


@pytest.mark.parametrize("layout", ["overlap", "framed"])
def test_stream_tokens_of_many_rows_at_once_add_up(layout: Any) -> None:
    rows = Rows(np.arange(1000), layout, 7, start_id=0, end_id=1)
    counts = rows.stream_tokens(np.arange(len(rows)))
    assert counts.tolist() == [rows.stream_tokens(index) for index in range(len(rows))]
    assert counts.sum() == rows.total_tokens


def test_a_row_outside_is_an_error() -> None:
    rows = Rows(np.arange(10), "overlap", 4)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows.row(index)


@each("consumed", [1, 2, 7, 50])
def test_rows_of_both_layouts_consume_the_same_tokens(consumed: int) -> None:
    stream = np.arange(34)
    overlap, framed = Rows(stream, "overlap", consumed), Rows(stream, "framed", consumed, start_id=0, end_id=1)
    assert len(overlap) == len(framed)
    for index in range(len(overlap)):
        assert overlap.row(index)[1:].tolist() == framed.row(index)[1:-1].tolist()
        assert overlap.stream_tokens(index) == framed.stream_tokens(index)


@pytest.mark.parametrize("layout", ["overlap", "framed"])
def test_a_stream_without_a_row_is_refused(layout: Any) -> None:
    with pytest.raises(DataError, match="too few"):
        Rows(np.arange(1), layout, 10, start_id=0, end_id=1)


def test_changing_a_row_does_not_change_the_stream() -> None:
    stream = np.arange(10, dtype=np.int64)
    Rows(stream, "overlap", 4).row(0)[:] = 99
    assert stream.tolist() == list(range(10))
