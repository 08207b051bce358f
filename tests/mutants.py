"""Functions that take a mechanism out: they replace one of foundry's, for the tables of the suites that use them.

Each is called with the function that it replaces and with what that would have been called with (`tests/mutation.py`).
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from foundry_core.checkpoints.checkpoint import check_whole, checkpoints, is_ephemeral, retire
from foundry_core.errors import FoundryError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage import files as storage
from foundry_core.storage.files import Content, InPlaceFolder, StorageError, remove_tree
from foundry_core.storage.manifest import MANIFEST_FORMAT, sealed

Where = Callable[[Any], bool]


def nothing(original: Any, *arguments: Any, **keywords: Any) -> None:
    """Do nothing."""


def none_found(original: Any, *arguments: Any, **keywords: Any) -> list[str]:
    """Find nothing, for what returns a list of what it finds."""
    return []


# What is written: operations of the disk are left out where they are called, so that nobody counts them either


class _Skipping:
    """A disk without some operations on some paths."""

    def __init__(self, disk: Any, operations: tuple[str, ...], where: Where):
        self.disk, self.operations, self.where = disk, operations, where

    def __getattr__(self, operation: str) -> Any:
        def carry_out(target: Any, *rest: Any) -> Any:
            if operation in self.operations and self.where(target):
                return None
            return getattr(self.disk, operation)(target, *rest)

        return carry_out


@contextmanager
def skipping(*operations: str, where: Where = lambda target: True) -> Iterator[None]:
    """A block in which some operations of the disk are left out."""
    before = storage.disk
    storage.disk = _Skipping(before, operations, where)  # type: ignore[assignment]
    try:
        yield
    finally:
        storage.disk = before


def files_not_synced(original: Any, *arguments: Any) -> Any:
    with skipping("sync"):
        return original(*arguments)


def folders_not_synced(original: Any, *arguments: Any) -> Any:
    with skipping("sync_folder"):
        return original(*arguments)


def name_of_the_file_not_synced(original: Any, path: Any, fill: Any) -> None:
    with skipping("sync_folder", where=lambda folder: folder == Path(path).parent):
        original(path, fill)


def name_of_the_folder_not_synced(original: Any, target: Any, facts: Any) -> Iterator[Any]:
    with skipping("sync_folder", where=lambda folder: folder == Path(target).parent):
        yield from original(target, facts)


def entries_of_the_folder_not_synced(original: Any, target: Any, facts: Any) -> Iterator[Any]:
    with skipping("sync_folder", where=lambda folder: folder.name.startswith(".")):
        yield from original(target, facts)


def half_written_folder_stays(original: Any, target: Any, facts: Any) -> Iterator[Any]:
    with skipping("remove_file", "remove_folder"):
        yield from original(target, facts)


def folder_written_in_place(original: Any, target: Any, facts: Any) -> Iterator[Any]:
    """Write each file of a published folder under its final name at once, the manifest last."""
    remove_tree(target)
    folder, files = InPlaceFolder(target), {}

    class Sink:
        def write(self, name: str, content: Content) -> None:
            data = content if isinstance(content, bytes) else b"".join(content)
            folder.write(name, data)
            files[name] = {"size": len(data), "sha256": sha256(data).hexdigest()}

    yield Sink()
    folder.write(MANIFEST, sealed({"format": MANIFEST_FORMAT, **facts, "files": dict(sorted(files.items()))}))


def file_written_in_place(original: Any, path: Any, fill: Any) -> None:
    remove_tree(path)
    file = storage.disk.create(Path(path))

    class Writer:
        def write(self, data: bytes) -> None:
            storage.disk.write(file, data)

    with file:
        fill(Writer())
        storage.disk.sync(file)
    storage.disk.sync_folder(Path(path).parent)


def folder_renamed_file_by_file(original: Any, self: Any, old: Path, new: Path) -> None:
    """Let a folder appear under its name before its files do."""
    if not old.is_dir() or new.name.startswith("."):
        original(self, old, new)
        return
    self.make_folder(new)
    for inside in sorted(old.iterdir()):
        self.rename(inside, new / inside.name)
    self.remove_folder(old)


def manifest_written_first(original: Any, target: Any, facts: Any) -> Iterator[Any]:
    with contextmanager(original)(target, facts) as sink:
        sink.write(MANIFEST, b"{}")
        yield sink
        storage.disk.remove_file(sink.folder / MANIFEST)


def errors_not_translated(original: Any, *arguments: Any, **keywords: Any) -> Iterator[None]:
    """Let an OSError pass as it is."""
    yield


def any_report_is_of_an_earlier_step(original: Any, line: bytes, step: float) -> bool:
    return bool(original(line, math.inf))


def torn_line_is_a_report(original: Any, line: bytes, step: float) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return True
    return bool(original(line, step))


def sidecar_written_last_only(original: Any, path: Any, inputs: Any, digest: str | None) -> None:
    if digest is not None:
        original(path, inputs, digest)


# Retention


def removed_under_its_name(original: Any, folder: Any) -> None:
    remove_tree(folder)


def retention_before_saving(
    original: Any, output_dir: Path, fixed: Any, tensors: Any, state: Any, *, facts: Any, apart: bool
) -> Path:
    """Remove what the checkpoint that is about to be saved replaces. The scenario keeps one."""
    ephemeral = [path for path in checkpoints(output_dir) if is_ephemeral(path)]
    retire(output_dir, 1, output_dir / f"checkpoint-{state.step}", ephemeral=ephemeral, damaged=(), states=1)
    folder: Path = original(output_dir, fixed, tensors, state, facts=facts, apart=apart)
    return folder


_retentions = count()


def first_retention_left_out(original: Any, *arguments: Any, **keywords: Any) -> list[str]:
    """Leave out what a run that goes on makes up for; after checkpoint-0 of a new one there is nothing to remove."""
    found: list[str] = original(*arguments, **keywords) if next(_retentions) else []
    return found


def damaged_ones_count(original: Any, *arguments: Any, damaged: Any, **keywords: Any) -> list[str]:
    found: list[str] = original(*arguments, damaged=(), **keywords)
    return found


def every_state(original: Any, output_dir: Path, *arguments: Any) -> list[Path]:
    """Retire that of the newest checkpoint as well."""
    return sorted(output_dir.glob("optimizer-*"))


def step_0_is_like_any_other(original: Any, output_dir: Path, *arguments: Any, ephemeral: Any, **keywords: Any) -> Any:
    return original(output_dir, *arguments, ephemeral={*ephemeral, output_dir / "checkpoint-0"}, **keywords)


def milestones_are_like_any_other(original: Any, *arguments: Any, kept_steps: Any = (), **keywords: Any) -> Any:
    return original(*arguments, **keywords)


def failed_removal_raises(original: Any, folder: Any) -> None:
    try:
        original(folder)
    except StorageError as error:
        raise FoundryError(str(error)) from error


def failed_removals_raise(original: Any, parent: Any) -> list[str]:
    problems: list[str] = original(parent)
    if problems:
        raise StorageError(problems[0])
    return problems


def failed_removals_said_every_time(original: Any, self: Any, problems: list[str]) -> None:
    self.reported.clear()
    original(self, problems)


# Going on


def newest_unseen(original: Any, output_dir: Any, *, to_resume: bool = False) -> tuple[Path, list[str]]:
    return checkpoints(output_dir)[-1], []


def newest_or_none(original: Any, output_dir: Any, *, to_resume: bool = False) -> tuple[Path, list[str]]:
    """Refuse to go on when the newest checkpoint is damaged."""
    newest = checkpoints(output_dir)[-1]
    check_whole(newest)
    return newest, []


def rows_from_the_first_on(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
    """Begin with the first row wherever training stands."""
    rows, order, collate, batch_size, start, stop, *rest = arguments
    original(self, rows, order, collate, batch_size, 0, stop - start, *rest, **keywords)


_seeded: WeakSet[Any] = WeakSet()


def dropout_seeded_once(original: Any, self: Any, number: int) -> None:
    """Seed dropout before a trainer's first step only, wherever that is."""
    if self not in _seeded:
        _seeded.add(self)
        torch.manual_seed(0)


