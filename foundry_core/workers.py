"""Processes that prepare batches ahead of training.

They are forked: nothing is imported or copied again, the memory map is shared, and a collator need not be importable
(a notebook, `--plugin file.py`). The usual dangers of a fork are kept out: a worker touches numpy and CPU tensors only,
with one thread, so that it never needs a thread pool or a device of its parent. Each has its own pipe: no locks or
queues that a killed worker could leave in disorder, and its death is seen at once as the end of that pipe. Batches travel as
a JSON header and raw bytes. Workers ignore SIGINT, SIGTERM and SIGUSR1, which schedulers send to whole groups: the
parent decides when to stop. They end when the parent has gone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeAlias

from foundry_core.errors import DataError, FoundryError

Batch: TypeAlias = dict[str, Any]


def batches_from_workers(load: Callable[[int], Batch], count: int, workers: int) -> Iterator[Batch]:
    """`load(0)` to `load(count - 1)`, in order; worker w makes the batches w, w + workers, and so on.

    Raises DataError when a worker dies, naming it, and for what `load` raises, with its message.
    """
    parent = os.getpid()
    running: list[_Worker] = []
    try:
        for first in range(workers):
            running.append(_fork(load, range(first, count, workers), running))
        for index in range(count):
            yield running[index % workers].receive()
    finally:
        # A later fork may inherit this generator as garbage; only its owner may end the workers.
        if os.getpid() == parent:
            for worker in running:
                worker.end()


@dataclass
class _Worker:
    pid: int
    pipe: Connection

    def receive(self) -> Batch:
        try:
            message = self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise DataError(
                f"data worker {self.pid} {self.end()}; start again, with training.num_workers 0 if it recurs."
            ) from error
        return _unpacked(message)

    def end(self) -> str:
        """Kill the process, which holds nothing that would need an orderly end; says how it ended."""
        if self.pipe.closed:
            return "has ended before"
        self.pipe.close()
        os.kill(self.pid, signal.SIGKILL)  # one that is already dying keeps its own exit code
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _fork(load: Callable[[int], Batch], indices: range, earlier: list[_Worker]) -> _Worker:
    """A process that sends `load(index)` for each index, in order."""
    receiver, sender = Pipe(duplex=False)
    with suppress(OSError, AttributeError):  # not allowed or not Linux: a small pipe holds fewer batches ahead
        fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    pid = os.fork()
    if pid == 0:
        # Without these copies of the reading ends a worker would not notice that its parent is gone.
        for pipe in (receiver, *(worker.pipe for worker in earlier)):
            pipe.close()
        _serve(load, indices, sender)
    sender.close()
    return _Worker(pid, receiver)


def _serve(load: Callable[[int], Batch], indices: range, sender: Connection) -> NoReturn:
    """The life of a worker. It never returns into the code of the parent that was copied into it."""
    try:
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
        import torch

        # OpenMP's threads do not survive a fork: a parallel region in the child would wait for them for ever.
        torch.set_num_threads(1)
        for index in indices:
            sender.send_bytes(_packed(load(index)))
    except BrokenPipeError:
        pass
    except FoundryError as error:
        sender.send_bytes(_failure(str(error)))
    except BaseException as error:  # noqa: BLE001 - handed to the parent, whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        sender.send_bytes(_failure(f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"))
    finally:
        os._exit(0)


def _failure(text: str) -> bytes:
    return json.dumps({"error": text}).encode() + b"\n"


def _packed(batch: Batch) -> bytes:
    """One line of JSON with plain values and the shapes of tensors, then the tensors' bytes."""
    import torch

    header, parts, plain = [], [], {}
    for key, tensor in batch.items():
        if not isinstance(tensor, torch.Tensor):
            plain[key] = tensor
            continue
        header.append([key, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        parts.append(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return b"".join([json.dumps({"plain": plain, "tensors": header}).encode(), b"\n", *parts])


def _unpacked(message: bytes) -> Batch:
    import torch

    end = message.index(b"\n")
    header = json.loads(message[:end])
    if "error" in header:
        raise DataError(f"a data worker failed: {header['error']}")
    batch, offset = dict(header["plain"]), end + 1
    for key, name, shape in header["tensors"]:
        dtype = getattr(torch, name)
        size = math.prod(shape) * dtype.itemsize
        # A copy, because the message is read-only and a tensor must not be.
        data = bytearray(message[offset : offset + size])
        batch[key] = torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        offset += size
    return batch
