"""Tests of where the time of a run goes: profiled steps, and waiting for batches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from foundry_core import ExperimentConfig, create_model, hookimpl, run
from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.checkpoints.state import TrainState
from foundry_core.cli import main
from foundry_core.cli.common import prepare_data
from foundry_core.processes import World
from foundry_core.registry.hooks import observing
from foundry_core.run_folder import METRICS, PROFILE, PROFILE_TABLE, PROFILE_TRACE, WEIGHTS
from foundry_core.training import speed
from foundry_core.training.notifier import Notifier
from foundry_core.training.profiling import PARTS, ProfiledTrainer
from foundry_core.training.speed import Stopwatch, bottleneck_advice
from tests.each import each

TIMES = ("tokens_per_second", "seconds_left", "data_wait", "communication")
MICRO_BATCHES = 2


@pytest.fixture
def build(experiment: Callable[..., ExperimentConfig], corpus: Any, tmp_path: Path, one_thread: None) -> Any:
    def make(name: str, architecture: str, steps: int) -> ExperimentConfig:
        return experiment(
            architecture,
            tmp_path / name,
            data={"test_corpus": str(corpus.test)},
            training={
                "train_steps": steps,
                "gradient_accumulation_steps": MICRO_BATCHES,
                "evaluate_every_steps": 2,
                "checkpoints": {"every_steps": 2},
            },
            logging={"log_every_steps": 2},
        )

    return make


def outcome(config: ExperimentConfig) -> Any:
    output = Path(config.training.output_dir)
    lines = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    folders = sorted(output.glob("checkpoint-*"))
    assert len(folders) > 1
    paths = [path for each in folders for path in (each / WEIGHTS, optimizer_file(each))]
    files = [path.read_bytes() for path in paths if path.exists()]
    assert len(files) > len(folders)
    return metrics, [folder.name for folder in folders], files


@each(("architecture", "steps", "profiled"), [("gpt2", 9, 4), ("lstm", 4, 1)])
@pytest.mark.long
def test_a_profiled_run_ends_with_the_same_bytes(
    build: Any, capsys: pytest.CaptureFixture[str], architecture: str, steps: int, profiled: int
) -> None:
    plain, watched = (build(f"{architecture}/{name}", architecture, steps) for name in ("plain", "watched"))
    run(plain, quiet=True)
    capsys.readouterr()
    run(watched, quiet=True, profile=4)
    assert outcome(watched) == outcome(plain)

    folder = Path(watched.training.output_dir) / PROFILE
    table = (folder / PROFILE_TABLE).read_text()
    assert table in capsys.readouterr().err
    assert table.startswith(f"{profiled} step{'s' * (profiled > 1)} to step {3 + profiled};")
    lines = [line.split() for line in table.splitlines()]
    shares = {line[0]: float(line[2].rstrip("%")) for line in lines if line and line[0] in PARTS}
    # What follows the update of a step counts to the next step: nothing is due after step 3.
    assert shares.keys() == set(PARTS) - (set() if profiled > 1 else {"logging", "evaluation", "saving"})
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert any(line[0].startswith("aten::") for line in lines if line)

    events = json.loads((folder / PROFILE_TRACE).read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for part in ("loader", "forward", "backward", "optimizer"):
        assert names.count(f"foundry: {part}") == profiled * MICRO_BATCHES, part
    assert not (Path(plain.training.output_dir) / PROFILE).exists()


def test_a_profile_that_cannot_be_stored_stops_nothing(build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = build("watched", "lstm", 3)
    output = Path(config.training.output_dir)
    output.mkdir(parents=True)
    (output / PROFILE).write_text("in the way")
    (output / "x.json").write_text(json.dumps(config.resolved()))
    assert main(["train", str(output / "x.json"), "--quiet", "--profile", "1"]) == 0
    error = capsys.readouterr().err
    assert "1 step to step 3" in error
    assert "warning: the profile was not stored: " in error
    assert (output / "checkpoint-3").exists()


def test_training_is_plain_again_after_the_profiled_steps(build: Any) -> None:
    config = build("watched", "gpt2", 6)
    tokenizer, data = prepare_data(config)
    model, notifier = create_model(config, tokenizer), Notifier(config.chosen.plugins.manager)
    trainer = ProfiledTrainer(config, model, tokenizer, data, notifier, profiled_steps=1)
    forward, wrapped = trainer.forward, []

    class Watch:
        @hookimpl
        def foundry_step_ended(self, report: Any) -> None:
            wrapped.append((report.step, trainer.forward is not forward))

    with observing(config.chosen.plugins.manager, [Watch()]):
        trainer.train()
    assert wrapped == [(2, True), (4, False), (6, False)]


@dataclass
class Clock:
    """Time that passes only where a test lets it."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@each(("loader", "advice"), [(3.0, "try training.num_workers=3 (now 0)"), (0.1, "")])
def test_a_slow_loader_is_reported_once_with_what_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], build: Any, loader: float, advice: str
) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def batches() -> Iterator[Any]:
        while True:
            clock.now += loader
            yield {}

    class Plan:
        total_steps = 100

    state, source = TrainState(), batches()
    watch = Stopwatch(Plan(), state, 0, World())  # type: ignore[arg-type]
    reports = []
    for _ in range(9):
        for _ in range(2):
            assert len(watch.next_of(source, 2)) == 2
            clock.now += 2.0
            state.step, state.tokens_seen = state.step + 1, state.tokens_seen + 10
        with watch:
            clock.now += 1000.0
        reports.append(watch.report(state, {"loss": 1.0}, 0.1, 1.0))
    for report in reports:
        assert report.data_wait == pytest.approx(loader / (loader + 1))
        assert report.tokens_per_second == pytest.approx(5 / (loader + 1))
    error = capsys.readouterr().err
    assert error.count("waiting for batches") == bool(advice)
    assert f"took 75% of the time up to step 2: {advice}" in error or not advice


def test_the_start_of_workers_is_not_a_slow_loader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)

    def batches() -> Iterator[Any]:
        clock.now += 20.0
        while True:
            yield {}

    class Plan:
        total_steps = 100

    state, source = TrainState(), batches()
    watch = Stopwatch(Plan(), state, 2, World())  # type: ignore[arg-type]
    for _ in range(10):
        watch.next_of(source, 1)
        clock.now += 2.0
        state.step += 1
        watch.report(state, {"loss": 1.0}, 0.1, 1.0)
    assert capsys.readouterr().err == ""


def test_more_workers_are_advised_up_to_the_cores() -> None:
    assert "training.num_workers=1 (now 0)" in bottleneck_advice(0.25, 0, 8)
    assert "training.num_workers=4 (now 2)" in bottleneck_advice(0.5, 2, 8)
    assert "training.num_workers=8 (now 0)" in bottleneck_advice(1.0, 0, 8)
    assert "try" not in bottleneck_advice(0.5, 8, 8)
