"""Run plugin code in isolation: convert its exceptions and contain its side effects. Light."""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TypeVar

from foundry_core.errors import FoundryError, PluginError, one_line

T = TypeVar("T")


@contextmanager
def guarded(failure: Callable[[BaseException], BaseException]) -> Iterator[None]:
    """Raise what `failure` makes of an exception, for every exception but KeyboardInterrupt.

    The panic of a Rust extension, an exit and a test's skip are not `Exception`s, and would end the program alike.
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


def failing_as(what: str, passing: type[BaseException] | tuple[()] = FoundryError) -> AbstractContextManager[None]:
    """Turn exceptions into a PluginError, `<what> fails: <cause>`; those of class `passing` pass unchanged."""
    return guarded(lambda error: error if isinstance(error, passing) else PluginError(f"{what} fails: {cause(error)}"))


def cause(error: BaseException) -> str:
    """Describe an exception in one line."""
    text, kind = one_line(" ".join(str(error).split())), type(error).__name__
    return text if isinstance(error, FoundryError) else f"{kind}: {text}" if text else kind


def last_line_in(error: BaseException, homes: Mapping[Path, T]) -> tuple[T, str] | None:
    """Return the value of the folder or file that an exception passed through last, and the place, `file:line`."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for home, owner in homes.items():
            if Path(frame.filename).is_relative_to(home):
                return owner, f"{frame.filename}:{frame.lineno}"
    return None


def home_of(module: str) -> Path | None:
    """Return the folder of the package that an imported module is in, or its file if it is not in a package."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    return Path(file).parent if sys.modules[module].__package__ else Path(file)


@contextmanager
def isolated() -> Iterator[None]:
    """Send what is printed inside to stderr, since stdout is for the answer, and keep the settings of the process."""
    with kept_settings(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore at the end what plugin code could change for training.

    That is: the random generators of torch, numpy and Python, torch's number of threads, default dtype and grad mode,
    and the working folder. Before torch is imported, only Python's generator and the working folder are restored.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # the folder may have been deleted
            stack.callback(_return_to, Path.cwd())
        if "torch" in sys.modules:
            import torch

            from foundry_core.random_streams import kept_generators

            stack.callback(_restore_torch, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
            stack.enter_context(kept_generators())
        else:
            stack.callback(random.setstate, random.getstate())
        yield


def _return_to(folder: Path) -> None:
    with suppress(OSError):
        if Path.cwd() != folder:
            os.chdir(folder)


def _restore_torch(threads: int, dtype: Any, gradients: bool) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(gradients)
