"""Retention: removing checkpoints once a newer one is known to be whole."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from foundry_core.checkpoints.checkpoint import checkpoints, step_of
from foundry_core.checkpoints.state import unchecked_manifest
from foundry_core.errors import CheckpointError
from foundry_core.storage.files import StorageError, remove_set_aside, set_aside


def is_ephemeral(folder: Path) -> bool:
    """Check whether a checkpoint was saved for crash safety only; False if its manifest cannot be read."""
    try:
        return unchecked_manifest(folder)["ephemeral"] is True
    except (CheckpointError, KeyError, TypeError):
        return False


def retire(
    output_dir: Path, keep: int | None, newest: Path, *, ephemeral: Collection[Path], damaged: Collection[Path]
) -> list[str]:
    """Remove the ephemeral checkpoints before `newest`, and the permanent ones older than the last `keep` of them.

    That of step 0 stays.

    Args:
        newest: Known to be whole, because it has just been published or loaded.
        damaged: Those that were passed over; they do not count among the last.

    Returns:
        A line for each folder that could not be removed.
    """
    older = [path for path in checkpoints(output_dir) if step_of(path) < step_of(newest)]
    permanent = [path for path in (*older, newest) if path not in ephemeral and step_of(path) > 0]
    last = [path for path in permanent if path not in damaged][-keep:] if keep is not None else permanent
    victims = [path for path in older if path in ephemeral]
    victims += permanent[: permanent.index(last[0])] if last else []
    problems = []
    for victim in victims:
        try:
            set_aside(victim)
        except StorageError as error:
            problems.append(str(error))
    return problems + remove_set_aside(output_dir)
