"""What code that is not training's own must leave as it was: random generators, and what torch and numpy do by default.

Kept: the generators of torch (GPUs included), numpy and Python; torch's number of threads, default dtype and device,
grad mode, autocast, anomaly detection, determinism, precision of matrix products and choice of kernels, hooks
on every module; numpy's
handling of floating-point errors, warning filters, the working folder. Not kept, because nothing can keep it: what
threads of that code's own do later, environment variables, signal handlers, files.
"""

from __future__ import annotations

import os
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def _default_device(device: torch.device) -> None:
    # With None no factory function is intercepted, which is what "cpu" stands for unless somebody asked for it.
    torch.set_default_device(None if device.type == "cpu" else device)


def _filters(wanted: list[Any]) -> None:
    # Only where they changed: catch_warnings would make every warning that was shown once be shown again.
    warnings.resetwarnings()
    warnings.filters[:] = wanted  # type: ignore[index]


def _grad_mode(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


def _anomaly_detection(enabled: bool) -> None:
    torch.set_anomaly_enabled(enabled, torch.is_anomaly_check_nan_enabled())


def _autocast_depth() -> int:
    """How many autocast blocks are open; there is no way to ask but to open one more."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _close_autocast(depth: int) -> None:
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    while _autocast_depth() < depth:
        torch.autocast_increment_nesting()
    # Copies of weights in lower precision would be used after the weights have changed.
    torch.clear_autocast_cache()


def _autocast(device: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    return {
        f"autocast on {device}": (
            partial(torch.is_autocast_enabled, device),
            partial(torch.set_autocast_enabled, device),
        ),
        f"the dtype of autocast on {device}": (
            partial(torch.get_autocast_dtype, device),
            partial(torch.set_autocast_dtype, device),
        ),
    }


_HOOKS = [value for value in vars(torch.nn.modules.module).values() if isinstance(value, OrderedDict)]
"""What `torch.nn.modules.module.register_module_...hook` fills."""


def _hooks_on_every_module() -> list[dict[Any, Any]]:
    return [dict(hooks) for hooks in _HOOKS]


def _put_hooks(wanted: list[dict[Any, Any]]) -> None:
    for hooks, before in zip(_HOOKS, wanted, strict=True):
        hooks.clear()
        hooks.update(before)


def _of(holder: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(holder, name), lambda value: setattr(holder, name, value)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "the working folder": (os.getcwd, os.chdir),
    "the warning filters": (lambda: list(warnings.filters), _filters),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _default_device),
    "whether gradients are recorded": (torch.is_grad_enabled, _grad_mode),
    **_autocast("cpu"),
    **_autocast("cuda"),
    "open autocast blocks": (_autocast_depth, _close_autocast),
    "autocast's memory of weights": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "anomaly detection": (torch.is_anomaly_enabled, _anomaly_detection),
    "deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "oneDNN": _of(torch.backends.mkldnn, "enabled"),
    "cuDNN": _of(torch.backends.cudnn, "enabled"),
    "cuDNN's benchmark": _of(torch.backends.cudnn, "benchmark"),
    "cuDNN's determinism": _of(torch.backends.cudnn, "deterministic"),
    "oneDNN's determinism": _of(torch.backends.mkldnn, "deterministic"),
    "sums in bf16 by CUDA": _of(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    "sums in fp16 by CUDA": _of(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "the hooks on every module": (_hooks_on_every_module, _put_hooks),
    # Which kernel attention takes, on a CPU too.
    "flash attention": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "attention that saves memory": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "attention by its formula": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "attention by cuDNN": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    # The older name of the precision first: setting it sets the newer ones as well.
    "the precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "the precision of fp32": _of(torch.backends, "fp32_precision"),
    "the precision of matrix products by CUDA": _of(torch.backends.cuda.matmul, "fp32_precision"),
    "the precision of convolutions by cuDNN": _of(torch.backends.cudnn.conv, "fp32_precision"),  # type: ignore[attr-defined]
    "the precision of recurrent layers by cuDNN": _of(torch.backends.cudnn.rnn, "fp32_precision"),
    "the precision of convolutions by oneDNN": _of(torch.backends.mkldnn.conv, "fp32_precision"),  # type: ignore[attr-defined]
    "the precision of recurrent layers by oneDNN": _of(torch.backends.mkldnn.rnn, "fp32_precision"),  # type: ignore[attr-defined]
    "the precision of matrix products by oneDNN": _of(torch.backends.mkldnn.matmul, "fp32_precision"),  # type: ignore[attr-defined]
}


def _read(get: Callable[[], Any]) -> Any:
    """A setting, or why it cannot be read: torch refuses to say a precision that was set under both its names, and a
    working folder may be gone.
    """
    try:
        return get()
    except (RuntimeError, OSError) as error:
        return type(error)


def settings() -> dict[str, Any]:
    """Everything that is kept beside the generators of chance, by what it is called."""
    return {name: _read(get) for name, (get, _) in _SETTINGS.items()}


@contextmanager
def kept_surroundings() -> Iterator[None]:
    """Whatever is done inside, the surroundings are afterwards what they were; costs 0.3 ms."""
    on_cpu, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    before = settings()
    try:
        with np.errstate():
            yield
    finally:
        for name, (get, put) in _SETTINGS.items():
            if _read(get) != before[name] and not isinstance(before[name], type):
                put(before[name])
        torch.set_rng_state(on_cpu)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
