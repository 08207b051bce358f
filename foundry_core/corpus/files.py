"""The files of a corpus, `.txt` or `.jsonl`, each optionally `.gz`: finding them, and reading their bytes.

A file is stamped with its size and modification time when the corpus is opened, and refused if it has changed since.
"""

from __future__ import annotations

import glob
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from foundry_core.errors import DataError

_KINDS = {".txt": "text", ".jsonl": "jsonl"}
_BLOCK_BYTES = 1 << 20


def refuse(path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise DataError(f"{shown(path)}: {problem}") from cause


def shown(path: Path) -> str:
    """Return a path as one printable line, whatever its name contains."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def kind_of(path: Path) -> str | None:
    """Return "text", "jsonl", or None for files that are not read."""
    return _KINDS.get(Path(path.stem if _is_compressed(path) else path.name).suffix.lower())


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def find_files(path: Path, name: str) -> list[Path]:
    """Return what a path, a folder or a glob stands for, files of other kinds included."""
    if path.is_dir():
        return _walk(path)
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - skips hidden files
        return sorted(match for match in matches if not match.is_dir())
    stamp_of(path)  # a missing file is reported as missing, not as one of an unknown kind
    if kind_of(path) is None:
        refuse(path, f"not a {name} file: the kinds are .txt and .jsonl, optionally .gz. Rename or convert it.")
    return [path]


def _walk(folder: Path) -> list[Path]:
    """Return all visible files of a folder in sorted order; linked folders are listed, not entered."""

    def stop(error: OSError) -> NoReturn:
        refuse(Path(error.filename), f"cannot be searched: {error.strerror}.", error)

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [one for one in folders if not one.startswith(".")]
        links = [one for one in folders if Path(parent, one).is_symlink()]
        found += [Path(parent, one) for one in [*names, *links] if not one.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and modification time of a regular file; refuse anything else unopened, because a FIFO would hang."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        target = f" (a link to {shown(path.readlink())})" if path.is_symlink() else ""
        refuse(path, f"no such file or folder{target}; check the path, relative to {shown(Path.cwd())}.", error)
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {getattr(error, 'strerror', None) or error}.", error)
    if not stat.S_ISREG(status.st_mode):
        known = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        what = known.get(stat.S_IFMT(status.st_mode), "a device")
        refuse(path, f"is {what}, not a regular file; a corpus is read more than once, so write it to a file.")
    return status.st_size, status.st_mtime_ns


def refuse_changed(path: Path, found: tuple[int, int], stamp: tuple[int, int]) -> None:
    """Refuse a file whose size or modification time is not that of its stamp."""
    if found != stamp:
        refuse(path, "changed since this corpus was opened; leave it alone while it is in use and start again.")


def file_blocks(path: Path, stamp: tuple[int, int]) -> Iterator[bytes]:
    """Yield the content of a file, decompressed, in blocks of at most 1 MiB; refuse a file that was changed."""
    refuse_changed(path, stamp_of(path), stamp)
    position = 0
    try:
        with path.open("rb", buffering=0) as raw:
            reader: Any = raw
            if _is_compressed(path):
                if stamp[0] == 0:
                    refuse(path, "not a gzip file: it has 0 bytes. Compress it again.")
                reader = gzip.GzipFile(fileobj=raw, mode="rb")
            while block := reader.read(_BLOCK_BYTES):
                position += len(block)
                yield block
            status = os.fstat(raw.fileno())
            refuse_changed(path, (status.st_size, status.st_mtime_ns), stamp)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        refuse(path, f"damaged gzip data after byte {position} of the content: {error}. Compress it again.", error)
    except OSError as error:
        refuse(path, f"cannot be read at byte {position}: {error.strerror or error}.", error)
