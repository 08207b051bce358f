"""Read published folders, which may be from an untrusted source: sealed JSON, manifests, plain files. Light."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from foundry_core.errors import CheckpointError, UsageError
from foundry_core.run_folder import MANIFEST

MANIFEST_FORMAT = 1
_LARGEST_JSON = 1 << 28


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return the JSON text of an object with the sha256 of its content as the last line."""
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def unsealed(path: Path, raw: bytes) -> dict[str, Any]:
    """Return what `sealed` received. Raises CheckpointError that names the file if it has changed since."""
    stored = parse_json(path, raw)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    stored.pop("sha256", None)
    if sealed(stored) != raw:
        raise CheckpointError(f"{path} is damaged: its sha256 does not match its content")
    return stored


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a published folder, once every listed file has its size and sha256.

    Raises CheckpointError that names the file if one is missing, added or different.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / MANIFEST):
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    if (folder / MANIFEST).is_symlink():
        raise CheckpointError(f"{folder / MANIFEST} is a link, not a plain file of the folder")
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
    """Raise CheckpointError if a folder contains a file that its manifest does not list."""
    # Hidden files are the desktop's (.DS_Store); libraries do not read them.
    added = sorted({p.name for p in folder.iterdir() if not p.name.startswith(".")} - {*listed, MANIFEST})
    if added:
        raise CheckpointError(f"{folder / added[0]} is not in the manifest: it was added later")


def refuse_inside(path: Path) -> None:
    """Raise UsageError if a new file or folder would lie in a published folder, which would then count as damaged."""
    for parent in path.resolve().parents:
        if (parent / MANIFEST).is_file():
            raise UsageError(
                f"{path} would be in the checkpoint {parent}, which nothing is added to: name another place"
            )


def refuse_outside(folder: Path, name: str) -> None:
    """Raise CheckpointError if a listed name leads out of the folder."""
    if Path(name).name != name or (folder / name).is_symlink():
        raise CheckpointError(f"{folder / MANIFEST} lists '{name}', which is not a plain file of the folder")


def refuse_missing(path: Path) -> None:
    """Raise CheckpointError if a listed file does not exist."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")


def compare_size(path: Path, size: int) -> None:
    """Raise CheckpointError if a file does not have the size in its manifest."""
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, not {size} as in its manifest")


def compare_digest(path: Path, digest: str) -> None:
    """Raise CheckpointError if a file does not have the sha256 in its manifest."""
    try:
        same = file_digest(path) == digest
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not same:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in its manifest")


def read_plain_file(path: Path) -> bytes:
    """Return the content of a file from an untrusted source.

    Raises CheckpointError if it is missing, is not a plain file (a FIFO would never end) or is larger than 256 MiB.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a plain file")
        if status.st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is larger than the 256 MiB limit for metadata files")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_json(path: Path, raw: bytes) -> Any:
    """Return the content of a JSON file. Raises CheckpointError if it is not JSON or a number in it is not finite."""
    try:
        return json.loads(raw, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number of JSON")
    return number


def file_digest(path: str | Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
