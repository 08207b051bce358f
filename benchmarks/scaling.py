"""Several processes: their speed on this machine, what the exact sum costs, and what is to be expected past it.

Runs of one process with two threads and of two with one each use the same cores, so elapsed time is compared.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import extrapolation
from benchmarks.inputs import SIZES
from benchmarks.measuring import Contender, Finding, Gate, NotMeasuredError, Ratio, Row, in_process, race

_AT_LEAST = 0.9
_ACCUMULATION = (2, 8)
"""Micro-batches of a step: with two, each process has one, and communication the largest share."""
_BYTES = (2**12, 2**16, 2**20, 2**22, 2**24, 2**26)
_REPEATS = 12


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what torchrun sets."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(value) for name, value in (places | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items()}


def _started(processes: int, target: Any, *arguments: Any) -> None:
    """Make this process the first of some, and start the others, which end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    for rank in range(processes):
        os.environ |= _environment(rank, processes, port)
        if rank:
            context.Process(target=target, args=arguments, daemon=True).start()
    os.environ |= _environment(0, processes, port)


def _take_part(settings: dict[str, Any], overrides: list[str]) -> None:
    """Run the same experiment as another process of it."""
    from foundry_core import load_config, run

    run(load_config(settings, overrides), quiet=True)


def ours(gate: Gate, settings: dict[str, Any], overrides: list[str], output: Path, processes: int, steps: int) -> None:
    """Run an experiment in some processes; the first stands at the gate after two steps, and then after every `steps`.

    The others wait for it at the beginning of their next step.
    """
    overrides = [*overrides, f"training.output_dir={output}", "logging.log_every_steps=1"]
    if processes > 1:
        _started(processes, _take_part, settings, overrides)
    from foundry_core import hookimpl, load_config, run

    class Observer:
        tokens, talked = 0, 0.0

        @hookimpl
        def foundry_step_ended(self, report: Any) -> None:
            # A share of the time since the last report, in which this process may have stood at the gate.
            self.talked += report.communication * (report.tokens_seen - self.tokens) / report.tokens_per_second
            self.tokens = report.tokens_seen
            if report.step >= 2 and (report.step - 2) % steps == 0:
                talked, self.talked = self.talked, 0.0
                gate.pass_(talked=talked)

    run(load_config(settings, overrides), extra_observers=[Observer()], quiet=True)


def exchanges(_: Gate, processes: int, sizes: Sequence[int], repeats: int) -> dict[str, dict[int, float]]:
    """Return the least seconds of the exact tree and of an all-reduce, by the bytes of the gradient."""
    _started(processes, _exchange, processes, sizes, repeats)
    return _exchange(processes, sizes, repeats)


