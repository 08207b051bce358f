"""Mutants of functions: what they reach, and what is refused rather than taken for a mutant."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.each import each
from tests.mutants import nothing
from tests.mutation import check, mutate, mutated_environment, unmutated_environment

VICTIM = """
from contextlib import contextmanager

def number(base, *, more=1):
    return base + more

handlers = [number]

@contextmanager
def block(name):
    yield f"inside {name}"

class Thing:
    def __init__(self, value):
        self.value = value

    def doubled(self):
        return 2 * self.value

    @staticmethod
    def plain(value):
        return value

def closure():
    value = 1
    return lambda: value

closed = closure()
"""


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "victim.py").write_text(VICTIM)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("victim")
    del sys.modules["victim"]


def doubled_result(original: Any, *arguments: Any, **keywords: Any) -> Any:
    return 2 * original(*arguments, **keywords)


def other_block(original: Any, name: str) -> Iterator[str]:
    yield f"outside {name}"


def test_a_mutant_is_called_with_the_original(victim: Any) -> None:
    mutate("victim:number", lambda: doubled_result)
    assert (victim.number(1), victim.number(1, more=5)) == (4, 12)


def test_a_mutant_reaches_who_took_the_function_before(victim: Any) -> None:
    (taken,) = victim.handlers
    mutate("victim:number", lambda: doubled_result)
    assert taken(1) == 4


def test_a_mutant_of_a_context_manager_is_a_generator(victim: Any) -> None:
    mutate("victim:block", lambda: other_block)
    with victim.block("here") as found:
        assert found == "outside here"


def test_methods_can_be_replaced(victim: Any) -> None:
    before = victim.Thing(3)
    mutate("victim:Thing.doubled", lambda: doubled_result)
    mutate("victim:Thing.plain", lambda: nothing)
    assert (before.doubled(), victim.Thing.plain(3)) == (12, None)


@each("target", ["nowhere:number", "victim:nothing", "victim:Thing.gone", "victim:Thing", "victim:handlers"])
def test_a_target_that_is_not_a_function_is_refused(victim: Any, target: str) -> None:
    with pytest.raises(LookupError, match=target):
        check(target, nothing)


def test_a_closure_is_refused(victim: Any) -> None:
    with pytest.raises(LookupError, match="not a plain function"):
        check("victim:closed", nothing)


@each(
    ("replacement", "fits"),
    [
        (lambda original, base, *, more: None, True),
        (lambda original, base, **rest: None, True),
        (lambda original, *rest, more=2: None, True),
        (lambda original, base: None, False),
        (lambda original, bass, *, more: None, False),
        (lambda original, *rest, less=2: None, False),
    ],
)
def test_a_replacement_takes_what_the_function_takes(victim: Any, replacement: Callable[..., Any], fits: bool) -> None:
    try:
        check("victim:number", replacement)
    except TypeError:
        assert not fits
    else:
        assert fits


PROGRAM = """
import subprocess, sys
from victim import number
print(number(1), flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("environment", "expected"),
    [(unmutated_environment(), "2\n2\n"), (mutated_environment("victim:number", nothing), "None\nNone\n")],
    ids=["without", "with"],
)
def test_a_mutant_reaches_a_process_and_those_it_starts(
    victim: Any, tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = {"PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(tmp_path)])}
    done = subprocess.run([sys.executable, program], env=environment | path, capture_output=True, text=True, check=True)
    assert done.stdout == expected
