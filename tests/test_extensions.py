"""`foundry check` on objectives, optimizers, tokenizer types, observers and commands; `plugins doctor --deep`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from foundry_core.cli import main
from foundry_core.errors import PluginError, UsageError
from foundry_core.registry.objective import CORE_OBJECTIVES
from foundry_core.registry.optimizer import CORE_OPTIMIZERS
from foundry_core.registry.schedule import CORE_SCHEDULES
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES
from foundry_core.testing import conformance
from foundry_core.testing.extensions.run import all_checks, run
from foundry_core.testing.extensions.subjects import find
from tests.each import each

CORE: dict[str, Collection[str]] = {
    "objective": CORE_OBJECTIVES,
    "optimizer": CORE_OPTIMIZERS,
    "schedule": CORE_SCHEDULES,
    "tokenizer": CORE_TOKENIZER_TYPES,
}

DIARY = """
from foundry_core import ConfigSection, Optimizer, hookimpl
from pydantic import Field


class Settings(ConfigSection):
    memory: float = Field(ge=0, lt=1, description="share that is kept")


@hookimpl
def foundry_optimizers():
    builder = f"{__name__}:build"
    return [Optimizer(name="slow", summary="plain descent", builder=builder, settings=Settings)]


@hookimpl
def foundry_step_ended(report):
    pass


def build(groups, training):
    import torch

    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.optimizer_settings.memory)
"""


@pytest.fixture
def diary(distribution: Callable[..., Path]) -> None:
    """A package with an optimizer whose setting has no default, an observer, and a command of the same name."""
    points = {"foundry.plugins": {"slow": "slow_diary"}, "foundry.commands": {"slow": "slow_command"}}
    requires = ["Requires-Dist: model-foundry>=0.1,<0.2"]
    distribution("slow-diary", points, {"slow_diary.py": DIARY, "slow_command.py": ""}, headers=requires)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CORE.items() for name in names])
def test_what_core_offers_passes_every_check(kind: str, name: str) -> None:
    results = list(run(find(name, kind)))
    assert [f"{result.check.name}: {result.reason}" for result in results if not result.good] == []
    assert [result.check.group for result in results if result.outcome == "passed"].count(kind) >= (
        3 if kind == "schedule" else 5
    )


@pytest.mark.usefixtures("diary")
def test_a_name_of_several_kinds_is_chosen_by_kind() -> None:
    with pytest.raises(PluginError, match="^'slow' is a command and an optimizer and an observer: choose with --kind$"):
        find("slow")
    assert find("slow", "observer").kind == "observer"
    assert find("slow_diary").kind == "observer"
    assert find("lstm").kind == "architecture"
    assert find("bpe").kind == "tokenizer"


def test_an_unknown_name_is_answered_with_a_near_one_or_a_cause(distribution: Callable[..., Path]) -> None:
    with pytest.raises(PluginError, match="^Unknown architecture or extension: 'adamv'. Did you mean 'adamw'\\?"):
        find("adamv")
    with pytest.raises(PluginError, match="^Unknown optimizer: 'lstm'. Available: adamw, asgd, sgd\\.$"):
        find("lstm", "optimizer")
    distribution("broken", {"foundry.plugins": {"mine": "broken_one"}}, {"broken_one.py": "1 / 0\n"})
    with pytest.raises(PluginError, match="\\nthe plugin broken 1.0 .* fails to import: ZeroDivisionError"):
        find("mine")
    assert find("adamw").kind == "optimizer"


@pytest.mark.usefixtures("diary")
def test_settings_without_a_default_are_given_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "slow", "--kind", "optimizer", "--only", "settings", "runs", "resume"]
    assert main(command) == 9
    printed, error = capsys.readouterr()
    assert "training.optimizer_settings.memory: missing: pass values with --settings KEY=VALUE" in printed
    assert error == "error: slow does not conform: runs and 1 that fail with it\n"
    assert main([*command, "--settings", "memory=0.5"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1:3] for line in printed.splitlines()[:3]] == [
        ["settings", "passed"],
        ["runs", "passed"],
        ["resume", "passed"],
    ]
    assert "slow (slow-diary 1.0, " in printed


def test_a_check_prints_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "masked_lm", "--only", "predictions", "draws", "hooks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[:3] for line in lines if " s" in line and not line.startswith(" ")]
    assert rows[:3] == [
        ["packaging", "hooks", "skipped"],
        ["objective", "predictions", "passed"],
        ["objective", "draws", "passed"],
    ]
    assert "  core's own" in lines
    assert "  predicts 12.9% of the tokens of a whole row" in lines
    assert main(["check", "causal_lm", "--only", "predictions", "--json"]) == 0
    (fact,) = json.loads(capsys.readouterr().out)
    assert (fact["outcome"], fact["reason"]) == ("passed", "predicts 100.0% of the tokens of a whole row")


@each(
    ("arguments", "code", "line"),
    [
        (["adamw", "--kind", "observer"], 3, "Unknown observer: 'adamw'."),
        (["adamw", "--only", "resme"], 2, "there is no check 'resme' of an optimizer. Did you mean 'resume'?"),
        (["adamw", "--expect", "optimizer"], 2, "there is no check 'optimizer'"),
        (["adamw", "--write-keys"], 2, "--write-keys is for architectures: 'adamw' is of kind optimizer"),
        (
            ["lstm", "--settings", "a=1"],
            2,
            "--settings is for objectives, optimizers, schedules, orders and steps: 'lstm' is of kind architecture",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == code
    printed, error = capsys.readouterr()
    assert printed == ""
    assert line in error
    assert error.count("\n") == 1


def test_the_checks_of_a_kind_are_one_pytest_test() -> None:
    test = conformance("adamw", kind="optimizer", expected_failures={"learns": "it does learn"})
    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    assert [case.values[0] for case in mark.args[1]] == all_checks("optimizer")
    checks = {check.name: check for check in all_checks("optimizer")}
    test(checks["decay"])
    with pytest.raises(pytest.skip.Exception, match="core's own"):
        test(checks["hooks"])
    with pytest.raises(pytest.fail.Exception, match="among the expected failures .* passed: remove it from there"):
        test(checks["learns"])
    with pytest.raises(UsageError, match="no check 'learn'"):
        list(run(find("adamw"), ["learn"]))


# Every import string.

DESCRIPTORS = """
from foundry_core import Objective, Optimizer, TokenizerType, hookimpl

