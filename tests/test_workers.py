"""Worker processes: they change nothing about the batches, end with their parent, and report what went wrong."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from foundry_core.data.batches import Batches
from foundry_core.data.order import SampleOrder
from foundry_core.data.rows import Rows
from foundry_core.data.workers import Batch, batches_from_workers
from foundry_core.errors import DataError, FoundryError, TokenizerError
from foundry_core.registry.loading import load_plugin_file, plugin_files
from foundry_core.systems import STOP_SIGNALS
from tests.each import each


class Source(Dataset[Batch]):
    """Batches of a function of their index."""

    def __init__(self, make: Callable[[int], Batch]):
        self.make = make

    def __getitem__(self, index: int) -> Batch:
        return self.make(index)


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    longest = max(len(sample["input_ids"]) for sample in samples)
    ids = np.full((len(samples), longest), -1, dtype=np.int64)
    for line, sample in zip(ids, samples, strict=True):
        line[: len(sample["input_ids"])] = sample["input_ids"]
    return {
        "input_ids": torch.from_numpy(ids),
        "where": torch.tensor([[sample["epoch"], sample["row"]] for sample in samples]),
        "scaled": torch.from_numpy(ids).to(torch.float16) / 3,
        "mask": torch.from_numpy(ids) >= 0,
    }


def batches(start: int, stop: int, num_workers: int, tokens: Any = None) -> Batches:
    rows = Rows(np.arange(1000, dtype=np.uint16) if tokens is None else tokens, "overlap", 8)
    return Batches(rows, SampleOrder(len(rows), 11), collate, 4, start, stop, num_workers)


def assert_same(one: Batch, other: Batch) -> None:
    """Keys in their order, and values, bit for bit."""
    assert list(one) == list(other)
    for mine, its in zip(one.values(), other.values(), strict=True):
        assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
        assert mine.contiguous().reshape(-1).view(torch.uint8).equal(its.contiguous().reshape(-1).view(torch.uint8))


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


# The same batches


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    alone, helped = list(batches(5, 700, 0)), list(batches(5, 700, num_workers))
    assert len(alone) == len(helped) == len(batches(5, 700, 0)) == 174
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


@pytest.mark.long
def test_spawned_workers_map_the_token_file_again(start_method: str, tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "tokens")
    tokens = np.memmap(tmp_path / "tokens", dtype=np.uint16, mode="r")
    assert len(multiprocessing.reduction.ForkingPickler.dumps(Rows(tokens, "overlap", 8))) < 1000
    for one, other in zip(batches(0, 40, 0), batches(0, 40, 2, tokens), strict=True):
        assert_same(one, other)


def test_tensors_of_every_shape_arrive_and_may_be_written_to() -> None:
    made: Batch = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.empty(3, 0, 2, dtype=torch.int16),
        "bool": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0], dtype=torch.float16),
        "byte": torch.arange(7, dtype=torch.uint8),
        "turned": torch.arange(12, dtype=torch.int32).reshape(3, 4).T,
        "every second": torch.arange(9)[::2],
        "broadcast": torch.ones(1, dtype=torch.complex64).expand(5),
    }
    (arrived,) = batches_from_workers(Source(lambda index: made), 1, 1)
    assert_same(made, arrived)
    arrived["byte"] += 1
    assert arrived["byte"].tolist() == list(range(1, 8))


def test_workers_draw_nothing_from_the_global_generators() -> None:
    before = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
    list(batches(0, 40, 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def test_more_workers_than_batches_and_no_batch_at_all() -> None:
    assert len(list(batches(0, 4, 3))) == 1
    assert list(batches(7, 7, 2)) == list(batches(7, 7, 0)) == []


def test_batches_can_be_iterated_again_and_side_by_side() -> None:
    both = batches(0, 50, 2)
    pairs = zip(zip(both, both, strict=True), batches(0, 50, 0), strict=True)
    for (one, other), alone in pairs:
        assert_same(one, alone)
        assert_same(other, alone)


# Their end


def with_pid(index: int) -> Batch:
    """More than a pipe holds, so that a worker waits for its parent."""
    return {"pid": torch.tensor(os.getpid()), "filler": torch.zeros(1 << 21, dtype=torch.uint8)}


def two_workers(make: Callable[[int], Batch] = with_pid, count: int = 250) -> tuple[Iterator[Batch], list[int]]:
    """Batches from two workers, of which one each has come, and their process numbers."""
    iterator = batches_from_workers(Source(make), count, 2)
    pids = [int(next(iterator)["pid"]) for _ in range(2)]
    assert len({*pids, os.getpid()}) == 3
    return iterator, pids


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_worker_is_named_within_a_second() -> None:
    iterator, pids = two_workers()
    os.kill(pids[0], signal.SIGKILL)
    started = time.perf_counter()
    with pytest.raises(DataError, match=f"data worker {pids[0]} was killed by SIGKILL; start again"):
        list(iterator)
    assert time.perf_counter() - started < 1
    assert gone(pids)


def test_batches_that_were_sent_ahead_do_not_hide_a_death() -> None:
    iterator, pids = two_workers(lambda index: {"pid": torch.tensor(os.getpid())}, 10**6)
    os.kill(pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
    with pytest.raises(DataError, match=f"data worker {pids[1]} was killed by SIGKILL"):
        next(iterator)
    assert gone(pids)


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_dies_while_awaited_is_noticed_at_once(code: int) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match=f"ended with exit code {code}"):
        list(batches_from_workers(Source(lambda index: os._exit(code)), 250, 2))
    assert time.perf_counter() - started < 2


def test_a_death_interrupts_nothing_but_the_next_batch() -> None:
    """Between two batches there are saves and observers, which a signal handler that raises would break off."""
    before = signal.getsignal(signal.SIGCHLD)
    iterator, pids = two_workers()
    assert signal.getsignal(signal.SIGCHLD) == before
    os.kill(pids[0], signal.SIGKILL)
    os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
    assert sum(range(10_000)) == 49_995_000
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        next(iterator)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_signals_to_the_group_do_not_end_the_workers() -> None:
    """Schedulers and terminals signal every process of a job; the parent still wants its next checkpoint."""
    iterator = batches_from_workers(Source(with_pid), 10, 1)
    pid = int(next(iterator)["pid"])
    for number in STOP_SIGNALS:
        os.kill(pid, number)
    rest = list(iterator)
    assert len(rest) == 9
    assert {int(batch["pid"]) for batch in rest} == {pid}


def test_signals_while_workers_start_reach_only_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after the fork a worker still has the handlers of its parent, and must not run them."""
    fork, seen = os.fork, list[int]()

    def fork_under_fire() -> int:
        pid = fork()
        os.kill(os.getpid(), signal.SIGUSR1)
        return pid

    def handler(number: int, frame: object) -> None:
        seen.append(os.getpid())

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(os, "fork", fork_under_fire)
        source = Source(lambda index: {"handled": torch.tensor(os.getpid() in seen)})
        made = [bool(batch["handled"]) for batch in batches_from_workers(source, 4, 2)]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert made == [False] * 4
    assert set(seen) == {os.getpid()}
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(DataError, match=r"cannot be started: .*Resource temporarily unavailable; lower"):
        list(batches_from_workers(Source(with_pid), 4, 2))


