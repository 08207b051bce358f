"""Processes that prepare batches ahead of training.

They are forked: nothing is imported or copied again, the memory map is shared, and a collator need not be importable
(a notebook, `--plugin file.py`). The usual dangers of a fork are kept out: a worker touches numpy and CPU tensors only,
with one thread, so that it never needs a thread pool or a device of its parent. Each has its own pipe: no locks or
queues that a killed worker could leave in disorder, and its death is seen at once as the end of that pipe. Batches
travel as a JSON header and raw bytes. Workers ignore SIGINT, SIGTERM and SIGUSR1, which schedulers send to whole
groups: the parent decides when to stop. They end when the parent has gone.
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeAlias

from foundry_core.errors import DataError, FoundryError

Batch: TypeAlias = dict[str, Any]

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def batches_from_workers(load: Callable[[int], Batch], count: int, workers: int) -> Iterator[Batch]:
    """`load(0)` to `load(count - 1)`, in order; worker w makes the batches w, w + workers, and so on.

    What a batch holds beside CPU tensors has to be JSON, and comes back as JSON does: a tuple as a list.

    Raises DataError when a worker cannot be started or dies, naming it, and for what `load` raises, with its message.
    """
    parent = os.getpid()
    running: list[_Worker] = []
    try:
        with _signals_held() as mask:
            for first in range(min(workers, count)):
                running.append(_fork(load, range(first, count, min(workers, count)), running, mask))
        for index in range(count):
            # Batches that were sent ahead would hide a death for as long as they last.
            for worker in running:
                worker.check()
            yield running[index % len(running)].receive()
    finally:
        # A later fork may inherit this generator as garbage; only its owner may end the workers.
        if os.getpid() == parent:
            for worker in running:
                worker.end()


@dataclass
class _Worker:
    """code: how it ended, once that is known; its number may belong to another process from then on."""

    pid: int
    pipe: Connection
    code: int | None = None

    def receive(self) -> Batch:
        try:
            message = self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return _unpacked(message)

    def check(self) -> None:
        """Raises DataError when the process has ended before its work was done."""
        if self.code is None:
            with suppress(ChildProcessError):  # somebody else has waited for it: the pipe will tell
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
        if self.code:
            raise self._lost()

    def _lost(self) -> DataError:
        how = self.end()
        return DataError(f"data worker {self.pid} {how}; start again, with training.num_workers 0 if it recurs.")

    def end(self) -> str:
        """Kill the process, which holds nothing that would need an orderly end; says how it ended."""
        if self.pipe.closed:
            return "has ended before"
        self.pipe.close()
        try:
            if self.code is None:
                os.kill(self.pid, signal.SIGKILL)  # one that is already dying keeps its own exit code
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            return "has ended"  # and somebody else in this process has waited for it
        return (
            f"was killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with exit code {self.code}"
        )


@contextmanager
def _signals_held() -> Iterator[set[int]]:
    """Signals wait: in a fork that does not ignore them yet they would run the parent's code."""
    mask: set[int] = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _fork(load: Callable[[int], Batch], indices: range, earlier: list[_Worker], mask: set[int]) -> _Worker:
    """A process that sends `load(index)` for each index, in order. mask: the signals it shall not see, as before."""
    try:
        receiver, sender = Pipe(duplex=False)
        with suppress(OSError, AttributeError):  # not allowed or not Linux: a small pipe holds fewer batches ahead
            fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
        pid = os.fork()
    except OSError as error:
        raise DataError(f"a data worker cannot be started: {error.strerror}; lower training.num_workers") from error
    if pid == 0:
        _serve(load, indices, sender, (receiver, *(worker.pipe for worker in earlier)), mask)
    sender.close()
    return _Worker(pid, receiver)


def _serve(
    load: Callable[[int], Batch], indices: range, sender: Connection, inherited: tuple[Connection, ...], mask: set[int]
) -> NoReturn:
    """The life of a worker. It never returns into the code of the parent that was copied into it."""
    code = 1
    try:
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # What was copied is the parent's to destroy, such as tensors on a device.
        gc.freeze()
        # Without these copies of the reading ends a worker would not notice that its parent is gone.
        for pipe in inherited:
            pipe.close()
        import torch

        # OpenMP's threads do not survive a fork: a parallel region in the child would wait for them for ever.
        torch.set_num_threads(1)
        for index in indices:
            sender.send_bytes(_answer(load, index))
        code = 0
    except BrokenPipeError:
        pass  # the parent has gone
    finally:
        os._exit(code)


def _answer(load: Callable[[int], Batch], index: int) -> bytes:
    """A batch as a message, or what went wrong with it."""
    try:
        return _packed(load(index))
    except FoundryError as error:
        return _failure(str(error))
    except BaseException as error:  # noqa: BLE001 - handed to the parent, whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        return _failure(f"{type(error).__name__}: {text} ({place.filename}:{place.lineno})")


def _failure(text: str) -> bytes:
    return json.dumps({"error": text}).encode() + b"\n"


def _packed(batch: Batch) -> bytes:
    """A line of JSON, for each key its value or its tensor's dtype and shape, then the tensors' bytes."""
    import torch

    header, parts = [], []
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            header.append(json.dumps([key, str(value.dtype).removeprefix("torch."), list(value.shape)]))
            parts.append(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            continue
        try:
            header.append(json.dumps([key, None, value]))
        except (TypeError, ValueError) as error:
            raise DataError(f"{key!r} of a batch is neither a tensor nor JSON, as workers need: {error}") from error
    return b"".join([f'{{"batch": [{", ".join(header)}]}}\n'.encode(), *parts])


def _unpacked(message: bytes) -> Batch:
    import torch

    end = message.index(b"\n")
    header = json.loads(message[:end])
    if "error" in header:
        raise DataError(f"a data worker failed: {header['error']}")
    batch: Batch = {}
    data, offset = memoryview(message), end + 1
    for key, name, value in header["batch"]:
        if name is None:
            batch[key] = value
            continue
        dtype = getattr(torch, name)
        size = math.prod(value) * dtype.itemsize
        # A copy, because the message is read-only and a tensor must not be.
        own = bytearray(data[offset : offset + size])
        batch[key] = torch.frombuffer(own, dtype=dtype).reshape(value) if size else torch.empty(value, dtype=dtype)
        offset += size
    return batch
