"""Encoding by several processes: one for each core, in the order of the text, with the ids that one process makes.

A process ends with its parent, whose end of the pipe closes, and ignores the signals that ask a run to end: the parent
decides. What a process fails at, or leaves undone when it dies, the parent encodes itself: the failure is then its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from foundry_core.systems import ignore_stop_signals, stop_signals_blocked, usable_cores
from foundry_core.tokenization.encoding import DocumentEncoder, Window
from foundry_core.tokenization.parts import Ids

_MOST = 8
"""The parent reads, counts and writes for all of them."""
WORTH_IT = 8 << 20
"""Bytes of a corpus. Each process learns the words for itself: two take 1.3 times the processor time of one."""


def process_count(size: int) -> int:
    """Return how many processes encode a corpus of `size` bytes: 1 is this one.

    As many as there are cores for this process, or as OMP_NUM_THREADS or RAYON_NUM_THREADS allow.
    """
    if size < WORTH_IT or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    limits = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")]
    return min(_MOST, usable_cores(), *(int(limit) for limit in limits if limit.isdecimal() and int(limit)))


def streams(encoder: DocumentEncoder, documents: Iterable[str], processes: int) -> Iterator[Ids]:
    """Yield the ids of the documents as `encoder.stream` returns them, window by window."""
    workers: list[_Worker] = []
    try:
        if processes > 1:
            encoder.REMEMBERED = max(encoder.REMEMBERED // processes, encoder.REMEMBERED // 4)
            workers = _started(encoder, processes)
        busy: deque[tuple[_Worker, Window]] = deque()
        idle = deque(workers)
        for window in encoder.windows(documents):
            while busy and not idle:
                yield from _finished(encoder, busy, idle)
            if not idle:  # none was started, or all have died
                yield encoder.stream(window)
                continue
            worker = idle.popleft()
            worker.take(window)
            busy.append((worker, window))
        while busy:
            yield from _finished(encoder, busy, idle)
    finally:
        for worker in workers:
            worker.end()


def _finished(encoder: DocumentEncoder, busy: deque[tuple[_Worker, Window]], idle: deque[_Worker]) -> Iterator[Ids]:
    """Yield the ids of the window that was taken first; its process is idle then, unless it has died."""
    worker, window = busy.popleft()
    answer = worker.answer()
    if answer is not None:
        idle.append(worker)
    yield np.frombuffer(answer, np.uint32) if answer else encoder.stream(window)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection

    def take(self, window: Window) -> None:
        with suppress(OSError):  # it has died: there will be no answer
            self.pipe.send(window)

    def answer(self) -> bytes | None:
        """Return the ids, nothing where the process has failed, or None where it has died."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _started(encoder: DocumentEncoder, count: int) -> list[_Worker]:
    """Start processes, as many as the system allows, while signals wait: one must not run our handlers."""
    context = multiprocessing.get_context("fork")
    workers: list[_Worker] = []
    with suppress(OSError), stop_signals_blocked():  # too many processes: fewer will do
        for _ in range(count):
            ours, theirs = context.Pipe()
            inherited = [ours, *(worker.pipe for worker in workers)]
            process = context.Process(target=_work, args=(encoder, theirs, inherited), daemon=True)
            with warnings.catch_warnings():
                # Python warns of threads: those of tokenizers and torch, which a worker does not use.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
    return workers


def _work(encoder: DocumentEncoder, pipe: Connection, inherited: list[Connection]) -> None:
    """Encode one window after the other until the parent has ended."""
    ignore_stop_signals()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not forked
    gc.freeze()  # what was copied is the parent's to destroy
    for end in inherited:  # they would keep the pipes of others open when the parent has died
        end.close()
    with suppress(EOFError, OSError):
        while True:
            window = pipe.recv()
            try:
                ids = encoder.stream(window).tobytes()
            except BaseException:  # noqa: BLE001 - raised by the parent, whatever it is
                ids = b""
            pipe.send_bytes(ids)
    os._exit(0)
