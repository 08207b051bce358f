"""List the architectures that installed packages ship. Reads package metadata; imports no plugin."""

from __future__ import annotations

import argparse
import json

from foundry_core.cli.common import table

EXAMPLE = "example:\n  foundry plugins list\n  foundry plugins list --json"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="one line for each architecture", description=__doc__)
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.plugins import installed

    points = [(point, len(claims)) for claims in installed().values() for point in claims]
    if options.json:
        keys = ("name", "target", "distribution", "version")
        print(json.dumps([{key: getattr(point, key) for key in keys} for point, _ in points], indent=1))
        return
    if not points:
        print("no architecture is installed; for instance: pip install foundry-gpt2")
        return
    rows = []
    for point, claims in points:
        note = "claimed by several packages: uninstall all but one" if claims > 1 else ""
        rows.append((point.name, point.distribution, point.version, point.target, note))
    print(table(("architecture", "package", "version", "from", ""), rows))
