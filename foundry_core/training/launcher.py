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
from typing import Any

from foundry_core.errors import StoppedError, TrainingError
from foundry_core.systems import RENDEZVOUS, STOP_SIGNALS, usable_cores

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0
"""How long the others have, once one has failed, to end by themselves: they find that it no longer answers."""


def launch(command: Sequence[str], count: int) -> int:
    """Run a command in several processes of one run; return the exit code of the run.

    Each process gets its share of the processor cores unless OMP_NUM_THREADS is set. Signals are passed on. When this
    process is killed, the others stop as after a SIGTERM.

    Raises:
        TrainingError: A process was killed; says which.
    """
    with tempfile.TemporaryDirectory(prefix="foundry-") as folder:
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            RENDEZVOUS: (Path(folder) / "rendezvous").as_uri(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(usable_cores() // count, 1))),
        }
        processes = list[subprocess.Popen[bytes]]()
        with _passed_on(processes):
            try:
                for rank in range(count):
                    environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    # The pipe at stdin closes when this process ends, however it does. A session of its own: a terminal
                    # sends its signals to whole groups, and each would arrive twice.
                    processes.append(
                        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
                    )
                return _watched(processes)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()


def _watched(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all processes have ended, and end the others soon after one has failed."""
    first: int | None = None
    until = 0.0
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        if failed and first is None:
            first, until = failed[0], time.monotonic() + _GRACE_SECONDS
            if processes[first].returncode == StoppedError.exit_code:
                until += 3600.0  # stopped by a signal, together: process 0 may still save
        if first is not None and time.monotonic() > until:
            for process in processes:
                process.kill()
        time.sleep(_POLL_SECONDS)
    codes = [process.returncode for process in processes]
    killed = [rank for rank, code in enumerate(codes) if code < 0 and (first is None or rank == first)]
    if killed:
        rank = killed[0]
        name, pid = signal.Signals(-codes[rank]).name, processes[rank].pid
        which = f"process {rank} of {len(processes)} (pid {pid})"
        raise TrainingError(f"{which} was killed by {name}: go on from the last checkpoint with --resume")
    return codes[first] if first is not None else next((code for code in codes if code), 0)


@contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """Pass the signals that ask a run to stop on to its processes."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
