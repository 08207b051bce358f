"""Names of milestones: links beside the checkpoints of a run, each of which stays as it was published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foundry_core.run_folder import checkpoint_name, milestone_words
from foundry_core.storage.files import StorageError
from foundry_core.storage.links import make_link


def name_checkpoints(output_dir: Path, names: Mapping[str, int]) -> list[str]:
    """Make the links that are missing, to the checkpoints that are there.

    Args:
        output_dir: The folder of a run.
        names: The step of each name.

    Returns:
        A line for each that cannot be made.
    """
    problems = []
    for name, step in names.items():
        target = checkpoint_name(step)
        if (output_dir / target).is_dir():
            try:
                make_link(output_dir / name, target)
            except StorageError as error:
                problems.append(str(error))
    return problems


def named_checkpoints(output_dir: Path) -> dict[Path, str]:
    """Return the links in the folder of a run that have the name of a milestone, and what each leads to."""
    links = [path for path in output_dir.glob("chck_*") if milestone_words(path.name) is not None and path.is_symlink()]
    return {path: str(path.readlink()) for path in sorted(links, key=lambda path: milestone_words(path.name) or 0)}
