"""What was published is read back, and may be a stranger's: sealed JSON, the manifest of a folder, files. Light.

It is a plain file of a size that memory holds, or it is refused; every claim of a manifest is held against the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST

MANIFEST_FORMAT = 1
_LARGEST_JSON = 1 << 28


def sealed(content: Mapping[str, Any]) -> bytes:
    """A JSON object as its file, the last line of which is the sha256 of the rest: a flip in it is seen."""
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def unsealed(path: Path, raw: bytes) -> dict[str, Any]:
    """What was sealed. Raises CheckpointError naming the file when it is not as it was written."""
    stored = parse_json(path, raw)
    try:
        content = {key: value for key, value in stored.items() if key != "sha256"}
        whole = sealed(content) == raw
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one that it ends with")
    return content


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a published folder, with every listed file checked against its size and sha256.

    Raises CheckpointError naming the file that is missing, added, or differs.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / MANIFEST):
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    if (folder / MANIFEST).is_symlink():
        raise CheckpointError(f"{folder / MANIFEST} is a link, and not a plain file of the folder")
    manifest = unsealed(folder / MANIFEST, read_plain_file(folder / MANIFEST))
    try:
        version = manifest["format"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {type(error).__name__}") from error
    if version != MANIFEST_FORMAT:
        raise CheckpointError(f"{folder / MANIFEST} has format {version!r}, this version reads {MANIFEST_FORMAT}")
    refuse_added(folder, expected)
    for name, (size, digest) in expected.items():
        refuse_outside(folder, name)
        refuse_missing(folder / name)
        compare_size(folder / name, size)
        compare_digest(folder / name, digest)
    return manifest


def refuse_added(folder: Path, listed: Collection[str]) -> None:
    """Raise CheckpointError when a folder holds a file that its manifest does not list."""
    # Hidden files are the desktop's (.DS_Store); no library reads one.
    added = sorted({p.name for p in folder.iterdir() if not p.name.startswith(".")} - {*listed, MANIFEST})
    if added:
        raise CheckpointError(f"{folder / added[0]} is not in the manifest: somebody added it")


def refuse_outside(folder: Path, name: str) -> None:
    """Raise CheckpointError when a listed name leads out of the folder."""
    if Path(name).name != name or (folder / name).is_symlink():
        raise CheckpointError(f"{folder / MANIFEST} lists '{name}', which is not a plain file of the folder")


def refuse_missing(path: Path) -> None:
    """Raise CheckpointError when a listed file is not there."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")


def compare_size(path: Path, size: int) -> None:
    """Raise CheckpointError when a file does not have the size that its manifest gives."""
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, its manifest says {size}")


def compare_digest(path: Path, digest: str) -> None:
    """Raise CheckpointError when a file does not have the sha256 that its manifest gives."""
    try:
        same = file_digest(path) == digest
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not same:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the manifest's")


def read_plain_file(path: Path) -> bytes:
    """All of a file that a stranger may have written. Raises CheckpointError when it is missing, is no regular file (a
    FIFO would never end) or is larger than 256 MiB.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a plain file")
        if status.st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} has {status.st_size:,} bytes, too many for what it is")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_json(path: Path, raw: bytes) -> Any:
    """What a JSON file holds. Raises CheckpointError naming it when it is not JSON: NaN and infinities are not, nor is
    a number that is too large for a float.
    """
    try:
        return json.loads(raw, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
