"""The published parts of a run: a revision for each checkpoint, with its names and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from foundry_core.checkpoints.checkpoint import check_resumable, checkpoint_step, optimizer_file
from foundry_core.checkpoints.exported import exported_files
from foundry_core.checkpoints.names import named_checkpoints
from foundry_core.checkpoints.state import unchecked_manifest
from foundry_core.errors import CheckpointError, UsageError, did_you_mean, warn
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.building import read_description, release
from foundry_core.models.folder import open_tensors
from foundry_core.models.migrations import pending
from foundry_core.models.tensor_file import weights_file
from foundry_core.run_folder import MANIFEST, OPTIMIZER, TRAINER_STATE, WEIGHTS
from foundry_core.storage.manifest import sealed
from foundry_core.tokenization.tokenizer_folder import load_tokenizer

MAIN = "main"
CARD = "README.md"
ONLY_FOR_TRAINING = (TRAINER_STATE, OPTIMIZER, MANIFEST)
"""Files of a checkpoint that a revision has only with the optimizer."""

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


def candidates_of(folders: Sequence[Path]) -> list[Revision]:
    """Return what can be published of a run, by step: temporary checkpoints cannot, unless it is the last one.

    Args:
        folders: The checkpoints of the run that are whole, by step.
    """
    links = _names(folders[-1].parent)
    found = []
    for folder in folders:
        manifest = unchecked_manifest(folder)
        if not manifest.get("ephemeral") or folder == folders[-1]:
            names = (f"step-{checkpoint_step(folder)}", *filter(None, [links.get(folder.name)]))
            found.append(Revision(folder, names, manifest))
    return found


def check_known(leave_out: Iterable[str], candidates: Iterable[Sequence[Revision]], *, several: bool) -> None:
    """Raise UsageError if a name to leave out is not that of a revision of any run.

    Args:
        leave_out: The names.
        candidates: What can be published of each run.
        several: A name may have that of its run before it, `RUN/step-10`.
    """
    known = [name for run in candidates for each in run for name in each.names]
    if several:
        known += [f"{each.folder.parent.name}/{name}" for run in candidates for each in run for name in each.names]
    for name in leave_out:
        if name not in known:
            raise UsageError(f"--leave-out {name}: this is not a revision of a run here.{did_you_mean(name, known)}")


def revisions_of(candidates: Sequence[Revision], leave_out: Iterable[str] = (), before: str = "") -> list[Revision]:
    """Return the revisions of a run by step.

    Args:
        candidates: What can be published.
        leave_out: Names of revisions, any of which leaves out the checkpoint with all its names.
        before: What names may have before them, `RUN/` where there are several runs.

    Raises:
        UsageError: Nothing remains.
        CheckpointError: Two checkpoints have the same weights.
    """
    given = set(leave_out)
    found = [each for each in candidates if not given & {*each.names, *(f"{before}{name}" for name in each.names)}]
    if not found:
        raise UsageError(f"--leave-out leaves nothing of {candidates[0].folder.parent} to publish")
    _check_different(found, before)
    last = found[-1]
    return [*found[:-1], Revision(last.folder, (*last.names, MAIN), last.manifest)]


def _names(run: Path) -> dict[str, str]:
    """Return the name of each checkpoint that has one, by its folder's; of several, which are one model, the last."""
    links: dict[str, str] = {}
    for link, target in named_checkpoints(run).items():
        if target in links:
            warn(f"{links[target]} is not published: it is the same model as {link.name}, {target}")
        links[target] = link.name
    return links


def _check_different(revisions: Sequence[Revision], before: str) -> None:
    """Raise CheckpointError if revisions have the same weights: a learning curve over them would be wrong."""
    groups: dict[str, list[str]] = {}
    for each in revisions:
        groups.setdefault(each.weights, []).append(each.names[0])
    same = [names for names in groups.values() if len(names) > 1]
    if same:
        listed = "; ".join(f"{', '.join(names[:-1])} and {names[-1]}" for names in same)
        surplus = " ".join(f"--leave-out {before}{name}" for names in same for name in names[:-1])
        raise CheckpointError(
            f"{revisions[0].folder.parent}: revisions have the same weights, so that a learning curve over them would "
            f"be wrong: {listed}. Nothing is published: leave out all but one, such as by {surplus}"
        )


@dataclass(frozen=True)
class Shared:
    """Hold what the revisions of a run have in common.

    Attributes:
        files: Everything but the weights: the folder of `foundry export`, standalone if it can be.
        names: What weights are called there, by their names in a checkpoint, if it is anything else.
    """

    files: Mapping[str, bytes]
    names: Mapping[str, str]


def shared_by(revisions: Sequence[Revision]) -> Shared:
    """Return what the revisions of a run have in common.

    Raises:
        CheckpointError: A checkpoint has its weights under names that the installed plugin no longer uses.
        PluginError: The plugin is missing, or lacks its standalone file.
    """
    for each in revisions:
        description = read_description(each.folder)
        if any(step.weights for step in pending(description)):
            raise CheckpointError(
                f"{each.folder} was written by {release(description['plugin'])}, whose weights have other names than "
                "those of the installed version: publish it with that version"
            )
    folder = revisions[-1].folder
    model = BaseLanguageModel.from_pretrained(folder)
    standalone = model.config.architecture.standalone is not None
    files, exported = exported_files(model, load_tokenizer(folder), standalone=standalone)
    return Shared(files, exported.names)


def revision_files(revision: Revision, shared: Shared, card: str, *, with_optimizer: bool = False) -> Files:
    """Return the files of a revision: the one place where they are chosen.

    Without the optimizer it is a folder of `foundry export`: nothing that only training reads, and not the manifest,
    which lists that. With it, it is a checkpoint from which training goes on.
    """
    folder = revision.folder
    files: dict[str, Path | bytes] = {**shared.files, CARD: card.encode(), WEIGHTS: _weights(folder, shared.names)}
    if not with_optimizer:
        return files
    try:
        check_resumable(folder, revision.manifest)
    except CheckpointError as error:
        warn(f"{revision.names[0]} is published without the optimizer: {error}")
        return files
    before = revision.manifest["files"]
    listed = {name: before[name] for name in (WEIGHTS, TRAINER_STATE)}
    listed[OPTIMIZER] = before.get(OPTIMIZER) or revision.manifest["optimizer"]
    for name, content in files.items():
        if isinstance(content, bytes):
            listed[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    kept = {name: value for name, value in revision.manifest.items() if name not in ("optimizer", "sha256")}
    files |= {TRAINER_STATE: folder / TRAINER_STATE, OPTIMIZER: optimizer_file(folder)}
    return files | {MANIFEST: sealed({**kept, "files": listed})}


def _weights(folder: Path, names: Mapping[str, str]) -> Path | bytes:
    """Return the weights of a checkpoint under the names of others: its own file, if these are its names."""
    if not names:
        return folder / WEIGHTS
    with open_tensors(folder / WEIGHTS) as file:
        return b"".join(weights_file({names.get(name, name): file.get_tensor(name) for name in file.keys()}))  # noqa: SIM118
