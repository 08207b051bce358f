"""What operating systems do differently: signals and cores. Light."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def _there(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals of these names that the system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


STOP_SIGNALS = _there("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
"""Signals that ask a run to end: Ctrl-C, `kill`, a terminal that closes; schedulers send the others before a limit."""

REPEATED_SIGNALS = _there("SIGHUP", "SIGXCPU")
"""Signals that come again by themselves: a closing terminal's from the shell and the kernel, a limit's each second."""


RENDEZVOUS = "FOUNDRY_RENDEZVOUS"
"""Environment variable by which `foundry train --processes` gives its processes the URL of the file they meet at."""


def started_together() -> bool:
    """Check whether this process was started as one of a run's, by torchrun or `foundry train --processes`."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def reports() -> bool:
    """Check whether this process reports to the user: the only one of a run, or the first."""
    return not started_together() or os.environ["RANK"] == "0"


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Let `STOP_SIGNALS` wait while processes are started: one that does not ignore them yet would run our handlers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where only the console sends signals
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_stop_signals() -> None:
    """Ignore `STOP_SIGNALS` in a process that was started while they waited: its parent decides."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unblock_stop_signals()


def unblock_stop_signals() -> None:
    """Let `STOP_SIGNALS` arrive in a process that was started while they waited."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def processes_here() -> int:
    """Return how many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started_together() else 1


def usable_cores() -> int:
    """Return the number of cores for this process; where the system does not limit them, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
