"""Rows and orders of each `data.batching`: what is trained, how often, beside what, and nothing else."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from foundry_core.data.order import CropOrder, LaneOrder, LengthOrder, MixedOrder
from foundry_core.data.packed_rows import PackedRows
from foundry_core.data.rows import CropRows, DocumentRows, LaneRows, MixedRows, Rows
from foundry_core.errors import DataError

SEPARATOR, BEGIN, END = 0, 1, 2
LAYOUTS: dict[str, dict[str, Any]] = {"overlap": {}, "framed": {"start_id": BEGIN, "end_id": END}}


def stream(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A token file of documents of these lengths, in which every token but the separators is another one."""
    parts, starts, token = [np.array([SEPARATOR])], [1], 10
    for length in lengths:
        parts.append(np.append(np.arange(token, token + length), SEPARATOR))
        token += length
        starts.append(starts[-1] + length + 1)
    return np.concatenate(parts), np.array(starts)


def random_lengths(seed: int, count: int = 40, longest: int = 30) -> list[int]:
    return list(map(int, np.random.default_rng(seed).integers(1, longest, count)))


def new_tokens(rows: Rows, layout: str, index: int) -> list[int]:
    """What a row adds to the text, without separators, frames and the token that is carried over."""
    row = rows.row(index)[1:]
    return [token for token in row.tolist() if token > END]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(5))
def test_documents_and_packed_rows_lose_nothing_and_cut_little(layout: Any, seed: int) -> None:
    tokens, documents = stream(random_lengths(seed))
    for kind in (DocumentRows, partial(PackedRows, in_order=True), PackedRows):
        rows = kind(tokens, layout, 12, documents=documents, **LAYOUTS[layout])
        seen = [token for index in range(len(rows)) for token in new_tokens(rows, layout, index)]
        text = [token for token in tokens.tolist() if token > END]
        assert sorted(seen) == sorted(text) if kind is PackedRows else seen == text
        assert rows.stream_tokens(np.arange(len(rows))).sum() == len(tokens) - 1
        widths = [len(rows.row(index)) for index in range(len(rows))]
        assert max(widths) == rows.length <= 14
        lengths = np.diff(documents) - 1
        fitting = [set(range(start, end - 1)) for start, end in pairwise(documents) if end - 1 - start <= 12]
        where = {token: index for index in range(len(rows)) for token in new_tokens(rows, layout, index)}
        assert [len({where[int(tokens[at])] for at in places}) for places in fitting] == [1] * len(fitting)
        assert (lengths > 12).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_document_row_holds_one_document_in_its_frame(seed: int) -> None:
    lengths = random_lengths(seed, longest=10)
    tokens, documents = stream(lengths)
    overlap = DocumentRows(tokens, "overlap", 12, documents=documents)
    framed = DocumentRows(tokens, "framed", 12, documents=documents, start_id=BEGIN, end_id=END)
    for index, (start, end) in enumerate(pairwise(documents)):
        text = tokens[start : end - 1].tolist()
        assert overlap.row(index).tolist() == [SEPARATOR, *text, SEPARATOR]
        assert framed.row(index).tolist() == [BEGIN, *text, END]
        assert framed.row_lengths[index] == len(text) + 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(5))
def test_packed_rows_number_the_document_of_each_token(layout: Any, seed: int) -> None:
    tokens, documents = stream(random_lengths(seed))
    rows = PackedRows(tokens, layout, 12, documents=documents, **LAYOUTS[layout])
    owner = np.zeros(tokens.max() + 1, dtype=int)
    for number, (start, end) in enumerate(pairwise(documents)):
        owner[tokens[start : end - 1]] = number
    for index in range(len(rows)):
        row, numbers = rows.row(index), rows.documents(index)
        assert len(row) == len(numbers)
        inside = [(owner[token], number) for token, number in zip(row, numbers, strict=True) if token > END]
        assert len({real for real, _ in inside}) == len({number for _, number in inside}) == len(set(inside))
        opening = SEPARATOR if layout == "overlap" else BEGIN
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))
        assert (row[begins[1:]] == opening).all()


def test_packed_rows_leave_hardly_any_room() -> None:
    lengths = np.random.default_rng(1).integers(2, 60, 2000)
    tokens, documents = stream([int(length) for length in lengths])
    for in_order, least in ((True, 0.75), (False, 0.99)):
        rows = PackedRows(tokens, "framed", 126, documents=documents, in_order=in_order, **LAYOUTS["framed"])
        assert least < (lengths + 2).sum() / (len(rows) * 128) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_packed_row_continues_one_document_at_most(seed: int) -> None:
    """A piece of a cut document is predicted from the token before it, the others from a separator."""
    tokens, documents = stream(random_lengths(seed))
    rows = PackedRows(tokens, "overlap", 12, documents=documents)
    for index in range(len(rows)):
        row = rows.row(index).tolist()
        for before, after in pairwise(row):
            assert before == SEPARATOR or after == SEPARATOR or after == before + 1


@pytest.mark.parametrize("seed", range(5))
def test_packed_rows_consume_the_same_under_both_layouts(seed: int) -> None:
    tokens, documents = stream(random_lengths(seed))
    made = [PackedRows(tokens, name, 12, documents=documents, **ids) for name, ids in LAYOUTS.items()]  # type: ignore[arg-type]
    first, second = (rows.stream_tokens(np.arange(len(rows))).tolist() for rows in made)
    assert first == second


