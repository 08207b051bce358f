"""Runs on several processes: the same bits on any number, and after one is killed, stopped or suspended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foundry_core import run
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.processes import joined
from tests.interruption import outcome
from tests.together import Together, gone_within, marked, trained

SIZES = (1, 2, 4)
TRANSFORMER: dict[str, Any] = {"layers": 1, "embedding_size": 16, "hidden_size": 16, "intermediate_hidden_size": 32}
TRANSFORMER |= {"attention_heads": 2, "dropout": 0.1, "attention_dropout": 0.1}
RNN: dict[str, Any] = {"embedding_size": 16, "hidden_size": 16, "num_layers": 2, "dropout": 0.1}
MAMBA = {"hidden_size": 16, "num_layers": 1, "state_size": 4, "dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"transformer": TRANSFORMER},
    "bert": {"transformer": TRANSFORMER},
    "lstm": {"rnn": RNN},
    "mamba": {"mamba": MAMBA},
}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", {}, {}),
    "bert": ("bert", {}, {"objective": "masked_lm"}),
    "lstm": ("lstm", {}, {}),
    "mamba": ("mamba", {}, {}),
    "contiguous": ("lstm", {"batching": "contiguous"}, {}),
    "isolated": ("gpt2", {"isolate_documents": True}, {}),
    "averaged": ("lstm", {}, {"optimizer": "asgd", "asgd_nonmonotonic_interval": 1, "restore_best": "at_end"}),
    "workers": ("gpt2", {}, {"num_workers": 2}),
    "recomputed in bf16": ("gpt2", {}, {"precision": "bf16", "gradient_checkpointing": True}),
}
KILLS = [pytest.param(2, id="sample"), pytest.param(20, id="all", marks=pytest.mark.faults)]


@pytest.fixture
def several(experiment: Any, corpus: Any, tmp_path: Path, one_thread: None) -> Callable[..., Any]:
    """`several(kind, name, accumulation, **training)`: evaluated, with plateau and a short last step."""

    def make(kind: str, name: str, accumulation: int = 4, **training: Any) -> Any:
        architecture, data, more = KINDS[kind]
        settings = {
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 0.5,
            "train_steps": None,
            "epochs": 0.83,
            "checkpoints": {"every_steps": 3},
            "evaluate_every_steps": 1,
            **({} if "optimizer" in more else {"lr_scheduler": "plateau", "plateau_patience": 0}),
        }
        return experiment(
            architecture,
            tmp_path / name,
            data={"batch_size": 2, "test_corpus": str(corpus.test), **data},
            model={"architecture": architecture, **MODELS[architecture]},
            training={**settings, **more, **training, "output_dir": str(tmp_path / name / "run")},
            logging={"log_every_steps": 1},
        )

    return make


def alone(config: Any) -> dict[str, Any]:
    """Return what a run on one process comes to."""
    run(config, quiet=True)
    return outcome(config)


def lines_of(left: Any) -> list[str]:
    return [line for each in left for line in each.lines if not line.startswith("warning: ")]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_same_bits_on_any_number_of_processes(several: Any, kind: str, accumulation: int) -> None:
    expected = alone(several(kind, "alone", accumulation))
    samples = expected["state"]["foundry"]["samples"]
    assert samples % (2 * accumulation) or kind == "contiguous", "the last step is not short"
    assert len({report["learning_rate"] for report in expected["reports"] if "learning_rate" in report}) > 1
    for size in SIZES[1:]:
        config = several(kind, f"on {size}", accumulation)
        left = trained(config, size).wait()
        assert ([each.code for each in left], lines_of(left)) == ([0] * size, [])
        assert outcome(config) == expected, f"{size} processes"


# Killed


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", ["gpt2", pytest.param("contiguous", marks=pytest.mark.faults)])
def test_killed_and_resumed_on_other_numbers_a_run_is_the_same(
    several: Any, kind: str, kills: int, figure: Any
) -> None:
    """One process is killed at a random time; the others end within ten seconds, and another number goes on."""
    settings = {"checkpoints": {"every_steps": 3, "keep": 2, "ephemeral_minutes": 1e-9}}
    expected = alone(several(kind, "alone", **settings))
    config = several(kind, "killed", **settings)
    chance, done, turn, slowest = random.Random(kills), 0, 0, 0.0
    while done < kills:
        size = (2, 4, 1)[turn % 3]
        turn += 1
        together = trained(config, size, resume=bool(checkpoints(config.training.output_dir)))
        victim, steps = chance.randrange(size), chance.randrange(1, 4)
        while steps and (heard := together.children[0].hears()) is not None:
            steps -= heard[0] == "step"
        time.sleep(chance.uniform(0, 0.02))  # the moment is what is drawn at random
        together.kill(victim)
        begun = time.monotonic()
        left = together.wait()
        slowest = max(slowest, time.monotonic() - begun)
        if steps:  # the run had ended before; from the beginning
            assert [each.code for each in left if each.code != -9] == [0] * sum(each.code != -9 for each in left)
            assert outcome(config) == expected
            shutil.rmtree(config.training.output_dir)
            continue
        done += 1
        # What started them says which one it was.
        assert left[victim].code in (-9, 0)
        assert lines_of(left) == []
    left = trained(config, 2, resume=True).wait()
    assert [each.code for each in left] == [0, 0]
    figure("kills of one of several", done)
    assert slowest < 10
    assert outcome(config) == expected


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.faults)])
def test_a_lost_process_is_named_once_where_nothing_watches(victim: int) -> None:
    """As with torchrun on several machines; the neighbour that notices is not the only one left."""

    def life(tell: Any) -> None:
        with joined(lambda: torch.device("cpu")) as world:
            for number in range(10**6):
                world.meet()
                if number == 20:
                    tell(("going", world.rank))

    together = Together(4, life, hosted=True)
    assert [child.hears() for child in together.children] == [("going", rank) for rank in range(4)]
    together.kill(victim)
    begun = time.monotonic()
    left = together.wait()
    assert time.monotonic() - begun < 10
    assert [each.code for each in left] == [-9 if rank == victim else 7 for rank in range(4)]
    lines = [line for line in lines_of(left) if line.startswith("process ")]  # torch may add lines of its own
    assert set(lines) == {f"process {victim} of 4 was killed or lost; go on from the last checkpoint with --resume"}
    assert len(lines) == 1 or victim == 0  # process 0 keeps the messages by which they agree who says it


# Commands


class Command:
    """`foundry train --processes 2` as a user starts it; `left` are its processes that are still there."""

    def __init__(self, config: Any, *options: str, launcher: tuple[str, ...] = (), processes: int = 2):
        self.folder = Path(config.training.output_dir)
        file = self.folder.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
        self._mark = f"FOUNDRY_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        start = (sys.executable, *(launcher or ("-m", "foundry_core.cli")))
        divided = () if launcher else ("--processes", str(processes))
        self._errors = (file.parent / f"errors-{value}").open("w+")
        self.process = subprocess.Popen(
            [*start, "train", str(file), "--quiet", *divided, *options],
            env=os.environ | {"OMP_NUM_THREADS": "1", name: value},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    def left(self) -> set[int]:
        return marked(self._mark)

    def rank(self, number: int) -> int:
        """Return the process with a rank, and not a data worker of it."""
        for pid in self.left():
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if f"RANK={number}".encode() in environment and parent == self.process.pid:
                return pid
        raise AssertionError(f"there is no process {number}")

    def until(self, happened: Callable[[], Any]) -> None:
        limit = time.monotonic() + 60
        while not happened():
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < limit, "it has not happened"
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        metrics = self.folder / "metrics.jsonl"
        self.until(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text())

    def ended(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def errors(self) -> list[str]:
        self._errors.seek(0)
        return [line for line in self._errors.read().splitlines() if line and not line.startswith("warning: ")]


@pytest.fixture
def command(request: pytest.FixtureRequest) -> Iterator[Callable[..., Command]]:
    """`command(config, *options)`; nothing of it outlives the test."""
    begun = list[Command]()

    def start(*arguments: Any, **keywords: Any) -> Command:
        begun.append(Command(*arguments, **keywords))
        return begun[-1]

    yield start
    for each in begun:
        for pid in each.left():
            os.kill(pid, signal.SIGKILL)
        each.process.wait()


LONG = {"epochs": None, "train_steps": 3000, "checkpoints": {"every_steps": 3000}}


def stopped_well(command: Command, folder: Path) -> None:
    """Check that a run has ended with one checkpoint, one line and code 75, and that nothing of it is left."""
    assert command.ended() == 75, command.errors()
    newest = checkpoints(folder)[-1].name
    (line,) = command.errors()
    assert line.startswith("stopped by SIGTERM after step ")
    assert line.endswith(f": go on from {newest} with --resume")
    assert [each.name for each in checkpoints(folder)] == sorted({"checkpoint-0", newest})
    assert gone_within(3, command.left)


@pytest.mark.faults
@pytest.mark.parametrize("whom", ["the launcher", "process 0", "process 1", "all twice"])
def test_a_signal_to_any_process_stops_all_with_one_checkpoint(several: Any, command: Any, whom: str) -> None:
    config = several("gpt2", "stopped", **LONG)
    started = command(config)
    started.until_step(3)
    pids = {"the launcher": [started.process.pid], "all twice": [*started.left()] * 2}.get(whom)
    for pid in pids or [started.rank(int(whom[-1]))]:
        with suppress(ProcessLookupError):  # one that had to do with what another does may have ended
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2 if whom == "all twice" else 0)  # schedulers repeat it, within a second
    stopped_well(started, Path(config.training.output_dir))


@pytest.mark.faults
@pytest.mark.parametrize("whom", ["the launcher", "process 0", "process 1"])
def test_a_signal_while_data_are_prepared_ends_all_at_once(several: Any, command: Any, whom: str) -> None:
    config = several("gpt2", "prepared", **LONG)
    started = command(config)
    if whom == "the launcher":  # its processes are importing
        started.until(lambda: len(started.left()) == 3)
    else:
        started.until((Path(config.training.output_dir) / ".lock").exists)
    os.kill(started.process.pid if whom == "the launcher" else started.rank(int(whom[-1])), signal.SIGTERM)
    assert started.ended() == 75
    (line,) = started.errors()
    assert line.startswith("stopped by SIGTERM ")
    assert gone_within(3, started.left)


@pytest.mark.faults
def test_a_signal_during_an_evaluation_stops_all_after_it(several: Any, tmp_path: Path) -> None:
    config = several("lstm", "evaluated", **{**LONG, "checkpoints": {"every_steps": 2}, "evaluate_every_steps": 2})
    for rank in range(2):
        shutil.rmtree(config.training.output_dir, ignore_errors=True)
        together = trained(config, 2)
        while together.children[0].hears() != ("saved", 2):
            pass
        while together.children[0].hears() != ("step", 4):  # its evaluation follows
            pass
        together.children[rank].signal(signal.SIGTERM)
        left = together.wait()
        assert [each.code for each in left] == [75, 75]
        (line,) = lines_of(left)
        assert line.endswith(f"go on from {checkpoints(config.training.output_dir)[-1].name} with --resume")


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_named_and_the_others_end(several: Any, command: Any, rank: int) -> None:
    started = command(several("gpt2", "killed", **LONG, num_workers=2))
    started.until_step(3)
    pid = started.rank(rank)
    os.kill(pid, signal.SIGKILL)
    assert started.ended(10) == 7
    line = f"error: process {rank} of 2 (pid {pid}) was killed by SIGKILL: go on from the last checkpoint with --resume"
    assert started.errors() == [line]
    assert gone_within(3, started.left)


@pytest.mark.faults
def test_without_its_launcher_a_run_saves_and_ends(several: Any, command: Any) -> None:
    config = several("gpt2", "orphaned", epochs=None, train_steps=400, checkpoints={"every_steps": 200})
    started = command(config)
    started.until_step(3)
    started.process.kill()
    assert gone_within(10, started.left)
    (line,) = started.errors()
    assert line.startswith("stopped by SIGTERM after step ")
    again = command(config, "--resume", processes=4)
    assert (again.ended(120), again.errors()) == (0, [])
    assert outcome(config) == alone(
        several("gpt2", "alone", epochs=None, train_steps=400, checkpoints={"every_steps": 200})
    )


@pytest.mark.faults
def test_a_suspended_process_is_waited_for(several: Any, command: Any) -> None:
    config = several("gpt2", "suspended", **LONG)
    started = command(config)
    started.until_step(3)
    pid = started.rank(1)
    os.kill(pid, signal.SIGSTOP)
    started.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        started.ended(2)
    os.kill(pid, signal.SIGCONT)
    stopped_well(started, Path(config.training.output_dir))


@pytest.mark.faults
def test_a_second_request_ends_all_at_once(several: Any, command: Any) -> None:
    started = command(several("gpt2", "interrupted", **LONG))
    started.until_step(3)
    os.kill(started.rank(1), signal.SIGSTOP)
    started.process.send_signal(signal.SIGINT)
    time.sleep(1.2)  # a second one within a second is a repetition
    started.process.send_signal(signal.SIGINT)
    assert started.ended(5) == 130
    assert started.errors() == ["interrupted: continue from the last checkpoint with --resume"]
    assert gone_within(3, started.left)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "foundry_core.cli")


@pytest.mark.faults
def test_under_torchrun_a_run_is_the_same_and_says_its_line(several: Any, command: Any) -> None:
    """Torchrun adds a report of its own, and ends with code 1 whatever the code of a process."""
    settings: dict[str, Any] = {"epochs": None, "train_steps": 400, "checkpoints": {"every_steps": 200}}
    config = several("gpt2", "torchrun", **settings)
    started = command(config, launcher=TORCHRUN)
    started.until_step(3)
    os.kill(started.rank(1), signal.SIGKILL)
    assert started.ended(15) == 1
    own = [line for line in started.errors() if line.startswith(("error: ", "stopped by "))]
    assert own == ["error: process 1 of 2 was killed or lost; go on from the last checkpoint with --resume"]
    assert gone_within(3, started.left)
    started = command(config, "--resume", launcher=TORCHRUN)
    started.until_step(60)
    os.kill(started.rank(0), signal.SIGTERM)
    assert started.ended(15) == 1
    own = [line for line in started.errors() if line.startswith(("error: ", "stopped by "))]
    assert [line.partition(" after ")[0] for line in own] == ["stopped by SIGTERM"]
    again = command(config, "--resume", launcher=TORCHRUN)
    assert again.ended(120) == 0
    assert outcome(config) == alone(several("gpt2", "alone", **settings))
    unknown = command(config, "training.stepz=3", launcher=TORCHRUN)
    assert unknown.ended(60) == 1
    assert sum("unknown key" in line for line in unknown.errors()) == 1
