"""Processes of one run, forked from the test process: they have imported torch, and start in milliseconds."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundry_core import ExperimentConfig, hookimpl, run
from foundry_core.systems import RENDEZVOUS
from tests.faults.harness import Child, Tell

Life = Callable[[Tell], None]


@dataclass(frozen=True)
class Left:
    """What a process left: its exit code (negative: the signal), and its lines on stderr."""

    code: int
    lines: list[str]


class Together:
    """Forks that each carry out `life(tell)` as one process of a run.

    Args:
        size: How many processes.
        life: What each does; a sequence has one for each rank.
        hosted: They meet at a port that process 0 keeps, as without torchrun, and nothing watches over them; by default
            at a file, as those of `foundry train --processes`, which is what sees one die.
    """

    def __init__(self, size: int, life: Life | Sequence[Life], *, hosted: bool = False):
        self._folder = tempfile.TemporaryDirectory()
        place = {RENDEZVOUS: (Path(self._folder.name) / "meeting").as_uri()}
        if hosted:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        lives = [life] * size if callable(life) else life
        ranks = ({**place, "WORLD_SIZE": str(size), "RANK": str(rank)} for rank in range(size))
        self.children = [Child(_as_process(each, own)) for each, own in zip(lives, ranks, strict=True)]

    def kill(self, rank: int) -> None:
        self.children[rank].signal(signal.SIGKILL)

    def wait(self) -> list[Left]:
        """Return what each process left, by rank."""
        ended = [child.wait() for child in self.children]
        self._folder.cleanup()
        return [Left(each.code, [line for line in each.errors if line]) for each in ended]


def _as_process(life: Life, environment: dict[str, str]) -> Life:
    def live(tell: Tell) -> None:
        torch.set_num_threads(1)
        # Its end of the pipe at stdin stays open: who started it is there.
        os.dup2(os.pipe()[0], 0)
        os.environ |= environment
        life(tell)

    return live


class Steps:
    """Tells of each step, and of each checkpoint."""

    def __init__(self, tell: Tell):
        self.tell = tell

    @hookimpl
    def foundry_step_ended(self, report: Any) -> None:
        self.tell(("step", report.step))

    @hookimpl
    def foundry_evaluated(self, report: Any) -> None:
        self.tell(("evaluated", report.step))

    @hookimpl
    def foundry_checkpoint_saved(self, step: int, folder: Path) -> None:
        self.tell(("saved", step))


def trained(config: ExperimentConfig, size: int, **keywords: Any) -> Together:
    """Carry out a run in so many processes; process 0 tells of its steps."""

    def life(tell: Tell) -> None:
        run(config, quiet=True, extra_observers=[Steps(tell)], **keywords)

    return Together(size, life)


def marked(mark: str) -> set[int]:
    """Return the processes whose environment holds a text: those of a run that was started with it, and theirs."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes() and "Z" not in _state(folder):
                found.add(int(folder.name))
    return found


def _state(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]


def gone_within(seconds: float, pids: Callable[[], Iterable[int]]) -> bool:
    """Check whether no process is left after so many seconds at most."""
    until = time.monotonic() + seconds
    while list(pids()):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