def _exchange(processes: int, sizes: Sequence[int], repeats: int) -> dict[str, dict[int, float]]:
    import torch
    import torch.distributed as dist

    from foundry_core.processes import World
    from foundry_core.training.gradients import add_over

    dist.init_process_group("gloo")
    world = World(dist.get_rank(), processes)
    found: dict[str, dict[int, float]] = {"tree": {}, "ring": {}}

    def ring(_: World, flat: torch.Tensor, __: torch.Tensor) -> None:
        dist.all_reduce(flat)

    for size in sizes:
        flat, room = torch.zeros(2, size // 4)
        taken: dict[str, list[float]] = {"tree": [], "ring": []}
        for _ in range(repeats + 1):
            for name, reduce in (("tree", add_over), ("ring", ring)):
                dist.barrier()
                start = time.perf_counter()
                reduce(world, flat, room)
                taken[name].append(time.perf_counter() - start)
        for name, seconds in taken.items():
            found[name][size] = min(seconds[1:])
    dist.barrier()
    dist.destroy_process_group()
    return found


@dataclass(frozen=True)
class Line:
    """Time of an exchange: seconds that it takes at least, and bytes that each process sends and receives a second."""

    latency: float
    bandwidth: float

    @classmethod
    def fitted(cls, seconds: dict[int, float], processes: int) -> Line:
        """Fit latency + bytes / bandwidth by least squares of relative errors; a process sends 2 (n - 1) / n of all."""
        points = [(2 * (processes - 1) / processes * size, taken) for size, taken in seconds.items()]
        ones, x, y = (sum(value) for value in zip(*((1 / t**2, b / t**2, 1 / t) for b, t in points), strict=True))
        xx, xy = sum(b * b / t**2 for b, t in points), sum(b / t for b, t in points)
        latency = max((y * xx - xy * x) / (ones * xx - x * x), 0.0)
        if latency * x >= xy:  # on a busy machine a large exchange may have been the faster one
            return cls(0.0, max(b / t for b, t in points))
        return cls(latency, xx / (xy - latency * x))

    def seconds(self, size: float, processes: int) -> float:
        """Return the time for a gradient of so many bytes."""
        return self.latency + 2 * (processes - 1) / processes * size / self.bandwidth

    def __str__(self) -> str:
        return f"{1e6 * self.latency:.0f} us + {self.bandwidth / 1e9:.2f} GB/s"


def measure(folder: Path, rounds: int, *, quick: bool) -> Iterator[Finding]:
    """Measure speed by accumulation, exchanges by number of processes; then extrapolate."""
    size = SIZES["gpt2 small"].shrunk() if quick else SIZES["gpt2 small"]
    needs = {"size": size, "folder": folder, "rows": 32 * size.batch, "quick": True}
    try:
        facts = in_process("benchmarks.contenders:prepared", needs, threads=2)
    except NotMeasuredError as error:
        yield size.name, [Row("scale", size.name, "one process", None, _AT_LEAST, note=str(error))], {}
        return
    lines: dict[int, dict[str, Line]] = {}
    for processes in (2, 4):
        lines[processes], rows, found = _exchanges(processes, quick=quick)
        yield f"exchange, {processes} processes", rows, found
    gradient = 4 * facts["parameters"]
    for accumulation in _ACCUMULATION[: 1 if quick else None]:
        yield _speed(size.name, folder, facts["settings"], rounds, accumulation, lines[2]["tree"], gradient)
    yield "extrapolated", _extrapolated(), [list(cells) for cells in extrapolation.lines()]


def _exchanges(processes: int, *, quick: bool) -> tuple[dict[str, Line], list[Row], dict[str, Any]]:
    sizes = _BYTES[:3] if quick else _BYTES
    arguments = {"processes": processes, "sizes": sizes, "repeats": 3 if quick else _REPEATS}
    found = in_process("benchmarks.scaling:exchanges", arguments)
    lines = {name: Line.fitted(seconds, processes) for name, seconds in found.items()}
    ratio = Ratio.of(list(found["tree"].values()), list(found["ring"].values()))
    what = f"exact sum, {processes} processes"
    rows = [Row("scale", what, "all-reduce", ratio, lower=True, note=f"{lines['tree']}; {lines['ring']}")]
    return lines, rows, {"seconds": found, "lines": {name: vars(line) for name, line in lines.items()}}


def _speed(
    name: str, folder: Path, settings: dict[str, Any], rounds: int, accumulation: int, line: Line, gradient: int
) -> Finding:
    def contender(reduction: str, processes: int, threads: int) -> Contender:
        given = {"reduction": reduction, "gradient_accumulation_steps": accumulation, "precision": "fp32"}
        overrides = [f"training.{key}={value}" for key, value in given.items()] + ["training.compile=false"]
        called = f"{reduction}, {processes} x {threads}"
        output = folder / f"{accumulation} {called}"
        arguments: dict[str, Any] = {"settings": settings, "overrides": overrides, "output": output}
        arguments |= {"processes": processes, "steps": 1}
        return Contender(called, "benchmarks.scaling:ours", arguments, threads=threads)

    places = (("exact", 1, 2), ("exact", 2, 1), ("fast", 2, 1), ("exact", 1, 1), ("fast", 1, 1))
    contenders = [contender(*place) for place in places]
    race(contenders, rounds, f"{name}, accumulation {accumulation}")
    one, exact, fast, alone, plain = contenders
    what = f"{name}, {accumulation} micro-batches"
    rows = []
    for each, at_least in ((exact, _AT_LEAST), (fast, None)):
        note = each.error or one.error or f"communication {median(_shares(each)):.0%}"
        ratio = _ratio(one, each, "wall")
        rows.append(Row("scale", f"{what}: {each.name}", one.name, ratio, at_least, note=note))
    if alone.rounds:
        computed, exchanged = min(turn["wall"] for turn in alone.rounds) / 2, line.seconds(gradient, 2)
        rows[0].note += f"; by the fit {exchanged / (computed + exchanged):.0%} of cores that nobody else uses"
    note = alone.error or plain.error or "processor time"
    rows.append(Row("scale", f"{what}: {alone.name}", plain.name, _ratio(plain, alone, "processor"), note=note))
    return f"accumulation {accumulation}", rows, {each.name: _figures(each) for each in contenders}


def _shares(contender: Contender) -> list[float]:
    """Return the share of communication in each round."""
    return [turn["talked"] / turn["wall"] for turn in contender.rounds]


def _figures(contender: Contender) -> dict[str, Any]:
    return {"error": contender.error} if contender.error else {"rounds": contender.rounds}


def _ratio(theirs: Contender, ours: Contender, clock: str) -> Ratio | None:
    """Return how many times as fast ours is."""
    if theirs.error or ours.error:
        return None
    return Ratio.of(*([turn[clock] for turn in each.rounds] for each in (theirs, ours)))


def _extrapolated() -> list[Row]:
    rows = []
    for cluster in extrapolation.CLUSTERS:
        for model in extrapolation.MODELS:
            each = extrapolation.efficiency(model, cluster)
            exact = Ratio.of([each.exact], [1.0])
            note = f"exact by machine {each.exact_by_machine:.0%}, fast {each.fast:.0%}"
            rows.append(Row("extrapolated", model.name, cluster.name, exact, unit="%", note=note))
    return rows
