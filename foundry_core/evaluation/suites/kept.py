"""Reading results of suites that are kept beside a run: sealed averages, and the tables that they name. Light."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST, SCORES
from foundry_core.storage.manifest import file_digest, read_plain_file, unsealed

if TYPE_CHECKING:
    from foundry_core.evaluation.suites.reading import LoadedSuite

VERSION = 2
"""The version of the files and of the computation: results of another version are computed again."""

Suffix: TypeAlias = Literal[".tsv", ".regions.tsv"]
COLUMNS: Mapping[Suffix, Sequence[str]] = {
    ".tsv": ("paradigm", "phenomenon", "item", "right", "margin", "place"),
    ".regions.tsv": ("paradigm", "item", "condition", "region", "surprisal"),
}
"""Columns of the table of items and of that of regions, by the suffixes of their files.

right: 1 or 0; margin: in nats. region: counted from 1, or * for the whole sentence; surprisal: in bits.
"""
DIGESTS: Mapping[Suffix, str] = {".tsv": "items_sha256", ".regions.tsv": "regions_sha256"}
"""The keys under which the averages have the digests of the tables. There may be no regions."""


def read_averages(path: Path) -> dict[str, Any]:
    """Return the averages of a suite. Raises CheckpointError if they are missing or not as they were written."""
    return unsealed(path, read_plain_file(path))


def read_table(path: Path, suffix: Suffix, averages: Mapping[str, Any]) -> bytes:
    """Return a table beside the averages of `path`. Raises CheckpointError if it is not the one that they name."""
    table = path.with_suffix(suffix)
    content = read_plain_file(table)
    if hashlib.sha256(content).hexdigest() != averages.get(DIGESTS[suffix]):
        raise CheckpointError(f"{table} is damaged: its sha256 is not the one in {path.name}")
    return content


def rows_of(path: Path, suffix: Suffix) -> Iterator[dict[str, str]]:
    """Yield the rows of a table beside the averages of `path`, each value as text by its column.

    Raises:
        CheckpointError: One of the files is missing or not as it was written.
    """
    lines = csv.reader(io.StringIO(read_table(path, suffix, read_averages(path)).decode(), newline=""), "excel-tab")
    next(lines)
    for line in lines:
        yield dict(zip(COLUMNS[suffix], line, strict=True))


def result_path(checkpoint: Path, suite: str, measure: str) -> Path:
    """Return where the averages of a suite are stored."""
    name = re.sub(r"[^\w.-]+", "_", suite)
    suffix = "" if measure == "sum" else f".{measure}"
    return checkpoint.parent / SCORES / checkpoint.name / f"{name}{suffix}.json"


def identity(checkpoint: Path, suite: LoadedSuite, measure: str) -> dict[str, Any]:
    """Return what results depend on."""
    return {
        "suite": suite.name,
        "kind": suite.kind,
        "suite_digest": suite.digest,
        "checkpoint_digest": file_digest(checkpoint / MANIFEST),
        "measure": measure,
        "version": VERSION,
    }


def stored(checkpoint: Path, suite: LoadedSuite, measure: str) -> dict[str, Any] | None:
    """Return the results that are kept of a suite; None if there are none, none of what is there now, or not whole."""
    content = read_whole(result_path(checkpoint, suite.name, measure))
    known = identity(checkpoint, suite, measure)
    return content if content is not None and known.items() <= content.items() else None


def read_whole(path: Path) -> dict[str, Any] | None:
    """Return averages without the digests of their tables; None if they or a table that they name are not whole."""
    try:
        content = read_averages(path)
        for suffix, key in DIGESTS.items():
            if key in content:
                read_table(path, suffix, content)
    except CheckpointError:
        return None
    return {key: value for key, value in content.items() if key not in DIGESTS.values()}