@pytest.mark.parametrize(
    ("size", "lanes", "new"), [(1000, 4, 7), (97, 8, 3), (81, 8, 5), (16, 8, 2), (17, 16, 2), (33, 4, 8)]
)
def test_lanes_go_through_the_text_once_without_a_gap(size: int, lanes: int, new: int) -> None:
    tokens = np.arange(size + 1)
    rows = LaneRows(tokens, "overlap", new, lanes=lanes)
    order = LaneOrder(len(rows), lanes)
    epochs, taken = order.at(np.arange(2 * len(rows)))
    assert epochs.tolist() == [0] * len(rows) + [1] * len(rows)
    steps = taken[: len(rows)].reshape(-1, lanes)
    assert sorted(steps.reshape(-1).tolist()) == list(range(len(rows)))
    predicted = [token for index in range(len(rows)) for token in rows.row(index)[1:].tolist()]
    assert sorted(predicted) == list(range(1, size + 1))
    for lane in steps.T:
        cut = [rows.row(int(index)) for index in lane]
        assert all(before[-1] == after[0] for before, after in pairwise(cut))
        assert all(2 <= len(row) <= new + 1 for row in cut)


def test_too_few_tokens_for_the_lanes_are_refused() -> None:
    with pytest.raises(DataError, match="the corpus has 7 tokens, too few for 8 lanes in rows of 3"):
        LaneRows(np.arange(8), "overlap", 3, lanes=8)


def test_crops_begin_anywhere_and_an_epoch_is_as_much_text() -> None:
    rows = CropRows(np.arange(1001), "overlap", 8)
    order = CropOrder(rows.per_epoch, len(rows), 3)
    epochs, taken = order.at(np.arange(100 * order.size))
    assert order.size == 125
    assert epochs[124:126].tolist() == [0, 1]
    assert rows.row(992).tolist() == list(range(992, 1001))
    with pytest.raises(IndexError):
        rows.row(993)
    counts = np.bincount(taken, minlength=993)
    assert len(counts) == 993
    assert abs(counts - counts.mean()).max() < 6 * np.sqrt(counts.mean())
    assert (rows.stream_tokens(taken) == 8).all()


@pytest.mark.parametrize("per_step", [1, 7, 32])
@pytest.mark.parametrize("size", [5, 100, 5000])
def test_a_length_order_is_a_permutation_of_each_epoch(size: int, per_step: int) -> None:
    lengths = np.random.default_rng(size).integers(1, 60, size)
    epochs, rows = LengthOrder(lengths, per_step, 5).at(np.arange(3 * size))
    for epoch in range(3):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(size))
    places = np.random.default_rng(0).permutation(3 * size)[:50]
    assert LengthOrder(lengths, per_step, 5).at(places)[1].tolist() == rows[places].tolist()


def test_rows_of_like_length_share_a_step_and_pad_little() -> None:
    lengths = np.random.default_rng(1).geometric(1 / 25, 20_000).clip(max=126) + 2
    order = LengthOrder(lengths, 32, 5)
    _, rows = order.at(np.arange(2 * len(lengths)))
    steps = [lengths[rows[at : at + 32]] for at in range(0, len(rows), 32)]
    padded = sum(len(step) * step.max() for step in steps)
    assert 1 - sum(step.sum() for step in steps) / padded < 0.10
    first = [step.mean() for step in steps[:60]]
    assert abs(np.corrcoef(first, range(60))[0, 1]) < 0.5  # neither short rows nor long ones come first


def test_a_mixture_keeps_its_shares_and_uses_up_a_corpus() -> None:
    sizes = [700, 20_000, 90]
    order = MixedOrder(sizes, [0.25, 0.6, 0.15], 9)
    passes, rows = order.at(np.arange(30_000))
    source = np.searchsorted(np.cumsum(sizes), rows, side="right")
    assert [int((source == each).sum()) for each in range(3)] == [7500, 18_000, 4500]
    for number, size in enumerate(sizes):
        own = rows[source == number]
        for start in range(0, len(own) - size, size):
            assert len(set(own[start : start + size].tolist())) == size
        assert passes[source == number].tolist() == (np.arange(len(own)) // size).tolist()
        assert order.samples_of(number, 12_345) == int((source[:12_345] == number).sum())
    places = np.random.default_rng(0).permutation(30_000)[:100]
    again = MixedOrder(sizes, [0.25, 0.6, 0.15], 9)
    assert again.at(places)[1].tolist() == rows[places].tolist()


def test_mixed_rows_are_those_of_each_corpus_in_turn() -> None:
    parts = [Rows(np.arange(50), "overlap", 8), Rows(np.arange(100, 130), "overlap", 8)]
    rows = MixedRows(parts, ["a", "b"])
    assert len(rows) == 7 + 4
    assert [rows.row(index).tolist() for index in range(11)] == [
        part.row(index).tolist() for part in parts for index in range(len(part))
    ]
    assert Counter(rows.sources(np.arange(11)).tolist()) == {0: 7, 1: 4}
    assert rows.stream_tokens(np.arange(11)).tolist() == [8] * 6 + [1] + [8] * 3 + [5]
