"""Interleaved rounds of processes that take turns, their medians and ratios, and the machine that they ran on.

Each contender is a process of its own: allocator, caches and threads of one cannot help or hinder another, its peak
memory is its own, and while one works the others wait at their gate. Nothing heavy is imported here.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias


class NotMeasuredError(Exception):
    """A contender cannot be measured here; the text is the reason, such as a package that is not installed."""


class _OverError(KeyboardInterrupt):
    """The race is over: ends a training in the middle, as Ctrl-C does, which libraries let pass."""


class Gate:
    """Gate between two rounds: a contender reports the round behind it and waits for its next turn."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._mark = self._now()

    def pass_(self, **facts: Any) -> None:
        """Report the time since the last pass, with further facts; return when it is this contender's turn."""
        processor, wall = (now - mark for now, mark in zip(self._now(), self._mark, strict=True))
        self._connection.send({"processor": processor, "wall": wall, "peak_memory": peak_memory(), **facts})
        if self._connection.recv() != "go":
            raise _OverError
        self._mark = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    From /proc: `ru_maxrss` of a process begins with that of the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _contend(connection: Connection, target: str, arguments: dict[str, Any]) -> None:
    """Run a contender, `module:function`, in its process; libraries may print what they like."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    module, _, name = target.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(Gate(connection), **arguments)
        connection.send({"result": result, "peak_memory": peak_memory()})
    except _OverError:
        pass
    except NotMeasuredError as error:
        connection.send({"error": str(error)})
    except BaseException as error:  # noqa: BLE001 - whatever a peer does, the others are measured
        lines = traceback.format_exc().strip().splitlines()
        connection.send({"error": f"{type(error).__name__}: {error}"[:400], "trace": lines[-12:]})


class Contender:
    """A process that takes turns with others.

    Args:
        name: Its name in tables.
        target: The function `module:function` that it runs, which passes the gate after the warm-up and each round.
        arguments: Arguments of that function besides the gate.
        threads: Threads that it may compute with.
    """

    def __init__(self, name: str, target: str, arguments: dict[str, Any] | None = None, *, threads: int = 1):
        self.name, self.target, self.arguments, self.threads = name, target, arguments or {}, threads
        self.rounds: list[dict[str, Any]] = []
        self.warm_up: dict[str, Any] = {}
        self.error: str | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and wait until it stands at its gate for the first time."""
        os.environ |= dict.fromkeys(_THREADS, str(self.threads)) | {"TOKENIZERS_PARALLELISM": "true"}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(theirs, self.target, self.arguments), daemon=False)
        self._process.start()
        theirs.close()
        self.warm_up = self._answer()

    def take_turn(self) -> None:
        """Let it work until it passes its gate again."""
        assert self._connection is not None
        if self.error is None:
            self._connection.send("go")
            answer = self._answer()
            if self.error is None:
                self.rounds.append(answer)

    def result(self) -> Any:
        """Return what the function returned, for one that passes no gate; raise NotMeasuredError if it failed."""
        if self.error is not None:
            raise NotMeasuredError(self.error)
        return self.warm_up["result"]

    def _answer(self) -> dict[str, Any]:
        assert self._connection is not None
        try:
            answer: dict[str, Any] = self._connection.recv()
        except EOFError:
            self._process.join()
            answer = {"error": f"its process ended with {self._process.exitcode}"}
        if "error" in answer:
            self.error = answer["error"]
            for line in answer.get("trace", ()):
                print(f"    {line}", file=sys.stderr)
        return answer

    def close(self) -> None:
        """End the process, also one that waits."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.send("stop")
            self._process.join(20)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._connection.close()
            self._connection = None


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def race(contenders: Sequence[Contender], rounds: int, progress: str = "") -> None:
    """Let contenders take turns, each round beginning with another one; those that fail drop out."""
    try:
        for contender in contenders:
            show(f"{progress}: starting {contender.name}")
            contender.start()
        for number in range(rounds):
            show(f"{progress}: round {number + 1} of {rounds}")
            first = number % max(len(contenders), 1)
            for contender in (*contenders[first:], *contenders[:first]):
                contender.take_turn()
    finally:
        for contender in contenders:
            contender.close()
        show("")


def in_process(target: str, arguments: dict[str, Any] | None = None, *, threads: int = 1) -> Any:
    """Run a function in a process of its own and return its result."""
    contender = Contender("", target, arguments, threads=threads)
    try:
        contender.start()
        return contender.result()
    finally:
        contender.close()


def show(line: str) -> None:
    """Show on a terminal what is going on, in one line that is replaced."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


@dataclass
class Ratio:
    """The median of the ratios of paired rounds, with their range."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Compare two contenders round by round; both lists are of what is better when it is larger, or both not."""
        ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
        return cls(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


@dataclass
class Row:
    """A line of the table: what was compared, the result, and what is to be reached.

    `at_least` and `aim` are limits for the machine at hand. lower: True if a small figure is a good one.
    """

    part: str
    what: str
    against: str
    result: Ratio | None
    at_least: float | None = None
    aim: float | None = None
    lower: bool = False
    unit: str = ""
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`aim`, `at least`, `below`, or nothing where nothing is to be reached."""
        if self.result is None:
            return "not measured"
        for name, limit in (("aim", self.aim), ("at least", self.at_least)):
            if limit is not None and (self.result.median <= limit if self.lower else self.result.median >= limit):
                return name
        return "" if self.at_least is None else "below"


Finding: TypeAlias = tuple[str, list[Row], Any]
"""Result of a part, as soon as it is measured: a name, rows of the table, and details for the JSON."""


def machine() -> dict[str, Any]:
    """Describe the processor, its cores and the software."""
    from importlib import metadata

    described = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    processor = {key.strip(): value.strip() for key, value in described.items()}
    flags = set(processor.get("flags", "").split())
    packages = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "minicons", "model-foundry")
    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "processor": processor.get("model name", platform.processor()),
        "family": f"{processor.get('cpu family')}/{processor.get('model')}/{processor.get('stepping')}",
        "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory.split()[1]) / 2**20, 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def matmul_peak(gate: Gate) -> None:
    """Measure the best rate of a large matrix product in each precision, GFLOP/s per processor second."""
    import torch

    sizes = (2048, 768, 3072)
    while True:
        best = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = torch.randn(sizes[:2]).to(dtype), torch.randn(sizes[1:]).to(dtype)
            times = []
            for _ in range(8):
                start = time.process_time()
                torch.mm(a, b)
                times.append(time.process_time() - start)
            best[name] = 2 * sizes[0] * sizes[1] * sizes[2] / min(times) / 1e9
        gate.pass_(peak=best)


def one_peak(gate: Gate) -> dict[str, float]:
    """Measure the peak of each precision once."""

    class Once:
        def pass_(self, peak: dict[str, float]) -> None:
            self.peak = peak
            raise StopIteration

    once: Any = Once()
    with suppress(StopIteration):
        matmul_peak(once)
    found: dict[str, float] = once.peak
    return found
