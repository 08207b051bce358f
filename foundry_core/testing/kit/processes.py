"""Other processes for the checks: forked children of this process, fresh Python processes, and forks of such a one."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from foundry_core.testing.kit.check import NonconformanceError


def forked(*functions: Callable[[], bytes], seconds: float = 60) -> list[bytes]:
    """Run functions at the same time, each in a child of this process, and return their answers.

    All children have ended afterwards.

    Raises:
        NonconformanceError: A function failed; the message is that of the first failure.
    """
    children: dict[Connection, BaseProcess] = {}
    answers: dict[Connection, bytes] = {}
    deadline = time.monotonic() + seconds
    try:
        for function in functions:
            receiving, sending = multiprocessing.Pipe(duplex=False)
            children[receiving] = _started(_answer, function, sending)
            sending.close()
        while len(answers) < len(children):
            ready = wait(set(children) - set(answers), max(0, deadline - time.monotonic()))
            if not ready:
                raise NonconformanceError(f"another process did not answer within {seconds:g} s")
            answers |= {end: _received(child, end) for end, child in children.items() if end in ready}
        return [answers[end] for end in children]
    finally:
        for end, child in children.items():
            child.kill()
            child.join()
            end.close()


def killed(function: Callable[[], None], *, seconds: float = 60) -> None:
    """Run a function that ends with `die` in a child. Raises NonconformanceError if it ends otherwise."""
    child = _started(function)
    child.join(seconds)
    code = child.exitcode
    child.kill()
    child.join()
    if code != -signal.SIGKILL:
        raise NonconformanceError(f"another process should have been killed, but ended with {code}")


def die() -> None:
    """End this process like a crash, without any cleanup."""
    os.kill(os.getpid(), signal.SIGKILL)


def within_this_machine() -> None:
    """Let gloo connect this child over the loopback interface: the name of the machine may lead nowhere."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _started(target: Callable[..., None], *arguments: object) -> BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


def _answer(function: Callable[[], bytes], sending: Connection) -> None:
    try:
        answer = b"+" + function()
    except Exception as error:  # noqa: BLE001 - the parent raises it
        text = str(error) if isinstance(error, NonconformanceError) else f"{type(error).__name__}: {error}"
        answer = b"-" + " ".join(text.split()).encode()
    sending.send_bytes(answer)


def _received(child: BaseProcess, end: Connection) -> bytes:
    try:
        answer = end.recv_bytes()
    except EOFError:
        child.join()
        raise NonconformanceError(f"another process ended with {child.exitcode} without an answer") from None
    if answer[:1] == b"-":
        raise NonconformanceError(answer[1:].decode())
    return answer[1:]


def fresh_command(code: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of a fresh Python process with the module search path of this one."""
    places = os.pathsep.join(place for place in sys.path if place)
    environment = {**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-c", code, *arguments], environment


@cache
def hash_seed_that_reverses(pairs: frozenset[tuple[str, str]]) -> str:
    """Return a PYTHONHASHSEED with which a set of two names iterates from the second to the first.

    The order of insertion must not matter. Half of all values reverse a given pair. For up to four pairs the result
    reverses all of them, which takes some tens of tries; for more pairs it is the best of 32 tries.
    """
    names = [name for pair in pairs for name in pair]
    reversed_order = "next(iter({a, b})) == b == next(iter({b, a}))"
    code = f"import sys; n = sys.argv[1:]; print(sum({reversed_order} for a, b in zip(n[::2], n[1::2])))"
    reversed_pairs: dict[str, int] = {}
    for number in map(str, range(1, 257 if len(pairs) <= 4 else 33)):
        command = [sys.executable, "-S", "-c", code, *names]  # without site: 10 ms
        environment = {**os.environ, "PYTHONHASHSEED": number}
        printed = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        reversed_pairs[number] = int(printed)
        if reversed_pairs[number] == len(pairs):
            break
    return max(reversed_pairs, key=lambda number: reversed_pairs[number])


def fresh(code: str, *arguments: str, seconds: float = 120, hash_seed: str = "random") -> str:
    """Run a program in a fresh process, without the garbage collector, and return its output.

    It takes a third of the time that importing torch and transformers takes; see cli.common.large_imports.

    Raises:
        NonconformanceError: The program failed; the message is the last line of its standard error.
    """
    command, environment = fresh_command(f"import gc; gc.disable()\n{code}", *arguments)
    environment["PYTHONHASHSEED"] = hash_seed
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    if ended.returncode != 0:
        last = next(reversed(ended.stderr.strip().splitlines()), f"exit code {ended.returncode}")
        raise NonconformanceError(f"in a fresh process: {last}")
    return ended.stdout


_SERVER = """
import gc, json, os, signal, sys, traceback
gc.disable()
import safetensors.torch, torch
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
gc.freeze()
for line in sys.stdin:
    code, sys.argv[1:], errors, seconds = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        code_of_exit = 1
        try:
            exec(code, {"__name__": "__main__"})
            code_of_exit = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code_of_exit)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    """A fresh process that has imported torch and transformers, and nothing of foundry or a plugin.

    Programs run in forks of it, each of which starts with that state. The two that a check of an architecture needs
    have one import of torch and transformers, which takes longer than all that they do.
    """

    _current: Warm | None = None

    def __init__(self, folder: Path, hash_seed: str):
        self.folder, self.hash_seed = folder, hash_seed
        command, environment = fresh_command(_SERVER)
        environment |= {"PYTHONHASHSEED": hash_seed, "HF_MODULES_CACHE": str(folder / "modules")}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        atexit.register(self.close)

    @classmethod
    def of(cls, folder: Path, hash_seed: str | None = None) -> Warm:
        """Return the process for a folder, the running one if it is that and has the hash seed.

        Args:
            folder: Of the suite; what is written for the process lies in it.
            hash_seed: The PYTHONHASHSEED; None for any.
        """
        now = cls._current
        if now is None or now.folder != folder or hash_seed not in (None, now.hash_seed):
            if now is not None:
                now.close()
            cls._current = now = cls(folder, hash_seed or "random")
        return now

    def run(self, code: str, *arguments: str, seconds: int = 120) -> None:
        """Run a program in a fork.

        Raises:
            NonconformanceError: The program failed; the message is the last line of its standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        errors = self.folder / "errors"
        print(json.dumps([code, arguments, str(errors), seconds]), file=self._process.stdin, flush=True)
        ended = self._process.stdout.readline().strip()
        if ended != "0":
            said = errors.read_text(errors="replace") if ended else self._process.communicate()[1]
            last = next(reversed(said.strip().splitlines()), f"exit code {ended or self._process.returncode}")
            raise NonconformanceError(f"in a fresh process: {last}")

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        self._process.communicate()
