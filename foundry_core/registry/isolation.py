"""Run plugin code in isolation: convert its exceptions and contain its side effects. Light."""

from __future__ import annotations

import io
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from foundry_core.errors import FoundryError, PluginError, one_line

T = TypeVar("T")


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


def last_line_in(error: BaseException, homes: Mapping[Path, T]) -> tuple[T, str] | None:
    """Through which of some folders and files an error came last, what the mapping has for it, and where: file:line."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for home, owner in homes.items():
            if Path(frame.filename).is_relative_to(home):
                return owner, f"{frame.filename}:{frame.lineno}"
    return None


def home_of(module: str) -> Path | None:
    """Return the folder of the package that an imported module is in, or its file where it is in no package."""
    known = vars(sys.modules[module]) if module in sys.modules else {}  # getattr would call the module's own
    if known.get("__file__") is None:
        return None
    file = Path(known["__file__"])
    return file.parent if known.get("__package__") else file


class _Stderr(io.RawIOBase):
    """Where bytes for stdout go instead. Closing it closes nothing else."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        sys.stderr.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


@contextmanager
def isolated() -> Iterator[None]:
    """Send what is printed inside to stderr, since stdout is for the answer, and keep the settings of the process."""
    aside = io.TextIOWrapper(cast("BinaryIO", _Stderr()), encoding="utf-8", write_through=True)
    with kept_settings(), redirect_stdout(aside):
        yield


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore at the end what a plugin could change for training.

    That is: the random generators of torch, numpy and Python, torch's number of threads, default dtype and grad mode,
    and the working folder. Before torch is imported there are Python's generator and the working folder only.
    """
    with _kept_folder(), _kept_settings_of_torch() if "torch" in sys.modules else _kept_chance():
        yield


@contextmanager
def _kept_folder() -> Iterator[None]:
    folder = None
    with suppress(OSError):  # it may be gone already
        folder = Path.cwd()
    try:
        yield
    finally:
        with suppress(OSError):
            if folder is not None and Path.cwd() != folder:
                os.chdir(folder)


@contextmanager
def _kept_chance() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _kept_settings_of_torch() -> Iterator[None]:
    import torch

    from foundry_core.random_streams import kept_generators

    threads, dtype, gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with kept_generators():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
