"""The order of the rows: each once in an epoch, any position at once, the same for ever."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from foundry_core.data.order import CropOrder, Permutation, SampleOrder
from tests.each import each


@each("size", [1, 2, 3, 7, 64, 1000, 4097])
@each("epoch", [0, 1, 17])
def test_an_order_visits_every_row_once(size: int, epoch: int) -> None:
    rows = Permutation(size, 42, epoch)(np.arange(size))
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(size))


def test_an_order_does_not_depend_on_how_it_is_asked_for() -> None:
    order = Permutation(4097, 1, 2)
    whole = order(np.arange(4097))
    assert [int(order(np.array([position]))[0]) for position in range(0, 4097, 41)] == whole[::41].tolist()
    assert order(np.arange(12).reshape(3, 4)).tolist() == whole[:12].reshape(3, 4).tolist()
    assert order(np.arange(0)).tolist() == []


def test_the_order_of_a_seed_never_changes() -> None:
    """Old checkpoints resume only if the order is what it was; a change here must be a decision."""
    assert Permutation(10, 42, 0)(np.arange(10)).tolist() == [6, 4, 8, 5, 2, 3, 0, 1, 7, 9]
    assert CropOrder(53, 420, 3).at(np.arange(10))[1].tolist() == [178, 250, 313, 9, 256, 53, 175, 317, 384, 258]
    far = CropOrder(53, 10**12, 3).at(np.array([0, 1, 10**15]))[1]
    assert far.tolist() == [424529410071, 596015235985, 625572513029]


def test_every_order_of_a_few_rows_occurs_equally_often() -> None:
    orders = Counter(tuple(Permutation(4, seed, 0)(np.arange(4)).tolist()) for seed in range(4800))
    assert len(orders) == 24
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 60  # chi square, 23 degrees: p about 4e-5


@pytest.mark.parametrize("size", [1000, 10_000, 65_536, 99_991])
def test_an_order_has_no_visible_structure(size: int) -> None:
    rows = Permutation(size, 7, 3)(np.arange(size))
    noise = 4 / size**0.5
    assert abs(np.corrcoef(np.arange(size), rows)[0, 1]) < max(0.05, noise)
    for lag in (1, 2, int(size**0.5), int(size**0.5) + 1):
        assert abs(np.corrcoef(rows[lag:], rows[:-lag])[0, 1]) < max(0.05, noise)
    # In a random order two neighbours stay neighbours twice in an epoch, whatever the size.
    assert (np.abs(np.diff(rows)) == 1).sum() <= 12
    # A tenth of the positions sees about a tenth of every tenth of the corpus.
    seen = np.histogram(rows[: size // 10], bins=10, range=(0, size))[0]
    assert np.abs(seen - size / 100).max() < 5 * (size / 100) ** 0.5


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    orders = [Permutation(10_000, seed, epoch)(np.arange(10_000)) for seed in (0, 1, 2**40) for epoch in (0, 1, 2)]
    for first in range(len(orders)):
        for second in range(first):
            assert (orders[first] == orders[second]).sum() < 10
            assert abs(np.corrcoef(orders[first], orders[second])[0, 1]) < 0.05


def test_a_far_position_costs_no_time_and_no_memory() -> None:
    order = SampleOrder(10**9, 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    _, rows = order.at(np.array([10**8, 10**8 + 1, 7 * 10**9]))
    assert time.perf_counter() - started < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000
    assert rows.max() < 10**9
    assert np.unique(Permutation(10**9, 5, 0)(np.arange(10**8, 10**8 + 10**5))).size == 10**5


def test_positions_outside_an_order_are_an_error() -> None:
    for position in (-1, 10):
        with pytest.raises(IndexError):
            Permutation(10, 0, 0)(np.array([position]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_of_the_sample_order_is_every_row_once(shuffle: bool) -> None:
    order = SampleOrder(13, 3, shuffle)
    epochs, rows = order.at(np.arange(13 * 5))
    assert epochs.tolist() == np.repeat(np.arange(5), 13).tolist()
    for epoch in range(5):
        inside = rows[epochs == epoch].tolist()
        expected = Permutation(13, 3, epoch)(np.arange(13)).tolist() if shuffle else list(range(13))
        assert inside == expected
        assert sorted(inside) == list(range(13))


@pytest.mark.long
def test_rows_and_their_order_need_no_torch() -> None:
    code = "import sys, foundry_core.data.rows; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
