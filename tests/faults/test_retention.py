"""Retention never takes the last whole checkpoint, and what it cannot remove does not stop training."""

import errno

import pytest

from foundry_core.checkpoints.checkpoint import checkpoints, retire
from foundry_core.checkpoints.verification import verify_run
from foundry_core.storage.files import publish_folder, remove_set_aside, set_aside
from foundry_core.storage.manifest import read_manifest
from tests.faults.harness import ObservedDisk
from tests.faults.scenario import flip


class Stubborn(ObservedDisk):
    """Lets nothing be removed: one of the operations of which a removal consists is never permitted."""

    def __init__(self, tell, kind):
        super().__init__(tell)
        self.kind = kind

    def _carry_out(self, name, method, target, *rest):
        if name == self.kind and ".old" in f"{target} {rest}":
            raise PermissionError(errno.EACCES, "Permission denied")
        return super()._carry_out(name, method, target, *rest)


def without_removing(judge, kind):
    """Return what is wrong after a run that could not remove anything, and one that can."""
    judge.scenario.reset()
    ended = judge.scenario.child(lambda tell: Stubborn(tell, kind)).wait()
    folder = judge.scenario.run_folder
    said = [line.partition("cannot remove ")[2] for line in ended.errors]
    hidden = [path.name for kind in ("checkpoint", "optimizer") for path in folder.glob(f".{kind}-*.old")]
    remaining = [path.name for path in (*checkpoints(folder), *folder.glob("optimizer-*"))]
    # Steps 1 and 3 are ephemeral, 2 is older than the last that is kept; with each goes its optimizer's state.
    wrong = [] if len({*hidden, *remaining}) == 5 + 4 else [f"left {hidden} and {remaining}"]
    if ended.code or len(said) != 6 or not all(": Permission denied; training goes on" in line for line in said):
        wrong.append(f"ended with {ended.code}, saying {ended.errors}")
    _, problems = verify_run(folder)
    return wrong + problems + judge.after(ended)


@pytest.mark.parametrize("kind", ["rename", "remove_file", "remove_folder"])
def test_what_cannot_be_removed_is_left_to_a_later_run(fresh, kind):
    assert without_removing(fresh, kind) == []


def retired(folder, *, keep, newest, damaged):
    """The steps that retention leaves of checkpoints 0 to 6."""
    for step in range(7):
        with publish_folder(folder / f"checkpoint-{step}", {"ephemeral": False}) as sink:
            sink.write("model.safetensors", b"weights")
    for step in damaged:
        flip(folder / f"checkpoint-{step}" / "model.safetensors", 0)
    named = {folder / f"checkpoint-{step}" for step in damaged}
    assert retire(folder, keep, folder / f"checkpoint-{newest}", ephemeral=(), damaged=named) == []
    return [int(path.name.partition("-")[2]) for path in checkpoints(folder)]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    assert retired(tmp_path, keep=2, newest=5, damaged=(4, 6)) == [0, 3, 4, 5, 6]


class Gremlin(ObservedDisk):
    """Damages every checkpoint as soon as the next one is being written; tells what is whole when retention begins."""

    def make_folder(self, path):
        super().make_folder(path)
        for checkpoint in checkpoints(path.parent):
            if path.name.startswith(".checkpoint-") and checkpoint.name != "checkpoint-0":
                flip(checkpoint / "model.safetensors", -1)

    def rename(self, old, new):
        if new.suffix == ".old":
            self.tell(("victim", (old.name, [path.name for path in checkpoints(old.parent) if whole(path)])))
        super().rename(old, new)


def whole(checkpoint):
    try:
        read_manifest(checkpoint)
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False
    return True


def test_an_older_checkpoint_goes_only_after_a_newer_whole_one(fresh):
    fresh.scenario.reset()
    ended = fresh.scenario.child(Gremlin).wait()
    steps = [name.split("-") for name, _ in ended.of("victim")]
    for kind, order in (("checkpoint", ["1", "3", "2"]), ("optimizer", ["1", "2", "3"])):
        assert [step for name, step in steps if name == kind] == order
    for victim, left in ended.of("victim"):
        assert left[-1].split("-")[1] > victim.split("-")[1]
    assert fresh.after(ended) == []


def test_a_folder_is_set_aside_beside_one_that_remained(tmp_path):
    for _ in range(2):
        with publish_folder(tmp_path / "checkpoint-3", {"step": 3}) as sink:
            sink.write("weights", b"1")
        set_aside(tmp_path / "checkpoint-3")
    assert checkpoints(tmp_path) == []
    assert remove_set_aside(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
