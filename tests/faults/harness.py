"""A forked child on a disk whose operations are counted, and one of which goes wrong.

The test process has imported torch; each trial is a fork of it, which costs milliseconds instead of seconds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

import pytest

from foundry_core.errors import FoundryError
from foundry_core.storage.files import Disk

LONG = 60
"""Seconds after which something that ought to happen at once will not happen any more."""

OPERATIONS = [name for name in vars(Disk) if not name.startswith("_")]


Tell = Callable[[tuple[str, Any]], None]
"""Defines how a child tells its parent of something: what, and more about it."""


@dataclass(frozen=True)
class Operation:
    """One call of a method of `Disk`: its name, the path (of an open file too), and what else it was given.

    kind: "acknowledged" is not an operation, but the moment in between at which a run says that a checkpoint is saved.
    """

    kind: str
    path: Path
    to: Path | None = None
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Fault:
    """Describes what happens at the n-th operation, counted from 1.

    kind: "kill" before it, "half" a write and then the kill, or the name of an error number. A write that fails has
    written half. lasting: whatever would need room fails from then on, too.
    """

    at: int
    kind: str
    lasting: bool = False


class ObservedDisk(Disk):
    """Keeps every operation in `operations`, those of `Disk` whatever they are called, and carries out a fault.

    Of the operation that it lets fail it tells ("failed", operation).
    """

    def __init__(self, tell: Tell, fault: Fault | None = None):
        self.operations: list[Operation] = []
        self.tell, self.fault = tell, fault

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        return partial(self._carry_out, name, method) if name in OPERATIONS else method

    def _carry_out(self, name: str, method: Callable[..., Any], target: Path | FileIO, *rest: Any) -> Any:
        path = Path(str(target.name)) if isinstance(target, FileIO) else target
        to = rest[0] if name == "rename" else None
        data = bytes(rest[0]) if name == "write" else b""
        self.operations.append(Operation(name, path, to, data))
        fault, count = self.fault, len(self.operations)
        if fault is not None:
            again = fault.lasting and count > fault.at and name not in ("rename", "remove_file", "remove_folder")
            if count == fault.at:
                self.tell(("failed", self.operations[-1]))
            if count == fault.at or again:
                self._fail(fault.kind, name, method, target, data)
        return method(target, *rest)

    def _fail(self, kind: str, name: str, method: Callable[..., Any], target: Path | FileIO, data: bytes) -> NoReturn:
        if name == "write" and kind != "kill":
            method(target, data[: len(data) // 2])
        if kind in ("kill", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, kind)
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Ended:
    """Describes how a child ended: exit code (negative: the signal), what it told, its lines on stderr."""

    code: int
    told: list[tuple[str, Any]]
    errors: list[str]

    def of(self, kind: str) -> list[Any]:
        """Return what it told of that."""
        return [more for what, more in self.told if what == kind]


class Child:
    """A fork that carries out `function(tell)`, and ends as the command line would: errors are a line and a code."""

    def __init__(self, function: Callable[[Tell], None]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the child writes to it, `wait` reads and closes it
        self._told: list[tuple[str, Any]] = []
        self._receiver, sender = Pipe(duplex=False)
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so is this
            _live(function, sender, self._errors.fileno())
        sender.close()

    def hears(self) -> tuple[str, Any] | None:
        """The next thing told, None when there will be no more."""
        if not self._receiver.poll(LONG):
            raise TimeoutError(f"process {self.pid} has said nothing for {LONG} seconds: {self.kill()}")
        try:
            self._told.append(self._receiver.recv())
        except (EOFError, OSError):  # a kill may come in the middle of a message
            return None
        return self._told[-1]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def leaves_within(self, seconds: float) -> bool:
        """Check whether it ends by itself, having nothing more to tell."""
        return self._receiver.poll(seconds) and self.hears() is None

    def wait(self) -> Ended:
        while self.hears() is not None:
            pass
        return self._ended()

    def kill(self) -> Ended:
        """End it at once. Processes that it forked may live on for a moment."""
        self.signal(signal.SIGKILL)
        return self._ended()

    def _ended(self) -> Ended:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while self._receiver.poll() and self.hears() is not None:
            pass
        self._receiver.close()
        self._errors.seek(0)
        errors = self._errors.read().decode().splitlines()
        self._errors.close()
        return Ended(code, self._told, errors)


_PR_SET_PDEATHSIG = 1


def _live(function: Callable[[Tell], None], sender: Connection, errors: int) -> NoReturn:
    # Not even a test run that is killed leaves it behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 70
    try:
        function(sender.send)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except FoundryError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    except BaseException:  # noqa: BLE001 - never back into the code of the test process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def in_child(function: Callable[[Tell], None]) -> Ended:
    return Child(function).wait()


def tidying(operations: Sequence[Operation]) -> list[bool]:
    """For each operation whether it only removes what is no longer needed: its failure must not stop a run."""
    found = []
    for operation, after in pairwise([*operations, Operation("end", Path())]):
        hides = operation.kind == "rename" and operation.to is not None and operation.to.suffix == ".old"
        replaces = after.kind == "rename" and after.path.suffix == ".tmp"
        syncs = operation.kind == "sync_folder" and ".old" in str(after.path)
        found.append(operation.kind.startswith("remove") or (hides and not replaces) or syncs)
    return found


@dataclass(frozen=True)
class Share:
    """Every `stride`-th of many trials, from `offset` on."""

    stride: int
    offset: int

    def of(self, trials: Iterable[Any]) -> list[Any]:
        return list(trials)[self.offset :: self.stride]


def shares(sample: int, parts: int) -> list[Any]:
    """Parameters of a test: every `sample`-th trial for `make test`; for `make test-faults` all, in so many parts."""
    every = [Share(parts, part) for part in range(parts)]
    long = [pytest.param(each, id=f"{each.offset + 1} of {parts}", marks=pytest.mark.faults) for each in every]
    return [pytest.param(Share(sample, sample // 2), id="sample"), *long]
