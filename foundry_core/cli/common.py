"""What verbs share: the YAML on the command line, and answers as tables or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foundry_core.config import ExperimentConfig


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The YAML, its overrides, and plugin files."""
    parser.add_argument("config", metavar="YAML", help="the experiment's configuration")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the YAML"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file that registers an architecture; may be repeated",
    )


def read_config(options: argparse.Namespace) -> ExperimentConfig:
    """The configuration that the command line names."""
    from foundry_core.config import load_config
    from foundry_core.plugins import load_plugin_file

    for path in options.plugin:
        load_plugin_file(path)
    return load_config(options.config, options.overrides)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns, two spaces apart; columns after the first that hold figures are right-aligned."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        column > 0 and all(not row[column] or row[column][0] in "0123456789-+." for row in rows)
        for column in range(len(header))
    ]
    lines = []
    for row in cells:
        parts = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "-" * len(lines[0]) if len(lines[0]) >= sum(widths) else "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)
