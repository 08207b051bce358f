"""Device and precision of a run, refused if the machine does not have them; running out of memory."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundry_core.errors import CheckpointError, TrainingError, UsageError

_PROBED = 2**26
"""Multiplications of a probe of bf16's speed: some milliseconds."""
_PROBE_SECONDS = 0.7
_LINE = 16
"""Numbers of fp32 in a line of the cache."""


def in_whole_lines(numbers: int) -> int:
    """Return how many numbers of fp32 a tensor takes in a block in which each tensor begins with a line of the cache.

    As in an allocation of its own: the order in which a GPU adds up the norm of a gradient depends on that.
    """
    return -(-numbers // _LINE) * _LINE


class Precision:
    """The precision of the forward pass; weights, gradients and optimizer stay in fp32."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        if self.name == "fp16" and device.type == "cpu":
            raise UsageError("training.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
        if self.name == "bf16" and device.type != "cpu" and not computes_in_bf16(device):
            what = (
                "MPS computes in bf16 from macOS 14 on" if device.type == "mps" else "this GPU does not compute in bf16"
            )
            raise UsageError(f"training.precision: {what}; use fp16 or fp32")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        self.autocast: Callable[[], torch.autocast] = partial(
            torch.autocast, device.type, dtype=dtype, enabled=self.name != "fp32"
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def load_scaler(self, state: dict[str, Any], folder: Path) -> None:
        """Go on with the gradient scaler of a checkpoint. Raises CheckpointError if its state is damaged."""
        if state:
            try:
                self.scaler.load_state_dict(state)
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(f"{folder}: its gradient scaler is damaged: {error}") from error


def computes_in_bf16(device: torch.device) -> bool:
    """Check whether a device has arithmetic for bf16; one without emulates it, which is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def bf16_gain(tokens: int, outputs: int, inputs: int) -> float:
    """Measure how many times as fast as fp32 a layer of this size computes in bf16 on the CPU, backward pass included.

    Takes less than a second, once in a process.
    """
    # Some processors report bf16 and compute it at half the speed of fp32, which only a measurement shows.
    rows = max(min(tokens, _PROBED // (inputs * outputs)), 16)
    layer, values = nn.Linear(inputs, outputs, bias=False), torch.ones(rows, inputs, requires_grad=True)
    least, begun = {False: math.inf, True: math.inf}, time.perf_counter()
    for round_ in range(11):
        for bf16 in least:
            start = time.process_time()  # the least processor time depends little on what else the machine does
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                product = layer(values)
            torch.autograd.backward(product, torch.ones_like(product))
            least[bf16] = min(least[bf16], time.process_time() - start)
        if round_ >= 2 and time.perf_counter() - begun > _PROBE_SECONDS:
            break
    return least[False] / least[True] if least[True] else 1.0  # a clock of 16 ms, that of Windows, may not advance


def choose_device(asked: str, setting: str = "training.device") -> torch.device:
    """Return the device that a setting asks for; `auto` is the GPU if there is one, of NVIDIA's, AMD's or Apple's."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    if not there[asked]:
        missing = "MPS, the GPU of a Mac" if asked == "mps" else "a GPU"
        raise UsageError(f"{setting}: torch does not find {missing}; use auto or cpu")
    return torch.device(asked)


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64: on its device, but on the CPU for MPS, which has no float64."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks of any size for this process, on large pages; returns whether it can (glibc).

    Without this a large tensor is fresh memory at each allocation, which the kernel clears page by page: 1.16 times the
    time of a step of a tiny GPT-2, 1.17 of an LSTM of 2 x 200. Large pages take 0.93 of the time of a step of a GRU of
    2 x 650 and 0.95 of a small BERT, whose passes over memory need fewer translations of addresses.
    """
    if sys.platform == "win32":  # the C library is not found without a name there
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    mmap_threshold, trim_threshold, advise_large_pages = -3, -1, 14
    if not (library.mallopt(mmap_threshold, 2**31 - 1) and library.mallopt(trim_threshold, 2**31 - 1)):
        return False
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Addresses only: a page takes memory when it is written to. What is freed here is what tensors are given next.
    size, page = 2**30, 2**21
    blocks = [library.malloc(size) for _ in range(4)]
    for block in filter(None, blocks):
        first = -(-block // page) * page
        library.madvise(first, block + size - first, advise_large_pages)
        library.free(block)
    return True


def return_freed_memory() -> None:
    """Let the C library return large blocks to the system when they are freed, after `keep_freed_memory`.

    For weights that are put together and freed one block after the other: kept, what was freed of a GPT-2 of 85M
    parameters in two processes grew to 2.7 GB in each; returned, each takes 1.1 GB.
    """
    library, mmap_threshold = ctypes.CDLL(None), -3
    if hasattr(library, "mallopt"):
        library.mallopt(mmap_threshold, 2**20)


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a device has, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if sys.platform == "win32":
        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return 1024 * kilobytes.value
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def processor(device: torch.device) -> str:
    """Return the name of a device, with the number of threads that torch uses of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return torch.backends.mps.get_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


@contextmanager
def memory_watched(line: Callable[[], str]) -> Iterator[None]:
    """Raise TrainingError with that line when memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(line()) from error


def model_memory_watched() -> AbstractContextManager[None]:
    """Watch the memory while a model is built or moved, before anything is trained."""
    line = "out of memory while the model is built, nothing was trained: give smaller sizes in the section model, or a "
    return memory_watched(lambda: line + "smaller tokenizer.vocab_size")


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether memory of a device or of the machine ran out; torch has no common class for them."""
    too_large = ("DefaultCPUAllocator: can't allocate memory", "Storage size calculation overflowed")
    texts = (*too_large, "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def backend_of(device: torch.device, processes: int) -> str:
    """Return what processes communicate by; on GPUs, take the one of this process."""
    if device.type == "mps" and processes > 1:
        raise UsageError("training.device: a Mac has one GPU, for one process; use cpu")
    if device.type != "cuda":
        return "gloo"
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if (here := max(local + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 0)))) > there:  # srun does not set the size
        raise UsageError(f"{here} processes need as many GPUs, and torch finds {there}")
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"
