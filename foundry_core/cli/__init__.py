"""The `foundry` command. Light: a verb's module imports torch and transformers when the verb runs.

Installed packages add commands through the entry points of `foundry.commands` (see plugins/README.md). They are listed
from metadata and imported only when called.

The exit code is 0 only on success. A user's error is one line on stderr, or one line for each problem of a file;
`--debug` adds the traceback.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from foundry_core.cli.common import add_verb, discard_lost, make_printable, open_closed_streams
from foundry_core.errors import (
    ConfigError,
    FoundryError,
    PluginError,
    StoppedError,
    UsageError,
    debug,
    did_you_mean,
    one_line,
    tell,
    traced,
)

# Each verb and its line in `foundry --help`; its module here has the same name.
VERBS = {
    "quickstart": "train three models on a built-in toy language",
    "init": "write a commented YAML for an architecture",
    "validate": "check a YAML without training anything",
    "plan": "estimate parameters, steps, disk, memory and time",
    "tokenizer": "train the tokenizer of a YAML",
    "data": "encode the corpora of a YAML, or compare two",
    "train": "train the model that a YAML describes",
    "evaluate": "score a checkpoint on a text or on suites",
    "surprisal": "write the surprisal of each word of a text as a table",
    "study": "train a grid of runs under equal conditions",
    "compare": "compare runs: a table, and a page for a co-author",
    "verify": "check the files and the history of a run",
    "seen": "show what a run has trained on, and how often",
    "generate": "generate text from a checkpoint",
    "export": "write a checkpoint as a folder for other tools",
    "push": "publish a run or a study on the Hugging Face hub",
    "migrate": "convert a YAML of the old format",
    "schema": "print the JSON schema of the YAML, for editors",
    "check": "run the checks of an architecture or another plugin",
    "plugins": "list, show and check the installed plugins",
    "new-plugin": "write a package for a new plugin",
}

_PRINTING = {
    *("init", "validate", "plan", "evaluate", "surprisal", "seen", "generate"),
    *("compare", "migrate", "schema", "plugins"),
}
"""Verbs that print last: they are done when the reader of their output has gone."""

_NO_OUTPUT = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""Errors of writing to stdout, which have no file name. Errors of files have one."""

_EXAMPLES = """\
examples:
  foundry quickstart                  a first look: two minutes on two cores
  foundry init lstm > lstm.yaml       write a configuration to start from
  foundry plan lstm.yaml              estimate its size, time and memory
  foundry train lstm.yaml             train it
  foundry train lstm.yaml --resume    continue after an interruption
  foundry train lstm.yaml training.learning_rate=1e-3 experiment_name=faster

foundry VERB --help shows the options of a verb and an example.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process by default, and return the exit code."""
    open_closed_streams()
    make_printable()
    try:
        return _exit_code(list(sys.argv[1:] if argv is None else argv))
    finally:
        for stream in (sys.stdout, sys.stderr):
            discard_lost(stream)


def _exit_code(arguments: list[str]) -> int:
    debug("--debug" in arguments)
    try:
        return _execute(arguments)
    except KeyboardInterrupt as interrupt:
        tell(f"interrupted{f': {interrupt}' if str(interrupt) else ''}\n")
        return 130
    except Exception as error:  # noqa: BLE001 - an unexpected error is one line, too
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_OUTPUT:
            if isinstance(error, BrokenPipeError) and _verb(arguments) in _PRINTING:
                return 0
            tell(f"error: cannot write the output: {error.strerror}\n")
            return 8
        traced(error)
        if isinstance(error, UnicodeEncodeError):  # a name that the locale, or UTF-8, cannot represent
            name = one_line(ascii(error.object[:200]))
            advice = "rename it, or use a UTF-8 locale (LC_ALL=C.UTF-8)"
            tell(f"error: {name} cannot be written as {error.encoding}: {advice}\n")
            return UsageError.exit_code
        if isinstance(error, FoundryError):
            prefix = "" if isinstance(error, ConfigError | StoppedError) else "error: "
            tell("".join(f"{prefix}{one_line(line)}\n" for line in str(error).split("\n") if line))
            return error.exit_code
        from foundry_core.registry.loading import blame

        plugin = blame(error)
        if plugin is not None:
            tell(f"error: {one_line(plugin)} (--debug shows the traceback)\n")
            return PluginError.exit_code
        reason = one_line(" ".join(str(error).split()))
        tell(f"internal error: {type(error).__name__}: {reason} (--debug shows where; please report it)\n")
        return 70


