"""Rows: every token of the stream is in one of them, as often as its layout says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from foundry_core.data.rows import Rows
from foundry_core.errors import DataError
from tests.each import each


@each("length", [2, 3, 5, 8, 17, 18, 19, 100])
@each("size", [2, 3, 5, 17, 18, 33])
def test_overlapping_rows_predict_all_but_the_first_token_once(size: int, length: int) -> None:
    stream = np.arange(size, dtype=np.uint16)
    rows = Rows(stream, "overlap", length)
    predicted: Counter[int] = Counter()
    for index in range(len(rows)):
        row = rows.row(index)
        assert 2 <= len(row) <= length
        assert row.dtype == np.int64
        assert np.diff(row).tolist() == [1] * (len(row) - 1)
        assert rows.stream_tokens(index) == len(row) - 1
        predicted.update(row[1:].tolist())
    assert predicted == Counter(range(1, size))
    assert rows.total_tokens == size - 1


@each("length", [3, 4, 5, 18, 19, 100])
@each("size", [2, 3, 5, 17, 18, 33])
def test_framed_rows_hold_every_token_once_between_start_and_end(size: int, length: int) -> None:
    stream = np.arange(size, dtype=np.uint32)
    rows = Rows(stream, "framed", length, start_id=1000, end_id=1001)
    content: list[int] = []
    for index in range(len(rows)):
        row = rows.row(index)
        assert 3 <= len(row) <= length
        assert len(row) == length or index == len(rows) - 1
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


@pytest.mark.parametrize(("layout", "length"), [("overlap", 1), ("overlap", 0), ("framed", 2)])
def test_a_length_without_room_for_a_token_is_refused(layout: Any, length: int) -> None:
    with pytest.raises(DataError, match="too small"):
        Rows(np.arange(10), layout, length, start_id=0, end_id=1)


@pytest.mark.parametrize("layout", ["overlap", "framed"])
def test_a_stream_without_a_row_is_refused(layout: Any) -> None:
    with pytest.raises(DataError, match="too few"):
        Rows(np.arange(1), layout, 10, start_id=0, end_id=1)


def test_changing_a_row_does_not_change_the_stream() -> None:
    stream = np.arange(10, dtype=np.int64)
    Rows(stream, "overlap", 4).row(0)[:] = 99
    assert stream.tolist() == list(range(10))
