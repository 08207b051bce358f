"""Every verb of `foundry` with its options and examples, from its parser."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

from docs.generator.text import block, code, escaped, page, prose, table
from foundry_core.cli import VERBS
from foundry_core.cli.common import add_verb


class _Help(argparse.HelpFormatter):
    """Writes usage 88 columns wide, whatever the terminal, and gives access to help texts with their defaults."""

    def __init__(self, prog: str, **_: Any):
        super().__init__(prog, width=88)

    def text(self, action: argparse.Action) -> str:
        return self._expand_help(action) if action.help else ""


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, as the command line makes it."""
    module = importlib.import_module(f"foundry_core.cli.{verb.replace('-', '_')}")
    verbs = argparse.ArgumentParser(prog="foundry").add_subparsers()
    example = getattr(module, "EXAMPLE", None)
    parser = add_verb(verbs, verb, VERBS[verb], module.__doc__, example, getattr(module, "execute", None))
    module.configure(parser)
    return parser


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the verbs inside a verb, such as `list` of `plugins`."""
    groups = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(groups[0].choices) if groups else {}


def verbs_page() -> str:
    """Return the page of the command line."""
    parts = [table(("verb", ""), [[f"[{verb}](#foundry-{verb})", escaped(summary)] for verb, summary in VERBS.items()])]
    parts += [part for verb in VERBS for part in _verb(f"foundry {verb}", VERBS[verb], parser_of(verb), 2)]
    introduction = (
        "`foundry VERB --help` prints what stands here. `--debug` before or after any verb shows the traceback of an "
        "error, and `foundry --version` the version. Packages add verbs of their own, which `foundry --help` lists. "
        "[Exit codes](errors.md) are the same for all verbs."
    )
    return page("Command line", introduction, *parts)


def _verb(name: str, summary: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} {code(name)}"
    yield prose(parser.description or f"{summary[:1].upper()}{summary[1:]}.")
    inner = below(parser)
    parser.formatter_class = _Help
    if not inner:
        first, *more = parser.format_usage().removeprefix("usage: ").splitlines()
        yield block("\n".join([first, *(line.removeprefix(" " * len("usage: ")) for line in more)]))
        yield "\n".join(_options(parser))
    if parser.epilog:
        title, _, lines = parser.epilog.partition("\n")
        yield f"{title.rstrip(':').capitalize()}:"
        yield block("\n".join(line.removeprefix("  ") for line in lines.splitlines()), "console")
    for each, under in inner.items():
        yield from _verb(f"{name} {each}", each, under, level + 1)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = _Help(parser.prog)
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        shown = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
        metavar = (
            " ".join(shown) if isinstance(shown, tuple) else str(shown or ("" if action.nargs == 0 else action.dest))
        )
        if not action.option_strings:
            names = code(metavar)
        else:
            names = ", ".join(code(f"{option} {metavar}".strip()) for option in action.option_strings)
        yield f"* {names}: {escaped(formatter.text(action))}"