def _verb(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _execute(arguments: list[str]) -> int:
    verb = _verb(arguments)
    # Listing all verbs takes 2 of 3 ms: only where an option before the verb, such as --help, may ask for it.
    before = arguments if verb is None else arguments[: arguments.index(verb)]
    parser = _parser(verb, listing=verb is None or any(option != "--debug" for option in before))
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one go: settings that come after an option are left over. So is --debug
    # after the verb.
    settings = [argument for argument in rest if hasattr(options, "overrides") and not argument.startswith("-")]
    unknown = [argument for argument in rest if argument not in (*settings, "--debug")]
    if unknown:
        parser.error(f"unknown argument: {unknown[0]}")
    if settings:
        options.overrides += settings
    options.arguments = arguments
    if verb is None:
        parser.print_help()
        return 2
    if not callable(getattr(options, "execute", None)):
        raise PluginError(
            f"the command '{verb}' {_commands(verb)[verb]} does nothing: its configure(parser) must call "
            "set_defaults(execute=...)"
        )
    options.execute(options)
    sys.stdout.flush()
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, and whose optional values are one of their choices."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse; argparse would take the YAML or the setting after `--resume` for its value, so they change places."""
        given = list(sys.argv[1:] if args is None else args)
        optional = {
            name: action.choices
            for action in self._actions
            if action.nargs == "?" and action.choices
            for name in action.option_strings
        }
        for at in range(len(given) - 1):
            option, following = given[at : at + 2]
            if option in optional and not following.startswith("-") and following not in optional[option]:
                given[at : at + 2] = following, option
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        greedy = [each.option_strings[0] for each in self._actions if each.option_strings and each.nargs == "+"]
        if "are required" in message and greedy:
            message += f": name it before {' and '.join(greedy)}, which take all that follows"
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def _parser(chosen: str | None, *, listing: bool) -> argparse.ArgumentParser:
    """Return the parser, with the options of the chosen verb; `listing`: and the names of all others."""
    from foundry_core import __version__

    parser = _Parser(
        prog="foundry",
        description="Train small language models of any architecture under equal conditions,\nfrom one YAML.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"model-foundry {__version__}", help="show the version")
    # argparse makes the first column as wide as the metavar: this one leaves room for the indented names below it.
    verbs = parser.add_subparsers(metavar="VERB [options]", title="verbs")
    known = VERBS if chosen in VERBS else VERBS | _commands(chosen)
    if chosen is not None and chosen not in known:
        parser.error(f"unknown verb '{chosen}'.{did_you_mean(chosen, known)}")
    for name, summary in known.items():
        if name == chosen:
            module = _module(name)
            example, execute = getattr(module, "EXAMPLE", None), getattr(module, "execute", None)
            module.configure(add_verb(verbs, name, summary, module.__doc__, example, execute))
        elif listing:
            verbs.add_parser(name, help=summary)
    return parser


def _module(verb: str) -> ModuleType:
    """Import the module of a verb or of an installed command."""
    if verb in VERBS:
        return importlib.import_module(f"foundry_core.cli.{verb.replace('-', '_')}")
    from foundry_core.registry.loading import get_command

    return get_command(verb)[0]


def _commands(chosen: str | None) -> dict[str, str]:
    """Return the commands of installed packages, each with the line that names its package."""
    from foundry_core.registry.discovery import COMMANDS, declared, installed, switched_off

    active, all_claims = installed(COMMANDS), declared(COMMANDS)
    if chosen in all_claims and chosen not in active:
        raise PluginError(f"the command '{chosen}' is disabled: {switched_off(all_claims[chosen][0])}")
    return {
        name: "of " + one_line(" and ".join(map(str, claims))).replace("%", "%%")  # argparse formats help texts
        for name, claims in active.items()
        if name not in VERBS and name.isprintable()
    }