@hookimpl
def foundry_objectives():
    return [Objective(name="far", summary="", causal=True, layout="overlap", collator="far_heavy:collate",
                      same_interface_as="causal_lm")]

@hookimpl
def foundry_optimizers():
    return [Optimizer(name="fast", summary="", builder="far_heavy:build")]

@hookimpl
def foundry_tokenizer_types():
    return [TokenizerType(name="few", summary="", trainer="far_heavy:train")]
"""


@pytest.mark.parametrize(
    ("heavy", "problems"),
    [
        ("collate = build = train = print\n", []),
        (
            "build, train = print, 3\n",
            [
                "the collator of its objective 'far': the import of far_heavy:collate fails: AttributeError",
                "the trainer of its tokenizer type 'few': far_heavy:train is not a function or class",
            ],
        ),
        (
            "import no_such_module\n",
            [
                f"the {part}: the import of far_heavy:{name} fails: ModuleNotFoundError: No module named 'no_such"
                for part, name in (
                    ("collator of its objective 'far'", "collate"),
                    ("builder of its optimizer 'fast'", "build"),
                    ("trainer of its tokenizer type 'few'", "train"),
                )
            ],
        ),
    ],
)
def test_doctor_deep_names_each_import_string_that_fails(
    heavy: str, problems: list[str], distribution: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"far_away.py": DESCRIPTORS, "far_heavy.py": heavy}
    distribution("far-away", {"foundry.plugins": {"far": "far_away"}}, files)
    assert main(["plugins", "doctor"]) == 0
    capsys.readouterr()
    assert main(["plugins", "doctor", "--deep"]) == (3 if problems else 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(f"error: the plugin far-away 1.0: {problem}")
        assert line.endswith("Upgrade or remove it: pip uninstall far-away")


def test_doctor_deep_imports_models_and_commands(
    distribution: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    light = """
        from foundry_core import Architecture, ModelConfig
        odd = Architecture(name="odd", summary="", config_class=ModelConfig, model_class="odd_model:Model")
    """
    points = {"foundry.architectures": {"odd": "odd_light:odd"}, "foundry.commands": {"odd-command": "odd_command"}}
    lines = "\n".join(line.strip() for line in light.splitlines())
    files = {"odd_light.py": lines, "odd_model.py": "class Model: pass\n", "odd_command.py": "1 / 0\n"}
    distribution("odd", points, files)
    assert main(["plugins", "doctor"]) == 0
    capsys.readouterr()
    assert main(["plugins", "doctor", "--deep"]) == 3
    model, command = capsys.readouterr().err.splitlines()
    assert "its model_class: odd_model:Model is not a subclass of BaseLanguageModel" in model
    assert "the import of odd_command, the command 'odd-command' of odd 1.0, fails: ZeroDivisionError" in command
