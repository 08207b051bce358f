"""The lock of a folder that a run writes to. Light."""

from __future__ import annotations

import errno
import os
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from io import FileIO
from pathlib import Path

from filelock import lock_descriptor

from foundry_core.run_folder import LOCK
from foundry_core.storage import files

_UNKNOWN = "another process"
_FIRST = b"\n"
"""What the description of the owner follows: Windows lets nobody else read the byte that is locked, the first one."""


def take_lock(file: FileIO, *, wait: bool = False) -> None:
    """Lock an open file for this process until it is closed.

    Raises BlockingIOError if another process has it, unless `wait` is given.
    """
    if not lock_descriptor(file.fileno(), blocking=wait):
        raise BlockingIOError(errno.EAGAIN, "another process has the lock", file.name)


def lock_owner(path: Path) -> str:
    """Return which process holds a lock, as it describes itself in the file."""
    with suppress(OSError), path.open("rb", buffering=0) as file:
        file.seek(len(_FIRST))
        return file.read().decode("utf-8", errors="replace").strip() or _UNKNOWN
    return _UNKNOWN


class RunLock(AbstractContextManager["RunLock"]):
    """Holds `<folder>/.lock` while a run writes there; the system frees it when the process dies.

    The file stays behind, and is not the lock: one that nobody holds is taken.

    waiting: Called with the present owner before waiting for it. Without it, StorageError is raised.
    """

    def __init__(self, folder: str | Path, name: str = LOCK, *, waiting: Callable[[str], None] | None = None):
        self.path = Path(folder) / name
        files.make_folders(self.path.parent)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = _FIRST + f"pid {os.getpid()} on {socket.gethostname()}, started {started}".encode()
        files.require_plain(self.path)
        with files.reported(self.path, len(owner)):
            self._file = files.disk.append_to(self.path)
            try:
                self._take(folder, waiting)
                files.disk.empty(self._file)
                files.disk.write(self._file, owner)
            except BaseException:
                self._file.close()
                raise
        _held.add(self)

    def _take(self, folder: str | Path, waiting: Callable[[str], None] | None) -> None:
        try:
            take_lock(self._file)
        except BlockingIOError:
            present = lock_owner(self.path)
            if waiting is None:
                problem = f"{folder} is in use by {present}: wait for it, or choose another training.output_dir"
                raise files.StorageError(problem) from None
            waiting(present)
            take_lock(self._file, wait=True)

    def release(self) -> None:
        self._file.close()

    def __exit__(self, *exception: object) -> None:
        self.release()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """Release the parent's locks in a forked worker, which may outlive the parent for a moment."""
    for lock in _held:
        lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_release_in_child)
