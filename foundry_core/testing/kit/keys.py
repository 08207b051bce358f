"""The committed names of the weights: `state_keys.txt` next to a plugin's light module.

    [lstm: tiny, causal_lm]
    [lstm: tiny, masked_lm]
    embedding.weight
    output_layer.bias

A title names architecture, example and objective; consecutive titles share the list below them.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from foundry_core.errors import UsageError
from foundry_core.registry.architecture import Architecture
from foundry_core.registry.loading import import_string, shipped_by
from foundry_core.storage.files import write_file
from foundry_core.testing.kit.case import ODD_SIZES, Case, Suite

_FILE = "state_keys.txt"
_HEADER = "# Names of the weights, by which saved models are read. Written by: foundry check NAME --write-keys\n"


def keys_file(architecture: Architecture) -> Path | None:
    """Return the path of a package's list of names; None for an architecture that is registered in this process."""
    point = shipped_by(architecture.name)
    return None if point is None else Path(import_string(f"{point.module}:__file__")).with_name(_FILE)


def title(case: Case) -> str:
    return f"{case.architecture.name}: {case}"


def read_keys(path: Path) -> dict[str, list[str]]:
    """Return the names by title; an empty dictionary if there is no such file."""
    lists: dict[str, list[str]] = {}
    titles: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    content = (line for line in lines if line and not line.startswith("#"))
    for is_title, group in groupby(content, key=lambda line: line.startswith("[")):
        if is_title:
            titles = [line[1:-1] for line in group]
        else:
            names = list(group)
            lists |= dict.fromkeys(titles, names)
    return lists


def write_keys(suite: Suite) -> Path:
    """Write the current names of an architecture; those of other architectures in the same file stay."""
    name = suite.architecture.name
    path = keys_file(suite.architecture)
    if path is None:
        raise UsageError(f"--write-keys: '{name}' is registered in this process, so there is no package to write to")
    others = {title: names for title, names in read_keys(path).items() if title.partition(":")[0] != name}
    own = {title(case): sorted(case.model().state_dict()) for case in suite.cases if case.example != ODD_SIZES}
    titles: dict[tuple[str, ...], list[str]] = {}
    for each, names in sorted({**others, **own}.items()):
        titles.setdefault(tuple(names), []).append(f"[{each}]")
    text = _HEADER + "".join(f"{line}\n" for names, group in titles.items() for line in ("", *group, *names))
    write_file(path, text.encode())
    return path
