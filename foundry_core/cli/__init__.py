"""The `foundry` command. Light: a verb's module imports what it needs when it is carried out.

Installed packages add commands through the entry points of `foundry.commands` (`hookspecs` has an example): listed from
metadata, imported when called. A verb of core's has its name to itself.

Exit code 0 only on success. An error of the user's is one line on stderr (one for each problem of a file), without a
traceback; `--debug` shows it.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import discard_lost, open_closed_streams
from foundry_core.errors import ConfigError, FoundryError, PluginError, StoppedError, one_line, tell

if TYPE_CHECKING:
    _SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Each verb: its module here and its line in `foundry --help`.
VERBS = {
    "quickstart": ("quickstart", "train a GPT-2, a BERT and an LSTM on a built-in toy language, and compare them"),
    "init": ("init", "write a commented YAML for an architecture"),
    "validate": ("validate", "check a YAML, without training anything"),
    "plan": ("plan", "what a YAML comes to: parameters, tokens, steps, checkpoints, disk, memory, time"),
    "tokenizer": ("tokenizer", "train the tokenizer of a YAML"),
    "data": ("data", "encode the corpora of a YAML"),
    "train": ("train", "train what a YAML describes"),
    "evaluate": ("evaluate", "score a checkpoint on a text and on minimal pairs"),
    "verify": ("verify", "check every checkpoint of a run, and that each follows from the one before"),
    "generate": ("generate", "let a checkpoint continue a text"),
    "migrate": ("migrate", "convert a YAML of the format before model.architecture"),
    "schema": ("schema", "print the JSON schema of the YAML, for editors"),
    "check": ("check", "prove that an architecture is right: the conformance kit, as a table"),
    "plugins": ("plugins", "list, show and check the installed plugins"),
    "new-plugin": ("new_plugin", "write a package for an architecture of your own"),
}

_PRINTING = {"init", "validate", "plan", "evaluate", "generate", "migrate", "schema", "plugins"}
"""Verbs whose output is all they are for: when its reader has gone, they are done."""

_NO_OUTPUT = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""What writing to stdout fails with, naming no file. Files are written and read by those who know their names."""

_EXAMPLES = """\
examples:
  foundry quickstart                        a first look, three minutes on two cores
  foundry init lstm > lstm.yaml             a configuration to start from
  foundry plan lstm.yaml                    what it will take
  foundry train lstm.yaml                   train it
  foundry train lstm.yaml training.learning_rate=1e-3 experiment_name=faster
  foundry train lstm.yaml --resume          go on after an interruption
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    open_closed_streams()
    try:
        return _exit_code(list(sys.argv[1:] if argv is None else argv))
    finally:
        for stream in (sys.stdout, sys.stderr):
            discard_lost(stream)


def _exit_code(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        return _carried_out(arguments)
    except FoundryError as error:
        if debug:
            tell(traceback.format_exc())
        prefix = "" if isinstance(error, ConfigError | StoppedError) else "error: "
        tell("".join(f"{prefix}{one_line(line)}\n" for line in str(error).split("\n")))
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        tell(f"interrupted{f': {interrupt}' if str(interrupt) else ''}\n")
        return 130
    except Exception as error:  # noqa: BLE001 - whatever else happens is a bug of ours, and says so in one line
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_OUTPUT:
            # A reader that has closed the pipe (`foundry schema | head`) has had enough; but a verb that does more than
            # print has not done it.
            if isinstance(error, BrokenPipeError) and _verb(arguments) in _PRINTING:
                return 0
            tell(f"error: cannot write the output: {error.strerror}\n")
            return 8
        if debug:
            tell(traceback.format_exc())
        not_ours = _blame(error)
        if not_ours is not None:
            tell(f"error: {one_line(not_ours)}\n")
            return PluginError.exit_code
        reason = one_line(" ".join(str(error).split()))
        tell(f"internal error: {type(error).__name__}: {reason} (--debug shows where; please report it)\n")
        return 70


def _blame(error: Exception) -> str | None:
    """The plugin through whose code the error came."""
    from foundry_core.registry.loading import blame

    found = blame(error)
    return None if found is None else f"{found} (--debug shows how it got there)"


def _verb(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _carried_out(arguments: list[str]) -> int:
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one go: settings that come after an option are left over.
    settings = [argument for argument in rest if hasattr(options, "overrides") and not argument.startswith("-")]
    if len(settings) < len(rest):
        parser.error(f"unknown argument: {next(argument for argument in rest if argument not in settings)}")
    if settings:
        options.overrides += settings
    if not hasattr(options, "execute"):
        parser.print_help()
        return 2
    options.execute(options)
    sys.stdout.flush()
    return 0


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the verb's own options when the command line names one."""
    from foundry_core import __version__

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=False, help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="foundry",
        description="Train small language models of any architecture under equal conditions, from one YAML.",
        epilog=_EXAMPLES,
        formatter_class=_Wide,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"foundry-core {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    chosen = _verb(arguments)
    for name, (module_name, summary) in VERBS.items():
        if name == chosen:
            _add_verb(verbs, name, summary, importlib.import_module(f"foundry_core.cli.{module_name}"))
        else:
            verbs.add_parser(name, help=summary)
    if chosen not in VERBS:
        _add_commands(verbs, chosen)
    return parser


