"""Processes that prepare batches ahead of training: torch's DataLoader, and what a run needs in addition.

* Workers ignore `STOP_SIGNALS`, which schedulers and terminals send to whole groups: the parent decides
  when to stop. They end with the iteration, and with their parent.
* A dead worker ends the iteration at the next batch. Torch's own handler of SIGCHLD would raise anywhere in the run,
  half-way through a save or in an observer, and blame whatever runs there.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundry_core.errors import DataError, FoundryError
from foundry_core.registry.isolation import cause
from foundry_core.registry.loading import load_plugin_file, plugin_files
from foundry_core.systems import ignore_stop_signals, stop_signals_blocked

Batch: TypeAlias = dict[str, torch.Tensor]


_CHILDREN_SIGNAL = hasattr(signal, "SIGCHLD")
"""Set where the system reports the end of a child to its parent; not on Windows."""


class _DiedError(BaseException):
    """A worker has died. Not an Exception: DataLoader would catch it and wait for a lock that the dead may hold."""


_abandoned: list[Iterator[Any]] = []  # never shut down: that waits for the same lock


def batches_from_workers(source: Dataset[Batch], count: int, num_workers: int) -> Iterator[Batch]:
    """Yield `source[0]` to `source[count - 1]` in order, as other processes make them: dicts of CPU tensors.

    Raises:
        DataError: A worker cannot be started, dies (with its process id and how it ended), or fails (with the cause).
    """
    if not count:
        return
    iterator = _start(source, count, min(num_workers, count))
    workers = list(iterator._workers)  # there is no public way to them

    def end() -> None:
        for worker in workers:
            worker.kill()
            worker.join()

    # Before multiprocessing's own cleanup, which waits for workers after a SIGTERM, which they ignore.
    atexit.register(end)
    try:
        for _ in range(count):
            made = _next(iterator, workers)
            if isinstance(made, str):
                raise DataError(f"a data worker failed: {made}")
            yield {key: torch.from_numpy(array) for key, array in made.items()}
    except (_DiedError, RuntimeError) as error:
        raise DataError(f"{error}; start again, with training.num_workers 0 if it recurs") from error
    finally:
        del iterator
        atexit.unregister(end)
        end()


def _start(source: Dataset[Batch], count: int, num_workers: int) -> Any:
    """Start the workers, while signals wait: a process that does not ignore them yet would run our handlers."""
    method = start_method()
    handler = signal.getsignal(signal.SIGCHLD) if _CHILDREN_SIGNAL else None
    try:
        made_from = source if method == "fork" else _Sent(source)
        with stop_signals_blocked():
            return iter(
                DataLoader(
                    range(count),  # type: ignore[arg-type]
                    batch_size=None,
                    num_workers=num_workers,
                    collate_fn=partial(_make, made_from),
                    worker_init_fn=_begin,
                    multiprocessing_context=method,
                    generator=torch.Generator(),  # by default it draws from torch's global generator
                )
            )
    except DataError as error:
        raise DataError(f"a data worker cannot be started: {error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"a data worker cannot be started: {cause(error)}; lower training.num_workers") from error
    finally:
        if _CHILDREN_SIGNAL:
            with suppress(ValueError):  # outside the main thread, where torch has not changed it
                signal.signal(signal.SIGCHLD, handler)


def start_method() -> str:
    """Return how workers are started: the way that the process has chosen, if it is safe here.

    By default a fork on Linux: it imports and copies nothing, and a collator need not be importable (a notebook). A
    worker uses neither the GPU nor what the parent has on it, so that a GPU does not matter. A process group does: the
    copies of its sockets would keep the connections of a killed process open, and memory that a network card is to
    write to must not be copied.
    """
    chosen = multiprocessing.get_start_method(allow_none=True) or ("fork" if sys.platform == "linux" else "spawn")
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "spawn" if chosen == "fork" and grouped else chosen


class _Sent(Dataset[Batch]):
    """The source of batches on its way to a worker that is not a fork, which loads it when it makes its first batch.

    Then a failure is reported as that of a batch is; while the process still starts, it would be a traceback.
    """

    def __init__(self, source: Dataset[Batch]):
        self._plugins = [str(module.__file__) for name, module in sys.modules.items() if name in plugin_files]
        with self._explained():
            self._pickled = pickle.dumps(source)
        self._source: Dataset[Batch] | None = None

    def __getitem__(self, index: int) -> Batch:
        if self._source is None:
            with self._explained():
                for path in self._plugins:
                    load_plugin_file(path)
                self._source = pickle.loads(self._pickled)
        return self._source[index]

    @staticmethod
    @contextmanager
    def _explained() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the parts of a collator raise
            raise DataError(
                f"a new process cannot load what makes the batches ({cause(error)}): define the "
                "collator at the top of a module or of a --plugin file, or set training.num_workers to 0"
            ) from error


def _begin(worker: int) -> None:
    """Set up a worker process; DataLoader has limited torch to one thread already."""
    ignore_stop_signals()
    gc.freeze()  # what was copied is the parent's to destroy, such as tensors on a device
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent: after DataLoader's own watchdog it would wait for its batches to be read."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(source: Dataset[Batch], index: int) -> dict[str, np.ndarray] | str:
    """Return a batch as arrays, or the failure as a line of text.

    Arrays go through a pipe. Tensors would go through shared memory, which costs 1.1 ms for each of them, and which
    many containers have 64 MB of.
    """
    try:
        return {key: tensor.numpy() for key, tensor in source[index].items()}
    except FoundryError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - raised by the parent, whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{cause(error)} ({place.filename}:{place.lineno})"


def _next(iterator: Iterator[Any], workers: list[BaseProcess]) -> Any:
    """Return what a worker made next. Raises _DiedError when one has died, and as soon as one dies.

    Batches that were made ahead would hide a death for as long as they last, and DataLoader looks every five seconds;
    outside the main thread, where Python runs no signal handlers, and on Windows, that has to do.
    """
    main = _CHILDREN_SIGNAL and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, partial(_notice_death, workers)) if main else None
    try:
        _notice_death(workers)
        return next(iterator)
    except BaseException:
        _abandoned.append(iterator)
        raise
    finally:
        if main:
            signal.signal(signal.SIGCHLD, handler)


def _notice_death(workers: list[BaseProcess], *_: object) -> None:
    """Raise _DiedError when a worker has ended: none ends by itself before the last batch is taken."""
    for worker in workers:
        if (code := worker.exitcode) is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise _DiedError(f"data worker {worker.pid} {how}")
