"""What verbs share: the YAML on the command line, and answers as tables or YAML."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.errors import ConfigError, UsageError

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


def write_answer(text: str, output: str | None) -> None:
    """Print a text, or write it to a file that must not exist yet."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with Path(output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{output} exists and is not overwritten: name another file, or remove it") from error
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error


def yaml_scalar(value: Any) -> str:
    """A plain value as YAML that `YamlSource` reads back as the same value; text is quoted only where it must be."""
    from foundry_core.yaml_source import YamlSource

    if not isinstance(value, str):
        return json.dumps(value)
    # Both places where it can stand: what is plain after a key need not be plain in a list.
    try:
        trial = YamlSource.parse(f"key: {value} # comment\nlist: [{value}, {value}]\n", "").data
        plain = trial == {"key": value, "list": [value, value]}
    except ConfigError:
        plain = False
    if plain:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
