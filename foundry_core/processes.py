"""The processes of a run: one, or several that train one model together and take every decision together.

`torchrun` and `foundry train --processes` start them; the environment names each one's rank. In a world of one nothing
is sent, so that no other module needs to tell the two apart.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from foundry_core.devices import backend_of
from foundry_core.errors import EndedElsewhereError, FoundryError, TrainingError, UsageError, warnings_silenced
from foundry_core.systems import RENDEZVOUS, started_together

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one of them may prepare a large corpus."""
_GONE_SECONDS = 4.0
"""How long the others have to answer when a collective operation has failed."""
_ANSWER_SECONDS = 0.5
_POLL_SECONDS = 0.05
_INTERRUPTED = 130
_runs = count()
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.13


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
        """Check whether this process prepares, writes, saves and reports; the others only compute."""
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

    def meet(self) -> None:
        """Wait until all processes have come here."""
        self.sum(torch.zeros(1))

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
            if flat.is_cuda:
                _all_gather(flat, share)
                return
            # Gloo's broadcasts, all at once, take a third of the time of its all-gather (64 MB: 77 ms of 224).
            parts = flat.chunk(self.size)
            parts[self.rank].copy_(share)
            for work in [dist.broadcast(part, rank, async_op=True) for rank, part in enumerate(parts)]:
                work.wait()

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

    def find_others(self) -> None:
        """Wait until all processes of the run have come to their store. Raises EndedElsewhereError if one has ended."""
        if self._store is not None:
            self._store.set(f"here/{self.rank}", "")
            for rank in range(self.size):
                self._wait_for(f"here/{rank}", "starting", rank)

    def all_ended(self) -> bool:
        """Check whether each process has recorded that it ended."""
        return all(self._has(f"ended/{rank}") for rank in range(self.size))

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
        try:
            while not self._has(key):
                self._check_others()
                if time.monotonic() > until:
                    raise TrainingError(f"waited {PATIENCE.total_seconds() / 3600:.0f} h for process {rank}: {what}")
                time.sleep(_POLL_SECONDS)
        except RuntimeError as error:  # the store has gone with the process that kept it
            raise self._lost([0]) from error

    def _check_others(self) -> None:
        """Raise EndedElsewhereError if another process has recorded that it ended."""
        assert self._store is not None
        for rank in range(self.size):
            if rank != self.rank and self._has(f"ended/{rank}"):
                raise EndedElsewhereError(json.loads(self._store.get(f"ended/{rank}")))

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
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # that of gloo and NCCL
            raise self._broken(error) from error
        self.seconds += self._now(tensor) - begun

    def _now(self, tensor: torch.Tensor | None) -> float:
        if tensor is not None and tensor.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _broken(self, cause: RuntimeError) -> FoundryError:
        """Return the error of a collective operation that failed: it names the processes that do not answer."""
        # They keep the operation, and it the connections, which would not close before this process ends.
        traceback.clear_frames(cause.__traceback__)
        missing = [rank for rank in range(self.size) if rank != self.rank]
        try:
            assert self._store is not None
            self._store.set("asked", "")
            until = time.monotonic() + _GONE_SECONDS
            while missing and time.monotonic() < until:
                self._check_others()
                time.sleep(_POLL_SECONDS)
                missing = [rank for rank in missing if not self._has(f"alive/{rank}")]
        except EndedElsewhereError as ended:
            return ended
        except RuntimeError:
            missing = [0]  # the store has gone with the process that kept it
        if missing:
            return self._lost(missing)
        return TrainingError(f"the processes cannot communicate: {' '.join(str(cause).split())}")

    def _lost(self, missing: Sequence[int]) -> FoundryError:
        if RENDEZVOUS in os.environ:  # what started the processes sees how one ended
            return EndedElsewhereError(TrainingError.exit_code)
        which = ", ".join(map(str, missing))
        return TrainingError(
            f"process {which} of {self.size} was killed or lost; go on from the last checkpoint with --resume"
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the question who is still there in a thread of its own: the main one may be waiting for a process.

        It ends with the run: Python aborts a process that ends while a thread is in the store, one run in some hundred.
        """
        ended = threading.Event()

        def answer() -> None:
            with suppress(RuntimeError):  # the store has gone, and the run with it
                while not self._has("asked"):
                    if ended.wait(_ANSWER_SECONDS):
                        return
                self._store.set(f"alive/{self.rank}", "")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_GONE_SECONDS)

    def ended_with(self, error: BaseException) -> BaseException:
        """Record that this process ends; return what to end with, a silent error if another one reports the same."""
        if self._store is None:
            return error
        code = error.exit_code if isinstance(error, FoundryError) else EndedElsewhereError.exit_code
        code = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else code
        silent = isinstance(error, EndedElsewhereError)
        with suppress(RuntimeError):  # the store may have gone
            what = sha256(f"{type(error).__name__}: {error}".encode()).hexdigest()
            silent = silent or self._store.add(f"reported/{what}", 1) > 1
            self._store.set(f"ended/{self.rank}", json.dumps(code))
        return EndedElsewhereError(code) if silent else error


def _store_of_run() -> tuple[Any, int, int]:
    """Return what the processes leave messages in, the rank of this one and how many there are.

    Raises:
        UsageError: The environment does not say where they meet.
        TrainingError: They do not meet.
    """
    url = os.environ.get(RENDEZVOUS, "env://")
    needed = ("RANK", "WORLD_SIZE", *(("MASTER_PORT",) if RENDEZVOUS not in os.environ else ()))
    wrong = [name for name in needed if not os.environ.get(name, "").isdecimal()]
    if RENDEZVOUS not in os.environ and not os.environ.get("MASTER_ADDR"):
        wrong.append("MASTER_ADDR")
    if wrong:
        found = ", ".join(f"{name} is {os.environ.get(name, 'missing')!s}" for name in wrong)
        raise UsageError(
            f"RANK and WORLD_SIZE are set, as for one of several processes, but {found}: start them with torchrun or "
            "--processes, or unset both"
        )
    try:
        store, rank, size = next(rendezvous(url, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    except RuntimeError as error:
        raise TrainingError(f"the processes of this run do not meet: {' '.join(str(error).split())}") from error
    return store, rank, size


def ended_before_joining(error: FoundryError) -> BaseException:
    """Return what a process ends with that has not joined the others: see `World.ended_with`."""
    try:
        store, rank, size = _store_of_run()
    except FoundryError:
        return error
    world = World(rank, size, _part(store, f"foundry/{next(_runs)}"))
    ended = world.ended_with(error)
    _stay(world)
    return ended


def _part(store: Any, name: str) -> Any:
    """Return the messages of a store that begin with a name."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _stay(world: World) -> None:
    """Let process 0 end after the others have learnt why, if it keeps the store of their messages."""
    if not world.first or RENDEZVOUS in os.environ or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    until = time.monotonic() + _GONE_SECONDS
    while time.monotonic() < until and not world.all_ended():
        time.sleep(_POLL_SECONDS)


@contextmanager
def joined(choose_device: Callable[[], torch.device]) -> Iterator[World]:
    """Join the processes of the run that this one was started for; a world of one if it was started alone.

    Args:
        choose_device: Returns that of the run. Of several GPUs, each process of a machine gets its own.

    Raises:
        UsageError: The device is not there, or there are not as many GPUs as processes.
    """
    if not started_together():
        choose_device()
        yield World()
        return
    (store, rank, size), run = _store_of_run(), next(_runs)
    world = World(rank, size, _part(store, f"foundry/{run}"))
    with ExitStack() as held:
        try:
            backend = backend_of(choose_device(), size)
            world.find_others()
            held.enter_context(world.answering())
            with world.watched():  # another process may end while this one still connects to it
                own = _part(store, f"torch/{run}")
                dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)
            if RENDEZVOUS in os.environ:
                threading.Thread(target=_stop_with_launcher, daemon=True).start()
            with warnings_silenced(not world.first):
                yield world
        except BaseException as error:
            ended = world.ended_with(error)
            if dist.is_initialized():
                dist.destroy_process_group()
            _stay(world)
            if ended is error:
                raise
            raise ended from error
        dist.destroy_process_group()


def _stop_with_launcher() -> None:
    """Ask this process to stop when the one that started it has gone: its end of the pipe at stdin closes then."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
