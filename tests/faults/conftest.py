"""Scenarios, each with its judge; made once in a process."""

import tempfile
from pathlib import Path

import pytest

from foundry_core import run
from tests.faults.scenario import Judge, Scenario, interrupted_scenario


@pytest.fixture
def figure(record_property):
    """`figure(name, count)`: a number that the end of the test run sums up and prints."""

    def record(name, count):
        record_property(f"figure: {name}", count)

    return record


@pytest.fixture(scope="session")
def place():
    """Makes a folder, in memory where that can be: a kill takes nothing from it either, and fsync costs nothing.

    What a run imports and caches on first use has been used in this process by then, for every fork to have.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="foundry-faults-", dir=memory if memory.is_dir() else None) as folder:
        Path(folder).chmod(0o755)

        def make(name):
            made = Path(folder) / name
            made.mkdir()
            return made

        run(Scenario(make("first")).config, quiet=True)
        yield make


@pytest.fixture(scope="session")
def fresh(place):
    """A run from its beginning to its end."""
    return Judge.of(Scenario(place("fresh")))


@pytest.fixture(scope="session")
def interrupted(place):
    """A run that goes on after an interruption that left a damaged checkpoint and leftovers of every kind."""
    return Judge.of(interrupted_scenario(place("interrupted")))


@pytest.fixture(scope="session")
def unprepared(place):
    """A run that trains its tokenizer and encodes its corpus first."""
    return Judge.of(Scenario(place("unprepared"), prepared=False))


@pytest.fixture(scope="session")
def seldom(place):
    """A longer run that saves after every fourth step only."""
    return Judge.of(Scenario(place("seldom"), steps=12, ephemeral=False))


@pytest.fixture
def judge(request):
    """The judge of the scenario that a test's parameter names."""
    return request.getfixturevalue(request.param)
