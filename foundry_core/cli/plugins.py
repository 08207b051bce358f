"""List the architectures that installed packages ship, and what is wrong with one that cannot be used.

Imports the plugins' descriptors, which leave torch alone.
"""

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
    from foundry_core.errors import PluginError
    from foundry_core.plugins import get_architecture, installed

    points = []
    for name, claims in installed().items():
        try:
            summary, problem = get_architecture(name).summary, ""
        except PluginError as error:
            summary, problem = "", str(error)
        points += [(point, summary, problem) for point in claims]
    if options.json:
        keys = ("name", "target", "distribution", "version")
        facts = [
            {key: getattr(point, key) for key in keys} | {"summary": summary, "problem": problem or None}
            for point, summary, problem in points
        ]
        print(json.dumps(facts, indent=1))
        return
    if not points:
        print("no architecture is installed; for instance: pip install foundry-gpt2")
        return
    rows = [
        (point.name, point.distribution, point.version, f"unusable: {problem}" if problem else summary)
        for point, summary, problem in points
    ]
    print(table(("architecture", "package", "version", ""), rows))
