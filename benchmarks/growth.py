"""Cost as work grows: what should not grow with corpus, row, vocabulary, checkpoints, plugins or position, measured.

Each series has points (x, time, memory); the table shows the last time over the first. Time is processor time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import SIZES, Size, new_words, write_text
from benchmarks.measuring import Contender, Finding, Gate, NotMeasuredError, Ratio, Row, in_process, race
from benchmarks.preparing import config
from benchmarks.starting import FOUNDRY

_MODULE = """\
from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, ModelConfig


class Section(ConfigSection):
    hidden_size: int = Field(64, ge=1, description="width")


class Config(ModelConfig):
    {name}: Section = Field(Section(), description="sizes")


{name} = Architecture(
    name="{name}",
    summary="an architecture of the benchmark",
    config_class=Config,
    model_class="foundry_{name}.model:Model",
    capabilities=lambda config: Capabilities(objectives=("causal_lm",)),
    examples={{"tiny": {{"{name}": {{"hidden_size": 8}}}}}},
)
"""


@dataclass
class Point:
    """One measurement of a series: seconds for a unit of work, and peak bytes where they were measured."""

    x: float
    seconds: float
    memory: int | None = None


@dataclass
class Series:
    """How the cost of a unit of work, in words, changes with x."""

    name: str
    x: str
    unit: str
    points: list[Point]
    limit: float | None = None
    """The largest ratio of the last time to the first, where nothing should grow."""

    def row(self) -> Row:
        """Return the row of the table."""
        if len(self.points) < 2:
            return Row("grow", self.name, self.x, None, note="too few points")
        first, last = self.points[0], self.points[-1]
        note = f"{_si(first.seconds)}s to {_si(last.seconds)}s {self.unit}"
        if first.memory and last.memory:
            note += f", {first.memory / 1e9:.2f} GB to {last.memory / 1e9:.2f} GB"
        against = f"{self.x} {first.x:g} to {last.x:g}"
        growth = last.seconds / first.seconds
        ratio = Ratio(growth, growth, growth, rounds=1)
        return Row("grow", self.name, against, ratio, self.limit, lower=True, note=note)


def _si(seconds: float) -> str:
    for scale, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {prefix}"
    return f"{seconds * 1e9:.3g} n"


def prepared_corpus(_: Gate, settings: dict[str, Any]) -> dict[str, Any]:
    """Train a tokenizer and encode, as `foundry tokenizer train` and `foundry data prepare`, each timed."""
    from foundry_core.cli.common import prepare_data
    from foundry_core.config.loading import load_config
    from foundry_core.data.preparation import train_tokenizer_from_config

    loaded = load_config(settings)
    start = time.process_time()
    train_tokenizer_from_config(loaded)
    middle = time.process_time()
    _, data = prepare_data(loaded)
    return {
        "train": middle - start,
        "encode": time.process_time() - middle,
        "tokens": data.train_rows.total_tokens,
        **_memory(),
    }


def _memory() -> dict[str, int]:
    from benchmarks.measuring import peak_memory

    return {"peak_memory": peak_memory()}


def corpora(folder: Path, megabytes: tuple[float, ...]) -> list[Series]:
    """Measure preparation: time for a token and memory, as the corpus grows."""
    training, encoding = [], []
    for size in megabytes:
        place = folder / f"corpus {size}"
        corpus = write_text(place / "corpus.txt", new_words(round(size * 1e6)))
        settings = config("bpe", corpus, place, 4000)
        found = in_process("benchmarks.growth:prepared_corpus", {"settings": settings}, threads=2)
        training.append(Point(size, found["train"] / found["tokens"], found["peak_memory"]))
        encoding.append(Point(size, found["encode"] / found["tokens"], found["peak_memory"]))
    return [
        Series("training a tokenizer (bpe)", "megabytes", "a token", training, 1.2),
        Series("encoding (bpe)", "megabytes", "a token", encoding, 1.2),
    ]


def trainings(folder: Path, sizes: Sequence[tuple[float, Size]], name: str, x: str, rounds: int) -> list[Series]:
    """Measure training: time for a token and memory, as something in the size grows."""
    points, contenders = [], []
    for value, size in sizes:
        place = folder / f"{x} {value:g}"
        rows = (size.warm_up + size.steps * (rounds + 1)) * size.batch
        facts = in_process("benchmarks.contenders:prepared", {"size": size, "folder": place, "rows": rows}, threads=2)
        arguments = {"size": size, "settings": facts["settings"], "overrides": [], "output": place / "run"}
        contenders.append(Contender(f"{value:g}", "benchmarks.contenders:ours", arguments))
    race(contenders, rounds, name)
    for (value, size), contender in zip(sizes, contenders, strict=True):
        if contender.error is not None:
            raise NotMeasuredError(contender.error)
        seconds = statistics.median(each["processor"] for each in contender.rounds) / size.steps / size.tokens
        points.append(Point(value, seconds, contender.rounds[-1]["peak_memory"]))
    return [Series(name, x, "a token", points)]


def saves(gate: Gate, settings: dict[str, Any], count: int) -> list[float]:
    """Train with a checkpoint after every step; return the processor time of each, without that of the step."""
    from foundry_core import hookimpl, load_config, run

    taken: list[float] = []

    class Observer:
        began = 0.0

        @hookimpl
        def foundry_step_ended(self) -> None:
            self.began = time.process_time()

        @hookimpl
        def foundry_checkpoint_saved(self, step: int) -> None:
            if step:
                taken.append(time.process_time() - self.began)

    every = "training.checkpoints={every_steps: 1}"
    overrides = [every, f"training.train_steps={count}", "logging.log_every_steps=1"]
    run(load_config(settings, overrides), extra_observers=[Observer()])
    return taken


def checkpoints(folder: Path, size: Size, count: int) -> list[Series]:
    """Measure the time of a save, as the number of checkpoints grows."""
    facts = in_process("benchmarks.contenders:prepared", {"size": size, "folder": folder, "rows": 64}, threads=2)
    taken = in_process("benchmarks.growth:saves", {"settings": facts["settings"], "count": count})
    part = max(count // 5, 1)
    points = [Point(end, statistics.median(taken[end - part : end])) for end in range(part, count + 1, part)]
    return [Series("saving a checkpoint", "checkpoints", "a save", points, 1.3)]


def plugins(folder: Path, counts: tuple[int, ...], rounds: int) -> list[Series]:
    """Measure `foundry plugins list`, which imports and checks every descriptor, with more and more plugins."""
    environments = {}
    for count in counts:
        site = folder / f"site {count}"
        for index in range(count):
            _install(site, f"bench{index:02}")
        site.mkdir(parents=True, exist_ok=True)
        environments[count] = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    times: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds + 1):
        for count, environment in environments.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-c", FOUNDRY, "plugins", "list"]
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:
                times[count].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    points = [Point(count, statistics.median(taken)) for count, taken in times.items()]
    return [Series("foundry plugins list", "further plugins", "a call", points)]


def _install(site: Path, name: str) -> None:
    """Write the files that an installer leaves for a package with one architecture."""
    information, package = site / f"foundry_{name}-1.0.dist-info", site / f"foundry_{name}"
    information.mkdir(parents=True)
    package.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: foundry-{name}\nVersion: 1.0\nSummary: one of many\n"
        f"Requires-Dist: model-foundry<1,>=0.1\n\n{'A README of some length.' * 100}\n"
    )
    (information / "entry_points.txt").write_text(f"[foundry.architectures]\n{name} = foundry_{name}:{name}\n")
    (package / "__init__.py").write_text(_MODULE.format(name=name))
    (package / "model.py").write_text("")


def seeks(_: Gate, positions: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Return the time to the first batch after so many samples, from one row of numbers, repeated."""
    import numpy as np

    from foundry_core.data.batches import Batches
    from foundry_core.data.order import SampleOrder
    from foundry_core.data.rows import Rows

    rows = Rows(np.broadcast_to(np.uint16(7), (30_000_000 * 127 + 1,)), "overlap", 127)
    order = SampleOrder(len(rows), seed=42)
    times: dict[int, list[float]] = {position: [] for position in positions}

    def collate(samples: Any) -> dict[str, Any]:
        return {"input_ids": np.stack([sample["input_ids"] for sample in samples])}

    for _round in range(rounds):
        for position in positions:
            start = time.process_time()
            next(iter(Batches(rows, order, collate, 32, position, position + 10**9)))
            times[position].append(time.process_time() - start)
    return {position: statistics.median(taken) for position, taken in times.items()}


