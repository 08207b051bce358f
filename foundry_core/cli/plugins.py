"""List the installed plugins, show one in detail, or check them all.

Two environment variables switch plugins on and off: FOUNDRY_PLUGINS names the
only ones to use, FOUNDRY_PLUGINS_DISABLE those not to use. Both take names of
packages, or of plugins as foundry plugins list shows them, separated by commas.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, hanging, listing, load_plugins, table
from foundry_core.errors import one_line

if TYPE_CHECKING:
    from foundry_core.registry.doctor import Finding

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
descriptor, examples, hooks. (foundry check NAME checks a model.)

Each problem is one line on stderr, with how to fix it, and exit code 3."""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, line: str, description: str, execute: Any) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=line,
            description=description,
            epilog=f"example:\n  foundry plugins {name}{' lstm' if name == 'show' else ''}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(execute=execute)
        return added

    verb("list", "list every plugin", _LIST, list_plugins)
    show = verb("show", "show one plugin in detail", _SHOW, show_plugin)
    show.add_argument("name", metavar="NAME", help="a plugin that foundry plugins list shows")
    add_plugin_argument(show)
    verb("doctor", "check every plugin", _DOCTOR, doctor)


def list_plugins(options: argparse.Namespace) -> None:
    from foundry_core.cli import VERBS
    from foundry_core.registry.doctor import examine

    findings = examine(VERBS)
    if options.json:
        print(_as_json(findings))
        return
    if not any(finding.point.kind == "architecture" for finding in findings):
        print("no architecture is installed; for instance: pip install foundry-gpt2")
    for kind in ("architecture", "extension", "command"):
        rows = [
            (*_names(each), f"{each.state}: {each.problem}" if each.problem else each.summary)
            for each in findings
            if each.point.kind == kind
        ]
        if rows:
            print(table((kind, "package", ""), rows))


def _names(finding: Finding) -> tuple[str, str]:
    """Return what a YAML or a user types to use a plugin, and its package."""
    point = finding.point
    return point.module if point.kind == "extension" else point.name, f"{point.distribution} {point.version}"


def _as_json(findings: list[Finding]) -> str:
    keys = ("name", "kind", "target", "distribution", "version")
    facts = [
        {key: getattr(each.point, key) for key in keys}
        | {"state": each.state, "summary": each.summary, "problem": each.problem}
        for each in findings
    ]
    return json.dumps(facts, indent=1)


def doctor(options: argparse.Namespace) -> None:
    from foundry_core.cli import VERBS
    from foundry_core.errors import PluginError
    from foundry_core.registry.discovery import misnamed_in_environment
    from foundry_core.registry.doctor import examine

    findings = examine(VERBS)
    wrong = [each.problem or "" for each in findings if each.state == "unusable"]
    problems = dict.fromkeys([*wrong, *misnamed_in_environment()])  # two that claim one name have the same line
    if options.json:
        print(_as_json(findings))
    elif findings:
        print(table(("plugin", "package", ""), [(*_names(each), each.state) for each in findings]))
    if problems:
        raise PluginError("\n".join(problems))
    if not options.json:
        disabled = sum(each.state == "disabled" for each in findings)
        fine = len(findings) - disabled
        print(f"{fine} plugin{' is' if fine == 1 else 's are'} fine" + (f", {disabled} disabled" if disabled else ""))


def show_plugin(options: argparse.Namespace) -> None:
    from foundry_core.registry.doctor import facts

    load_plugins(options)
    known = facts(options.name)
    if options.json:
        print(json.dumps(known, indent=1))
        return
    print(hanging("", one_line(f"{known['name']}: {known['summary']}"), indent=2))
    print(listing(_head(known), indent="  "))
    if known["kind"] == "architecture":
        print("\ncan do, with its examples:")
        print(listing(_abilities(known["capabilities"]), indent="  "))
        print("\nkeys under model:")
        for key, accepted, meaning in _keys(known["schema"]):
            print(hanging(f"  {key}: ", one_line(accepted), indent=4))
            if meaning:
                print(hanging("    ", one_line(meaning)))


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
        yield "plugin API", str(known["plugin_api_version"])
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
        yield (
            name.replace("_", " "),
            "; ".join(
                f"{value} ({', '.join(names)})" if len(examples) > 1 else value for value, names in examples.items()
            ),
        )


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield every key of the `model:` section, with what it accepts and its default, and its meaning."""

    def keys(section: dict[str, Any], prefix: str, within: list[Any]) -> Iterator[tuple[str, str, str]]:
        for name, entry in section["properties"].items():
            target = _resolved(entry, schema)
            if "properties" in target and target not in within:  # a section that contains itself is entered once
                yield from keys(target, f"{prefix}{name}.", [*within, target])
            elif (prefix, name) != ("", "architecture"):
                default = json.dumps(entry["default"], ensure_ascii=False).strip('"') if "default" in entry else None
                accepted = _accepted(target, schema) + (f"; default {default}" if default is not None else "")
                yield f"{prefix}{name}", accepted, entry.get("description", "")

    whole = _resolved(schema, schema)
    return keys(whole, "", [whole])


def _resolved(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema, or the definition that it refers to."""
    return schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _accepted(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a JSON schema in a few words."""
    from foundry_core.schema import ConfigSection

    if "anyOf" in entry:
        return " | ".join(_accepted(_resolved(each, schema), schema) for each in entry["anyOf"])
    if "enum" in entry or "const" in entry:
        return " | ".join(map(str, entry.get("enum", [entry.get("const")])))
    bounds = [
        f"{sign} {entry[key]:,}"
        for key, sign in _BOUNDS.items()
        if key in entry and abs(entry[key]) != ConfigSection.LARGEST  # which every integer has
    ]
    return " ".join([str(entry.get("type", "any")), ", ".join(bounds)]).strip()