def streams_by_hash(original: Any, seed: int, stream: str, *position: int) -> Any:
    """Derive a stream from what differs from one process to the next."""
    return original(hash(str(seed)), stream, *position)


# Several processes


def added_one_after_the_other(original: Any, parts: Any) -> Any:
    return sum(parts[1:], parts[0])


def errors_kept_to_oneself(original: Any, self: Any, error: BaseException) -> BaseException:
    """End without a word to the other processes."""
    return error


def each_decides_alone(original: Any, self: Any, flags: Any) -> list[bool]:
    return [bool(flag) for flag in flags]


# Stopping


def not_saved_for_a_stop(original: Any, self: Any, *, ephemeral: bool = False) -> None:
    """Save what the schedule asks for, which in the scenario is never ephemeral."""
    if not ephemeral:
        original(self, ephemeral=ephemeral)


def signal_only_noted(original: Any, self: Any, number: int, frame: Any) -> None:
    self.requested = signal.Signals(number).name


# Computing


def micro_batch_divided_by_its_own_count(original: Any, self: Any, batch: Any, divisor: int, number: int) -> Any:
    """Take the mean of the micro-batches' means."""
    _, chosen = self.model.targets(batch["labels"], batch["attention_mask"])
    own = max(int(chosen.sum()), 1) * self.config.training.gradient_accumulation_steps
    return original(self, batch, own, number)


def evaluation_leaves_its_mode(original: Any, model: Any, *arguments: Any, **keywords: Any) -> Any:
    report = original(model, *arguments, **keywords)
    model.eval()
    return report


def tensors_not_copied(original: Any, self: Any, tensors: Any) -> Any:
    return tensors


def memory_not_watched(original: Any, line: Any) -> Iterator[None]:
    yield


# Reading


def byte_order_mark_not_counted(original: Any, path: Any, stamp: Any, account: Any) -> Iterator[tuple[int, str]]:
    for number, (offset, piece) in enumerate(original(path, stamp, account)):
        if number == 0:
            account.bytes_separators -= offset
        yield offset, piece


def pickles_loaded_first(original: Any, folder: Any) -> Any:
    for path in sorted(Path(folder).iterdir()):
        with suppress(Exception):
            torch.load(path, weights_only=False)
    return original(folder)
