"""The suites that a local `make test` leaves out: they prove tools, and nothing that they depend on has changed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES: Mapping[str, tuple[str, ...]] = {
    "tests/conformance": ("foundry_core/testing/", "tests/conformance/"),
    "tests/faults": (
        "foundry_core/checkpoints/",
        "foundry_core/storage/",
        "foundry_core/training/",
        "tests/faults/",
        "tests/interruption.py",
        "tests/mutants.py",
        "tests/mutation.py",
    ),
}
"""Folders of tests, and the paths of which a change makes them worth carrying out."""


def changed_files(root: Path = ROOT) -> list[str] | None:
    """Return what differs from the commit before the last one, with untracked files; None where git has no answer."""
    found: list[str] = []
    for arguments in (
        ["diff", "--name-only", "--no-renames", "HEAD~1"],
        ["ls-files", "--others", "--exclude-standard"],
    ):
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found += done.stdout.splitlines()
    return found


def left_out(changed: Iterable[str] | None) -> list[str]:
    """Return the suites that no changed file concerns; none of them where it is not known what has changed."""
    if changed is None:
        return []
    names = list(changed)
    return [suite for suite, paths in SUITES.items() if not any(name.startswith(paths) for name in names)]
