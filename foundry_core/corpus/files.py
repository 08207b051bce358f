"""Corpus files: which kinds are read, and their bytes.

A file is stamped with its size and modification time when the corpus is opened, and refused if it has changed since.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from foundry_core.errors import DataError

Kind = Literal["text", "jsonl", "table"]
Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys((".txt", ".train", ".dev", ".test"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".arrow"), "table"),
}
_BLOCK_BYTES = 1 << 20
_PACKED_BYTES = 1 << 16
"""Compressed bytes that are decompressed at once. Text has at most a few hundred times as many."""
KINDS = ".txt, .train, .dev, .test, .jsonl and .ndjson, each optionally .gz, .bz2, .xz or .zst; .parquet and .arrow"


Codec = tuple[Callable[[], Any], type[Exception]]
"""Makes a decompressor of one stream, and what that raises on damage."""


def _zstandard() -> Codec:
    from zstandard import ZstdDecompressor, ZstdError  # a folder named zstandard has neither

    window = 1 << 31  # the largest that zstd --long=31 writes
    return lambda: ZstdDecompressor(max_window_size=window).decompressobj(), ZstdError


_CODECS: dict[str, tuple[str, Callable[[], Codec]]] = {
    ".gz": ("gzip", lambda: (lambda: zlib.decompressobj(wbits=31), zlib.error)),
    ".bz2": ("bzip2", lambda: (bz2.BZ2Decompressor, OSError)),
    ".xz": ("xz", lambda: (lzma.LZMADecompressor, lzma.LZMAError)),
    ".zst": ("zstandard", _zstandard),
}
_SIGNATURES = {
    b"\x1f\x8b": "gzip data: add .gz to its name, or decompress it",
    b"BZh": "bzip2 data: add .bz2 to its name, or decompress it",
    b"\xfd7zXZ\0": "xz data: add .xz to its name, or decompress it",
    b"\x28\xb5\x2f\xfd": "zstandard data: add .zst to its name, or decompress it",
    b"PAR1": "Parquet data: rename it to .parquet",
    b"ARROW1": "Arrow data: rename it to .arrow",
    b"\xff\xff\xff\xff": "Arrow data: rename it to .arrow",
    b"PK\3\4": "a zip archive: extract it",
    b"%PDF": "a PDF: convert it to text",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}


def disguised(start: bytes) -> str | None:
    """Return what a file that is not UTF-8 is, by its first bytes, and what to do about it; None if unknown."""
    return next((what for signature, what in _SIGNATURES.items() if start.startswith(signature)), None)


def refuse(path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise DataError(f"{shown(path)}: {problem}") from cause


def shown(path: Path) -> str:
    """Return a path as one printable line, whatever its name contains."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix that tells the kind of a file: `.txt` of `a.TXT.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _CODECS else suffix


def kind_of(path: Path) -> Kind | None:
    """Return how a file is read, by its name, or None for files that are not read."""
    kind = _KINDS.get(suffix_of(path))
    return None if kind == "table" and path.suffix.lower() in _CODECS else kind


def stamp_of(path: Path) -> Stamp:
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


def refuse_changed(path: Path, found: Stamp, stamp: Stamp) -> None:
    """Refuse a file whose size or modification time is not that of its stamp."""
    if found != stamp:
        refuse(path, "changed since this corpus was opened; leave it alone while it is in use and start again.")


@contextmanager
def unchanged(path: Path, stamp: Stamp) -> Iterator[Any]:
    """Open a file, and refuse it if it differs from its stamp before or after."""
    refuse_changed(path, stamp_of(path), stamp)
    with path.open("rb", buffering=0) as raw:
        yield raw
        status = os.fstat(raw.fileno())
        refuse_changed(path, (status.st_size, status.st_mtime_ns), stamp)


def file_blocks(path: Path, stamp: Stamp) -> Iterator[bytes]:
    """Yield the content of a file, decompressed, in blocks of about 1 MiB; refuse a file that was changed."""
    name, codec = _CODECS.get(path.suffix.lower(), ("", None))
    position = 0
    try:
        with unchanged(path, stamp) as raw:
            stored = iter(partial(raw.read, _BLOCK_BYTES if codec is None else _PACKED_BYTES), b"")
            for block in stored if codec is None else _decompressed(stored, *codec()):
                position += len(block)
                yield block
    except ImportError as error:
        refuse(path, f"reading {path.suffix} files needs a package: pip install model-foundry[zst]", error)
    except _Damaged as error:
        start, problem = error.args
        looks_like = disguised(start)
        if looks_like and looks_like.startswith(name):
            refuse(
                path, f"damaged {name} data after byte {position} of the content: {problem}. Compress it again.", error
            )
        what = f"; it is {looks_like}" if looks_like else ": rename it, or compress it again"
        refuse(path, f"not {name} data{what}.", error)
    except OSError as error:
        refuse(path, f"cannot be read at byte {position}: {error.strerror or error}.", error)


class _Damaged(Exception):  # noqa: N818 - a signal inside this module
    """Data that cannot be decompressed: how they start, and the problem."""


def _decompressed(stored: Iterator[bytes], new: Callable[[], Any], failure: type[Exception]) -> Iterator[bytes]:
    """Decompress the streams of a file, which follow each other; zero bytes after a stream are padding.

    The readers of the standard library ignore other bytes after a bz2 or xz stream, and zstandard's a missing end.
    """
    stream, start = new(), b""
    for stored_block in stored:
        start, data = start or stored_block, stored_block
        while data:
            if stream.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                stream = new()
            try:
                block = stream.decompress(data)
            except failure as error:
                raise _Damaged(start, str(error)) from error
            if block:
                yield block
            data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise _Damaged(start, "it ends in the middle of a stream")
