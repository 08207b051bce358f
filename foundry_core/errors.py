"""The errors a user can cause, each with the exit code that the command line ends with, and warnings.

The command line prints a `FoundryError` on stderr and nothing else (`--debug` adds the traceback). Any other exception
is a bug of ours.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO


def one_line(text: str) -> str:
    """Escape control characters, which could break a message or a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FoundryError(Exception):
    """A problem that the user can fix; `str(error)` is one line, or one line for each problem of a file."""

    exit_code = 1

    def __init_subclass__(cls, *, exit_code: int | None = None):
        cls.exit_code = cls.exit_code if exit_code is None else exit_code


class UsageError(FoundryError, exit_code=2):
    """The command line asks for something that does not exist or cannot be done."""


COMMAND_LINE = "command line"
"""The path of a problem with a setting from the command line; it has no line."""


@dataclass(frozen=True)
class Problem:
    """One problem of a configuration, with its place."""

    path: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        if (self.line, self.key) == (0, "file"):  # the file cannot be read: it has no lines
            return one_line(f"{self.path}: {self.message}")
        place = self.path if self.path == COMMAND_LINE else f"{self.path}:{self.line}"
        return one_line(f"{place}: {self.key}: {self.message}")


class ConfigError(FoundryError, exit_code=2):
    """All problems of a configuration, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = sorted(problems, key=lambda problem: (problem.path, problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(FoundryError, exit_code=3):
    """A plugin that is missing, broken or contradicts another one."""


class DataError(FoundryError, exit_code=4):
    """A corpus or a token file that cannot be used; the message names the file and, if there is one, the byte."""


class TokenizerError(FoundryError, exit_code=5):
    """A tokenizer that cannot be trained, loaded or used for this experiment."""


class CheckpointError(FoundryError, exit_code=6):
    """A checkpoint that is missing, damaged or belongs to another experiment; a line for each problem."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(map(one_line, problems)))


class TrainingError(FoundryError, exit_code=7):
    """Training that had to stop, with the step and the cause."""


class ConformanceError(FoundryError, exit_code=9):
    """An architecture that fails a check of the conformance kit."""


class StoppedError(FoundryError, exit_code=75):
    """A run that a signal ended at a step boundary, its state saved. 75 asks a scheduler to start it again."""


class EndedElsewhereError(FoundryError):
    """Another process of the run has ended and says why: this one ends with its exit code and without a line."""

    def __init__(self, exit_code: int):
        super().__init__("")
        self.exit_code = exit_code


def tell(text: str, stream: IO[str] | None = None) -> None:
    """Write to stderr. A closed pipe or a full disk behind it does not stop the run."""
    stream = stream or sys.stderr
    with suppress(OSError, ValueError):
        if stream is not None:
            stream.write(text)


class _Warned:
    """The warnings that `warned_once` has let through; None outside of it. silent: Let none through."""

    lines: set[str] | None = None
    silent = False


@contextmanager
def warnings_silenced(silent: bool = True) -> Iterator[None]:
    """Print no warnings in the block, if `silent` is given: another process of the same run prints them."""
    before, _Warned.silent = _Warned.silent, silent or _Warned.silent
    try:
        yield
    finally:
        _Warned.silent = before


def warn(line: str) -> None:
    """Print a warning on stderr."""
    if _Warned.silent:
        return
    if _Warned.lines is not None:
        if line in _Warned.lines:
            return
        _Warned.lines.add(line)
    tell(f"warning: {line}\n")


@contextmanager
def warned_once() -> Iterator[None]:
    """Print each warning only once in the block, in which several runs share their data."""
    before, _Warned.lines = _Warned.lines, set()
    try:
        yield
    finally:
        _Warned.lines = before


class _Debug:
    """True with `--debug`: each exception that becomes one line is then also shown with its traceback."""

    on = False


def debug(on: bool) -> None:
    """Turn the tracebacks of `traced` on or off for this process."""
    _Debug.on = on


def traced(error: BaseException) -> None:
    """With `--debug`, print the traceback of an exception that ends here, without a cause that was shown before."""
    if _Debug.on:
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
            chain.append(before)
        new = all(not hasattr(each, "_foundry_traced") for each in chain)
        tell("".join(traceback.format_exception(error, chain=new)))
        for each in chain:
            with suppress(AttributeError):
                each._foundry_traced = True  # type: ignore[attr-defined]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'lstm'?"` for the nearest known name in any case, or an empty string."""
    spelt = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), spelt, n=1, cutoff=0.6)
    return f" Did you mean '{spelt[near[0]]}'?" if near else ""
