"""Convert a YAML of the old format, which has no model.architecture, to one that
means the same.

Prints one line on stderr for each changed key, with the reason. A file that
cannot be converted without a guess is refused, with one line for each problem.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from foundry_core.cli.common import path_argument, write_answer, yaml_scalar

EXAMPLE = """\
examples:
  foundry migrate old.yaml
  foundry migrate old.yaml -o new.yaml"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "old", type=path_argument, metavar="OLD.yaml", help="the configuration to convert; it is not changed"
    )
    parser.add_argument(
        "-o", "--output", type=path_argument, metavar="NEW.yaml", help="write to this new file instead of stdout"
    )


def execute(options: argparse.Namespace) -> None:
    from foundry_core.config.migration import migrate
    from foundry_core.config.yaml_source import YamlSource

    migration = migrate(YamlSource.read(options.old))
    write_answer("".join(f"{line}\n" for line in yaml_lines(migration.data)), options.output)
    sys.stderr.write("".join(f"{change}\n" for change in migration.changes))


def yaml_lines(data: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return sections and plain values as the lines of a YAML."""
    lines: list[str] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *yaml_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {yaml_scalar(value)}")
    return lines
