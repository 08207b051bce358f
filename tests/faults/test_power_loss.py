"""The power fails at any moment: whatever of the unsynced reached the disk, nothing acknowledged is lost."""

from collections.abc import Iterator

import pytest

from foundry_core.checkpoints.checkpoint import checkpoint_step, checkpoints
from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST, optimizer_name
from foundry_core.storage.manifest import read_manifest
from tests.faults.harness import shares
from tests.faults.power import Model, put
from tests.faults.scenario import Scenario


def disk_states(scenario):
    """States the disk may be found in: content, checkpoints that must be whole there, and whether these are all states
    of their moment.
    """
    operations = scenario.operations()
    scenario.reset()
    model = Model(scenario.run_folder)
    promised = {f"checkpoint-{step}" for step in scenario.safe}
    for operation in operations:
        if operation.kind == "acknowledged":
            step = checkpoint_step(operation.path)
            promised |= {operation.path.name, optimizer_name(step)} if step else {operation.path.name}
            continue
        if operation.kind == "rename":
            promised.discard(operation.path.name)  # retention begins
        model.follow(operation)
        for tree in model.states():
            yield tree, frozenset(promised), model.exhaustive


def found_in(judge, tree, promised):
    """Return what is wrong in a state: a promised checkpoint is not whole, or one that nobody has damaged is."""
    folder = judge.scenario.run_folder
    put(tree, folder)
    whole, wrong = set(), []
    for checkpoint in (*checkpoints(folder), *folder.glob("optimizer-*")):
        try:
            read_manifest(checkpoint)
            whole.add(checkpoint.name)
        except CheckpointError as error:
            if checkpoint.name != judge.scenario.damaged:
                wrong.append(str(error))
    return wrong + [f"acknowledged {name} is lost" for name in sorted(promised - whole)]


def gone_on_from(judge, tree):
    """Return what is wrong when the run goes on from a state."""
    put(tree, judge.scenario.run_folder)
    return judge.going_on()


@pytest.mark.parametrize("judge", ["fresh", "interrupted", "unprepared"], indirect=True)
@pytest.mark.parametrize("share", shares(sample=6, parts=1))
def test_a_power_loss_loses_nothing_that_was_acknowledged(judge, share, figure):
    found_at = dict.fromkeys(disk_states(judge.scenario))
    assert all(exhaustive for *_, exhaustive in found_at)
    found = [wrong for tree, promised, _ in found_at for wrong in found_in(judge, tree, promised)]
    states = dict.fromkeys(tree for tree, *_ in found_at)
    chosen = share.of(states)
    figure("states", len(states))
    figure("states gone on from", len(chosen))
    figure("acknowledged checkpoints lost", sum("is lost" in wrong for wrong in found))
    assert found + [wrong for tree in chosen for wrong in gone_on_from(judge, tree)] == []


def out_of_order(scenario: Scenario) -> Iterator[str]:
    """Files of checkpoints that were written after the manifest that vouches for them."""
    closed = set()
    for operation in scenario.operations():
        if operation.kind == "create" and operation.path.parent in closed:
            yield f"{operation.path} was written after its manifest"
        elif operation.kind == "sync" and operation.path.name == MANIFEST:
            closed.add(operation.path.parent)


def test_the_manifest_is_written_last(fresh):
    """The rename alone would do: no crash can tell. Should a folder ever be copied or moved, this one does."""
    assert list(out_of_order(fresh.scenario)) == []
