"""Training the cells of a study: each in a process of its own, some at a time, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from foundry_core.errors import StoppedError, TrainingError
from foundry_core.run_folder import LOCK
from foundry_core.storage import files
from foundry_core.storage.lock import lock_owner, take_lock
from foundry_core.study.definition import Cell, Study
from foundry_core.study.folder import cell_log, cell_yaml, share_done, standing
from foundry_core.study.suites import KeptScores
from foundry_core.systems import REPEATED_SIGNALS, usable_cores
from foundry_core.training.progress import working
from foundry_core.training.signals import StopRequest

_POLL = 0.1
_TURNS_SHOWN = 10
"""Turns from one update of the progress bar to the next, which reads the newest log line of each cell."""


@dataclass
class _Running:
    """A cell in training: what is left to do for it, and the process that does the first of that."""

    cell: Cell
    commands: Iterator[list[str]]
    process: subprocess.Popen[bytes]


def train_cells(
    study: Study,
    cells: Sequence[Cell],
    *,
    foundry: Sequence[str],
    stop: StopRequest,
    jobs: int = 1,
    plugin_files: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train cells to their end, so many at a time; those that are done are skipped, and those begun go on.

    A cell that is trained has a process of its own only if something of its suites is missing.

    A cell that another process trains, which may have outlived a study that was killed, is waited for: the others go
    first.

    Args:
        study: The study, prepared.
        cells: Those of its cells that are to be trained.
        foundry: The command that verbs are called with, `foundry` itself.
        stop: A StopRequest that is active.
        jobs: Number of processes at a time.
        plugin_files: Those of --plugin.
        report: Called with a line for each cell that begins and each that ends.

    Raises:
        StoppedError: A signal asked the study to stop: it asked the cells, and each has saved.
        TrainingError: Cells have failed; a line for each. The others were trained.
    """
    pool = _Pool(study, cells, foundry, jobs, plugin_files, report)
    with working("cells", len(cells)) as progress:
        try:
            for turn in count():
                if not pool.turn(stop.requested):
                    break
                if turn % _TURNS_SHOWN == 0:
                    progress(*pool.progress())
                time.sleep(_POLL)
        except BaseException:
            for each in pool.running:
                each.process.terminate()
            raise
    if stop.requested and pool.done < len(cells):
        raise StoppedError(
            f"stopped by {stop.requested} with {pool.done} of {len(cells)} cells done, nothing is lost: go on with the "
            "same command"
        )
    if pool.failed:
        raise TrainingError("\n".join(pool.failed))


class _Pool:
    """The cells that wait, those in training, and what has come of the others."""

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        foundry: Sequence[str],
        jobs: int,
        plugin_files: Sequence[str],
        report: Callable[[str], None],
    ):
        self.study, self.foundry, self.jobs, self.plugin_files = study, foundry, jobs, plugin_files
        self.report = report
        kept = KeptScores(study)
        unfinished = (cell for cell in cells if standing(cell).state != "done" or not kept.complete(cell))
        self.number, self.waiting = len(cells), deque(unfinished)
        self.running: list[_Running] = []
        self.failed: list[str] = []
        self.done, self.asked = self.number - len(self.waiting), False
        self.reported_in_use: set[str] = set()
        self._stop_signal = _stop_signal()  # once this process is asked to stop, it ignores what repeats itself, too

    def turn(self, stopped: str | None) -> bool:
        """Begin what there is room for, see to what has ended, and return whether anything is left to wait for."""
        for cell in list(self.waiting):
            if stopped or len(self.running) >= self.jobs:
                break
            if not self._in_use(cell):
                self.waiting.remove(cell)
                self._begin(cell)
        if stopped and not self.asked:
            self.asked = True
            for each in self.running:
                each.process.send_signal(self._stop_signal)
        for each in list(self.running):
            code = each.process.poll()
            if code is not None:
                self._ended(each, code, stopped)
        return bool(self.running or (self.waiting and not stopped))

    def progress(self) -> tuple[float, str]:
        """Return how many cells are done, parts of them included, and the names of those in training."""
        part = sum(share_done(each.cell) for each in self.running)
        return self.done + part, " ".join(each.cell.name for each in self.running)

    def _commands(self, cell: Cell) -> Iterator[list[str]]:
        """Yield the command lines that a cell needs, each when the one before has succeeded."""
        plugins = [argument for file in self.plugin_files for argument in ("--plugin", file)]
        suites = self.study.settings.suites
        if standing(cell).state != "done":
            yield [*self.foundry, "train", str(cell_yaml(self.study, cell)), "--resume", "auto", *plugins]
        # The one place where suites are scored: results that are there and unchanged are reused by the verb.
        if suites:
            yield [*self.foundry, "evaluate", str(cell.folder), "--suite", *suites, "--all", *plugins]

    def _in_use(self, cell: Cell) -> bool:
        """Check whether another process trains a cell; report it once."""
        owner = _writer(cell)
        if owner is not None and cell.name not in self.reported_in_use:
            self.reported_in_use.add(cell.name)
            self.report(f"{cell.name}: in use by {owner}: waiting for it, the other cells go first")
        return owner is not None

    def _begin(self, cell: Cell) -> None:
        commands = self._commands(cell)
        first = next(commands, None)
        if first is None:
            self.done += 1
            return
        trained = standing(cell).state == "done"
        what = "is trained, its suites are scored where they are not yet" if trained else "begins"
        self.report(f"{cell.name}: {what}, see {cell_log(self.study, cell)}")
        self.running.append(_Running(cell, commands, _started(self.study, cell, first, self.jobs)))

    def _ended(self, each: _Running, code: int, stopped: str | None) -> None:
        following = next(each.commands, None) if code == 0 and not stopped else None
        if following is not None:
            each.process = _started(self.study, each.cell, following, self.jobs)
            return
        self.running.remove(each)
        if code == 0:
            self.done += 1
            self.report(f"{each.cell.name}: done, {self.done} of {self.number}")
        elif self._in_use(each.cell):  # by a process that was still starting when this one looked
            self.waiting.append(each.cell)
        elif not stopped:
            self.failed.append(_failure(self.study, each.cell, code))


def _writer(cell: Cell) -> str | None:
    """Return which process holds the lock of a cell's run, as the lock describes it; None if none does."""
    path = cell.folder / LOCK
    if not path.is_file():
        return None
    with files.reported(path), files.disk.append_to(path) as file:
        try:
            take_lock(file)
        except BlockingIOError:
            return lock_owner(path)
    return None


def _stop_signal() -> signal.Signals:
    """Return the signal that asks a cell to stop: one of those that a run ignores if it has been asked already.

    A terminal and a scheduler send theirs to the cells as well, and a second SIGTERM would end a cell before it saves.
    """
    # nohup ignores the first, and then the cells do, too. Windows has neither.
    return next((each for each in REPEATED_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN), signal.SIGTERM)


def _started(study: Study, cell: Cell, command: list[str], jobs: int) -> subprocess.Popen[bytes]:
    """Start a process of a cell; what it prints is added to the cell's log."""
    path = cell_log(study, cell)
    files.make_folders(path.parent)
    environment = dict(os.environ)
    if jobs > 1:  # threads of several processes that compete for the cores slow all of them down
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
    with files.reported(path), files.disk.append_to(path) as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _failure(study: Study, cell: Cell, code: int) -> str:
    path = cell_log(study, cell)
    lines = _last_lines(path)
    why = f": {lines[-1]}" if lines else ""
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{cell.name} failed with {ended}{why} (see {path})"


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return [line for line in file.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
