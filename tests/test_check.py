"""The conformance kit as its users meet it: one pytest test with many cases, and `foundry check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli import main
from foundry_core.errors import UsageError
from foundry_core.testing import conformance
from foundry_core.testing.kit.check import CHECKS, GROUPS, ROOTS
from foundry_core.testing.kit.run import all_checks

PLUGIN = '''
import torch
from pydantic import Field
from torch import nn

from foundry_core import BaseLanguageModel, Capabilities, ConfigSection, ModelConfig, register_architecture


class Section(ConfigSection):
    width: int = Field(12, ge=1, description="width of everything")


class Config(ModelConfig):
    bag: Section = Field(Section(), description="sizes")


CAPABILITIES = Capabilities(generation=False, unbounded_length=True)


@register_architecture("{name}", config=Config, capabilities=CAPABILITIES)
class Bag(BaseLanguageModel):
    """The mean of the tokens so far; masked ones are read, and their number is not a number of real ones."""

    def __init__(self, config, context):
        super().__init__(config, context)
        width = self.settings.bag.width
        self.embedding, self.hidden = nn.Embedding(context.vocab_size, width), nn.Linear(width, width)
        self.head = nn.Linear(width, context.vocab_size)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        sums = self.embedding(input_ids).cumsum(dim=1)
        means = sums / torch.arange(1, 1 + input_ids.shape[1], dtype=sums.dtype)[:, None]
        return self.lm_output(self.hidden(means).tanh(), self.head, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self):
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens):
        raise NotImplementedError
'''


@pytest.fixture
def bag(tmp_path: Path) -> Callable[..., str]:
    """`bag(name)`: a file with an architecture that passes `raw-logits` and fails `attention-mask`."""

    def write(name: str) -> str:
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("{name}", name))
        return str(tmp_path / f"{name}.py")

    return write


def outcome(test: Callable[..., None], check: str) -> str:
    """Return how pytest ends a case of the test, and what it says."""
    try:
        test(CHECKS[check])
    except (pytest.fail.Exception, pytest.skip.Exception, pytest.xfail.Exception) as ended:
        return f"{type(ended).__name__}: {ended}"
    return "passed"


# In pytest.


def test_every_check_has_a_case_after_those_it_depends_on() -> None:
    (mark,) = conformance("lstm").pytestmark  # type: ignore[attr-defined]
    cases = [case.values[0] for case in mark.args[1]]
    assert cases == all_checks()
    assert len(cases) == len(CHECKS)
    assert [case.id for case in mark.args[1]] == [f"{check.group}-{check.name}" for check in cases]
    assert tuple(check.name for check in cases[: len(ROOTS)]) == ROOTS
    groups = [check.group for check in cases[len(ROOTS) :]]
    assert groups == sorted(groups, key=GROUPS.index)


def test_every_check_says_what_must_hold_and_how_to_fix_it() -> None:
    for check in CHECKS.values():
        assert check.invariant.endswith("."), check.name
        assert check.fix.endswith("."), check.name
        assert "\n" not in check.invariant + check.fix, check.name


def test_a_failure_prints_the_rule_what_was_seen_and_the_fix(bag: Callable[..., str]) -> None:
    _load(bag("bag_failing"))
    ended = outcome(conformance("bag_failing"), "attention-mask")
    first, second, third = ended.split("\n")
    assert first == f"Failed: attention-mask: {CHECKS['attention-mask'].invariant}"
    assert second.startswith("default, causal_lm: logits of the other tokens when the masked token 12")
    assert third == CHECKS["attention-mask"].fix


def test_an_expected_failure_is_one_and_gives_its_reason(bag: Callable[..., str]) -> None:
    _load(bag("bag_expected"))
    test = conformance("bag_expected", expected_failures={"attention-mask": "a mean of everything"})
    assert outcome(test, "attention-mask").startswith("XFailed: a mean of everything (default, causal_lm: logits of")


def test_an_expected_failure_that_passes_is_a_failure(bag: Callable[..., str]) -> None:
    _load(bag("bag_strict"))
    needless = {"raw-logits": "they were wrong once"}
    ended = outcome(conformance("bag_strict", expected_failures=needless), "raw-logits")
    assert ended.startswith("Failed: raw-logits: ")
    assert "among the expected failures (they were wrong once) and passed: remove it from there" in ended
    _load(bag("bag_skipped"))
    ended = outcome(conformance("bag_skipped", expected_failures={"carried-state": "who knows"}), "carried-state")
    assert "among the expected failures (who knows) and skipped: remove it from there" in ended


def test_a_check_names_the_missing_capability_it_is_skipped_for(bag: Callable[..., str]) -> None:
    _load(bag("bag_unable"))
    ended = outcome(conformance("bag_unable"), "carried-state")
    assert ended == "Skipped: stateful is not declared"


def test_an_unknown_expected_failure_is_refused_with_a_near_name() -> None:
    with pytest.raises(UsageError, match="^there is no check 'attention-mas' .* Did you mean 'attention-mask'\\?$"):
        conformance("lstm", expected_failures={"attention-mas": "?"})
    with pytest.raises(UsageError, match="'masking' is a group: name its checks\\.$"):
        conformance("lstm", expected_failures={"masking": "?"})


def _load(path: str) -> None:
    from foundry_core.registry.loading import load_plugin_file

    load_plugin_file(path)


# On the command line.


def test_check_prints_a_line_per_check_and_how_to_fix_failures(
    bag: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = bag("bag_table")
    assert main(["check", "bag_table", "--plugin", path, "--only", "runs", "raw-logits", "masking"]) == 9
    printed, error = capsys.readouterr()
    table, failed, counts = printed.split("\n\n")
    lines = table.splitlines()
    masking = [check.name for check in CHECKS.values() if check.group == "masking"]
    unseen = "  not looked at: a model with one layer: no key of the first example has the type Layers of foundry_core"
    assert lines.pop(1) == unseen
    assert lines.pop(-1) == "  isolates_documents is not declared"
    rows = [line.split() for line in lines]
    assert [row[1] for row in rows] == ["runs", "raw-logits", *masking]
    assert {row[1]: row[2] for row in rows} == dict.fromkeys(["runs", "raw-logits", *masking], "passed") | {
        "attention-mask": "failed",
        "isolation": "skipped",
    }
    assert CHECKS["attention-mask"].fix in failed
    assert counts.startswith(
        f"bag_table ({path})\n{len(masking)} passed, 1 failed, 0 expected, 1 skipped, 0 not looked at in "
    )
    assert error == "error: bag_table does not conform: attention-mask\n"


def test_what_a_check_cannot_look_at_is_not_passed(bag: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = bag("bag_unseen")
    assert main(["check", "bag_unseen", "--plugin", path, "--only", "dropout", "keys"]) == 0
    table, _, counts = capsys.readouterr().out.rpartition("\n\n")
    first, reason, second, _ = table.splitlines()
    assert first.split()[1:5] == ["dropout", "not", "looked", "at"]
    assert reason == "  no key has the type Dropout of foundry_core"
    assert second.split()[1:5] == ["keys", "not", "looked", "at"]
    assert "0 passed, 0 failed, 0 expected, 0 skipped, 2 not looked at in " in counts
    assert outcome(conformance("bag_unseen"), "dropout").startswith("Skipped: not looked at: no key has the type")
    ended = outcome(conformance("bag_unseen", expected_failures={"dropout": "who knows"}), "dropout")
    assert "among the expected failures (who knows) and was not looked at: remove it from there" in ended


def test_consequences_stand_under_the_first_cause(bag: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(bag("bag_random"))
    path.write_text(path.read_text().replace("means).tanh()", "means).tanh() + torch.rand(())"))
    only = ["--only", "masking", "objective", "pure-evaluation"]
    assert main(["check", "bag_random", "--plugin", str(path), *only]) == 9
    printed, error = capsys.readouterr()
    table, *causes, _ = printed.split("\n\n")
    failed = [line.split()[1] for line in table.splitlines() if " failed " in line]
    (cause,) = causes
    first, *lines = cause.splitlines()
    assert first.startswith("pure-evaluation: ")
    consequences = lines[lines.index("  Consequences, as far as is known:") + 1 :]
    assert ["pure-evaluation", *(line.split()[0].rstrip(":") for line in consequences)] == failed
    assert len(failed) == 8
    assert error == f"error: bag_random does not conform: pure-evaluation and {len(failed) - 1} that fail with it\n"
    ended = outcome(conformance("bag_random"), "causal-leak")
    assert ended.startswith("Failed: Follows from pure-evaluation, which fails too: begin there.\ncausal-leak: ")


def test_a_model_that_does_not_run_is_reported_once(
    bag: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(bag("bag_broken"))
    text = path.read_text().replace("self.hidden(means)", "self.hiden(means)")
    path.write_text(text)
    line = text.partition("hiden")[0].count("\n") + 1
    only = ["--only", "objective", "masking"]
    assert main(["check", "bag_broken", "--plugin", str(path), *only]) == 9
    printed, error = capsys.readouterr()
    assert printed.count(f"AttributeError: 'Bag' object has no attribute 'hiden' ({path}:{line})") == 1
    assert CHECKS["runs"].fix in printed
    carried_out = {check.name for check in CHECKS.values() if check.group in ("objective", "masking")}
    # For models of both directions, and those that declare it.
    others = len(carried_out - {"runs", "word-order", "isolation", "counts-add-up", "counted-tokens"})
    assert error == f"error: bag_broken does not conform: runs and {others} that fail with it\n"
    assert main(["check", "bag_broken", *only, "--debug"]) == 9
    assert f'File "{path}", line {line}, in forward' in capsys.readouterr().err


def test_check_as_json_has_the_reasons(bag: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = bag("bag_json")
    command = ["check", "bag_json", "--plugin", path, "--json", "--only"]
    assert main([*command, "attention-mask", "raw-logits"]) == 9
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["check"], good["outcome"], good["reason"], good["fix"]) == ("raw-logits", "passed", None, None)
    assert bad["reason"].startswith("default, causal_lm: logits")
    assert (bad["group"], bad["outcome"]) == ("masking", "failed")
    assert bad["fix"] == CHECKS["attention-mask"].fix
    assert bad["invariant"] == CHECKS["attention-mask"].invariant
    assert bad["seconds"] > 0


def test_check_ends_with_0_where_all_is_as_expected(
    bag: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = bag("bag_good")
    expected = ["--expect", "attention-mask"]
    assert main(["check", "bag_good", "--plugin", path, "--only", "attention-mask", "raw-logits", *expected]) == 0
    assert "1 passed, 0 failed, 1 expected" in capsys.readouterr().out
    assert main(["check", "bag_good", "--only", "raw-logits", "--expect", "raw-logits"]) == 9
    assert "remove it from there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["lsmt"], 3, "Unknown architecture or extension: 'lsmt'. Did you mean 'lstm'?"),
        (["lstm", "--only", "maskin"], 2, "there is no check 'maskin'. Did you mean 'masking'?"),
        (["lstm", "--expect", "raw-logit"], 2, "there is no check 'raw-logit' that could be expected to fail."),
    ],
)
def test_check_refuses_what_it_does_not_know_in_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert main(["check", *arguments]) == code
    printed, error = capsys.readouterr()
    assert printed == ""
    assert line in error
    assert error.count("\n") == 1
