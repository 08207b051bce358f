"""The protocol with one of its functions replaced by one that does without: each time a check has to notice."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from tests import mutants
from tests.faults.harness import in_child
from tests.faults.scenario import Judge
from tests.faults.test_damage import not_refused
from tests.faults.test_errors import errors_at_every_operation, failed
from tests.faults.test_kills import crash_points, killed
from tests.faults.test_lock import second_run, survived_by_a_fork
from tests.faults.test_power_loss import disk_states, found_in, gone_on_from, out_of_order
from tests.faults.test_retention import retired, without_removing
from tests.faults.test_signals import leaving_at_the_second, stopped
from tests.mutation import Replacement, check, mutate

Check = Callable[[Judge], Iterable[str]]
"""Lists what a part of the suite finds wrong, one thing after the other: the first one is enough here."""


def kills(where: str) -> Check:
    """Kills at the operations whose paths contain `where`."""

    def check(judge: Judge) -> Iterable[str]:
        operations = judge.scenario.operations()
        for fault in crash_points(operations):
            if where in f"{operations[fault.at - 1].path}":
                yield from killed(judge, fault)

    return check


def errors(where: str) -> Check:
    """Errors at the operations whose paths contain `where`."""

    def check(judge: Judge) -> Iterable[str]:
        operations = judge.scenario.operations()
        for fault, tidies in errors_at_every_operation(operations):
            if where in f"{operations[fault.at - 1].path}":
                yield from failed(judge, fault, tidies)

    return check


def power_loss(judge: Judge) -> Iterable[str]:
    seen = {}
    for tree, promised, _ in disk_states(judge.scenario):
        if (tree, promised) not in seen:
            seen[tree, promised] = tree
            yield from found_in(judge, tree, promised)
    for tree in dict.fromkeys(seen.values()):
        yield from gone_on_from(judge, tree)


def going_on(judge: Judge) -> Iterable[str]:
    judge.scenario.reset()
    return judge.going_on()


def order(judge: Judge) -> Iterable[str]:
    return out_of_order(judge.scenario)


def removal(kind: str) -> Check:
    return lambda judge: without_removing(judge, kind)


def keeping(judge: Judge) -> Iterable[str]:
    def keep(tell: Callable[[Any], None]) -> None:
        judge.scenario.mutate()
        tell(("left", retired(judge.scenario.run_folder, keep=2, newest=5, damaged=(4, 6))))

    judge.scenario.reset()
    ended = in_child(keep)
    return [] if ended.of("left") == [[0, 3, 4, 5, 6]] else [str(ended)]


def stopping(judge: Judge) -> Iterable[str]:
    chance = random.Random(0)
    for _ in range(30):  # the first that is noticed ends it
        yield from stopped(judge, signal.SIGTERM, chance)


def leaving(judge: Judge) -> Iterable[str]:
    return leaving_at_the_second(judge, signal.SIGTERM)


@dataclass(frozen=True)
class Mutant:
    """A function of the protocol, what is done in its place, and the check that has to notice."""

    target: str
    replacement: Replacement
    check: Check
    scenario: str = "fresh"

    def apply(self) -> None:
        """Replace the function in this process for good."""
        mutate(self.target, lambda: self.replacement)


MUTANTS = {
    "a file is not synced": Mutant("foundry_core.storage.files:Writer.__exit__", mutants.files_not_synced, power_loss),
    "the log is not synced before a checkpoint": Mutant(
        "foundry_core.storage.files:AppendedLines.sync", mutants.nothing, power_loss
    ),
    "a checkpoint's entries are not synced": Mutant(
        "foundry_core.storage.files:publish_folder", mutants.entries_of_the_folder_not_synced, power_loss
    ),
    "a checkpoint's name is not synced": Mutant(
        "foundry_core.storage.files:publish_folder", mutants.name_of_the_folder_not_synced, power_loss
    ),
    "a new folder's name is not synced": Mutant(
        "foundry_core.storage.files:make_folders", mutants.folders_not_synced, power_loss
    ),
    "a file's name is not synced": Mutant(
        "foundry_core.storage.files:write_file_with", mutants.name_of_the_file_not_synced, power_loss, "unprepared"
    ),
    "removal begins before the new name is synced": Mutant(
        "foundry_core.storage.files:remove_set_aside", mutants.folders_not_synced, power_loss
    ),
    "a checkpoint is written in place": Mutant(
        "foundry_core.storage.files:publish_folder", mutants.folder_written_in_place, kills("checkpoint-")
    ),
    "a file is written in place": Mutant(
        "foundry_core.storage.files:write_file_with",
        mutants.file_written_in_place,
        kills("metrics.jsonl"),
        "interrupted",
    ),
    "the manifest is written first": Mutant(
        "foundry_core.storage.files:publish_folder", mutants.manifest_written_first, order
    ),
    "a folder is removed under its name": Mutant(
        "foundry_core.storage.files:set_aside", mutants.removed_under_its_name, kills("run/checkpoint-")
    ),
    "retention comes before acknowledgement": Mutant(
        "foundry_core.checkpoints.checkpoint:save_checkpoint", mutants.retention_before_saving, kills("checkpoint-4")
    ),
    "retention is not made up for": Mutant(
        "foundry_core.checkpoints.checkpoint:retire", mutants.first_retention_left_out, kills("run/checkpoint-")
    ),
    "retention counts damaged checkpoints": Mutant(
        "foundry_core.checkpoints.checkpoint:retire", mutants.damaged_ones_count, keeping
    ),
    "a removal that fails ends the run": Mutant(
        "foundry_core.storage.files:set_aside", mutants.failed_removal_raises, removal("rename")
    ),
    "a removal that fails half-way ends the run": Mutant(
        "foundry_core.storage.files:remove_set_aside", mutants.failed_removals_raise, removal("remove_file")
    ),
    "what cannot be removed is said every time": Mutant(
        "foundry_core.training.saving:CheckpointSaver._report",
        mutants.failed_removals_said_every_time,
        removal("rename"),
    ),
    "leftovers stay": Mutant(
        "foundry_core.storage.files:remove_leftovers", mutants.none_found, going_on, "interrupted"
    ),
    "what an error left half written stays": Mutant(
        "foundry_core.storage.files:publish_folder", mutants.half_written_folder_stays, errors(".checkpoint-0")
    ),
    "lines that will be written again stay": Mutant(
        "foundry_core.training.sinks:reports_up_to", mutants.any_report_is_of_an_earlier_step, kills(".checkpoint-3")
    ),
    "a torn line stays": Mutant(
        "foundry_core.training.sinks:reports_up_to", mutants.torn_line_is_a_report, going_on, "interrupted"
    ),
    "the newest checkpoint is taken unseen": Mutant(
        "foundry_core.checkpoints.checkpoint:newest_valid", mutants.newest_unseen, going_on, "interrupted"
    ),
    "a state is retired too early": Mutant(
        "foundry_core.checkpoints.checkpoint:_states_to_retire", mutants.every_state, kills("run/")
    ),
    "a sha256 is not compared": Mutant("foundry_core.storage.manifest:compare_digest", mutants.nothing, not_refused),
    "a size is not compared": Mutant("foundry_core.storage.manifest:compare_size", mutants.nothing, not_refused),
    "a missing file is not noticed": Mutant(
        "foundry_core.storage.manifest:refuse_missing", mutants.nothing, not_refused
    ),
    "an added file is not noticed": Mutant("foundry_core.storage.manifest:refuse_added", mutants.nothing, not_refused),
    "nothing is locked": Mutant("foundry_core.storage.lock:take_lock", mutants.nothing, second_run),
    "a fork holds the lock on": Mutant(
        "foundry_core.storage.lock:_release_in_child", mutants.nothing, survived_by_a_fork
    ),
    "a tokenizer's origin is written last only": Mutant(
        "foundry_core.data.preparation:_write_sidecar",
        mutants.sidecar_written_last_only,
        kills("tokenizer/.tokenizer"),
        "unprepared",
    ),
    "a signal is not heeded": Mutant(
        "foundry_core.training.trainer:Trainer._stop", mutants.nothing, stopping, "seldom"
    ),
    "a stop does not save": Mutant(
        "foundry_core.training.trainer:Trainer._save", mutants.not_saved_for_a_stop, stopping, "seldom"
    ),
    "a second signal is only noted": Mutant(
        "foundry_core.training.signals:StopRequest._note", mutants.signal_only_noted, leaving
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_one_of_its_mechanisms_the_protocol_breaks(name, request, monkeypatch, figure, record_property):
    mutant = MUTANTS[name]
    check(mutant.target, mutant.replacement)  # here: in a child a mutant that cannot be made would pass for noticed
    judge = request.getfixturevalue(mutant.scenario)
    figure("mutants", 1)
    monkeypatch.setattr(judge.scenario, "mutate", mutant.apply)
    found = next(iter(mutant.check(judge)), None)
    figure("mutants caught", int(found is not None))
    record_property("first noticed", str(found))
    assert found is not None
