"""Atomic files and folders: everything the project writes goes through this module. Light.

A file is written under a hidden name, fsynced, renamed, and its folder fsynced. A folder (a checkpoint) is written
hidden, closed with `MANIFEST.json` (size and sha256 of every file, itself included), then renamed; it is renamed to a
hidden name before it is removed. `manifest` reads it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from foundry_core.errors import FoundryError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import MANIFEST_FORMAT, sealed


class StorageError(FoundryError, exit_code=8):
    """The disk is full, failing or not permitted. Names the path; what was there before stays."""


Data: TypeAlias = bytes | memoryview
Content: TypeAlias = bytes | Iterable[Data]
"""The content of a file, whole or in pieces that do not change until it is written."""

_BLOCK, _LARGE, _ROOM = 1 << 12, 1 << 20, 1 << 24
"""Bytes of a page, of a piece that is written past the page cache, and of the pieces that others are gathered into."""


class FileSink(Protocol):
    """A folder that files are written to, in place or to be published whole."""

    def write(self, name: str, content: Content) -> None: ...


class Disk:
    """The operations of the disk, one method for each, which fault injection counts, records and lets fail."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> FileIO:
        return FileIO(path, "xb")

    def append_to(self, path: Path) -> FileIO:
        """Open a file to append, but no link, which leads elsewhere, and no FIFO, which would wait for a reader."""
        plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither
        return FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags | plain, 0o666))

    def write(self, file: FileIO, data: Data) -> None:
        rest = memoryview(data)
        if len(rest) >= _LARGE and hasattr(os, "O_DIRECT"):
            rest = rest[_written_directly(file, rest) :]
        while rest:
            rest = rest[file.write(rest) :]

    def empty(self, file: FileIO) -> None:
        file.truncate(0)

    def sync(self, file: FileIO) -> None:
        os.fsync(file.fileno())

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def sync_folder(self, path: Path) -> None:
        if os.name == "nt":  # does not open folders
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, path: Path, target: str) -> None:
        path.symlink_to(target)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


def _written_directly(file: FileIO, data: memoryview) -> int:
    """Write whole blocks past the page cache, as far as the file system does that; return the number of bytes.

    Filling the page cache with pages that the kernel has to find first took three times as long as hashing.
    """
    from fcntl import F_GETFL, F_SETFL, fcntl  # not on Windows, which has no O_DIRECT either

    done, whole, flags = 0, len(data) // _BLOCK * _BLOCK, fcntl(file, F_GETFL)
    try:
        fcntl(file, F_SETFL, flags | os.O_DIRECT)
        while done < whole:
            done += file.write(data[done:whole])
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # memory or position not in blocks, or not supported
            raise
    finally:
        fcntl(file, F_SETFL, flags)
    return done


disk = Disk()
"""The disk that this process writes to; only fault injection replaces it."""


@contextmanager
def reported(path: Path, size: int | None = None, *, failed: str = "write") -> Iterator[None]:
    """Turn an error of the disk into a StorageError that names the path and the bytes."""
    try:
        yield
    except OSError as error:
        amount = f" ({size:,} bytes)" if size is not None else ""
        raise StorageError(f"cannot {failed} {path}{amount}: {error.strerror or error}") from error


@contextmanager
def scratch_reported() -> Iterator[None]:
    """Turn an error of the disk into a StorageError, for libraries that write into a temporary folder."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):  # libraries in Rust raise other classes
            raise
        path = getattr(error, "filename", None) or tempfile.tempdir or "the temporary folder"
        reason = getattr(error, "strerror", None) or error
        problem = f"cannot write {path}: {reason}; make room there, or set TMPDIR to another folder"
        raise StorageError(problem) from error


_HIDDEN = re.compile(r"\..+\.foundry-[0-9a-f]{16}\.(tmp|old)")
"""The names that `hidden_name` returns; only files with such a name are ever removed as leftovers."""


def hidden_name(path: Path, kind: str) -> Path:
    """Return an unused name in the folder of `path`, by chance since two containers may have the same process id.

    kind: "tmp" for a file being written, "old" for one being removed.
    """
    return path.with_name(f".{path.name}.foundry-{secrets.token_hex(8)}.{kind}")


def _leftovers(folder: Path, kind: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f".*.{kind}")) if _HIDDEN.fullmatch(path.name)]


def make_folders(path: Path) -> None:
    """Make a folder and those above it, durably: files synced inside a folder are lost if its name is."""
    with reported(path):
        if path.is_dir():
            return
    make_folders(path.parent)
    with reported(path):
        disk.make_folder(path)
        disk.sync_folder(path.parent)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its content."""
    if path.is_symlink() or not path.is_dir():
        disk.remove_file(path)
        return
    for inside in sorted(path.iterdir()):
        _remove(inside)
    disk.remove_folder(path)


