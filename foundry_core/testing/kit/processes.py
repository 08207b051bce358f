"""Other processes for the checks: forked children of this process, and fresh Python processes."""

from __future__ import annotations

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
