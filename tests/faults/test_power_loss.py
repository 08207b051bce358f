"""The power fails at any moment: whatever of the unsynced reached the disk, nothing acknowledged is lost."""

import pytest

from foundry_core.checkpoint import checkpoints
from foundry_core.errors import CheckpointError
from foundry_core.storage import read_manifest
from tests.faults.harness import shares
from tests.faults.power import Model, put


def disk_states(scenario):
    """Each state the disk may be found in, with the checkpoints that must be whole there; whether these are all."""
    operations = scenario.operations()
    scenario.reset()
    model = Model(scenario.run_folder)
    found = {}
    promised = {f"checkpoint-{step}" for step in scenario.safe}
    for operation in operations:
        if operation.kind == "acknowledged":
            promised.add(operation.path.name)
            continue
        if operation.kind == "rename":
            promised.discard(operation.path.name)  # retention begins
        model.follow(operation)
        for tree in model.states():
            found.setdefault(tree, set()).update(promised)
    return found, model.exhaustive


def found_in(judge, tree, promised):
    """What is wrong in a state: a promised checkpoint is not whole, or one that nobody has damaged is."""
    folder = judge.scenario.run_folder
    put(tree, folder)
    whole, wrong = set(), []
    for checkpoint in checkpoints(folder):
        try:
            read_manifest(checkpoint)
            whole.add(checkpoint.name)
        except CheckpointError as error:
            if checkpoint.name != judge.scenario.damaged:
                wrong.append(str(error))
    return wrong + [f"acknowledged {name} is lost" for name in sorted(promised - whole)]


@pytest.mark.parametrize("judge", ["fresh", "interrupted", "unprepared"], indirect=True)
@pytest.mark.parametrize("share", shares(sample=6, parts=1))
def test_after_a_power_loss_all_that_was_acknowledged_is_there_and_the_run_goes_on(judge, share, record_property):
    states, exhaustive = disk_states(judge.scenario)
    assert exhaustive
    found = {}
    for tree, promised in states.items():
        if wrong := found_in(judge, tree, promised):
            found[tree] = wrong
    gone_on = share.of(states)
    for tree in gone_on:
        put(tree, judge.scenario.run_folder)
        if wrong := judge.going_on():
            found[tree] = found.get(tree, []) + wrong
    record_property("states", len(states))
    record_property("states gone on from", len(gone_on))
    assert list(found.values()) == []
