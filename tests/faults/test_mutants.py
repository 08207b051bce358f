"""The protocol with one of its mechanisms taken out: each time a check of this suite has to notice."""

from __future__ import annotations

import inspect
import random
import signal
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from foundry_core.checkpoints import checkpoint, retention
from foundry_core.data import preparation as prepare
from foundry_core.storage import files as storage
from foundry_core.storage import manifest
from foundry_core.training import observers as reporting
from foundry_core.training import signals as interruption
from foundry_core.training import trainer
from tests.faults.harness import in_child
from tests.faults.scenario import Judge
from tests.faults.test_damage import not_refused
from tests.faults.test_errors import errors_at_every_operation, failed
from tests.faults.test_kills import crash_points, killed
from tests.faults.test_lock import second_run, survived_by_a_fork
from tests.faults.test_power_loss import disk_states, found_in, gone_on_from, out_of_order
from tests.faults.test_retention import retired, without_removing
from tests.faults.test_signals import leaving_at_the_second, stopped

Check = Callable[[Judge], Iterable[str]]
"""What a part of the suite finds wrong, one thing after the other: the first one is enough here."""


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
    """changes: a text in the source of the function, what stands there instead, another text, and so on."""

    function: Callable[..., Any]
    changes: tuple[str, ...]
    check: Check
    scenario: str = "fresh"

    def source(self) -> str:
        """The changed function."""
        function = inspect.unwrap(self.function)
        source = textwrap.dedent(inspect.getsource(function))
        source = source[source.index("def ") :]
        for text, instead in zip(self.changes[::2], self.changes[1::2], strict=True):
            assert source.count(text) == 1, f"'{text}' does not stand once in {function.__qualname__}: adapt the mutant"
            source = source.replace(text, instead)
        return source

    def apply(self) -> None:
        """Change the function itself, wherever it was imported to; in this process for good."""
        function = inspect.unwrap(self.function)
        names: dict[str, Any] = {}
        exec(f"from __future__ import annotations\n{self.source()}", function.__globals__, names)
        function.__code__ = names[function.__name__].__code__


