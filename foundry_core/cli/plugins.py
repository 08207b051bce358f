"""List the plugins that are installed, show all there is to know of one, or find out what is wrong.

FOUNDRY_PLUGINS, an allow-list, and FOUNDRY_PLUGINS_DISABLE switch plugins on and off: names of packages, or of
plugins as foundry plugins list has them, between commas.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, load_plugins, table
from foundry_core.errors import one_line

if TYPE_CHECKING:
    from foundry_core.registry.doctor import Finding

EXAMPLE = """\
examples:
  foundry plugins list
  foundry plugins show lstm
  foundry plugins doctor
  FOUNDRY_PLUGINS_DISABLE=foundry-rnn foundry plugins list --json"""

_LIST = """One line for each installed plugin: what it is, or what is wrong with it and the way out.

Architectures first, then extensions: modules that are active where plugins: of a YAML names them. Last the commands
that packages add to foundry."""

_SHOW = """Show a plugin: its package and where it is installed, what the architecture can do with its example settings,
every key of its section of the YAML, the hooks that its module implements."""

_DOCTOR = """Import every installed plugin's light module and check it: its requirement on foundry-core, plugin API,
descriptor, examples, hooks and what they offer. Of a command its name and that its module is there.

Each thing that is wrong is one line on stderr, with the way out; exit code 3 when there is one. What a model computes
is not looked at: foundry check NAME does that."""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, line: str, description: str, execute: Any) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=line,
            description=description,
            epilog=f"example:\n  foundry plugins {name}{' lstm' if name == 'show' else ''} --json",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="for programs")
        added.set_defaults(execute=execute)
        return added

    verb("list", "one line for each plugin", _LIST, list_plugins)
    showing = verb("show", "all there is to know of one", _SHOW, show_plugin)
    showing.add_argument("name", metavar="NAME", help="of an architecture or an extension: see foundry plugins list")
    add_plugin_argument(showing)
    verb("doctor", "check every one of them", _DOCTOR, doctor)


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
            (_name(finding), finding.point.distribution, finding.point.version, _in_words(finding))
            for finding in findings
            if finding.point.kind == kind
        ]
        if rows:
            print(table((kind, "package", "version", ""), rows))


def _name(finding: Finding) -> str:
    """What a YAML calls it, `model.architecture` or an item of `plugins:`; or what is typed."""
    return finding.point.module if finding.point.kind == "extension" else finding.point.name


def _in_words(finding: Finding) -> str:
    return f"{finding.state}: {finding.problem}" if finding.problem else finding.summary


def _as_json(findings: list[Finding]) -> str:
    keys = ("name", "kind", "target", "distribution", "version")
    return json.dumps(
        [
            {key: getattr(finding.point, key) for key in keys}
            | {"state": finding.state, "summary": finding.summary, "problem": finding.problem}
            for finding in findings
        ],
        indent=1,
    )


def doctor(options: argparse.Namespace) -> None:
    from foundry_core.cli import VERBS
    from foundry_core.errors import PluginError
    from foundry_core.registry.discovery import misnamed_in_environment
    from foundry_core.registry.doctor import examine

    findings = examine(VERBS)
    wrong = [finding.problem or "" for finding in findings if finding.state == "unusable"]
    # Two that claim one name have the same line.
    problems = list(dict.fromkeys([*wrong, *misnamed_in_environment()]))
    if options.json:
        print(_as_json(findings))
    elif findings:
        rows = [(_name(each), each.point.distribution, each.point.version, each.state) for each in findings]
        print(table(("plugin", "package", "version", ""), rows))
    if problems:
        raise PluginError("\n".join(problems))
    if not options.json:
        disabled = sum(finding.state == "disabled" for finding in findings)
        whole = len(findings) - disabled
        print(
            f"{whole} plugin{' is' if whole == 1 else 's are'} whole" + (f", {disabled} disabled" if disabled else "")
        )


def show_plugin(options: argparse.Namespace) -> None:
    from foundry_core.registry.doctor import facts

    load_plugins(options)
    known = facts(options.name)
    if options.json:
        print(json.dumps(known, indent=1))
        return
    print(one_line(f"{known['name']}: {known['summary']}"))
    for label, value in _head(known):
        print(one_line(f"  {label:<18} {value}"))
    if known["kind"] == "architecture":
        print(f"\n{_abilities(known['capabilities'])}\n\n{_keys(known['schema'])}")


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


def _abilities(capabilities: dict[str, dict[str, Any]]) -> str:
    """A row for each capability, a column for each example."""

    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(value) if isinstance(value, list | tuple) else "no limit" if value is None else str(value)

    names = next(iter(capabilities.values()), {})
    rows = [(name.replace("_", " "), *(shown(each[name]) for each in capabilities.values())) for name in names]
    return table(("with", *capabilities), rows)


def _keys(schema: dict[str, Any]) -> str:
    """Every key of the `model:` section, with what it accepts, its default and its meaning."""

    def rows(
        section: dict[str, Any], prefix: str, within: tuple[dict[str, Any], ...]
    ) -> Iterator[tuple[str, str, str, str]]:
        for name, entry in section["properties"].items():
            target = _resolved(entry, schema)
            if (prefix, name) == ("", "architecture"):
                continue
            # A section that holds its like is entered once.
            if "properties" in target and target not in within:
                yield from rows(target, f"{prefix}{name}.", (*within, target))
                continue
            required = "default" not in entry
            default = "" if required else json.dumps(entry["default"], ensure_ascii=False).strip('"')
            yield f"{prefix}{name}", _accepted(target, schema), default, entry.get("description", "")

    whole = _resolved(schema, schema)
    return table(("key under model:", "accepts", "default", "meaning"), list(rows(whole, "", (whole,))))


def _resolved(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the definition that it refers to."""
    if "$ref" not in entry:
        return entry
    definition: dict[str, Any] = schema["$defs"][entry["$ref"].rpartition("/")[2]]
    return definition


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _accepted(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
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
