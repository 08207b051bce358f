"""Checks of commands that packages add to `foundry`: help, an example, and one line for a wrong input."""

from __future__ import annotations

import argparse
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from foundry_core.registry.loading import get_command
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NotApplicableError, NotLookedAtError, require
from foundry_core.testing.kit.processes import fresh_command

_PROGRAM = "import sys\nfrom foundry_core.cli import main\nsys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, eq=False)
class CommandBench:
    """A command, and what it prints."""

    subject: Subject
    module: ModuleType

    @cached_property
    def parser(self) -> argparse.ArgumentParser:
        """The parser with the arguments of the command."""
        parser = argparse.ArgumentParser()
        execute = getattr(self.module, "execute", None)
        parser.set_defaults(execute=execute)
        self.module.configure(parser)
        return parser

    def foundry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `foundry` in another process and in an empty folder."""
        command, environment = fresh_command(_PROGRAM, *arguments)
        environment |= {"PYTHONPATH": _absolute(environment["PYTHONPATH"]), "COLUMNS": "80"}
        with TemporaryDirectory(prefix="foundry-check-") as folder:
            return subprocess.run(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )


def _absolute(places: str) -> str:
    return os.pathsep.join(os.path.abspath(place) for place in places.split(os.pathsep))  # noqa: PTH100


@bench("command")
def command_bench(subject: Subject) -> CommandBench:
    module, _ = get_command(subject.name)
    made = CommandBench(subject, module)
    made.parser  # noqa: B018 - fails where configure fails
    return made


@check(
    "command",
    "runs",
    fix="In `configure(parser)`, add the arguments and call `parser.set_defaults(execute=execute)`: `execute(options)` "
    "does the work. What it returns is ignored; it raises FoundryError for what the user can correct.",
)
def runs(bench: CommandBench) -> None:
    """`configure(parser)` adds arguments and sets the function that executes the command."""
    require(callable(bench.parser.get_default("execute")), "configure(parser) does not set `execute`")


@check(
    "command",
    "help",
    fix="Begin the module with a docstring of a line or more, and set EXAMPLE to a text such as 'example:\\n  foundry "
    "NAME FILE': both are printed by --help. Give each argument a `help`.",
)
def shows_help(bench: CommandBench) -> None:
    """`foundry --help` lists the command, and `foundry NAME --help` prints what it does, each argument with an
    explanation, and an example.
    """
    name = bench.subject.name
    listing = bench.foundry("--help")
    lines = [line.split() for line in listing.stdout.splitlines()]
    require(any(line[:1] == [name] for line in lines), f"foundry --help does not list {name}")
    shown = bench.foundry(name, "--help")
    require(shown.returncode == 0, f"foundry {name} --help ends with {shown.returncode}: {_last(shown.stderr)}")
    described = (bench.module.__doc__ or "").strip()
    require(bool(described), f"{bench.module.__name__} has no docstring")
    example = shown.stdout.partition("\nexample")[2]
    require(f"foundry {name}" in example, f"foundry {name} --help shows no example: EXAMPLE is missing or incomplete")
    for action in bench.parser._actions:
        require(bool(action.help), f"the argument {_called(action)} has no help")


@check(
    "command",
    "bad-input",
    fix="Raise FoundryError (or a subclass) with one line that names the input and how to correct it: core prints it "
    "to stderr and ends with a code above 0. Print answers, not errors, and do not call sys.exit.",
)
def bad_input(bench: CommandBench) -> None:
    """With names of files that do not exist, the command ends with a code above 0 and one line on stderr, which is not
    an exception of its code.
    """
    arguments = list(_nowhere(bench.parser))
    if not arguments:
        raise NotApplicableError("requires no argument that could be wrong")
    ended = bench.foundry(bench.subject.name, *arguments)
    lines = ended.stderr.splitlines()
    typed = f"foundry {bench.subject.name} {' '.join(arguments)}"
    if ended.returncode == 0:
        require(not lines, f"{typed} prints {_last(ended.stderr)!r} to stderr and ends with 0")
        raise NotLookedAtError(f"{typed} succeeds: whatever its arguments are, they are not files that must exist")
    require(len(lines) == 1, f"{typed} prints {len(lines)} lines to stderr: {_last(ended.stderr)!r}")
    unexpected = " fails: " in lines[0] or lines[0].startswith("internal error")
    require(not unexpected, f"{typed} raises an exception that is not a FoundryError: {lines[0]}")


def _nowhere(parser: argparse.ArgumentParser) -> list[str]:
    """Return values for every argument that is required: names of files that are not there, or 1 for numbers."""
    found: list[str] = []
    for action in parser._actions:
        needed = action.required if action.option_strings else action.nargs not in ("?", "*", argparse.REMAINDER)
        if not needed or action.nargs == 0:
            continue
        value = "no-such-file"
        if action.choices is not None:
            value = str(next(iter(action.choices)))
        elif action.type in (int, float):
            value = "1"
        values = [value] * (action.nargs if isinstance(action.nargs, int) else 1)
        found += [*action.option_strings[-1:], *values]
        if isinstance(action.choices, dict):  # verbs below the command
            found += _nowhere(next(iter(action.choices.values())))
    return found


def _called(action: Any) -> str:
    return (action.option_strings or [action.metavar or action.dest])[-1]  # type: ignore[no-any-return]


def _last(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "nothing")
