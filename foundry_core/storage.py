"""The one door to the disk: everything the project writes goes through here. Light.

A file appears whole or not at all: written beside its target, flushed, fsynced, renamed, and the folder fsynced. A
folder (a checkpoint) is written hidden, closed with `MANIFEST.json` (size and sha256 of every file, itself included),
then renamed. It goes the other way round: renamed to a hidden name, then removed. `manifest` reads it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import socket
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from foundry_core.errors import FoundryError
from foundry_core.manifest import MANIFEST, MANIFEST_FORMAT, sealed


class StorageError(FoundryError):
    """The disk refused: full, not permitted, failing. Names the path, and leaves what was there before."""

    exit_code = 8


class FileSink(Protocol):
    """What takes named files: a folder written in place, or one that is published whole."""

    def write(self, name: str, data: bytes) -> None: ...


class Writer(Protocol):
    """What takes bytes one after the other."""

    def write(self, data: bytes) -> object: ...


class Disk:
    """The operations that writing consists of, one method for each: what fault injection counts, records and fails."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> FileIO:
        return FileIO(path, "xb")

    def append_to(self, path: Path) -> FileIO:
        """Neither through a link, which leads elsewhere, nor into a FIFO, which would wait for a reader."""
        plain = os.O_NOFOLLOW | os.O_NONBLOCK
        return FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags | plain, 0o666))

    def write(self, file: FileIO, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def empty(self, file: FileIO) -> None:
        file.truncate(0)

    def sync(self, file: FileIO) -> None:
        os.fsync(file.fileno())

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


disk = Disk()
"""The disk that this process writes to; only fault injection puts another one here."""


@contextmanager
def _reported(path: Path, size: int | None = None, *, failed: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        amount = f" ({size:,} bytes)" if size is not None else ""
        raise StorageError(f"cannot {failed} {path}{amount}: {error.strerror or error}") from error


@contextmanager
def scratch_reported() -> Iterator[None]:
    """For a library that writes files of its own into a temporary folder: a disk that refuses is a StorageError there,
    too. Those in Rust say so in an exception that is no OSError.
    """
    try:
        yield
    except FoundryError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        path = getattr(error, "filename", None) or tempfile.tempdir or "the temporary folder"
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot write {path}: {reason}; make room there, or set TMPDIR to another folder"
        ) from error


_HIDDEN = re.compile(r"\.(.+\.foundry-[0-9a-f]{16}|(checkpoint-\d+|[0-9a-f]{16}\.\w+)\.\d+)\.(tmp|old)")
"""The names of `_hidden`, and with them those that end in a process id, as earlier versions made them of what is large:
nothing else is ever taken for a leftover.
"""


def _hidden(path: Path, kind: str) -> Path:
    """A name beside `path` that nobody else has: process ids would not do, two containers may have the same.

    kind: "tmp" for what is being written, "old" for what is being removed.
    """
    return path.with_name(f".{path.name}.foundry-{secrets.token_hex(8)}.{kind}")


def _leftovers(folder: Path, kind: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f".*.{kind}")) if _HIDDEN.fullmatch(path.name)]


def _make_folders(path: Path) -> None:
    """A folder and those above it, durably: what is synced inside a folder is lost with the folder's own name."""
    with _reported(path):
        if path.is_dir():
            return
    _make_folders(path.parent)
    with _reported(path):
        disk.make_folder(path)
        disk.sync_folder(path.parent)


def _remove(path: Path) -> None:
    """A file, or a folder with all it holds."""
    if path.is_symlink() or not path.is_dir():
        disk.remove_file(path)
        return
    for inside in sorted(path.iterdir()):
        _remove(inside)
    disk.remove_folder(path)


def remove_tree(path: str | Path) -> None:
    """Remove a file, or a folder with all it holds, if there is one."""
    path = Path(path)
    with _reported(path, failed="remove"):
        if path.exists():
            _remove(path)


class _NewFile:
    """A file that is whole and safe on the disk when its block ends."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        with _reported(path):
            self._file = disk.create(path)

    def write(self, data: bytes) -> None:
        with _reported(self.path, len(data)):
            disk.write(self._file, data)
        self.size += len(data)

    def __enter__(self) -> _NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with _reported(self.path, self.size):
            try:
                if kind is None:
                    disk.sync(self._file)
            finally:
                self._file.close()


def write_file(path: str | Path, data: bytes) -> None:
    """Replace a file by `data`, atomically and durably; folders on the way are made."""
    write_file_with(path, lambda file: file.write(data))


def write_file_with(path: str | Path, fill: Callable[[Writer], Any]) -> None:
    """Like `write_file`, for content that `fill` streams into the file: it may be larger than memory."""
    path = Path(path)
    # Two processes that write the same file do so apart; the last rename wins with a whole file.
    temporary = _hidden(path, "tmp")
    _make_folders(path.parent)
    try:
        with _NewFile(temporary) as file:
            fill(file)
        with _reported(path):
            disk.rename(temporary, path)
            disk.sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise


class InPlaceFolder:
    """A folder whose files are replaced one by one; other files in it stay."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def write(self, name: str, data: bytes) -> None:
        write_file(self.folder / name, data)