def remove_tree(path: str | Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    with reported(Path(path), failed="remove"):
        if Path(path).exists():
            _remove(Path(path))


class Writer(AbstractContextManager["Writer"]):
    """A new file, which is whole and safe on the disk when its block ends."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        with reported(path):
            self._file = disk.create(path)

    def write(self, data: Data) -> None:
        with reported(self.path, len(data)):
            disk.write(self._file, data)
        self.size += len(data)

    def write_whole(self, content: Content) -> None:
        """Write the content of the file, gathered into few large pieces if it comes in many."""
        if isinstance(content, bytes):
            self.write(content)
            return
        room, used = memoryview(mmap(-1, _ROOM)), 0  # at the beginning of a page, as the disk wants it
        for piece in content:
            rest = memoryview(piece)
            while rest:
                taken = rest[: _ROOM - used]
                room[used : used + len(taken)] = taken
                used, rest = used + len(taken), rest[len(taken) :]
                if used == _ROOM:
                    self.write(room)
                    used = 0
        if used:
            self.write(room[:used])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with reported(self.path, self.size):
            try:
                if kind is None:
                    disk.sync(self._file)
            finally:
                self._file.close()


def write_file(path: str | Path, data: bytes) -> None:
    """Replace a file by `data`, atomically and durably, and make its folders."""
    write_file_with(path, lambda file: file.write(data))


def write_file_with(path: str | Path, fill: Callable[[Writer], Any]) -> None:
    """Replace a file by the content that `fill` streams into it, which may be larger than memory."""
    path = Path(path)
    # Of two processes that write the same file, the last rename wins with a whole file.
    temporary = hidden_name(path, "tmp")
    make_folders(path.parent)
    try:
        with Writer(temporary) as file:
            fill(file)
        with reported(path):
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

    def write(self, name: str, content: Content) -> None:
        write_file_with(self.folder / name, lambda file: file.write_whole(content))


class _HiddenFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, content: Content) -> None:
        digest = hashlib.sha256()
        # Hashing takes about as long as writing, and a thread of its own does it meanwhile. One alone keeps the order.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="foundry-sha256") as thread:
            hashed = []

            def pieces() -> Iterator[Data]:
                for data in (content,) if isinstance(content, bytes) else content:
                    hashed.append(thread.submit(digest.update, data))
                    yield data

            with Writer(self.folder / name) as file:
                file.write_whole(pieces())
            for each in hashed:
                each.result()
        self.files[name] = {"size": file.size, "sha256": digest.hexdigest()}


class AppendedLines:
    """A text file that grows by whole lines, each written at once.

    It is synced before a folder next to it is published: a checkpoint never resumes from a point that the log has not
    reached.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        make_folders(self.path.parent)
        require_plain(self.path)
        with reported(self.path):
            self._file = disk.append_to(self.path)
        _appended.add(self)

    def append(self, line: str) -> None:
        data = line.encode() + b"\n"
        with reported(self.path, len(data)):
            disk.write(self._file, data)

    def sync(self) -> None:
        """Make the appended lines survive a power loss."""
        with reported(self.path):
            disk.sync(self._file)

    def close(self) -> None:
        _appended.discard(self)
        with reported(self.path):
            self._file.close()


_appended: weakref.WeakSet[AppendedLines] = weakref.WeakSet()


def read_appended(path: Path) -> bytes:
    """Return the content of a file of `AppendedLines`. Raises StorageError if it is unreadable or not a plain file."""
    require_plain(path)
    with reported(path, failed="read"):
        return path.read_bytes()


@contextmanager
def publish_folder(target: str | Path, facts: Mapping[str, Any]) -> Iterator[FileSink]:
    """Write a new folder that appears whole, with a manifest, or not at all; one of that name is set aside.

    `AppendedLines` in the same parent are synced before it appears. facts: stored in the manifest with the file list.
    Raises StorageError, and removes the unfinished folder.
    """
    target = Path(target)
    hidden = hidden_name(target, "tmp")
    make_folders(target.parent)
    with reported(target):
        disk.make_folder(hidden)
    sink = _HiddenFolder(hidden)
    try:
        yield sink
        sink.write(MANIFEST, sealed({"format": MANIFEST_FORMAT, **facts, "files": dict(sorted(sink.files.items()))}))
        for lines in tuple(_appended):
            if lines.path.parent == target.parent:
                lines.sync()
        with reported(target):
            disk.sync_folder(hidden)
            if target.exists():
                disk.rename(target, hidden_name(target, "old"))
            disk.rename(hidden, target)
            disk.sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            _remove(hidden)
        raise


def set_aside(folder: str | Path) -> None:
    """Hide a published folder until `remove_set_aside`, so that it is never half removed under its name."""
    folder = Path(folder)
    with reported(folder, failed="remove"):
        disk.rename(folder, hidden_name(folder, "old"))


def remove_set_aside(parent: str | Path) -> list[str]:
    """Remove what was set aside in a folder, by this process or one that died. The caller holds the folder's lock.

    Returns a line for each path that could not be removed; it is tried again the next time.
    """
    paths = _leftovers(Path(parent), "old")
    if paths:
        try:
            with reported(Path(parent)):
                disk.sync_folder(Path(parent))
        except StorageError as error:
            return [str(error)]
    return _removed(paths)


def remove_leftovers(*parents: str | Path) -> list[str]:
    """Remove what killed processes were writing or had set aside; files that foundry did not name stay."""
    unfinished = [path for parent in parents for path in _leftovers(Path(parent), "tmp")]
    return _removed(unfinished) + [line for parent in parents for line in remove_set_aside(parent)]


def _removed(paths: Iterable[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            with reported(path, failed="remove"):
                _remove(path)
        except StorageError as error:
            problems.append(str(error))
    return problems


def require_plain(path: Path) -> None:
    """Raise StorageError if a link, a FIFO or anything else than a plain file has the name of a run's file."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise StorageError(f"cannot write {path}: it is not a plain file; remove it")
