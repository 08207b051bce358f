"""One run at a time in a folder."""

import os
import re
import signal
import socket
import time
from contextlib import suppress
from datetime import datetime, timedelta

from foundry_core.storage.lock import RunLock
from tests.faults.harness import Child, in_child
from tests.faults.test_signals import Waiting


def second_run(judge):
    """Return what is wrong with a second run in the folder of one that is under way."""
    judge.scenario.reset()
    first = judge.scenario.child(Waiting)
    while first.hears() != ("waiting", 3):
        pass
    before = {path: path.stat().st_mtime_ns for path in judge.scenario.run_folder.rglob("*")}
    started = time.perf_counter()
    second = judge.scenario.train()
    seconds = time.perf_counter() - started
    after = {path: path.stat().st_mtime_ns for path in judge.scenario.run_folder.rglob("*")}
    wrong = [] if before == after else ["it changed something"]
    who = re.escape(f"{judge.scenario.run_folder} is in use by pid {first.pid} on {socket.gethostname()}, started ")
    said = re.fullmatch(
        who + r"([\d-]+ [\d:]+): wait for it, or choose another training.output_dir", "\n".join(second.errors)
    )
    if second.code != 8 or not said or datetime.now() - datetime.fromisoformat(said[1]) > timedelta(minutes=5):
        wrong.append(f"it ended with {second.code}, saying {second.errors}")
    if seconds > 1:
        wrong.append(f"it took {seconds:.1f} seconds")
    return wrong + judge.after(first.kill())


def test_a_second_run_is_refused_quickly_and_names_the_first(fresh):
    assert second_run(fresh) == []


def survived_by_a_fork(judge):
    """Return what is wrong after a run was killed that had forked a process which lives on."""

    def hold(tell):
        judge.scenario.mutate()
        lock = RunLock(judge.scenario.run_folder)
        forked = os.fork()
        if forked:
            tell(("forked", forked))
        while lock:
            signal.pause()

    judge.scenario.reset()
    holder = Child(hold)
    heard = holder.hears()
    assert heard is not None
    forked = heard[1]
    try:
        holder.kill()
        os.kill(forked, 0)
        ended = in_child(lambda tell: RunLock(judge.scenario.run_folder).release())
        return ended.errors
    finally:
        with suppress(ProcessLookupError):
            os.kill(forked, signal.SIGKILL)


def test_the_lock_dies_with_its_process_despite_a_living_fork(fresh):
    assert survived_by_a_fork(fresh) == []