class _HiddenFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, data: bytes) -> None:
        with _NewFile(self.folder / name) as file:
            file.write(data)
        self.files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@contextmanager
def publish_folder(target: str | Path, facts: Mapping[str, Any]) -> Iterator[FileSink]:
    """Write a new folder that appears whole, with a manifest, or not at all; one of that name is set aside.

    What was appended to `AppendedLines` beside it is on the disk before it appears. facts: stored in the manifest
    beside the file list. Raises StorageError; what was written so far is removed.
    """
    target = Path(target)
    hidden = _hidden(target, "tmp")
    _make_folders(target.parent)
    with _reported(target):
        disk.make_folder(hidden)
    sink = _HiddenFolder(hidden)
    try:
        yield sink
        sink.write(MANIFEST, sealed({"format": MANIFEST_FORMAT, **facts, "files": dict(sorted(sink.files.items()))}))
        for lines in tuple(_growing):
            if lines.path.parent == target.parent:
                lines.sync()
        with _reported(target):
            disk.sync_folder(hidden)
            if target.exists():
                disk.rename(target, _hidden(target, "old"))
            disk.rename(hidden, target)
            disk.sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            _remove(hidden)
        raise


def set_aside(folder: str | Path) -> None:
    """Hide a published folder until `remove_set_aside`: it never stands half deleted under its name."""
    folder = Path(folder)
    with _reported(folder, failed="remove"):
        disk.rename(folder, _hidden(folder, "old"))


def remove_set_aside(parent: str | Path) -> list[str]:
    """Remove what was set aside in a folder, by this process or one that died; only for who holds the folder's lock.

    A line for each that could not be removed: it takes room, and is tried again the next time.
    """
    parent = Path(parent)
    paths = _leftovers(parent, "old")
    try:
        with _reported(parent):
            if paths:
                disk.sync_folder(parent)
    except StorageError as error:
        return [str(error)]
    return _removed(paths)


def remove_leftovers(*parents: str | Path) -> list[str]:
    """Remove what killed processes left unfinished, too: what was set aside and what was being written.

    Only what `storage` itself has named: a run may write to a folder that holds other things of its user's.
    """
    unfinished = [path for parent in parents for path in _leftovers(Path(parent), "tmp")]
    return _removed(unfinished) + [line for parent in parents for line in remove_set_aside(parent)]


def _removed(paths: Iterable[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            with _reported(path, failed="remove"):
                _remove(path)
        except StorageError as error:
            problems.append(str(error))
    return problems


def require_plain(path: Path) -> None:
    """Raises StorageError when a link, a FIFO or anything else that is no plain file has the name of a run's file."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise StorageError(f"cannot write {path}: it is a link or no plain file; remove it")


class AppendedLines:
    """A text file that grows by whole lines, such as metrics.jsonl; each line is handed to the kernel at once.

    They are safe on the disk when a folder beside it is published: a checkpoint never goes on from a point that the log
    has not reached.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        _make_folders(self.path.parent)
        require_plain(self.path)
        with _reported(self.path):
            self._file = disk.append_to(self.path)
        _growing.add(self)

    def append(self, line: str) -> None:
        data = line.encode() + b"\n"
        with _reported(self.path, len(data)):
            disk.write(self._file, data)

    def sync(self) -> None:
        """Bring what was appended safely to the disk."""
        with _reported(self.path):
            disk.sync(self._file)

    def close(self) -> None:
        _growing.discard(self)
        with _reported(self.path):
            self._file.close()


def read_appended(path: Path) -> bytes:
    """All of a file of `AppendedLines`. Raises StorageError when it cannot be read or is no plain file."""
    require_plain(path)
    with _reported(path, failed="read"):
        return path.read_bytes()


_growing: weakref.WeakSet[AppendedLines] = weakref.WeakSet()


def take_lock(file: FileIO, *, wait: bool = False) -> None:
    """Lock an open file for this process alone. Raises BlockingIOError when it is locked, unless told to wait."""
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


class RunLock:
    """Holds `<folder>/.lock` while a run writes there; the kernel frees it when the process dies.

    name: of another lock, for a part of what is done there. waiting: told who holds it, which is then waited for;
    without it StorageError is raised.
    """

    def __init__(self, folder: str | Path, name: str = ".lock", *, waiting: Callable[[str], None] | None = None):
        self.path = Path(folder) / name
        _make_folders(self.path.parent)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"pid {os.getpid()} on {socket.gethostname()}, started {started}".encode()
        require_plain(self.path)
        with _reported(self.path, len(owner)):
            self._file = disk.append_to(self.path)
            try:
                try:
                    take_lock(self._file)
                except BlockingIOError:
                    held_by = self.path.read_text("utf-8", errors="replace").strip() or "another process"
                    if waiting is None:
                        raise StorageError(
                            f"{folder} is in use by {held_by}: wait for it, or choose another training.output_dir"
                        ) from None
                    waiting(held_by)
                    take_lock(self._file, wait=True)
                disk.empty(self._file)
                disk.write(self._file, owner)
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
