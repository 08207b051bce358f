"""Run plugin code in isolation: convert its exceptions and contain its side effects. Light."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TypeVar

from foundry_core.errors import FoundryError, PluginError, one_line, traced
from foundry_core.registry.discovery import normal, scan, unmet_requirements

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
        traced(error)
        raise made from error


def failing_as(what: str, passing: type[BaseException] | tuple[()] = FoundryError) -> AbstractContextManager[None]:
    """Turn exceptions into a PluginError, `<what> fails: <cause>`; those of class `passing` pass unchanged."""
    return guarded(lambda error: error if isinstance(error, passing) else PluginError(f"{what} fails: {cause(error)}"))


def cause(error: BaseException) -> str:
    """Describe an exception in one line."""
    text, kind = one_line(" ".join(str(error).split())), type(error).__name__
    if isinstance(error, FoundryError):
        return text
    package = missing_package(error)
    return (f"{kind}: {text}" if text else kind) + (f": pip install {shlex.quote(package)}" if package else "")


def missing_package(error: BaseException) -> str | None:
    """Return what to install when an import failed because a package is missing, as a plugin's metadata names it."""
    top = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not top or importlib.util.find_spec(top) is not None:
        return None
    unmet = list(dict.fromkeys(name for point in scan() for name in unmet_requirements(point)))
    named = [each for each in unmet if normal(re.split(r"[^\w.-]", each)[0]) == normal(top)]
    # A package may have another name than its module, as PyYAML has.
    return (named or (unmet if len(unmet) == 1 else [top]))[0]


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
