"""The kit on objectives that a plugin adds: known by their descriptor and their collator alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from foundry_core import Capabilities, Objective, hookimpl
from foundry_core.data.collators import causal_lm_collator, get_data_collator
from foundry_core.data.workers import Batch
from foundry_core.testing.kit.learning import knowable
from foundry_core.testing.kit.run import chosen_checks, run_check

from .bases import AttentionModel, BidirectionalModel, SmallModel
from .mutants import failures, suite_of
from .mutants_objective import NoShiftInAttention

SECOND_HALF = Objective(
    name="second_half",
    summary="predict the second half of each row from what precedes",
    causal=True,
    layout="overlap",
    collator=f"{__name__}:second_half_collator",
)
INFILLING = Objective(
    name="infilling",
    summary="predict a hidden span; half of the spans stay readable",
    causal=False,
    layout="framed",
    collator=f"{__name__}:infilling_collator",
    required_tokens=("mask_token", "cls_token", "sep_token"),
)
GROUPS = ("objective", "masking", "numerics")


@hookimpl
def foundry_objectives() -> list[Objective]:
    return [SECOND_HALF, INFILLING]


def second_half_collator(config: Any, tokenizer: Any) -> Any:
    plain = causal_lm_collator(config, tokenizer)

    def collate(features: Sequence[Any]) -> Batch:
        batch = plain(features)
        batch["labels"][:, : batch["labels"].shape[1] // 2] = -100
        return batch

    return collate


def infilling_collator(config: Any, tokenizer: Any) -> Any:
    plain = causal_lm_collator(config, tokenizer)

    def collate(features: Sequence[Any]) -> Batch:
        batch = plain(features)
        columns = torch.arange(batch["input_ids"].shape[1])
        span = (columns >= 3) & (columns < 6)
        rows = torch.tensor([feature["row"] % 2 == 0 for feature in features])
        return {
            **batch,
            "input_ids": batch["input_ids"].masked_fill(rows[:, None] & span, tokenizer.mask_token_id),
            "labels": batch["labels"].masked_fill(~span, -100),
        }

    return collate


class SecondHalf(AttentionModel):
    capabilities = Capabilities(objectives=("second_half",), left_padding=True)


class Infilling(BidirectionalModel):
    capabilities = Capabilities(objectives=("infilling",), generation=False, left_padding=True, bidirectional=True)


class SecondHalfWithoutShift(NoShiftInAttention):
    capabilities = Capabilities(objectives=("second_half",))


@pytest.mark.parametrize(
    ("model_class", "skipped"),
    [
        (SecondHalf, ["word-order", "counts-add-up", "counted-tokens", "auxiliary", "isolation"]),
        (Infilling, ["counts-add-up", "counted-tokens", "auxiliary", "isolation"]),
    ],
)
def test_a_model_with_the_objective_of_a_plugin_passes(model_class: type[SmallModel], skipped: list[str]) -> None:
    suite = suite_of(model_class)
    assert {case.objective.name for case in suite.cases} == set(model_class.capabilities.objectives)
    results = [run_check(check, suite) for check in chosen_checks(GROUPS)]
    assert [(result.check.name, result.reason) for result in results if not result.good] == []
    assert [result.check.name for result in results if result.outcome == "skipped"] == skipped


def test_what_is_readable_counts_as_known_on_random_tokens() -> None:
    """Half of the spans are copied: the loss falls to half of ln 32, which is no fault."""
    case = suite_of(Infilling).cases[0]
    collate = get_data_collator(case.config, case.tokenizer)
    batches = [collate(case.features(24, 10, first=24 * step)) for step in range(5)]
    assert len(case.ordinary) == 32
    assert knowable(case, batches) == pytest.approx(0.5 * math.log(32))


def test_a_missing_shift_is_found_with_noise_from_the_collator() -> None:
    (result,) = failures(SecondHalfWithoutShift, "noise-floor")
    assert result.reason.startswith("tiny, second_half: the loss on random tokens is ")
