"""plugins/README.md: its examples run and conform, and nothing that a plugin may rely on is missing from it."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_core import Architecture, Capabilities, CorpusStep, DataOrder, Objective
from foundry_core.registry import hookspecs
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.schedule import LearningRateSchedule
from foundry_core.registry.suite import Suite as SuiteDescriptor
from foundry_core.registry.tokenizer_type import TokenizerType
from foundry_core.testing.extensions.run import all_checks as checks_of
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.check import CHECKS, GROUPS
from foundry_core.testing.kit.keys import write_keys
from foundry_core.testing.kit.run import all_checks, run_check
from tests.each import each

GUIDE = (Path(__file__).parents[1] / "plugins" / "README.md").read_text(encoding="utf-8")
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("foundry_")}
NOT_APPLICABLE = (
    "isolation",
    "carried-rows",
    "word-order",
    "counts-add-up",
    "counted-tokens",
    "auxiliary",
    "dropout",
    "carried-state",
    "step-by-step",
    "refusal",
    "gradient-checkpointing",
    "standalone",
)
"""Checks of what the model of the guide does not have: two directions, dropout, a state, and so on."""


def block(title: str) -> str:
    """The first block of Python below a title."""
    return GUIDE.partition(title)[2].partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The cases of the architecture that the guide writes: its own two modules, installed as it says."""
    site = tmp_path_factory.mktemp("site")
    requirement, *_ = re.findall(r'dependencies = \["(model-foundry[^"]+)"\]', GUIDE)
    (entry_point,) = re.findall(r'(?m)^mine = "(\S+)"', GUIDE)
    files = {
        "foundry_mine/__init__.py": block("## 2. The light module"),
        "foundry_mine/model.py": block("## 3. The model"),
        "foundry_mine-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: foundry-mine\nVersion: 0.1.0\n"
        f"Requires-Dist: {requirement}\n",
        "foundry_mine-0.1.0.dist-info/entry_points.txt": f"[foundry.architectures]\nmine = {entry_point}\n",
    }
    for path, text in files.items():
        (site / path).parent.mkdir(exist_ok=True)
        (site / path).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        made = Suite.of("mine")
        write_keys(made)
        yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "foundry_mine"]:
        del sys.modules[name]


@pytest.mark.long
@pytest.mark.parametrize("name", [one.name for one in all_checks()])
def test_the_model_of_the_guide_passes_every_check(name: str, suite: Suite) -> None:
    result = run_check(CHECKS[name], suite)
    assert result.good, result.reason
    assert result.outcome == "passed" or name in NOT_APPLICABLE


def test_every_check_is_explained_as_it_explains_itself() -> None:
    entries = GUIDE.partition("## The checks")[2].split("\n#### ")[1:]
    found = [tuple(" ".join(part.split()) for part in entry.split("\n\n")[:3]) for entry in entries]
    by_group = sorted(all_checks(), key=lambda one: GROUPS.index(one.group))
    assert found == [(f"`{one.name}`", one.invariant, one.fix) for one in by_group]


@each("name", HOOKS)
def test_every_hook_is_in_it_with_its_arguments(name: str) -> None:
    assert f"| `{name}({', '.join(inspect.signature(HOOKS[name]).parameters)})` |" in GUIDE


def test_the_example_of_a_hook_runs_with_the_specifications() -> None:
    documentation = inspect.cleandoc(hookspecs.foundry_optimizers.__doc__ or "")
    shown = re.findall(r"(?m)^`([\w/.]+)`:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
    assert [path for path, _ in shown] == [
        "foundry_rmsprop/__init__.py",
        "foundry_rmsprop/optimizer.py",
        "experiment.yaml",
    ]
    for path, text in shown:
        assert f"# {path}\n{text.rstrip()}" in documentation


@each(
    ("kind", "title"),
    [
        ("objective", "An objective"),
        ("optimizer", "An optimizer"),
        ("schedule", "A schedule"),
        ("tokenizer", "A tokenizer type"),
        ("order", "An order"),
        ("step", "A corpus step"),
        ("suite", "A suite"),
        ("observer", "An observer"),
        ("command", "A command"),
    ],
)
def test_every_check_of_a_kind_is_in_its_section(kind: str, title: str) -> None:
    shared = GUIDE.partition("## Write and check each kind\n")[2].partition("\n### ")[0]
    section = GUIDE.partition(f"\n### {title}\n")[2].partition("\n#")[0]
    for one in checks_of(kind):
        assert f"`{one.name}`" in (shared if one.group == "packaging" else section), one.name


@pytest.mark.parametrize(
    "kind",
    [
        Architecture,
        Capabilities,
        Objective,
        Optimizer,
        LearningRateSchedule,
        TokenizerType,
        DataOrder,
        CorpusStep,
        SuiteDescriptor,
    ],
)
def test_every_field_of_a_descriptor_is_in_it(kind: type) -> None:
    section = GUIDE.partition(f"### Fields of `{kind.__name__}`\n")[2].partition("\n#")[0]
    listed = [
        name for line in re.findall(r"(?m)^\* (`.+?)(?::|, default)", section) for name in re.findall(r"`(\w+)`", line)
    ]
    assert listed == [field.name for field in dataclasses.fields(kind)]
