"""The processes of a run: one, or several that train one model together and take every decision together.

`torchrun` and `foundry train --processes` start them; the environment names each one's rank. A world of one talks to
nobody, so that no other module needs to tell the two apart.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from foundry_core.errors import EndedElsewhereError, FoundryError, TrainingError, UsageError, silence_warnings
from foundry_core.systems import RENDEZVOUS, started_together

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one of them may prepare a large corpus."""
_GONE_SECONDS = 4.0
_POLL_SECONDS = 0.05


# Under its name since torch 2.13, and before.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class World:
    """The processes that train one model.

    Args:
        rank: The number of this process, from 0.
        size: How many there are.
        store: Where they leave messages for each other; None in a world of one.

    Attributes:
        seconds: The time that this process has spent communicating, and waiting for others to do so, while it did not
            compute; not a number where that is not measured.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None):
        self.rank, self.size, self.seconds = rank, size, 0.0
        self._store, self._messages = store, 0

    @property
    def first(self) -> bool:
        """Whether this process prepares, writes, saves and reports; the others only compute."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """Return the contiguous part of `count` things that is this process's."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over the processes, in place. Exact where it holds whole numbers, or all but one have 0."""
        if self.size > 1:
            with self._communicating(values):
                dist.all_reduce(values)
        return values

    def adding(self, values: torch.Tensor) -> Callable[[], None]:
        """Begin to add up a tensor over the processes, in place; return what waits until that is done."""
        with self._communicating():
            work: Any = dist.all_reduce(values, async_op=True)

        def wait() -> None:
            with self._communicating(values):
                work.wait()

        return wait

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether a process has it set."""
        return [count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.int64)).tolist()]

    def exchanged(self, flat: torch.Tensor, room: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the same share, the rank's, of a flat tensor from each process, in the order of their ranks.

        Args:
            flat: Of a multiple of `size` values.
            room: Of the same size; the result consists of views of it.
        """
        with self._communicating(flat):
            dist.all_to_all_single(room, flat)
        return room.chunk(self.size)

    def collected(self, flat: torch.Tensor, share: torch.Tensor) -> None:
        """Fill a flat tensor with one share of each process, in the order of their ranks."""
        with self._communicating(flat):
            _all_gather(flat, share)

    def objects(self, value: Any) -> list[Any]:
        """Return an object of each process, in the order of their ranks, on process 0; elsewhere nothing."""
        if self.size == 1:
            return [value]
        everyone: list[Any] | None = [None] * self.size if self.first else None
        with self._communicating():
            dist.gather_object(value, everyone)
        return everyone or []

    @contextmanager
    def in_turn(self, what: str) -> Iterator[None]:
        """Let process 0 do what the block does before the others do it, who then find it done.

        what: What process 0 is doing, for the error of one that waits in vain.
        """
        key = self._key()
        if not self.first:
            self._wait_for(key, what)
        yield
        if self.first and self._store is not None:
            self._store.set(key, "done")

    def from_first(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returns on process 0, plain data as JSON has it."""
        if self._store is None:
            return make()
        key = self._key()
        if self.first:
            self._store.set(key, json.dumps(make()))
        else:
            self._wait_for(key, what)
        return json.loads(self._store.get(key))

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Check that all processes begin alike.

        Args:
            facts: What must be equal, by its name in the error.

        Raises:
            UsageError: It differs; names the process and the first difference.
        """
        if self._store is None:
            return
        key = self._key()
        self._store.set(f"{key}/{self.rank}", json.dumps(dict(facts)))
        everyone = []
        for rank in range(self.size):
            self._wait_for(f"{key}/{rank}", "beginning", rank)
            everyone.append(json.loads(self._store.get(f"{key}/{rank}")))
        for rank, each in enumerate(everyone):
            differing = [name for name in sorted({*each, *everyone[0]}) if each.get(name) != everyone[0].get(name)]
            if differing:
                found = " and ".join(
                    f"{each.get(differing[0])} on process {n}" for n, each in ((0, everyone[0]), (rank, each))
                )
                raise UsageError(f"the processes of this run differ in {differing[0]}: {found}; start them alike")

    def _key(self) -> str:
        """Return the name of the next message; the processes send them in the same order."""
        self._messages += 1
        return f"message/{self._messages}"

    def _has(self, key: str) -> bool:
        assert self._store is not None
        return bool(self._store.check([key]))

    def _wait_for(self, key: str, what: str, rank: int = 0) -> None:
        """Wait until another process has left a message. In Python, so that a signal is answered at once."""
        until = time.monotonic() + PATIENCE.total_seconds()
        while not self._has(key):
            self._check_others()
            if time.monotonic() > until:
                raise TrainingError(f"waited {PATIENCE.total_seconds() / 3600:.0f} h for process {rank}: {what}")
            time.sleep(_POLL_SECONDS)

    def _check_others(self) -> None:
        """Raise EndedElsewhereError if another process has recorded that it ended."""
        assert self._store is not None
        for rank in range(self.size):
            if rank != self.rank and self._has(f"ended/{rank}"):
                raise EndedElsewhereError(json.loads(self._store.get(f"ended/{rank}"))[0])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the failure of a collective operation that torch makes by itself into the line of who is missing."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._broken(error) from error
            raise

    @contextmanager
    def _communicating(self, tensor: torch.Tensor | None = None) -> Iterator[None]:
        """Measure the time of a collective operation, and turn its failure into the line of who is missing."""
        begun = self._now(tensor)
        try:
            yield
        except RuntimeError as error:  # that of gloo and NCCL
            raise self._broken(error) from error
        self.seconds += self._now(tensor) - begun

    def _now(self, tensor: torch.Tensor | None) -> float:
        if tensor is not None and tensor.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _broken(self, cause: RuntimeError) -> FoundryError:
        """Return the error of a collective operation that failed; one of the processes left names the missing one."""
        missing = [rank for rank in range(self.size) if rank != self.rank]
        try:
            assert self._store is not None
            self._store.set(f"alive/{self.rank}", "")
            until = time.monotonic() + _GONE_SECONDS
            while missing and time.monotonic() < until:
                self._check_others()
                time.sleep(_POLL_SECONDS)
                missing = [rank for rank in missing if not self._has(f"alive/{rank}")]
        except EndedElsewhereError as ended:
            return ended
        except RuntimeError:
            missing = [0]  # the store has gone with the process that kept it
        if not missing:
            return TrainingError(f"the processes cannot communicate: {' '.join(str(cause).split())}")
        reports = self.rank == min(rank for rank in range(self.size) if rank not in missing)
        if not reports or RENDEZVOUS in os.environ:  # who started the processes sees how one ended
            return EndedElsewhereError(TrainingError.exit_code)
        which = ", ".join(map(str, missing))
        return TrainingError(
            f"process {which} of {self.size} was killed or lost; go on from the last checkpoint with --resume"
        )

    def ended_with(self, error: BaseException) -> BaseException:
        """Record why this process ends; return what to end with, a silent error if process 0 reports the same."""
        if self._store is None:
            return error
        code = error.exit_code if isinstance(error, FoundryError) else 1
        try:
            self._store.set(f"ended/{self.rank}", json.dumps([code, str(error)]))
            until = time.monotonic() + (0.0 if self.first else _GONE_SECONDS / 2)
            while time.monotonic() < until:
                if self._has("ended/0"):
                    if json.loads(self._store.get("ended/0"))[1] == str(error):
                        return EndedElsewhereError(code)
                    break
                time.sleep(_POLL_SECONDS)
        except RuntimeError:  # process 0 has gone, and the store with it
            pass
        return error


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes of the run that this one was started for; a world of one if it was started alone.

    Args:
        device: That of the run. Of several GPUs, each process of a machine gets its own.

    Raises:
        UsageError: There are not as many GPUs as processes.
    """
    if not started_together():
        yield World()
        return
    local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise UsageError(f"{here} processes need as many GPUs, and torch finds {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    from torch.distributed.rendezvous import rendezvous

    url, place = os.environ.get(RENDEZVOUS, "env://"), (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    store, rank, size = next(rendezvous(url, *place))
    prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=prefixed("torch", store), rank=rank, world_size=size, timeout=PATIENCE)
    world = World(rank, size, prefixed("foundry", store))
    if not world.first:
        silence_warnings()
    if RENDEZVOUS in os.environ:
        threading.Thread(target=_stop_with_launcher, daemon=True).start()
    try:
        yield world
    except BaseException as error:
        raise world.ended_with(error) from error
    dist.destroy_process_group()


def _stop_with_launcher() -> None:
    """Ask this process to stop when the one that started it has gone: its end of the pipe at stdin closes then."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
