"""A run that something happens to, and the judge: the same run left alone, byte for byte.

Tiny, and complete: a permanent checkpoint after every second step, of which the newest is kept, and an ephemeral one
after the others. Every trial takes place in the same folder, which is put back to its beginning: even the paths on
record are equal.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import torch

from foundry_core import hookimpl, load_config, run
from foundry_core.checkpoints.checkpoint import checkpoint_step, newest_valid
from foundry_core.checkpoints.verification import verify_run
from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage import files as storage
from foundry_core.training.trainer import Trainer
from tests.faults.harness import Child, Ended, Fault, ObservedDisk, Operation, Tell, in_child
from tests.interruption import TIMES


class _Told:
    """Tells the parent of every step, and of every checkpoint once it is acknowledged."""

    def __init__(self, disk: ObservedDisk):
        self.disk = disk

    @hookimpl
    def foundry_step_ended(self, report):
        self.disk.tell(("step", report.step))

    @hookimpl
    def foundry_checkpoint_saved(self, step, folder):
        self.disk.tell(("acknowledged", step))
        self.disk.operations.append(Operation("acknowledged", folder))


def _reported(line: str) -> Any:
    try:
        return {key: value for key, value in json.loads(line).items() if key not in TIMES}
    except ValueError:
        return line


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run left, but for what is a matter of time, process and machine."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif name == "metrics.jsonl":
            found[name] = [_reported(line) for line in path.read_text().splitlines()]
        elif path.name == MANIFEST:
            # Where training went on from is a matter of when it stopped, and the seal over that with it.
            found[name] = {**json.loads(path.read_bytes()), "parent": None, "sha256": None}
        elif name != "run.json" and not name.endswith(".lock"):
            found[name] = path.read_bytes()
    return found


@dataclass
class Scenario:
    """folder: of the experiment; the run is in `run` below it. safe: steps whose checkpoints are whole from the
    beginning on. damaged: the name of one that is not.
    """

    folder: Path
    steps: int = 4
    workers: int = 0
    background: bool = False
    ephemeral: bool = True
    prepared: bool = True
    safe: tuple[int, ...] = ()
    damaged: str | None = None
    mutate: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.run_folder, self.beginning = self.folder / "run", self.folder / "beginning"
        text = self.folder / "train.txt"
        if not text.exists():
            words = [f"w{number * number % 11}" for number in range(300)]
            text.write_text("".join(" ".join(words[start : start + 5]) + "\n" for start in range(0, 300, 5)))
        tokenizer = {"output_dir": str(self.folder / "tokenizer")} if self.prepared else {}
        self.config = load_config(
            {
                "experiment_name": "faults",
                "data": {"training_corpus": str(text), "max_sequence_length": 16, "batch_size": 4},
                "tokenizer": {"tokenizer_type": "word", "vocab_size": 30, **tokenizer},
                "model": {
                    "architecture": "rnn",
                    "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1, "dropout": 0.1},
                },
                "training": {
                    "output_dir": str(self.run_folder),
                    "train_steps": self.steps,
                    "learning_rate": 0.01,
                    "num_workers": self.workers,
                    "device": "cpu",
                    "checkpoints": {"every_steps": 2, "keep": 1, "ephemeral_minutes": 1e-9}
                    if self.ephemeral
                    else {"every_steps": 4, "keep": 1},
                },
                "logging": {"log_every_steps": 1},
            }
        )

    def reset(self) -> None:
        shutil.rmtree(self.run_folder, ignore_errors=True)
        if self.beginning.exists():
            shutil.copytree(self.beginning, self.run_folder)

    def child(self, disk: Callable[[Tell], ObservedDisk] = ObservedDisk) -> Child:
        """Train in a child, on from the newest checkpoint if there is one; it tells of steps and acknowledgements."""
        return Child(lambda tell: self._train(disk(tell)))

    def train(self, fault: Fault | None = None) -> Ended:
        return self.child(partial(ObservedDisk, fault=fault)).wait()

    def _train(self, disk: ObservedDisk) -> None:
        self.mutate()
        if self.background:
            constructor: Any = partialmethod(Trainer.__init__, background=True)
            Trainer.__init__ = constructor  # type: ignore[method-assign]  # in this child alone
        storage.disk = disk
        run(self.config, resume="auto", extra_observers=[_Told(disk)], quiet=True)

    def operations(self) -> list[Operation]:
        """Return what the run asks of the disk when nothing happens to it."""

        def record(tell: Tell) -> None:
            disk = ObservedDisk(tell)
            self._train(disk)
            tell(("operations", disk.operations))

        self.reset()
        operations: list[Operation] = in_child(record).of("operations")[0]
        return operations

    def alone(self) -> dict[str, Any]:
        """Return what the run comes to when nothing happens to it."""
        self.reset()
        ended = self.child().wait()
        assert ended.code == 0, ended
        return outcome(self.run_folder)


@dataclass
class Judge:
    """Says what is wrong with a run after something happened to it; nothing, if the promises hold."""

    scenario: Scenario
    reference: dict[str, Any]
    seconds: float
    """Defines how long the run takes."""

    @classmethod
    def of(cls, scenario: Scenario) -> Judge:
        first = scenario.alone()
        started = time.perf_counter()
        second = scenario.alone()
        assert first == second, "the suite is invalid: the run left alone comes to two different things"
        return cls(scenario, first, time.perf_counter() - started)

    def after(self, ended: Ended) -> list[str]:
        """Check whether all that was acknowledged is there, and going on leads to where it would have led."""
        return self.checkpoints(ended.of("acknowledged")) + self.going_on()

    def checkpoints(self, saved: list[int]) -> list[str]:
        scenario = self.scenario
        try:
            whole, problems = verify_run(scenario.run_folder)
        except CheckpointError:
            whole, problems = [], []
        if scenario.damaged and f"checkpoint-{max(saved, default=0)}" != scenario.damaged:
            problems = [line for line in problems if f"{scenario.damaged}/" not in line]
        newest = max((one.state.step for one in whole), default=-1)
        due = max((*scenario.safe, *saved), default=-1)
        lost = [f"acknowledged checkpoint-{due} is lost, the newest whole one is {newest}"] if newest < due else []
        if due >= 0 and not lost:
            to_resume = checkpoint_step(newest_valid(scenario.run_folder, to_resume=True)[0])
            lost = [f"checkpoint-{due} lost its state, the newest with one is {to_resume}"] if to_resume < due else []
        return problems + lost

    def going_on(self) -> list[str]:
        ended = self.scenario.child().wait()
        if ended.code:
            return [f"going on ended with {ended.code}: {ended.errors}"]
        return self.differences()

    def differences(self) -> list[str]:
        found = outcome(self.scenario.run_folder)
        names = sorted({*found, *self.reference})
        return [f"{name} differs" for name in names if found.get(name) != self.reference.get(name)]


def interrupted_scenario(folder: Path) -> Scenario:
    """A run that goes on: its newest checkpoint is damaged, and those before left all kinds of things unfinished."""
    scenario = Scenario(folder, safe=(0, 2), damaged="checkpoint-3")

    class Die:
        @hookimpl
        def foundry_checkpoint_saved(self, step, folder):
            if step == 3:
                os._exit(9)

    def die(tell: Tell) -> None:
        run(scenario.config, extra_observers=[Die()], quiet=True)

    scenario.reset()
    ended = in_child(die)
    assert ended.code == 9, ended
    made = scenario.run_folder
    shutil.copytree(made / "checkpoint-2", made / ".checkpoint-4.foundry-0000000000000001.tmp")
    (made / ".checkpoint-4.foundry-0000000000000001.tmp" / "MANIFEST.json").unlink()
    shutil.copytree(made / "checkpoint-2", made / ".checkpoint-1.foundry-0000000000000002.old")
    (made / ".metrics.jsonl.foundry-0123456789abcdef.tmp").write_text("half")
    flip(made / "checkpoint-3" / "model.safetensors", -3)
    with (made / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    made.rename(scenario.beginning)
    return scenario


def flip(path: Path, index: int) -> None:
    """Turn one bit of a byte over."""
    raw = bytearray(path.read_bytes())
    raw[index] ^= 1
    path.write_bytes(raw)
