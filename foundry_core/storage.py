"""The one door to the disk: everything the project writes goes through here. Light.

A file appears whole or not at all: written beside its target, flushed, fsynced, renamed, and the folder fsynced. A
folder (a checkpoint) is written hidden, closed with `MANIFEST.json` (size and sha256 of every file), then renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from foundry_core.errors import CheckpointError, FoundryError

MANIFEST = "MANIFEST.json"
MANIFEST_FORMAT = 1
_BLOCK = 1 << 20


class StorageError(FoundryError):
    """The disk refused: full, not permitted, failing. Names the path, and leaves what was there before."""

    exit_code = 8


class FileSink(Protocol):
    """What takes named files: a folder written in place, or one that is published whole."""

    def write(self, name: str, data: bytes) -> None: ...


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_file(path: str | Path, data: bytes) -> None:
    """Replace a file by `data`, atomically and durably; folders on the way are made."""
    write_file_with(path, lambda file: file.write(data))


def write_file_with(path: str | Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Like `write_file`, for content that `fill` streams into the open file: it may be larger than memory."""
    path = Path(path)
    # The process id keeps two processes that write the same file apart; the last rename wins with a whole file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        path = self.folder / name
        with _reported(path), path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@contextmanager
def publish_folder(target: str | Path, facts: Mapping[str, Any]) -> Iterator[FileSink]:
    """Write a new folder that appears whole, with a manifest, or not at all.

    facts: stored in the manifest beside the file list. Raises StorageError; what was written so far is removed.
    """
    target = Path(target)
    hidden = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with _reported(target):
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    sink = _HiddenFolder(hidden)
    try:
        yield sink
        manifest = {"format": MANIFEST_FORMAT, **facts, "files": dict(sorted(sink.files.items()))}
        sink.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        with _reported(target):
            _sync_folder(hidden)
            hidden.rename(target)
            _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a published folder, with every listed file checked against its size and sha256.

    Raises CheckpointError naming the file that is missing, added, or differs.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files: dict[str, dict[str, Any]] = manifest["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {type(error).__name__}") from error
    # Hidden files are the desktop's (.DS_Store); no library reads one.
    added = sorted({p.name for p in folder.iterdir() if not p.name.startswith(".")} - set(expected) - {MANIFEST})
    if added:
        raise CheckpointError(f"{folder / added[0]} is not in the manifest: somebody added it")
    for name, (size, digest) in expected.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink():
            raise CheckpointError(f"{folder / MANIFEST} lists '{name}', which is not a plain file of the folder")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, its manifest says {size}")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the manifest's")
    return dict(manifest)


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(folder: str | Path) -> None:
    """Remove a published folder: renamed first, so that it never stands half deleted under its name."""
    folder = Path(folder)
    victim = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with _reported(folder):
        folder.rename(victim)
        shutil.rmtree(victim)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left unfinished in a folder; only for who holds the folder's lock."""
    for pattern in (".*.tmp", ".*.old"):
        for path in Path(folder).glob(pattern):
            with _reported(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


class AppendedLines:
    """A text file that grows by whole lines, such as metrics.jsonl; each line is handed to the kernel at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with _reported(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        with _reported(self.path):
            self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class RunLock:
    """Holds `<folder>/.lock` while a run writes there; the kernel frees it when the process dies."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / ".lock"
        with _reported(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise StorageError(
                f"{folder} is in use by {owner}: wait for it, or choose another training.output_dir"
            ) from None
        self._file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}, started {started}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
