"""Run the conformance kit on an architecture, or the checks of an objective, an
optimizer, a schedule, a tokenizer type, an order, a corpus step, a suite, an
observer or a command: one line for each check, and how to fix those that fail.

NAME is that of an architecture or of a command, the value that a YAML would
name, or the module of an observer; with --plugin also one of a single file.
The exit code is 0 if every check that applies passes, and 9 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys

from foundry_core.cli.common import add_plugin_argument, large_imports, load_plugins
from foundry_core.cli.new_plugin import KINDS
from foundry_core.errors import ConformanceError, UsageError

EXAMPLE = """\
examples:
  foundry check lstm                                 all checks: half a minute
  foundry check lstm --only causal-leak masking      one check and one group
  foundry check my_arch --plugin my_arch.py --json   a class in a single file
  foundry check lion --settings beta1=0.95           an optimizer of a package"""

_WITH_SETTINGS = ("objective", "optimizer", "schedule", "order", "step")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s NAME [options]"  # NAME first: after --only it would be taken for a check
    parser.add_argument("name", metavar="NAME", help="what to check, installed or registered with --plugin")
    parser.add_argument("--kind", choices=KINDS, metavar="KIND", help=f"what NAME is: {', '.join(KINDS)}")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", help="run only these checks or groups")
    parser.add_argument("--expect", nargs="+", default=(), metavar="CHECK", help="checks that should fail")
    settings = "settings of an objective, optimizer, schedule, order or step; default: its own defaults"
    parser.add_argument("--settings", nargs="+", default=(), metavar="KEY=VALUE", help=settings)
    parser.add_argument("--write-keys", action="store_true", help="only write the weights' names to state_keys.txt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.testing.extensions.subjects import find

    load_plugins(options)
    subject = find(options.name, options.kind, options.settings)
    if subject.kind != "architecture" and options.write_keys:
        raise UsageError(f"--write-keys is for architectures: '{subject.name}' is of kind {subject.kind}")
    if subject.kind not in _WITH_SETTINGS and options.settings:
        kinds = "objectives, optimizers, schedules, orders and steps"
        raise UsageError(f"--settings is for {kinds}: '{subject.name}' is of kind {subject.kind}")
    with large_imports():
        from foundry_core.registry.loading import shipped_by
        from foundry_core.testing.extensions.run import run
        from foundry_core.testing.kit import report
        from foundry_core.testing.kit.keys import write_keys
        from foundry_core.testing.kit.run import results, suite_of

    name = options.name
    if options.write_keys:
        print(write_keys(suite_of(name)))
        return
    expected = dict.fromkeys(options.expect, "--expect")
    if subject.kind == "architecture":
        found = results(name, names=options.only, expected_failures=expected)
    else:
        found = run(subject, options.only, expected)
    done = []
    for result in found:
        done.append(result)
        if not options.json:
            print(report.row(result), flush=True)
    failed = [result for result in done if not result.good]
    causes = report.causes(done)
    if options.json:
        follows_from = {each.check.name: cause.check.name for cause, following in causes for each in following}
        facts = [
            {
                "group": result.check.group,
                "check": result.check.name,
                "invariant": result.check.invariant,
                "outcome": result.outcome,
                "reason": result.reason or None,
                "fix": result.check.fix if result.outcome == "failed" else None,
                "follows_from": follows_from.get(result.check.name),
                "not_looked_at": list(result.unseen),
                "seconds": round(result.seconds, 3),
            }
            for result in done
        ]
        print(json.dumps(facts, indent=1))
    else:
        for cause, following in causes:
            print(f"\n{report.explained(cause, following)}")
        # Which copy was checked: an installed package need not be the folder that one works in.
        suite = suite_of(name) if subject.kind == "architecture" else None
        owner, home = (subject.point, subject.home) if suite is None else (shipped_by(name), suite.home)
        places = ", ".join(str(place) for place in (owner, home) if place is not None)
        print(f"\n{name}{f' ({places})' if places else ''}\n{report.counts(done)}")
    sys.stdout.flush()
    if failed:
        names = ", ".join(cause.check.name for cause, _ in causes)
        others = f" and {len(failed) - len(causes)} that fail with it" if len(failed) > len(causes) else ""
        raise ConformanceError(f"{name} does not conform: {names}{others}") from causes[0][0].error
