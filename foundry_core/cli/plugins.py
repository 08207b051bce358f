"""List the installed plugins, show one in detail, or check them all.

Two environment variables switch plugins on and off: FOUNDRY_PLUGINS names the
only ones to use, FOUNDRY_PLUGINS_DISABLE those not to use. Both take names of
packages, or of plugins as foundry plugins list shows them, separated by commas.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from foundry_core.cli import VERBS
from foundry_core.cli.common import add_plugin_argument, add_verb, hanging, listing, load_plugins, screen_width, table
from foundry_core.errors import PluginError, one_line
from foundry_core.registry.discovery import misnamed_in_environment
from foundry_core.registry.doctor import Finding, examine, facts

EXAMPLE = """\
examples:
  foundry plugins list
  foundry plugins show lstm
  foundry plugins doctor
  FOUNDRY_PLUGINS_DISABLE=foundry-rnn foundry plugins list --json"""

_LIST = """List each installed plugin: what it is, or what is wrong and how to fix it.

Architectures come first, then extensions, which a YAML makes active by naming
them under plugins:, then the commands that packages add to foundry."""

_SHOW = """Show a plugin: its package, the keys of its section of the YAML, its hooks, and
what an architecture can do with each of its example settings."""

_DOCTOR = """Import the light module of every installed plugin and check it: requirements,
descriptor, examples, hooks. With --deep, also import what the descriptors name:
models, collators, optimizers, tokenizer trainers, and commands; this imports
torch. (foundry check NAME checks what a plugin does.)

Prints a line with the fix on stderr for each problem, and exits with code 3."""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    example = "example:\n  foundry plugins"
    add_verb(verbs, "list", "list every plugin", _LIST, f"{example} list", list_plugins)
    show = add_verb(verbs, "show", "show one plugin in detail", _SHOW, f"{example} show lstm", show_plugin)
    doctors = add_verb(verbs, "doctor", "check every plugin", _DOCTOR, f"{example} doctor --deep", doctor)
    doctors.add_argument("--deep", action="store_true", help="resolve every import string of every descriptor")
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("name", metavar="NAME", help="an installed plugin, or an architecture registered with --plugin")
    add_plugin_argument(show)


def list_plugins(options: argparse.Namespace) -> None:
    findings = examine(VERBS)
    if options.json:
        print(_as_json(findings))
        return
    if not any(finding.point.kind == "architecture" for finding in findings):
        print("no architecture is installed; for instance: pip install foundry-gpt2")
    tables = []
    for kind in ("architecture", "extension", "command"):
        shown = [each for each in findings if each.point.kind == kind]
        if shown:
            states = [f"{each.state}: {each.problem}" if each.problem else each.summary for each in shown]
            tables.append(_table(kind, shown, states))
    if tables:
        print("\n\n".join(tables))


def _table(title: str, findings: list[Finding], states: list[str]) -> str:
    """Return a row for each plugin: the name that a user types, its package, and its state."""
    points = [each.point for each in findings]
    names = [point.module if point.kind == "extension" else point.name for point in points]
    packages = [f"{point.distribution} {point.version}" for point in points]
    return table((title, "package", ""), list(zip(names, packages, states, strict=True)))


def _as_json(findings: list[Finding]) -> str:
    keys = ("name", "kind", "target", "distribution", "version")
    facts = [
        {key: getattr(each.point, key) for key in keys}
        | {"state": each.state, "summary": each.summary, "problem": each.problem}
        for each in findings
    ]
    return json.dumps(facts, indent=1)


def doctor(options: argparse.Namespace) -> None:
    findings = examine(VERBS, deep=options.deep)
    wrong = [line for each in findings if each.state == "unusable" for line in (each.problem or "").split("\n")]
    problems = dict.fromkeys([*wrong, *misnamed_in_environment()])  # two that claim one name have the same line
    if options.json:
        print(_as_json(findings))
    elif findings:
        print(_table("plugin", findings, [each.state for each in findings]))
    if problems:
        raise PluginError("\n".join(problems))
    if not options.json:
        disabled = sum(each.state == "disabled" for each in findings)
        fine = len(findings) - disabled
        print(f"{fine} plugin{' is' if fine == 1 else 's are'} fine" + (f", {disabled} disabled" if disabled else ""))


def show_plugin(options: argparse.Namespace) -> None:
    load_plugins(options)
    known = facts(options.name)
    if options.json:
        print(json.dumps(known, indent=1))
        return
    print(hanging("", one_line(f"{known['name']}: {known['summary']}"), indent=2))
    print(listing(_head(known), indent="  "))
    if known["kind"] == "architecture":
        from foundry_core.cli.init import model_section
        from foundry_core.registry.loading import get_architecture

        print(f"\ncapabilities, with its example settings:\n{listing(_abilities(known['capabilities']), indent='  ')}")
        print(f"\n{model_section(get_architecture(options.name), screen_width())}")


def _head(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if known["distribution"] is None:
        yield "package", "none: registered in this process"
    else:
        yield "package", f"{known['distribution']} {known['version']}"
        yield "requires", ", ".join(known["requires"]) or "nothing"
        yield ("sources in" if known["editable"] else "installed in"), known["folder"]
        yield "entry point", f"{known['name']} = {known['target']}"
    if known["kind"] == "architecture":
        yield "model", known["model_class"]
        yield "plugin API", str(known["plugin_api_version"] or "not stated")
        yield "objectives", ", ".join(known["objectives"])
        yield "default tokenizer", known["default_tokenizer"]
    yield "hooks", ", ".join(known["hooks"]) or "none"


def _abilities(capabilities: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each capability with its value; with the examples that have it, where they differ."""

    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(value) if isinstance(value, list | tuple) else "no limit" if value is None else str(value)

    for name in next(iter(capabilities.values()), {}):
        examples: dict[str, list[str]] = {}
        for example, values in capabilities.items():
            examples.setdefault(shown(values[name]), []).append(example)
        parts = (f"{value} ({', '.join(names)})" if len(examples) > 1 else value for value, names in examples.items())
        yield name.replace("_", " "), "; ".join(parts)
