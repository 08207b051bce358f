"""The lineage in a checkpoint's manifest, by which a run can be audited when some of its checkpoints are gone.

A *course* is a stretch of training in which nothing changed that determines the order of the rows: data, stream, order,
rows in a step. Inside one, any position follows from any earlier one; each checkpoint records its beginning.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import parse_json, read_plain_file

Whole: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Ledger: TypeAlias = Annotated[str, Field(strict=True, pattern="^([0-9a-f]{64})?$")]
Sha256: TypeAlias = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Position:
    """The progress of a run through its data; the defaults are the beginning."""

    step: Whole = 0
    samples: Whole = 0
    tokens_seen: Whole = 0
    ledger: Ledger = ""


@dataclass(frozen=True)
class Course:
    """settings: a digest of its data, stream, order and rows in a step. position: that of the checkpoint itself."""

    settings: Sha256
    since: Position
    position: Position


@dataclass(frozen=True)
class Parent:
    """The checkpoint that training continued from, with the sha256 in its manifest; None if it was gone."""

    checkpoint: str
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class Lineage:
    """parent: None at the beginning. course: None if the parent was gone, or recorded none."""

    parent: Parent | None
    course: Course | None

    @classmethod
    def of(
        cls, output_dir: Path, parent: str | None, position: Position, *, order: tuple[int, int], data: dict[str, Any]
    ) -> Lineage:
        """Return the lineage of a checkpoint that is about to be saved.

        Args:
            order: Seed of the order, and rows in a step.
            data: Digests of the data, and sizes of the stream.
        """
        settings = hashlib.sha256(json.dumps([order, data], sort_keys=True).encode()).hexdigest()
        if parent is None:
            return cls(None, Course(settings, Position(), position))
        try:
            manifest = unchecked_manifest(output_dir / parent)
            before = cls.read(output_dir / parent, manifest).course
            found = Parent(parent, manifest["sha256"])
        except (CheckpointError, KeyError, TypeError):
            return cls(Parent(parent), None)  # it was removed while training ran, which continues
        if before is None:
            return cls(found, None)
        at, since = before.position, before.since
        # The last step of a budget may have fewer rows; a longer budget continues after it.
        full = at.samples - since.samples == (at.step - since.step) * order[1]
        return cls(found, Course(settings, since if full and before.settings == settings else at, position))

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any]) -> Lineage:
        """Return the lineage in a manifest. Raises CheckpointError if it is malformed."""
        try:
            return _STORED.validate_python({key: manifest.get(key) for key in ("parent", "course")})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise CheckpointError(f"{folder / MANIFEST}: its parent or course is damaged: {reason}") from error


_STORED = TypeAdapter(Lineage)


def unchecked_manifest(folder: Path) -> Any:
    """Return the manifest of a checkpoint without comparing any file with it; it ends with its own sha256."""
    return parse_json(folder / MANIFEST, read_plain_file(folder / MANIFEST))
