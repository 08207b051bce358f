"""The plan of a study: what each of its cells will take, and all of them together."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from foundry_core.cli.common import large_imports, listing, load_plugins, table
from foundry_core.errors import UsageError, warned_once

_SUMMED = ("disk_bytes", "seconds")
_SHOWN = ("parameters", "steps", "training_words", "training_flops", "disk_bytes", "seconds")


def names_a_study(options: argparse.Namespace) -> bool:
    """Check whether the YAML is a study, whose cells are then planned. Raises UsageError for settings in addition."""
    from foundry_core.study.definition import is_study

    if not is_study(options.config):
        return False
    if options.overrides:
        raise UsageError(f"{options.config} is a study, which takes no settings here: change its file")
    load_plugins(options)
    return True


def print_study_plan(path: str, facts_of: Callable[[Any], dict[str, Any]], *, as_json: bool) -> None:
    """Print the plan of a study; its tokenizers and token files are made, or reused, and its widths found.

    Args:
        path: The study's YAML.
        facts_of: Returns the plan of an experiment. Called once for cells that differ in the seed only.
        as_json: Print JSON.
    """
    with large_imports():
        from foundry_core.study.definition import read_study
        from foundry_core.study.folder import prepare
        from foundry_core.training.progress import counting

    study = prepare(read_study(path))
    facts: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    widths: dict[str, list[str]] = {}
    with counting("planning", len(study.cells)) as progress, warned_once():
        for cell in study.cells:
            progress(cell.name)
            key = cell.but_for_the_seed
            if key not in facts:
                facts[key] = facts_of(cell.config)
            rows.append({"cell": cell.name, **facts[key], "matched": dict(cell.matched or {})})
            if cell.matched:
                widths.setdefault(_widths(cell.matched), []).append(cell.name)
    sums = {name: sum(row[name] for row in rows) for name in (*_SUMMED, "training_flops") if name in rows[0]}
    if as_json:
        print(json.dumps({"cells": rows, "sum": sums}, indent=1))
        return
    names = [name for name in _SHOWN if name in rows[0]]
    header = ("cell", *(_HEADERS[name] for name in names))
    lines = [(row["cell"], *(_cell(name, row[name]) for name in names)) for row in rows]
    total = ("sum", *(_cell(name, sums[name]) if name in sums else "" for name in names))
    print(table(header, [*lines, total]))
    if widths:
        print("\nWidths found:\n" + listing(((", ".join(cells), found) for found, cells in widths.items()), "  "))


_HEADERS = {
    "parameters": "parameters",
    "steps": "steps",
    "training_words": "words",
    "training_flops": "FLOPs",
    "disk_bytes": "disk",
    "seconds": "time",
}


def _cell(name: str, value: Any) -> str:
    from foundry_core.training.console import compact, duration

    if name == "seconds":
        return duration(value)
    if name == "disk_bytes":
        return f"{value / 1e6:,.1f} MB"
    return compact(value) if name in ("training_flops", "training_words") else f"{value:,}"


def _widths(matched: Mapping[str, int]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {width:,}" for key, width in matched.items())
