"""What a checkpoint says of those it follows from, so that a run can be audited when some of them are gone.

A *course* is a stretch of training in which nothing changed that says which rows come when: data, stream, order, rows
in a step. Inside one, any position follows from any earlier one; its beginning is stored in each checkpoint's manifest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import parse_json, read_plain_file

Whole: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Sha256: TypeAlias = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]
Ledger: TypeAlias = Annotated[str, Field(strict=True, pattern="^([0-9a-f]{64})?$")]


@dataclass(frozen=True)
class Position:
    """How far a run has come in its data; the defaults are the beginning."""

    step: Whole = 0
    samples: Whole = 0
    tokens_seen: Whole = 0
    ledger: Ledger = ""


@dataclass(frozen=True)
class Course:
    """settings: digest of what it consists in. since: where it began. position: the checkpoint's own."""

    settings: Sha256
    since: Position
    position: Position


@dataclass(frozen=True)
class Parent:
    """The checkpoint that training went on from. sha256: what its manifest ends with; None where it was not there."""

    checkpoint: str
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class Lineage:
    """parent: None at the beginning. course: None where the parent did not say its own, or was not there."""

    parent: Parent | None
    course: Course | None

    @classmethod
    def of(
        cls,
        output_dir: Path,
        parent: str | None,
        position: Position,
        *,
        order: tuple[int, int],
        data: dict[str, Any],
    ) -> Lineage:
        """That of a checkpoint to be saved. order: seed, and rows in a step. data: what is trained on."""
        settings = hashlib.sha256(json.dumps([order, data], sort_keys=True).encode()).hexdigest()
        if parent is None:
            return cls(None, Course(settings, Position(), position))
        try:
            stored = _manifest(output_dir / parent)
            before = cls.read(output_dir / parent, stored).course
            found = Parent(parent, stored["sha256"])
        except (CheckpointError, KeyError, TypeError):
            return cls(Parent(parent), None)  # somebody took it away while training ran, which goes on
        if before is None:
            return cls(found, None)
        at, since = before.position, before.since
        # The last step of a budget may have fewer rows; a longer budget goes on from there.
        full = at.samples - since.samples == (at.step - since.step) * order[1]
        return cls(found, Course(settings, since if full and before.settings == settings else at, position))

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any]) -> Lineage:
        """That of a checkpoint on the disk. Raises CheckpointError for one that is none."""
        parent, course = manifest.get("parent"), manifest.get("course")
        try:
            return _STORED.validate_python({"parent": parent, "course": course})
        except ValidationError as error:
            raise CheckpointError(
                f"{folder / MANIFEST} does not say what it follows from: {error.errors()[0]['msg']}"
            ) from error

    def facts(self) -> dict[str, Any]:
        """What the manifest says."""
        return asdict(self)


_STORED = TypeAdapter(Lineage)


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = parse_json(folder / MANIFEST, read_plain_file(folder / MANIFEST))
    return content


def identity(folder: Path) -> str:
    """The sha256 that a checkpoint's manifest ends with, and by which its successor knows it."""
    return str(_manifest(folder)["sha256"])
