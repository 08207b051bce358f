"""The lock of a folder that a run writes to. Light."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from foundry_core.run_folder import LOCK
from foundry_core.storage import files


class RunLock:
    """Holds `<folder>/.lock` while a run writes there; the kernel frees it when the process dies.

    name: of another lock, for a part of what is done there. waiting: told who holds it, which is then waited for;
    without it StorageError is raised.
    """

    def __init__(self, folder: str | Path, name: str = LOCK, *, waiting: Callable[[str], None] | None = None):
        self.path = Path(folder) / name
        files.make_folders(self.path.parent)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"pid {os.getpid()} on {socket.gethostname()}, started {started}".encode()
        files.require_plain(self.path)
        with files.reported(self.path, len(owner)):
            self._file = files.disk.append_to(self.path)
            try:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held_by = self.path.read_text("utf-8", errors="replace").strip() or "another process"
                    if waiting is None:
                        raise files.StorageError(
                            f"{folder} is in use by {held_by}: wait for it, or choose another training.output_dir"
                        ) from None
                    waiting(held_by)
                    fcntl.flock(self._file, fcntl.LOCK_EX)
                files.disk.empty(self._file)
                files.disk.write(self._file, owner)
            except BaseException:
                self._file.close()
                raise
        _held.add(self)

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked worker that outlives its parent for a moment must not hold the parent's lock on."""
    for lock in _held:
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
