"""Symbolic links between the folders of a run. Light."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from foundry_core.storage import files
from foundry_core.storage.files import StorageError, hidden_name, reported


def make_link(path: Path, target: str) -> None:
    """Make a symbolic link, atomically and durably; one that leads elsewhere is replaced.

    Args:
        path: The link.
        target: What it leads to, relative to its folder.

    Raises:
        StorageError: Something else has its name, or the file system has no links.
    """
    if path.is_symlink():
        if str(path.readlink()) == target:
            return
    elif os.path.lexists(path):
        raise StorageError(f"cannot write {path}: something that is not a link has this name; remove it")
    hidden = hidden_name(path, "tmp")
    try:
        with reported(path):
            files.disk.link(hidden, target)
            files.disk.rename(hidden, path)
            files.disk.sync_folder(path.parent)
    except StorageError:
        with suppress(OSError):
            files.disk.remove_file(hidden)
        raise