def seeking(positions: tuple[int, ...], rounds: int) -> list[Series]:
    """Measure how long resuming takes to find its position: it is a number, and nothing is replayed."""
    found = in_process("benchmarks.growth:seeks", {"positions": positions, "rounds": rounds})
    points = [Point(position, found[position]) for position in positions]
    return [Series("first batch when resuming", "samples before", "a call", points, 2.0)]


def measure(folder: Path, rounds: int, *, quick: bool) -> Iterator[Finding]:
    """Measure every series."""
    tiny = replace(SIZES["gpt2 tiny"], tokenizer="word", vocabulary=4000, length=128, batch=16, steps=2)
    tiny = tiny.shrunk() if quick else tiny
    lengths = (16, 64) if quick else (64, 256, 1024, 2048)
    vocabularies = (200, 400) if quick else (1000, 4000, 16_000, 64_000)
    by_length = [(n, replace(tiny, length=n, batch=max(1, 64 if quick else 2048 // n))) for n in lengths]
    by_vocabulary = [(n, replace(tiny, vocabulary=n)) for n in vocabularies]
    series: dict[str, Callable[[], list[Series]]] = {
        "corpus": lambda: corpora(folder, (0.02, 0.04) if quick else (0.2, 2.0, 20.0)),
        "row length": lambda: trainings(folder, by_length, "training, gpt2 tiny", "row length", rounds),
        "vocabulary": lambda: trainings(folder, by_vocabulary, "training, gpt2 tiny", "vocabulary", rounds),
        "checkpoints": lambda: checkpoints(folder / "saves", tiny, 10 if quick else 100),
        "plugins": lambda: plugins(folder, (1, 2) if quick else (1, 5, 10, 20), rounds),
        "position": lambda: seeking((0, 10**6, 10**8, 10**10), 11),
    }
    for name, make in series.items():
        try:
            made = make()
        except (NotMeasuredError, subprocess.CalledProcessError) as error:
            yield name, [Row("grow", name, "", None, note=str(error))], {}
        else:
            yield name, [each.row() for each in made], [asdict(each) for each in made]


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw every series, time and memory. matplotlib must be installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    series = [each for several in found.values() for each in several]
    figure, grid = pyplot.subplots(2, 4, figsize=(16, 7))
    for axes, each in zip(grid.flat, series, strict=False):
        x = [point["x"] for point in each["points"]]
        axes.plot(x, [1e6 * point["seconds"] for point in each["points"]], "o-")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(each["x"], fontsize=8)
        axes.set_ylabel(f"microseconds {each['unit']}", fontsize=8)
        if len(x) > 1 and x[-1] > 10 * x[0]:
            axes.set_xscale("symlog" if x[0] == 0 else "log")
            axes.set_xlim(left=x[0] if x[0] == 0 else None)
            axes.tick_params(axis="x", labelsize=6)
        memory = [point["memory"] for point in each["points"]]
        if all(memory):
            twin = axes.twinx()
            twin.plot(x, [each / 1e9 for each in memory], "s--", color="tab:orange")
            twin.set_ylim(bottom=0)
            twin.set_ylabel("peak memory, GB (dashed)", fontsize=8)
        axes.set_title(each["name"], fontsize=9)
    for axes in grid.flat[len(series) :]:
        axes.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
