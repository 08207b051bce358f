"""The checkpoint on the command line: a checkpoint folder, or a run's folder for its newest valid checkpoint."""

from __future__ import annotations

from pathlib import Path

from foundry_core.errors import CheckpointError


def find_checkpoint(name: str) -> Path:
    from foundry_core.checkpoint import checkpoints, newest_valid

    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    if not checkpoints(folder):
        raise CheckpointError(f"{folder} is neither a checkpoint nor a run with checkpoints")
    return newest_valid(folder)[0]
