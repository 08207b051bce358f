"""Code that is not ours: what it raises is an error of its own, and what it does on the side is kept from us. Light."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from foundry_core.errors import FoundryError, PluginError, one_line


@contextmanager
def guarded(failure: Callable[[BaseException], BaseException]) -> Iterator[None]:
    """Whatever is raised inside is raised as what `failure` makes of it; the user's interruption alone passes as it is.

    Whatever: the panic of an extension in Rust, an exit and a test's skip are no `Exception`, and end a program alike.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        made = failure(error)
        if made is error:
            raise
        raise made from error


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Whatever a plugin's code raises becomes a PluginError, `<what> fails: <cause>`; errors of ours pass."""

    def failure(error: BaseException) -> BaseException:
        return error if isinstance(error, FoundryError) else PluginError(f"{what} fails: {cause(error)}")

    with guarded(failure):
        yield


def cause(error: BaseException) -> str:
    """What was raised, in one line; where, if it is about a file's syntax."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a class of theirs, too
        said = "<exception str() failed>"
    if isinstance(error, SyntaxError) and error.filename is not None:
        said = f"{error.msg} ({error.filename}:{error.lineno})"
    said = one_line(" ".join(said.split()))
    kind = type(error).__name__
    return said if isinstance(error, FoundryError) else f"{kind}: {said}" if said else kind


class _Stderr(io.RawIOBase):
    """Where bytes for stdout go instead. Closing it closes nothing else."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        sys.stderr.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is printed inside goes to stderr, since stdout is for the answer; stdout and the working folder stay."""
    folder = None
    with suppress(OSError):  # it may be gone already
        folder = Path.cwd()
    aside = io.TextIOWrapper(cast("BinaryIO", _Stderr()), encoding="utf-8", write_through=True)
    try:
        with redirect_stdout(aside):
            yield
    finally:
        with suppress(OSError):
            if folder is not None and Path.cwd() != folder:
                os.chdir(folder)
