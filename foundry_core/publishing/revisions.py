"""What of a run is published: a revision for each checkpoint, the names that it gets, and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from foundry_core.checkpoints.checkpoint import check_resumable, checkpoint_step, optimizer_file
from foundry_core.checkpoints.names import named_checkpoints
from foundry_core.checkpoints.state import unchecked_manifest
from foundry_core.errors import CheckpointError, UsageError, did_you_mean, warn
from foundry_core.run_folder import MANIFEST, OPTIMIZER, TRAINER_STATE, WEIGHTS
from foundry_core.storage.manifest import sealed

MAIN = "main"
CARD = "README.md"

Files: TypeAlias = Mapping[str, Path | bytes]
"""The files of a revision by name: where each is, or its content."""


@dataclass(frozen=True)
class Revision:
    """A checkpoint that is published.

    Attributes:
        folder: The checkpoint, which is whole.
        names: The branches that it becomes: `step-1000`, `chck_10M` if the run has that name, and `main` for the last.
        manifest: The content of its MANIFEST.json.
    """

    folder: Path
    names: tuple[str, ...]
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Its optimizer step."""
        return checkpoint_step(self.folder)

    @property
    def weights(self) -> str:
        """The sha256 of its weights."""
        return str(self.manifest["files"][WEIGHTS]["sha256"])


def revisions_of(folders: Sequence[Path], leave_out: Iterable[str] = ()) -> list[Revision]:
    """Return the revisions of a run by step; temporary checkpoints are left out, unless it is the last one.

    Args:
        folders: The checkpoints of the run that are whole, by step.
        leave_out: Names of revisions, any of which leaves out the checkpoint with all its names.

    Raises:
        UsageError: A name to leave out does not exist, or nothing remains.
        CheckpointError: Two checkpoints have the same weights.
    """
    links = {target: link.name for link, target in named_checkpoints(folders[-1].parent).items()}
    found = []
    for folder in folders:
        manifest = unchecked_manifest(folder)
        if not manifest.get("ephemeral") or folder == folders[-1]:
            names = (f"step-{checkpoint_step(folder)}", *filter(None, [links.get(folder.name)]))
            found.append(Revision(folder, names, manifest))
    known = [name for each in found for name in each.names]
    for name in leave_out:
        if name not in known:
            raise UsageError(f"--leave-out {name}: there is no such revision.{did_you_mean(name, known)}")
    found = [each for each in found if not set(leave_out) & set(each.names)]
    if not found:
        raise UsageError("--leave-out leaves nothing to publish")
    _check_different(found)
    last = found[-1]
    return [*found[:-1], Revision(last.folder, (*last.names, MAIN), last.manifest)]


def _check_different(revisions: Iterable[Revision]) -> None:
    """Raise CheckpointError if two revisions have the same weights: a learning curve over them would be wrong."""
    first: dict[str, Revision] = {}
    for each in revisions:
        other = first.setdefault(each.weights, each)
        if other is not each:
            raise CheckpointError(
                f"{each.folder.parent}: the revisions {other.names[0]} and {each.names[0]} have the same weights "
                f"(sha256 {each.weights[:12]}), nothing is published: leave one of them out, such as by "
                f"--leave-out {other.names[0]}"
            )


def revision_files(revision: Revision, card: str, *, with_optimizer: bool = False) -> Files:
    """Return the files of a revision: the one place where they are chosen.

    Without the optimizer it is a model folder as `save_pretrained` writes it: nothing that only training reads, and
    not the manifest, which lists that. With it, it is a checkpoint from which training goes on.
    """
    folder, content = revision.folder, card.encode()
    only_for_training = (TRAINER_STATE, OPTIMIZER)
    listed = dict(revision.manifest["files"])
    files: dict[str, Path | bytes] = {name: folder / name for name in listed if name not in only_for_training}
    files[CARD] = content
    if not with_optimizer:
        return files
    try:
        check_resumable(folder, revision.manifest)
    except CheckpointError as error:
        warn(f"{revision.names[0]} is published without the optimizer: {error}")
        return files
    state = optimizer_file(folder)
    listed[OPTIMIZER] = listed.get(OPTIMIZER) or revision.manifest["optimizer"]
    listed[CARD] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    kept = {name: value for name, value in revision.manifest.items() if name not in ("optimizer", "sha256")}
    files |= {TRAINER_STATE: folder / TRAINER_STATE, OPTIMIZER: state, MANIFEST: sealed({**kept, "files": listed})}
    return files
