"""Convert a YAML of the format before model.architecture into one that validates and means the same.

The YAML goes to stdout, or to the file of --output; what was renamed, replaced, added or dropped goes to stderr, one
line for each key, with the reason. A file that cannot be converted without a guess is refused, every problem at its
line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from foundry_core.cli.common import write_answer, yaml_scalar

EXAMPLE = """\
examples:
  foundry migrate old.yaml
  foundry migrate old.yaml -o new.yaml"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD.yaml", help="the configuration to convert; it is left as it is")
    parser.add_argument("-o", "--output", metavar="NEW.yaml", help="a file that does not exist yet; default: stdout")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.config.migration import migrate
    from foundry_core.config.yaml_source import YamlSource

    migration = migrate(YamlSource.read(options.old))
    write_answer("".join(f"{line}\n" for line in yaml_lines(migration.data)), options.output)
    sys.stderr.write("".join(f"{change}\n" for change in migration.changes))


def yaml_lines(data: Mapping[str, Any], indent: str = "") -> list[str]:
    """Sections and plain values as the lines of a YAML."""
    lines: list[str] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *yaml_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {yaml_scalar(value)}")
    return lines
