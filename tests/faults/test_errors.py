"""A disk that is full, broken or not permitted, at any operation: one line, nothing lost, and with room it goes on."""

import errno
import os
import re
from pathlib import Path

import pytest

from tests.faults.harness import Fault, shares, tidying

KINDS = ("ENOSPC", "EIO", "EACCES")


def errors_at_every_operation(operations):
    """(fault, whether it meets what only tidies up). A full disk stays full until somebody makes room."""
    for at, (operation, tidies) in enumerate(zip(operations, tidying(operations), strict=True), 1):
        if operation.kind != "acknowledged":
            for kind in KINDS:
                yield Fault(at, kind, lasting=kind == "ENOSPC" and not tidies), tidies


LINE = re.compile(
    r"cannot (?:write|remove) (?P<path>/.+?)(?: \((?P<size>[\d,]+) bytes\))?: (?P<reason>[^:;]+)(?P<end>.*)"
)


def visible(path):
    """The path under the names that hidden folders and files are about to have, or had."""
    return Path(re.sub(r"/\.([^/]+)\.(?:foundry-[0-9a-f]{16}|\d+)\.(?:tmp|old)", r"/\1", str(path)))


def says(line, operation, kind, *, tidies):
    """Check whether it names what was being done, how many bytes it took, and what the disk said."""
    line = line.removeprefix("warning: ") if tidies else line
    match = LINE.fullmatch(line)
    if match is None or match["reason"] != os.strerror(getattr(errno, kind)):
        return False
    path, done = visible(match["path"]), visible(operation.path)
    size = int((match["size"] or "0").replace(",", ""))
    return done in (path, path.parent, path / done.name) and (operation.kind != "write" or size == len(operation.data))


def failed(judge, fault, tidies):
    """Return what is wrong after an operation of a run failed, and the run was started again."""
    judge.scenario.reset()
    ended = judge.scenario.train(fault)
    operation = ended.of("failed")[0]
    lines = [line for line in ended.errors if "is passed over" not in line]
    wrong = []
    if (
        ended.code != (0 if tidies else 8)
        or len(lines) != 1
        or not says(lines[0], operation, fault.kind, tidies=tidies)
    ):
        wrong.append(f"{operation}: ended with {ended.code}, saying {ended.errors}")
    unfinished = {path.name for path in judge.scenario.run_folder.glob(".checkpoint-*.tmp")} - {
        ".checkpoint-4.foundry-0000000000000001.tmp"
    }
    return wrong + [f"left {name}" for name in unfinished] + judge.after(ended)


@pytest.mark.parametrize("judge", ["fresh", "interrupted"], indirect=True)
@pytest.mark.parametrize("share", shares(sample=47, parts=6))
def test_an_error_at_any_disk_operation_loses_nothing(judge, share, figure):
    trials = share.of(errors_at_every_operation(judge.scenario.operations()))
    found = {trial: wrong for trial in trials if (wrong := failed(judge, *trial))}
    figure("errors injected", len(trials))
    assert found == {}