NOT_SENT = (
    r"a new process cannot load what makes the batches \(.*\): "
    r"define the collator at the top of a module or of a --plugin file, or set training.num_workers to 0"
)


@pytest.mark.long
@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_a_collator_that_cannot_be_spawned_is_one_line(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=rf"^a data worker cannot be started: {NOT_SENT}$"):
        list(batches_from_workers(Source(lambda index: with_pid(index)), 4, 2))
    monkeypatch.setattr(sys.modules[__name__], "typed_in", typed_in := lambda index: with_pid(index), raising=False)
    typed_in.__qualname__ = "typed_in"  # as the function of a notebook, which the other process does not find
    with pytest.raises(DataError, match=rf"^a data worker failed: {NOT_SENT}$"):
        list(batches_from_workers(Source(typed_in), 4, 1))


@pytest.mark.long
@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_a_plugin_file_is_loaded_by_the_workers(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doubling.py").write_text(
        "from tests.test_workers import collate\n\n\nclass Doubled:\n    def __call__(self, samples):\n"
        "        return {name: value * 2 for name, value in collate(samples).items()}\n"
    )
    try:
        module = load_plugin_file(tmp_path / "doubling.py")
        rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 8)
        alone, helped = (
            list(Batches(rows, SampleOrder(len(rows), 11), module.Doubled(), 4, 0, 40, workers)) for workers in (0, 2)
        )
    finally:
        plugin_files.discard("doubling")
        sys.modules.pop("doubling", None)
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


