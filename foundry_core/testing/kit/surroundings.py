"""The state of a process outside a model: random states, torch's settings, environment, files, network."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from foundry_core.registry.isolation import kept_settings

_EVENTS = {
    "os.mkdir": "makes the folder {0}",
    "os.remove": "removes {0}",
    "os.rmdir": "removes {0}",
    "os.rename": "renames {0}",
    "os.link": "links {0}",
    "os.symlink": "links {0}",
    "os.truncate": "cuts {0}",
    "os.chmod": "changes {0}",
    "os.chdir": "moves to the folder {0}",
    "os.putenv": "sets the variable {0}",
    "os.unsetenv": "removes the variable {0}",
    "os.system": "runs {0}",
    "subprocess.Popen": "runs {0}",
    "socket.connect": "connects to {1}",
    "socket.getaddrinfo": "looks {0} up in the network",
    "socket.gethostbyname": "looks {0} up in the network",
    "urllib.Request": "asks for {0}",
}
"""Audit events with an effect outside the process's memory, and a description of each with its arguments."""


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that records files written, programs run, network requests, and changes of the number of threads.

    Python cannot remove an audit hook: use this in a process that ends soon.
    """
    seen: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if isinstance(flags, int) else 0
            if isinstance(path, str) and (writes or set(mode or "") & set("wax+")) and not _is_byte_code(path):
                seen.append(f"writes {path}")
        elif event in _EVENTS and not (isinstance(arguments[0], str) and _is_byte_code(arguments[0])):
            seen.append(
                _EVENTS[event].format(*(os.fsdecode(each) if isinstance(each, bytes) else each for each in arguments))
            )

    def set_num_threads(number: int) -> None:
        seen.append(f"sets the number of threads to {number}")

    sys.addaudithook(hook)
    try:
        # The kit uses one thread already, so that setting the number to one would go unnoticed.
        with patch.object(torch, "set_num_threads", set_num_threads):
            yield seen
    finally:
        watching = False


def _is_byte_code(path: str) -> bool:
    """Check whether a path is one of the files that Python writes when it imports a module."""
    return "__pycache__" in Path(path).parts


def _of(holder: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(holder, name), lambda value: setattr(holder, name, value)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None keeps torch from intercepting functions


def _set_grad_enabled(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "the working folder": (os.getcwd, os.chdir),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _set_default_device),
    "whether gradients are recorded": (torch.is_grad_enabled, _set_grad_enabled),
    "deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "oneDNN": _of(torch.backends.mkldnn, "enabled"),
    "cuDNN": _of(torch.backends.cudnn, "enabled"),
    "cuDNN's benchmark": _of(torch.backends.cudnn, "benchmark"),
    "cuDNN's determinism": _of(torch.backends.cudnn, "deterministic"),
}
"""Settings that a model must not change, and functions that read and restore them."""


def settings() -> dict[str, Any]:
    """Return everything that a model must not change, by name."""
    return {
        **{name: get() for name, (get, _) in _SETTINGS.items()},
        "random's state": random.getstate(),
        "numpy's random state": np.random.get_state(),
        "the environment": dict(os.environ),
    }


@contextmanager
def kept_surroundings() -> Iterator[None]:
    """Restore everything in `settings` and the warning filters at the end."""
    before = {name: get() for name, (get, _) in _SETTINGS.items()}
    filters = list(warnings.filters)
    try:
        with kept_settings(), kept_environment():
            yield
    finally:
        for name, (get, put) in _SETTINGS.items():
            if get() != before[name]:
                put(before[name])
        if list(warnings.filters) != filters:  # catch_warnings would show warnings again that were shown once
            warnings.resetwarnings()
            warnings.filters[:] = filters  # type: ignore[index]


@contextmanager
def kept_environment() -> Iterator[None]:
    """Restore the environment variables at the end."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if os.environ != before:
            os.environ.clear()
            os.environ.update(before)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ."""
    return [name for name, value in before.items() if not _same(value, after[name])]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, tuple):
        return all(map(_same, first, second))
    return np.array_equal(first, second) if isinstance(first, np.ndarray) else bool(first == second)
