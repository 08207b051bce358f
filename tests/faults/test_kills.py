"""Killed before any operation of the disk, half-way through any write, or at any time: nothing is lost."""

import random
import time
from itertools import takewhile
from typing import Any

import pytest

from tests.faults.harness import Fault, shares
from tests.faults.scenario import Judge, Scenario


def crash_points(operations):
    """Every operation that a kill can come before, every write that it can come into the middle of."""
    for at, operation in enumerate(operations, 1):
        if operation.kind != "acknowledged":
            yield Fault(at, "kill")
        if operation.kind == "write":
            yield Fault(at, "half")


def until_checkpoint_0(operations):
    return list(takewhile(lambda operation: "checkpoint-0" not in str(operation.path), operations))


def killed(judge, fault):
    """Return what is wrong after a run was killed there and went on."""
    judge.scenario.reset()
    ended = judge.scenario.train(fault)
    return [f"{ended} was not killed"] if ended.code != -9 else judge.after(ended)


@pytest.mark.parametrize("judge", ["fresh", "interrupted"], indirect=True)
@pytest.mark.parametrize("share", shares(sample=15, parts=6))
def test_a_run_killed_at_any_disk_operation_resumes_exactly(judge, share, figure):
    points = share.of(crash_points(judge.scenario.operations()))
    found = {fault: wrong for fault in points if (wrong := killed(judge, fault))}
    figure("crash points", len(points))
    assert found == {}


@pytest.mark.parametrize("share", shares(sample=15, parts=1))
def test_killed_while_it_prepares_its_data_a_run_begins_again(unprepared, share, figure):
    points = share.of(crash_points(until_checkpoint_0(unprepared.scenario.operations())))
    found = {fault: wrong for fault in points if (wrong := killed(unprepared, fault))}
    figure("crash points", len(points))
    assert found == {}


HELPED: dict[str, dict[str, Any]] = {
    "alone": {},
    "alone, saving seldom": {"ephemeral": False},
    "workers": {"workers": 2},
    "workers and a thread": {"workers": 2, "background": True},
}
KILLS = [pytest.param(5, id="sample"), pytest.param(50, id="all", marks=pytest.mark.faults)]


@pytest.mark.parametrize("helped", HELPED)
@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_any_time_a_run_goes_on_as_if_nothing_had_been(place, helped, kills, figure):
    """Some kills come while data workers or the thread that saves are at work; the run goes on at once."""
    judge = Judge.of(Scenario(place(f"{helped}, {kills} kills"), steps=12, **HELPED[helped]))
    chance = random.Random(f"{helped} {kills}")
    found: list[str] = []
    done, saved = 0, []
    judge.scenario.reset()
    while done < kills and not found:
        child = judge.scenario.child()
        time.sleep(chance.uniform(0, judge.seconds))  # the moment is what is drawn at random
        ended = child.kill()
        saved += ended.of("acknowledged")
        found += judge.checkpoints(saved)
        if ended.code == 0:  # it was faster
            found += judge.differences()
            judge.scenario.reset()
            saved = []
        elif ended.code == -9:
            done += 1
        else:
            found.append(str(ended))
    found += judge.going_on()
    figure("kills", done)
    figure("divergences", len(found))
    assert found == []