def sockets() -> set[int]:
    """The numbers of the sockets that this process holds."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this folder
            found.add(str(descriptor.readlink()))
    return {int(link.strip("socket:[]")) for link in found if link.startswith("socket:")}


def with_sockets(index: int) -> Batch:
    return {"sockets": torch.tensor(sorted(sockets()), dtype=torch.int64)}


@pytest.mark.long
def test_workers_hold_no_connection_of_a_process_group() -> None:
    """A process that is killed is missed by the others when its connections close: a worker must not keep them open."""
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        assert sockets()
        held = {int(each) for batch in batches_from_workers(Source(with_sockets), 2, 2) for each in batch["sockets"]}
        assert held & sockets() == set()
        for one, other in zip(batches(0, 40, 0), batches(0, 40, 1), strict=True):
            assert_same(one, other)
    finally:
        torch.distributed.destroy_process_group()


def test_leaving_early_ends_the_workers() -> None:
    iterator, pids = two_workers()
    del iterator
    assert gone(pids)


@pytest.mark.long
@pytest.mark.parametrize("killed", [True, False])
def test_workers_end_when_their_parent_does(killed: bool) -> None:
    code = (
        "import os, sys, torch\n"
        "from foundry_core.data.workers import batches_from_workers\n"
        "class Source:\n"
        "    def __getitem__(self, index):\n"
        "        return {'pid': torch.tensor(os.getpid()), 'filler': torch.zeros(1 << 21, dtype=torch.uint8)}\n"
        "iterator = batches_from_workers(Source(), 250, 2)\n"
        "print(int(next(iterator)['pid']), int(next(iterator)['pid']), flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    if killed:
        process.kill()
    else:
        process.stdin.close()

    # The workers share the pipe of standard output: it ends when the last of them does.
    def end_them() -> None:
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    watchdog = threading.Timer(5, end_them)
    watchdog.start()
    process.stdout.read()
    assert watchdog.is_alive()
    watchdog.cancel()
    assert process.wait() == (-signal.SIGKILL if killed else 0)


# What goes wrong in them


class OddError(Exception):
    """Cannot be made from its arguments alone."""

    def __init__(self, first: str, second: str):
        super().__init__(first)


def raising(error: BaseException) -> Source:
    def fail(index: int) -> Batch:
        if index == 3:
            raise error
        return {"index": torch.tensor(index)}

    return Source(fail)


PLACE = rf"\({re.escape(__file__)}:{raising.__code__.co_firstlineno + 3}\)"


@pytest.mark.parametrize("error", [DataError("row 3 is bad"), TokenizerError("row 3 is bad")])
def test_an_error_for_the_user_arrives_with_its_message_alone(error: FoundryError) -> None:
    with pytest.raises(DataError, match=r"^a data worker failed: row 3 is bad$"):
        list(batches_from_workers(raising(error), 10, 2))


@each(
    ("error", "text"),
    [
        (OddError("row 3 is odd", "x"), "OddError: row 3 is odd"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(0), "SystemExit: 0"),
        (BrokenPipeError(32, "a pipe of the collator's"), "BrokenPipeError: .*a pipe of the collator's"),
    ],
)
def test_any_other_error_comes_through_with_its_name_and_place(error: BaseException, text: str) -> None:
    with pytest.raises(DataError, match=rf"^a data worker failed: {text} {PLACE}$"):
        list(batches_from_workers(raising(error), 10, 2))


def test_batches_before_the_one_that_fails_are_delivered() -> None:
    iterator = batches_from_workers(raising(ValueError("row 3")), 10, 2)
    assert [int(next(iterator)["index"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError):
        next(iterator)


@pytest.mark.parametrize("value", [b"bytes", 3, [torch.zeros(1)], torch.zeros(1, requires_grad=True)])
def test_what_cannot_be_sent_is_an_error(value: Any) -> None:
    with pytest.raises(DataError, match=r"^a data worker failed: \w+Error: .*numpy"):
        list(batches_from_workers(Source(lambda index: {"fine": torch.zeros(1), "odd": value}), 2, 1))


def test_a_worker_may_use_operations_threaded_in_its_parent() -> None:
    def large(index: int) -> Batch:
        return {"total": torch.ones(1 << 22).exp().sum(), "threads": torch.tensor(torch.get_num_threads())}

    def hangs(*_: object) -> None:
        raise TimeoutError("a worker waits for threads that it does not have")

    threads = torch.get_num_threads()
    before = signal.signal(signal.SIGALRM, hangs)
    try:
        torch.set_num_threads(2)
        large(0)  # starts the threads of the parent
        signal.alarm(30)
        assert [int(batch["threads"]) for batch in batches_from_workers(Source(large), 2, 2)] == [1, 1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)
