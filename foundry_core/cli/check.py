"""Carry out the conformance kit on an architecture: one line for each check, and what to do about one that fails.

Exit code 0 when every check that applies passes, 9 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, large_imports, load_plugins
from foundry_core.errors import ConformanceError

if TYPE_CHECKING:
    from foundry_core.testing.kit.run import Result

EXAMPLE = """\
examples:
  foundry check lstm                                   all checks, about half a minute
  foundry check lstm --only causal-leak masking        a check, and a whole group
  foundry check my_arch --plugin my_arch.py --json     a class that is still a file"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="NAME", help="an architecture: see foundry plugins list")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", help="these checks or groups of checks")
    parser.add_argument(
        "--expect", nargs="+", default=(), metavar="CHECK", help="checks that are known to fail; one that passes fails"
    )
    parser.add_argument(
        "--write-keys", action="store_true", help="commit to the present names of the weights, instead of checking"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_plugin_argument(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    load_plugins(options)
    with large_imports():
        from foundry_core.testing.kit.keys import write_keys
        from foundry_core.testing.kit.run import results, suite_of

    if options.write_keys:
        print(write_keys(suite_of(options.architecture)))
        return
    expected = dict.fromkeys(options.expect, "expected on the command line")
    carried_out = []
    for result in results(options.architecture, names=options.only, expected_failures=expected):
        carried_out.append(result)
        if not options.json:
            print(_line(result), flush=True)
    failed = [result for result in carried_out if not result.good]
    # A model that does not run fails every check with one and the same error: it is told of once.
    causes = list({id(result.error or result): result for result in reversed(failed)}.values())[::-1]
    if options.json:
        print(json.dumps([_facts(result) for result in carried_out], indent=1))
    else:
        for result in causes:
            print(f"\n{result.check.name}: {result.check.invariant}\n  {result.reason}\n  {result.check.fix}")
        seconds = sum(result.seconds for result in carried_out)
        counts = [
            f"{sum(result.outcome == outcome for result in carried_out)} {outcome}"
            for outcome in ("passed", "failed", "expected", "skipped")
        ]
        print(f"\n{_described(options.architecture)}: {', '.join(counts)} in {seconds:.1f} s")
        reason = suite_of(options.architecture).without_one_layer
        if reason is not None:
            print(f"nothing was tried with one layer: {reason}")
    sys.stdout.flush()
    if failed:
        names = ", ".join(result.check.name for result in causes)
        others = f" and {len(failed) - len(causes)} that fail with it" if len(failed) > len(causes) else ""
        raise ConformanceError(f"{options.architecture} does not conform: {names}{others}") from failed[0].error


def _described(name: str) -> str:
    """The architecture, and which copy of which package it was: an installed one is not the folder one works in."""
    from foundry_core.registry.loading import shipped_by
    from foundry_core.testing.kit.run import suite_of

    point, home = shipped_by(name), suite_of(name).home
    facts = [str(fact) for fact in (point, home) if fact is not None]
    return f"{name} ({', '.join(facts)})" if facts else name


def _line(result: Result) -> str:
    reason = f"  {result.reason}" if result.outcome in ("skipped", "expected") else ""
    line = f"{result.check.group:<12} {result.check.name:<24} {result.outcome:<8} {result.seconds:5.1f} s"
    return f"{line}{reason}"


def _facts(result: Result) -> dict[str, Any]:
    return {
        "group": result.check.group,
        "check": result.check.name,
        "invariant": result.check.invariant,
        "outcome": result.outcome,
        "reason": result.reason or None,
        "fix": result.check.fix if result.outcome == "failed" else None,
        "seconds": round(result.seconds, 3),
    }
