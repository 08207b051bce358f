"""The runs in the folders that a command line names: runs, studies, folders of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foundry_core.analysis.runs import Run, is_run
from foundry_core.config.settings import SEEDS, covered
from foundry_core.errors import CheckpointError, warn
from foundry_core.run_folder import CELLS, no_checkpoints
from foundry_core.storage.manifest import parse_json, read_plain_file


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Return the runs in the order of the paths, each once.

    Args:
        paths: Folders of runs, of studies, and other folders whose subfolders are runs.

    Raises:
        CheckpointError: A path is none of these.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        for run in [Run(path)] if is_run(path) else _below(path):
            found.setdefault(run.folder.resolve(), run)
    return list(found.values())


def _below(path: Path) -> list[Run]:
    if not path.is_dir():
        problem = "it is not a folder" if path.exists() else "there is no such folder"
        raise CheckpointError(f"{path} is not a run: {problem}")
    cells = _cells(path)
    runs = [Run(folder, values) for folder, values in cells.items() if is_run(folder)]
    if waiting := len(cells) - len(runs):
        warn(f"{path}: {waiting} of {len(cells)} cells have not begun and are left out")
    runs = runs or [Run(each) for each in sorted(path.iterdir()) if is_run(each)]
    if not runs:
        lacking = "is neither a run nor a folder of runs: none of its subfolders is a run"
        raise CheckpointError(no_checkpoints(path, lacking))
    return runs


def _cells(path: Path) -> dict[Path, dict[str, str]]:
    """Return the folders of the cells of a study in its order, each with its values on every axis but the seeds."""
    file = path / CELLS
    if not file.is_file():
        return {}
    try:
        study = parse_json(file, read_plain_file(file))
        axes = [each["name"] for each in study["axes"] if not all(covered(key, SEEDS) for key in each["keys"])]
        return {
            path / str(each["folder"]): {axis: str(each["values"][axis]) for axis in axes} for each in study["cells"]
        }
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a list of cells: {type(error).__name__}: {error}") from error
