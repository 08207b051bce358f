"""Asked to stop at any time, a run saves at the next step boundary, says how to go on, and leaves with code 75."""

import os
import random
import signal
import time
from typing import Any

import pytest

from foundry_core.checkpoints.checkpoint import checkpoints
from tests.faults.harness import ObservedDisk
from tests.faults.scenario import Judge, Scenario

SIGNALS: dict[signal.Signals, dict[str, Any]] = {
    signal.SIGTERM: {},
    signal.SIGINT: {"workers": 2},
    signal.SIGUSR1: {"workers": 2, "background": True},
    signal.SIGHUP: {"workers": 2},
    signal.SIGUSR2: {},
    signal.SIGXCPU: {},
}
TIMES = [pytest.param(1, id="sample"), pytest.param(7, id="all", marks=pytest.mark.faults)]
STEPS = 12
DRAWS = 10


def stopped(judge, number, chance):
    """Return what is wrong after a signal came at some time after the first step, and the run went on."""
    for _ in range(DRAWS):
        judge.scenario.reset()
        child = judge.scenario.child()
        step = chance.randrange(1, STEPS - 4)
        while child.hears() != ("step", step):
            pass
        time.sleep(chance.uniform(0, judge.seconds / STEPS))  # the moment is what is drawn at random
        child.signal(number)
        ended = child.wait()
        last = max(ended.of("step"))
        if (ended.code, last) != (0, STEPS):
            break  # where the machine was slow to deliver it, the run had ended before
    newest = checkpoints(judge.scenario.run_folder)[-1].name
    says = f"stopped by {number.name} after step {last} of {STEPS}: go on from checkpoint-{last} with --resume"
    wrong = []
    if (ended.code, ended.errors, newest) != (75, [says], f"checkpoint-{last}"):
        wrong.append(f"ended with {ended.code} at {newest}, saying {ended.errors}")
    return wrong + judge.after(ended)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("times", TIMES)
def test_a_signal_at_any_time_saves_at_the_next_step_boundary(place, number, times, figure):
    settings = {"ephemeral": False, **SIGNALS[number]}
    judge = Judge.of(Scenario(place(f"{number.name}, {times} times"), steps=STEPS, **settings))
    chance = random.Random(number.name)
    found = [wrong for _ in range(times) if (wrong := stopped(judge, number, chance))]
    figure("signals", times)
    assert found == []


class Waiting(ObservedDisk):
    """Tells that it waits in the middle of saving checkpoint-3, and again after each signal that it survives."""

    def create(self, path):
        if ".checkpoint-3." in str(path):
            heard, hear = os.pipe()
            os.set_blocking(hear, False)
            signal.set_wakeup_fd(hear)
            while True:
                self.tell(("waiting", 3))
                os.read(heard, 1)
        return super().create(path)


def leaving_at_the_second(judge: Judge, number: signal.Signals) -> list[str]:
    """Return what is wrong after two signals came while a run was saving."""
    judge.scenario.reset()
    child = judge.scenario.child(Waiting)
    for _ in range(2):
        while child.hears() != ("waiting", 3):
            pass
        child.signal(number)
    # Without its mechanism it would wait for ever; a busy machine may need a while to unwind.
    wrong = [] if child.leaves_within(10) else [f"is still there after the second {number.name}"]
    ended = child.kill() if wrong else child.wait()
    code = 130 if number == signal.SIGINT else -number
    if ended.code != code:
        wrong.append(f"ended with {ended.code}")
    return wrong + judge.after(ended)


@pytest.mark.parametrize("number", list(SIGNALS)[:3], ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once_and_loses_nothing(fresh, number):
    assert leaving_at_the_second(fresh, number) == []