IN_PLACE = (
    'hidden = _hidden(target, "tmp")',
    "hidden = target; remove_tree(target)",
    "if target.exists():",
    "if False:",
    "disk.rename(hidden, target)",
    "pass",
)
MUTANTS = {
    "a file is not synced": Mutant(storage._NewFile.__exit__, ("disk.sync(self._file)", "pass"), power_loss),
    "the log is not synced before a checkpoint": Mutant(storage.publish_folder, ("lines.sync()", "pass"), power_loss),
    "a checkpoint's entries are not synced": Mutant(
        storage.publish_folder, ("disk.sync_folder(hidden)", "pass"), power_loss
    ),
    "a checkpoint's name is not synced": Mutant(
        storage.publish_folder, ("disk.sync_folder(target.parent)", "pass"), power_loss
    ),
    "a new folder's name is not synced": Mutant(
        storage._make_folders, ("disk.sync_folder(path.parent)", "pass"), power_loss
    ),
    "a file's name is not synced": Mutant(
        storage.write_file_with, ("disk.sync_folder(path.parent)", "pass"), power_loss, "unprepared"
    ),
    "removal begins before the new name is synced": Mutant(
        storage.remove_set_aside, ("disk.sync_folder(parent)", "pass"), power_loss
    ),
    "a checkpoint is written in place": Mutant(storage.publish_folder, IN_PLACE, kills("checkpoint-")),
    "a file is written in place": Mutant(
        storage.write_file_with,
        (
            'temporary = _hidden(path, "tmp")',
            "temporary = path; remove_tree(path)",
            "disk.rename(temporary, path)",
            "pass",
        ),
        kills("metrics.jsonl"),
        "interrupted",
    ),
    "the manifest is written first": Mutant(
        storage.publish_folder,
        ("yield sink", "sink.write(MANIFEST, b'{}'); yield sink; disk.remove_file(hidden / MANIFEST)"),
        order,
    ),
    "a folder is removed under its name": Mutant(
        retention.retire,
        ("set_aside(victim)", "__import__('foundry_core.storage.files', fromlist=['_'])._remove(victim)"),
        kills("run/checkpoint-"),
    ),
    "retention comes before acknowledgement": Mutant(
        trainer.Trainer._publish,
        (
            "folder = save_checkpoint(",
            "self._retire(self.output_dir / f'checkpoint-{state.step}'); folder = save_checkpoint(",
        ),
        kills("checkpoint-4"),
    ),
    "retention is not made up for": Mutant(
        trainer.Trainer.train, ("self._retire(self.output_dir / self._parent)", "pass"), kills("run/checkpoint-")
    ),
    "retention counts damaged checkpoints": Mutant(
        retention.retire, ("path for path in permanent if path not in damaged", "*permanent"), keeping
    ),
    "a removal that fails ends the run": Mutant(
        retention.retire, ("except StorageError as error:", "except ZeroDivisionError as error:"), removal("rename")
    ),
    "a removal that fails half-way ends the run": Mutant(
        storage._removed,
        ("except StorageError as error:", "except ZeroDivisionError as error:"),
        removal("remove_file"),
    ),
    "what cannot be removed is said every time": Mutant(
        trainer.Trainer._retire, ("self._warned.update(problems)", "pass"), removal("rename")
    ),
    "leftovers stay": Mutant(
        trainer._prepared, ("remove_leftovers(*own_folders(config))", "()"), going_on, "interrupted"
    ),
    "what an error left half written stays": Mutant(
        storage.publish_folder,
        ("with suppress(OSError):\n            _remove(hidden)", "pass"),
        errors(".checkpoint-0"),
    ),
    "lines that will be written again stay": Mutant(
        reporting._drop_after, ('json.loads(line)["step"] <= step', "json.loads(line)"), kills(".checkpoint-3")
    ),
    "a torn line stays": Mutant(
        reporting._drop_after, ("continue", "kept.append(line + b'\\n')"), going_on, "interrupted"
    ),
    "the newest checkpoint is taken unseen": Mutant(
        checkpoint.newest_valid, ("check_whole(folder)", "pass"), going_on, "interrupted"
    ),
    "a sha256 is not compared": Mutant(manifest.read_manifest, ("if not same:", "if False:"), not_refused),
    "a size is not compared": Mutant(
        manifest.read_manifest, ("if path.stat().st_size != size:", "if False:"), not_refused
    ),
    "a missing file is not noticed": Mutant(
        manifest.read_manifest, ("if not path.is_file():", "if False:"), not_refused
    ),
    "an added file is not noticed": Mutant(manifest.read_manifest, ("if added:", "if False:"), not_refused),
    "nothing is locked": Mutant(
        storage.RunLock.__init__, ("fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"), second_run
    ),
    "a fork holds the lock on": Mutant(storage._release_in_child, ("lock.release()", "pass"), survived_by_a_fork),
    "a tokenizer's origin is written last only": Mutant(
        prepare._trained_tokenizer,
        ("_write_sidecar(sidecar, inputs, None)", "pass"),
        kills("tokenizer/.tokenizer"),
        "unprepared",
    ),
    "a signal is not heeded": Mutant(trainer.Trainer.train, ("if stop.requested:", "if False:"), stopping, "seldom"),
    "a stop does not save": Mutant(trainer.Trainer._stop, ("self._save(ephemeral=True)", "pass"), stopping, "seldom"),
    "a second signal is only noted": Mutant(interruption.StopRequest._note, ("self._restore()", "pass"), leaving),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_one_of_its_mechanisms_the_protocol_does_not_hold(name, request, monkeypatch, figure, record_property):
    mutant = MUTANTS[name]
    mutant.source()  # here, where a text that is not there any more fails: in a child it would pass for noticed
    judge = request.getfixturevalue(mutant.scenario)
    figure("mutants", 1)
    monkeypatch.setattr(judge.scenario, "mutate", mutant.apply)
    found = next(iter(mutant.check(judge)), None)
    figure("mutants caught", int(found is not None))
    record_property("first noticed", str(found))
    assert found is not None
