"""The errors a user can cause, each with the exit code that the command line ends with.

A `FoundryError` carries one line that says what is wrong and what to do. The command line prints that line on stderr
and nothing else (`--debug` adds the traceback). Anything that is not a `FoundryError` is a bug of ours. `warn` is for
what stops nothing.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO


def one_line(text: str) -> str:
    """Control characters written out: what a file or a package holds must not break a message, nor a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FoundryError(Exception):
    """Something the user can mend; `str(error)` is one line, or one line for each problem of a file."""

    exit_code = 1


class UsageError(FoundryError):
    """The command line asks for something that does not exist or cannot be done."""

    exit_code = 2


COMMAND_LINE = "command line"
"""The path of a problem with a setting that was given there; it has no line."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: where it stands and what it is."""

    path: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = self.path if self.path == COMMAND_LINE else f"{self.path}:{self.line}"
        return one_line(f"{place}: {self.key}: {self.message}")


class ConfigError(FoundryError):
    """A configuration that cannot be used; all its problems, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]):
        self.problems = sorted(problems, key=lambda problem: (problem.path, problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(FoundryError):
    """A plugin that is missing, broken or contradicts another one."""

    exit_code = 3


class DataError(FoundryError):
    """A corpus or a token file that cannot be used; the message names the file and, where there is one, the byte."""

    exit_code = 4


class TokenizerError(FoundryError):
    """A tokenizer that cannot be trained, loaded or used for this experiment."""

    exit_code = 5


class CheckpointError(FoundryError):
    """A checkpoint that is missing, damaged or belongs to another experiment; a line for each problem."""

    exit_code = 6

    def __init__(self, *problems: str):
        super().__init__("\n".join(map(one_line, problems)))


class TrainingError(FoundryError):
    """Training that had to stop, with the step and the cause."""

    exit_code = 7


class ConformanceError(FoundryError):
    """An architecture that fails a check of the conformance kit."""

    exit_code = 9


class StoppedError(FoundryError):
    """A run that a signal ended at a step boundary, its state saved. 75 asks a scheduler to start it again."""

    exit_code = 75


def tell(text: str, stream: IO[str] | None = None) -> None:
    """Write to stderr, if that can be: a reader that has gone, or a full disk behind it, stops nothing."""
    stream = stream or sys.stderr
    with suppress(OSError, ValueError):
        if stream is not None:
            stream.write(text)


def warn(line: str) -> None:
    """Say something on stderr that a user should know, and that stops nothing."""
    tell(f"warning: {line}\n")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'lstm'?"` for the nearest known name, whatever its case, or an empty string."""
    spelt = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), spelt, n=1, cutoff=0.6)
    return f" Did you mean '{spelt[near[0]]}'?" if near else ""
