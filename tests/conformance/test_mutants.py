"""The kit is proven by mutants: what is right passes it, each planted defect is caught, and each check catches one.

`-m slow` carries out the whole kit on each mutant and prints which checks catch it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch

from foundry_core import Capabilities, FoundryError
from foundry_core.testing.kit.check import CHECKS
from foundry_core.testing.kit.run import run_check
from tests.each import each

from . import (
    mutants_counting,
    mutants_masking,
    mutants_numerics,
    mutants_objective,
    mutants_processes,
    mutants_reach,
    mutants_settings,
    mutants_training,
)
from .bases import (
    BASES,
    AttentionModel,
    BalancedModel,
    DroppingModel,
    IsolatingModel,
    ParameterOfPositions,
    SmallModel,
    TableOfPositions,
    WindowedModel,
)
from .mutants import Mutant, failures, suite_of, whole_kit
from .mutants_counting import CountingModel
from .mutants_objective import MisspeltAttribute

MUTANTS = [
    *mutants_objective.MUTANTS,
    *mutants_masking.MUTANTS,
    *mutants_numerics.MUTANTS,
    *mutants_training.MUTANTS,
    *mutants_counting.MUTANTS,
    *mutants_settings.WEIGHTS,
    *mutants_reach.LOGITS,
]
GROUPS = {"objective", "masking", "numerics"}

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=str)


@pytest.mark.parametrize("base", [*BASES, CountingModel], ids=lambda base: base.__name__)
def test_a_model_without_a_defect_passes_the_kit(base: type[SmallModel]) -> None:
    assert [f"{result.check.name}: {result.reason}" for result in failures(base)] == []


def test_dropout_that_an_example_sets_disturbs_no_check() -> None:
    checks = whole_kit("")  # torch.compile is checked without dropout
    assert [f"{result.check.name}: {result.reason}" for result in failures(DroppingModel, *checks)] == []


def test_a_model_that_keeps_documents_apart_passes_the_kit() -> None:
    checks = ("objective", "masking", "state")
    assert [f"{result.check.name}: {result.reason}" for result in failures(IsolatingModel, *checks)] == []


def test_a_model_with_an_auxiliary_term_passes_the_kit() -> None:
    checks = ("objective", "masking", "numerics", "data-parallel", "exact-resume", "two-processes")
    assert [f"{result.check.name}: {result.reason}" for result in failures(BalancedModel, *checks)] == []


def test_a_model_that_sees_only_so_far_passes_where_it_says_so() -> None:
    found = failures(WindowedModel, "objective", "masking", "generation")
    assert [f"{result.check.name}: {result.reason}" for result in found] == []


@pytest.mark.parametrize("table", [TableOfPositions, ParameterOfPositions])
def test_a_table_of_more_positions_than_any_row_has_passes(table: type[SmallModel]) -> None:
    found = failures(table, "objective", "masking", "numerics")
    assert [f"{result.check.name}: {result.reason}" for result in found] == []


class MixtureOfSoftmaxes(AttentionModel):
    """The logarithm of the mean of two softmaxes: log-probabilities, which are logits too (Yang et al. 2018)."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        both = torch.stack([super().head(hidden), super().head(-hidden)]).log_softmax(dim=-1)
        return both.logsumexp(dim=0) - math.log(2)


def test_log_probabilities_are_logits() -> None:
    found = failures(MixtureOfSoftmaxes, "raw-logits", "reference-loss", "loss-without-logits", "long-rows", "greedy")
    assert [f"{result.check.name}: {result.reason}" for result in found] == []


@each(
    ("mutant", "check", "what"),
    [
        (
            mutants_reach.GroupNormOverTime,
            "causal-leak",
            "(normal, a OverTime, takes its statistics from several tokens)",
        ),
        (
            mutants_masking.BatchNormalised,
            "rows-independent",
            "in training (layers.0.normal_1.1, a BatchNorm1d, takes its",
        ),
        (
            mutants_reach.LogitsOfTheYAML,
            "raw-logits",
            "43 is tokenizer.vocab_size of the YAML; sizes come from self.context",
        ),
        (
            mutants_reach.EmbeddingsOfTheYAML,
            "resize",
            "have 43 rows, there are 37 tokens: 43 is tokenizer.vocab_size of the",
        ),
        (
            mutants_reach.ResizedUnderOneName,
            "resize",
            "embedding and encoder.table were one module and are two: resize it",
        ),
        (mutants_processes.SavedStatistics, "two-processes", "in two processes gives other buffers: model.mean"),
        (mutants_processes.StatisticsInEvaluation, "two-processes", "gives other losses; eval_loss after step 3 is"),
    ],
)
def test_a_failure_names_its_usual_cause(mutant: type[SmallModel], check: str, what: str) -> None:
    (result,) = failures(mutant, check)
    assert what in result.reason


def test_defaults_too_large_to_build_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(AttentionModel):
        config_class = mutants_reach.WideConfig
        example: ClassVar[Mapping[str, Any]] = {"width": 16, "num_layers": 2, "dropout": 0.0}

    monkeypatch.setattr("foundry_core.testing.kit.case.MOST_PARAMETERS", 100_000)
    result = run_check(CHECKS["runs"], suite_of(Large))
    assert result.outcome == "passed"
    assert result.unseen == ("the defaults: 1,605,157 parameters are more than 100,000",)


def test_a_model_that_does_not_run_fails_once_with_the_line() -> None:
    causes = {result.reason for result in failures(MisspeltAttribute, "objective", "masking", "state")}
    (reason,) = causes
    assert re.fullmatch(
        r"tiny, causal_lm: AttributeError: 'MisspeltAttribute' object has no attribute 'embeding' "
        r"\(.*mutants_objective\.py:\d+\)",
        reason,
    )


def test_padding_on_the_left_that_is_not_declared_is_refused() -> None:
    class RightOnly(AttentionModel):
        capabilities = Capabilities()

    assert failures(RightOnly, "left-padding") == []
    case = suite_of(RightOnly).cases[0]
    model, ids = case.model(), case.ids(2, 5)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    with pytest.raises(FoundryError, match="^rightonly .*padding on the left: generate from prompts of one len"):
        model.generate(ids, attention_mask=torch.ones_like(ids).triu(), max_new_tokens=1)


@each_mutant
def test_a_planted_defect_is_caught(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    found = failures(mutant.model_class, mutant.caught_by)
    record_property("figure: mutants of the kit", 1)
    record_property("figure: mutants of the kit caught", len(found))
    (result,) = found
    assert "\n" not in result.reason


def test_every_check_catches_a_mutant() -> None:
    assert {mutant.caught_by for mutant in MUTANTS} == {
        check.name for check in CHECKS.values() if check.group in GROUPS
    }
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.slow
@each_mutant
def test_which_checks_catch_it(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    caught_by = [result.check.name for result in failures(mutant.model_class, *whole_kit(mutant.caught_by))]
    record_property("table", f"{mutant}: {', '.join(caught_by)}")
    assert mutant.caught_by in caught_by
