"""Worker processes: they change nothing about the batches, end with their parent, and say what went wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core.data.batches import Batches
from foundry_core.data.order import SampleOrder
from foundry_core.data.rows import Rows
from foundry_core.data.workers import Batch, batches_from_workers
from foundry_core.errors import DataError, FoundryError, TokenizerError


def collate(samples: list[dict[str, Any]]) -> Batch:
    longest = max(len(sample["input_ids"]) for sample in samples)
    ids = np.full((len(samples), longest), -1, dtype=np.int64)
    for line, sample in zip(ids, samples, strict=True):
        line[: len(sample["input_ids"])] = sample["input_ids"]
    return {
        "input_ids": torch.from_numpy(ids),
        "where": [[sample["epoch"], sample["row"]] for sample in samples],
        "scaled": torch.from_numpy(ids).to(torch.bfloat16) / 3,
        "mask": torch.from_numpy(ids) >= 0,
    }


def batches(start: int, stop: int, num_workers: int) -> Batches:
    rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 9)
    return Batches(rows, SampleOrder(len(rows), 11), collate, 4, start, stop, num_workers)


def assert_same(one: Batch, other: Batch) -> None:
    """Keys in their order, and values, bit for bit."""
    assert list(one) == list(other)
    for mine, its in zip(one.values(), other.values(), strict=True):
        if isinstance(mine, torch.Tensor):
            assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
            assert mine.contiguous().reshape(-1).view(torch.uint8).equal(its.reshape(-1).view(torch.uint8))
        else:
            assert mine == its


# The same batches


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    alone, helped = list(batches(5, 700, 0)), list(batches(5, 700, num_workers))
    assert len(alone) == len(helped) == len(batches(5, 700, 0)) == 174
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


def test_tensors_of_every_kind_and_shape_arrive_as_they_were_and_may_be_written_to() -> None:
    made: Batch = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.empty(3, 0, 2, dtype=torch.int16),
        "plain": {"text": "a\nb\u2028", "list": [1, None, True, 0.1], "error": "no"},
        "error": "a key like any other",
        "bool": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0], dtype=torch.float16),
        "byte": torch.arange(7, dtype=torch.uint8),
        "turned": torch.arange(12, dtype=torch.int32).reshape(3, 4).T,
        "every second": torch.arange(9)[::2],
        "broadcast": torch.ones(1, dtype=torch.complex64).expand(5),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }
    (arrived,) = batches_from_workers(lambda index: made, 1, 1)
    assert_same({key: t.detach() if isinstance(t, torch.Tensor) else t for key, t in made.items()}, arrived)
    arrived["byte"] += 1
    assert arrived["byte"].tolist() == list(range(1, 8))


def test_what_is_no_tensor_comes_back_as_json_does() -> None:
    (batch,) = batches_from_workers(lambda index: {"where": [(1, 2)], "pair": (3, "x")}, 1, 1)
    assert batch == {"where": [[1, 2]], "pair": [3, "x"]}


def test_workers_draw_nothing_from_the_global_generators() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    list(batches(0, 40, 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_more_workers_than_batches_and_no_batch_at_all() -> None:
    assert len(list(batches(0, 4, 3))) == 1
    assert list(batches(7, 7, 2)) == list(batches(7, 7, 0)) == []


def test_batches_can_be_iterated_again_and_side_by_side() -> None:
    both = batches(0, 50, 2)
    wheres = [(one["where"], other["where"]) for one, other in zip(both, both, strict=True)]
    assert wheres == [(batch["where"], batch["where"]) for batch in batches(0, 50, 0)]


# Their end


def with_pid(index: int) -> Batch:
    """More than a pipe holds, so that a worker waits for its parent."""
    return {"pid": os.getpid(), "filler": torch.zeros(1 << 21, dtype=torch.uint8)}


def two_workers() -> tuple[Iterator[Batch], list[int]]:
    """Batches from two workers, of which one each has come, and their process numbers."""
    iterator = batches_from_workers(with_pid, 250, 2)
    pids = [next(iterator)["pid"] for _ in range(2)]
    assert len({*pids, os.getpid()}) == 3
    return iterator, pids


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_worker_is_named_within_a_second() -> None:
    iterator, pids = two_workers()
    os.kill(pids[0], signal.SIGKILL)
    started = time.perf_counter()
    with pytest.raises(DataError, match=f"data worker {pids[0]} was killed by SIGKILL"):
        list(iterator)
    assert time.perf_counter() - started < 1
    assert gone(pids)


def test_batches_that_were_sent_ahead_do_not_hide_a_death() -> None:
    iterator = batches_from_workers(lambda index: {"pid": os.getpid()}, 10**6, 2)
    pids = [next(iterator)["pid"] for _ in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
    with pytest.raises(DataError, match=f"data worker {pids[1]} was killed by SIGKILL"):
        next(iterator)
    assert gone(pids)


def test_a_worker_that_dies_while_it_is_waited_for_is_noticed_at_once() -> None:
    parent = os.getpid()

    def die(index: int) -> Batch:
        assert os.getpid() != parent
        os._exit(3)

    with pytest.raises(DataError, match="ended with exit code 3"):
        list(batches_from_workers(die, 250, 2))


def test_a_worker_that_somebody_else_has_waited_for_is_named_all_the_same() -> None:
    iterator, pids = two_workers()
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    with pytest.raises(DataError, match=f"data worker {pids[0]} has ended"):
        list(iterator)
    assert gone(pids)


def test_signals_to_the_group_do_not_end_the_workers() -> None:
    """Schedulers and terminals signal every process of a job; the parent still wants its next checkpoint."""
    iterator = batches_from_workers(with_pid, 10, 1)
    pid = next(iterator)["pid"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(pid, number)
    rest = list(iterator)
    assert len(rest) == 9
    assert {batch["pid"] for batch in rest} == {pid}


def test_signals_that_come_while_workers_start_reach_the_parent_only(monkeypatch: pytest.MonkeyPatch) -> None:
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
        made = list(batches_from_workers(lambda index: {"handled": os.getpid() in seen}, 4, 2))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert made == [{"handled": False}] * 4
    assert set(seen) == {os.getpid()}
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(DataError, match=r"cannot be started: Resource temporarily unavailable; lower"):
        list(batches_from_workers(with_pid, 4, 2))


def test_leaving_early_ends_the_workers() -> None:
    iterator, pids = two_workers()
    del iterator
    assert gone(pids)


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import os, sys, torch\n"
        "from foundry_core.data.workers import batches_from_workers\n"
        "filler = torch.zeros(1 << 21, dtype=torch.uint8)\n"
        "iterator = batches_from_workers(lambda index: {'pid': os.getpid(), 'filler': filler}, 250, 2)\n"
        "print(next(iterator)['pid'], next(iterator)['pid'], flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    process.kill()
    # The workers share the pipe of standard output: it ends when the last of them does.
    watchdog = threading.Timer(5, lambda: [os.kill(int(pid), signal.SIGKILL) for pid in pids])
    watchdog.start()
    process.stdout.read()
    assert watchdog.is_alive()
    watchdog.cancel()
    process.wait()


# What goes wrong in them


class OddError(Exception):
    """Cannot be made from its arguments alone."""

    def __init__(self, first: str, second: str):
        super().__init__(first)


def raising(error: BaseException) -> Callable[[int], Batch]:
    def fail(index: int) -> Batch:
        if index == 3:
            raise error
        return {"index": index}

    return fail


PLACE = rf"\({re.escape(__file__)}:{raising.__code__.co_firstlineno + 3}\)"


@pytest.mark.parametrize("error", [DataError("row 3 is bad"), TokenizerError("row 3 is bad")])
def test_an_error_for_the_user_comes_through_with_its_message_alone(error: FoundryError) -> None:
    with pytest.raises(DataError, match=r"^a data worker failed: row 3 is bad$"):
        list(batches_from_workers(raising(error), 10, 2))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OddError("row 3 is odd", "x"), "OddError: row 3 is odd"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (SystemExit(0), "SystemExit: 0"),
        (BrokenPipeError(32, "a pipe of the collator's"), "BrokenPipeError: .*a pipe of the collator's"),
    ],
)
def test_any_other_error_comes_through_with_its_name_and_place(error: BaseException, text: str) -> None:
    with pytest.raises(DataError, match=rf"^a data worker failed: {text} {PLACE}$"):
        list(batches_from_workers(raising(error), 10, 2))


def test_batches_before_the_one_that_fails_are_delivered() -> None:
    iterator = batches_from_workers(raising(ValueError("row 3")), 10, 2)
    assert [next(iterator)["index"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError):
        next(iterator)


@pytest.mark.parametrize("value", [b"bytes", np.int64(3), [torch.zeros(1)], {1, 2}])
def test_what_cannot_be_sent_is_named(value: object) -> None:
    with pytest.raises(DataError, match=r"^a data worker failed: 'odd' of a batch is neither a tensor nor JSON"):
        list(batches_from_workers(lambda index: {"fine": 1, "odd": value}, 2, 1))


def test_a_worker_may_use_operations_that_have_threads_in_its_parent() -> None:
    def large(index: int) -> Batch:
        return {"total": torch.ones(1 << 22).exp().sum()}

    def hangs(*_: object) -> None:
        raise TimeoutError("a worker waits for threads that it does not have")

    threads = torch.get_num_threads()
    before = signal.signal(signal.SIGALRM, hangs)
    try:
        torch.set_num_threads(2)
        large(0)  # starts the threads of the parent
        signal.alarm(30)
        assert len(list(batches_from_workers(large, 2, 2))) == 2
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, foundry_core.data.workers; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
