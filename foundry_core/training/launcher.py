"""Starting the processes of a run on this machine, and ending all of them when one does. Light."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from foundry_core.errors import EndedElsewhereError, StoppedError, TrainingError
from foundry_core.systems import RENDEZVOUS, STOP_SIGNALS, stop_signals_blocked, usable_cores
from foundry_core.training.signals import StopRequest

_NO_SEMAPHORES = "ignore::UserWarning:multiprocessing.resource_tracker"
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0
"""How long the others have, once one has failed, to end by themselves: they find that it no longer answers."""
_SAVING_SECONDS = 3600.0
"""How long they have when a signal has stopped the run: process 0 may still save."""
_ONE_REQUEST_SECONDS = 1.0
"""Within so many seconds a second signal repeats the first, as a scheduler does; later, somebody is waiting."""


def launch(command: Sequence[str], count: int) -> None:
    """Run a command in several processes of one run, and end with all of them.

    Each process gets its share of the processor cores unless OMP_NUM_THREADS is set. Signals are passed on; a second
    one ends all processes at once. When this process is killed, the others stop as after a SIGTERM.

    Raises:
        EndedElsewhereError: A process has failed, and has reported why.
        TrainingError: A process was killed; says which.
    """
    processes = list[subprocess.Popen[bytes]]()
    with (
        tempfile.TemporaryDirectory(prefix="foundry-") as folder,
        _ended_with_this_one(processes),
        StopRequest(patience=_ONE_REQUEST_SECONDS) as stop,
    ):
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            RENDEZVOUS: (Path(folder) / "rendezvous").as_uri(),
            # Of a process that is killed, Python reports the semaphores of its data workers in lines of its own.
            "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _NO_SEMAPHORES))),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(usable_cores() // count, 1))),
        }
        # Signals wait in a process until it has imported what handles them.
        with stop_signals_blocked():
            for rank in range(count):
                environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # The pipe at stdin closes when this process ends, however it does. A session of its own: a terminal
                # sends its signals to whole groups, and each would arrive twice.
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
                )
        _watch(processes, stop)


def _watch(processes: Sequence[subprocess.Popen[bytes]], stop: StopRequest) -> None:
    """Wait until all processes have ended; end the others soon after one has failed, and raise its error."""
    failed = list[int]()
    asked, until = False, float("inf")
    while any(process.poll() is None for process in processes):
        if stop.requested and not asked:
            asked = True
            _send(processes, signal.Signals[stop.requested])
        failed += _newly_failed(processes, failed)
        if failed and until == float("inf"):
            stopped = processes[failed[0]].returncode == StoppedError.exit_code
            until = time.monotonic() + (_SAVING_SECONDS if stopped else _GRACE_SECONDS)
            if stopped and not asked:  # it alone was asked to, perhaps while another one prepares the data
                asked = True
                _send(processes, signal.SIGTERM)
        if time.monotonic() > until:
            break
        time.sleep(_POLL_SECONDS)
    failed += _newly_failed(processes, failed)
    if not failed:
        return
    rank, code = failed[0], processes[failed[0]].returncode
    if code < 0:
        which = f"process {rank} of {len(processes)} (pid {processes[rank].pid})"
        name = signal.Signals(-code).name
        raise TrainingError(f"{which} was killed by {name}: go on from the last checkpoint with --resume")
    # A process that ends because of another one may not know with which code that one does.
    codes = [processes[rank].returncode for rank in failed]
    raise EndedElsewhereError(next((code for code in codes if code > EndedElsewhereError.exit_code), codes[0]))


def _newly_failed(processes: Sequence[subprocess.Popen[bytes]], failed: Sequence[int]) -> list[int]:
    return [rank for rank, each in enumerate(processes) if rank not in failed and each.poll() not in (None, 0)]


def _send(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)


@contextmanager
def _ended_with_this_one(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Kill the processes when the block ends, and before a signal ends this process."""

    def kill() -> None:
        for process in processes:
            process.kill()

    def end(number: int, frame: FrameType | None) -> None:
        kill()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.raise_signal(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        kill()
        for process in processes:
            process.wait()
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
