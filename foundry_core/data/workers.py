"""Processes that prepare batches ahead of training: torch's DataLoader, and what a run asks of it besides.

* Workers ignore SIGINT, SIGTERM and SIGUSR1, which schedulers and terminals send to whole groups: the parent decides
  when to stop. They end with the iteration, and when the parent is gone.
* A worker that dies ends the iteration in one line, at the next batch: torch's own handler of SIGCHLD would raise
  anywhere in the run, half-way through a save or in the code of an observer, and blame whatever runs there.
* On Linux they are forked unless `multiprocessing.set_start_method` asks for something else: nothing is imported or
  copied again, and a collator need not be importable (a notebook, `--plugin file.py`).
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundry_core.errors import DataError, FoundryError
from foundry_core.registry.isolation import cause

Batch: TypeAlias = dict[str, torch.Tensor]
_Made: TypeAlias = dict[str, np.ndarray] | str

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_METHOD = "fork" if sys.platform == "linux" else None
_AGAIN = "start again, with training.num_workers 0 if it recurs"


def batches_from_workers(source: Dataset[Batch], count: int, num_workers: int) -> Iterator[Batch]:
    """Yield `source[0]` to `source[count - 1]` in order, as other processes make them: dicts of CPU tensors.

    Raises:
        DataError: A worker cannot be started, dies (named with how it ended), or fails (with the cause).
    """
    if not count:
        return
    loader = DataLoader(
        _Guarded(source),
        batch_size=None,
        sampler=range(count),
        num_workers=min(num_workers, count),
        collate_fn=_unchanged,
        worker_init_fn=_begin,
        multiprocessing_context=multiprocessing.get_start_method(allow_none=True) or _METHOD,
        generator=torch.Generator(),  # by default it draws from torch's global generator
    )
    iterator, workers = _started(loader)
    end = partial(_end, workers, os.getpid())
    # Before multiprocessing's own cleanup, which waits for workers after a SIGTERM, which they ignore.
    atexit.register(end)
    try:
        for _ in range(count):
            made = _next(iterator, workers)
            if isinstance(made, str):
                raise DataError(made)
            yield {key: torch.from_numpy(array) for key, array in made.items()}
    finally:
        del iterator
        atexit.unregister(end)
        end()


class _Guarded(Dataset[Any]):
    """A source as workers ask it: its batch as arrays, or in words what went wrong with it.

    Arrays go through a pipe. Tensors would go through shared memory, which costs 1.1 ms for each of them, and which
    many containers have 64 MB of.
    """

    def __init__(self, source: Dataset[Batch]):
        self._source = source

    def __getitem__(self, index: int) -> _Made:
        try:
            return {key: tensor.numpy() for key, tensor in self._source[index].items()}
        except FoundryError as error:
            return f"a data worker failed: {error}"
        except BaseException as error:  # noqa: BLE001 - handed to the parent, whatever it is
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"a data worker failed: {cause(error)} ({place.filename}:{place.lineno})"


def _unchanged(batch: Any) -> Any:
    return batch


def _started(loader: DataLoader[Any]) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start the workers, while signals wait: a fork that does not ignore them yet would run our handlers."""
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        iterator = cast("Any", iter(loader))
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"a data worker cannot be started: {cause(error)}; lower training.num_workers") from error
    finally:
        with suppress(ValueError):  # outside the main thread, where torch has not changed it
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return iterator, list(iterator._workers)  # there is no public way to know them


def _begin(worker: int) -> None:
    """Set up a worker process; DataLoader has limited torch to one thread already."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    gc.freeze()  # what was copied is the parent's to destroy, such as tensors on a device
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _DiedError(BaseException):
    """A worker has died. Not an Exception: DataLoader would catch it and ask for a lock that the dead may hold."""


_abandoned: list[Iterator[Any]] = []
"""Iterators that are not shut down but kept: their shutdown asks for that lock, too, and may wait for it forever."""


def _next(iterator: Iterator[Any], workers: list[BaseProcess]) -> _Made:
    """Return the next batch, or in words the failure that ends the iteration."""
    try:
        with _deaths_noticed(workers):
            return cast("_Made", next(iterator))
    except BaseException as error:
        _abandoned.append(iterator)
        if not isinstance(error, _DiedError | RuntimeError):
            raise
        return _death(workers) or f"the data workers failed: {cause(error)}; {_AGAIN}"


@contextmanager
def _deaths_noticed(workers: list[BaseProcess]) -> Iterator[None]:
    """Raise _DiedError when a worker has died, and as soon as one dies.

    Batches that were made ahead would hide a death for as long as they last, and DataLoader looks every five seconds.
    Outside the main thread, where Python runs no handlers, that has to do.
    """

    before = signal.getsignal(signal.SIGCHLD)
    in_main = threading.current_thread() is threading.main_thread()

    def look(*_: object) -> None:
        if _death(workers):
            # Here too: raised between two lines below, it would stay, and be raised again wherever a process ends.
            if in_main:
                signal.signal(signal.SIGCHLD, before)
            raise _DiedError

    look()
    try:
        if in_main:
            signal.signal(signal.SIGCHLD, look)
            look()
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, before)


def _death(workers: list[BaseProcess]) -> str | None:
    """Return which worker has died and how, if one has: none ends by itself before the last batch is taken."""
    for worker in workers:
        code = worker.exitcode
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"data worker {worker.pid} {how}; {_AGAIN}"
    return None


def _end(workers: list[BaseProcess], owner: int) -> None:
    """End what is left of the workers. A later fork may inherit the iteration as garbage: only its owner ends them."""
    if os.getpid() == owner:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