def _add_commands(verbs: _SubParsers, chosen: str | None) -> None:
    """What installed packages add; only the chosen one is imported."""
    from foundry_core.registry.discovery import COMMANDS, declared, installed, switched_off
    from foundry_core.registry.isolation import failing_as
    from foundry_core.registry.loading import get_command

    commands, there = installed(COMMANDS), declared(COMMANDS)
    if chosen in there and chosen not in commands:
        raise PluginError(f"the command '{chosen}' is disabled: {switched_off(there[chosen][0])}")
    for name, claims in commands.items():
        if name in VERBS or not name.isprintable():
            continue
        owners = one_line(" and ".join(map(str, claims)))
        summary = f"of {owners}".replace("%", "%%")  # argparse fills in what follows one
        if name != chosen:
            verbs.add_parser(name, help=summary)
            continue
        module, owner = get_command(name)
        what = f"the command '{name}' of {owner}"
        with failing_as(what):
            verb = _add_verb(verbs, name, summary, module)
        for leaf in _leaves(verb):
            execute = leaf.get_default("execute") or verb.get_default("execute")
            leaf.set_defaults(execute=partial(_execute_foreign, what, execute))


def _execute_foreign(what: str, execute: Any, options: argparse.Namespace) -> None:
    """What fails in a package's command is its own bug; how it ends the process is its own affair."""
    from foundry_core.registry.isolation import cause, guarded

    def failure(error: BaseException) -> BaseException:
        if isinstance(error, FoundryError | BrokenPipeError | SystemExit):
            return error
        return PluginError(f"{what} fails: {cause(error)} (--debug shows where)")

    if not callable(execute):
        raise PluginError(f"{what} has nothing to carry out: configure must call set_defaults(execute=...)")
    with guarded(failure):
        execute(options)


def _add_verb(verbs: _SubParsers, name: str, summary: str, module: ModuleType) -> argparse.ArgumentParser:
    """A verb with the options that its module gives it."""
    verb = verbs.add_parser(
        name,
        help=summary,
        description=module.__doc__,
        epilog=getattr(module, "EXAMPLE", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(verb)
    # After the verb, too: nobody remembers which side a global option belongs on. SUPPRESS keeps an earlier value.
    for leaf in _leaves(verb):
        with suppress(argparse.ArgumentError):  # a package's command may have one of its own
            leaf.add_argument(
                "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
            )
    return verb


class _Wide(argparse.RawDescriptionHelpFormatter):
    """Every verb and its line side by side."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=18)
        # argparse forgets the further indentation of sub-verbs when it measures how far to move the second column.
        self._action_max_length = 16


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A verb's parser, or those of its sub-verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(dict.fromkeys(leaf for verb in action.choices.values() for leaf in _leaves(verb)))
    return [parser]
