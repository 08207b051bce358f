"""Rows to batches: where padding goes, what is a label, and which tokens are hidden."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core import (
    BaseLanguageModel,
    Capabilities,
    CausalLMDataCollator,
    ExperimentConfig,
    MaskedLMDataCollator,
    ModelConfig,
    Objective,
    get_data_collator,
    register_architecture,
)
from foundry_core.data.collators import CheckedCollator
from foundry_core.errors import PluginError, TokenizerError, UsageError

Batch = dict[str, torch.Tensor]


@pytest.fixture
def tokenizer(letters: Any) -> Any:
    return deepcopy(letters)


@pytest.fixture
def ordinary(letters: Any) -> np.ndarray:
    return np.array([i for i in range(len(letters)) if i not in letters.all_special_ids])


def rows(ordinary: np.ndarray, lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    return [chance.choice(ordinary, length) for length in lengths]


def features(some_rows: list[np.ndarray], *, epoch: int = 0, first: int = 0) -> list[dict[str, Any]]:
    return [{"input_ids": row, "epoch": epoch, "row": first + i} for i, row in enumerate(some_rows)]


# Padding.


@pytest.mark.parametrize("kind", [CausalLMDataCollator, MaskedLMDataCollator])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_to_the_longest_of_the_batch(kind: Any, side: str, tokenizer: Any, ordinary: Any) -> None:
    tokenizer.padding_side = side
    some = rows(ordinary, [3, 7, 5])
    batch = kind(tokenizer=tokenizer)([{"input_ids": row.tolist()} for row in some])
    assert {key: tuple(value.shape) for key, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (3, 7)
    )
    assert all(value.dtype == torch.int64 for value in batch.values())
    for index, row in enumerate(some):
        real = slice(0, len(row)) if side == "right" else slice(7 - len(row), 7)
        expected = torch.zeros(7, dtype=torch.int64)
        expected[real] = 1
        assert torch.equal(batch["attention_mask"][index], expected)
        assert (batch["input_ids"][index][expected == 0] == tokenizer.pad_token_id).all()
        assert (batch["labels"][index][expected == 0] == -100).all()
        if kind is CausalLMDataCollator:
            assert batch["input_ids"][index][real].tolist() == batch["labels"][index][real].tolist() == row.tolist()


@pytest.mark.parametrize(("longest", "width"), [(8, 8), (9, 16), (17, 20), (20, 20)])
def test_a_multiple_is_kept_unless_it_exceeds_the_longest_row(
    longest: int, width: int, tokenizer: Any, ordinary: Any
) -> None:
    some = [{"input_ids": row} for row in rows(ordinary, [2, longest])]
    tokenizer.model_max_length = 20
    assert CausalLMDataCollator(tokenizer=tokenizer, pad_to_multiple_of=8)(some)["input_ids"].shape == (2, width)
    tokenizer.model_max_length = 10**30
    collate = MaskedLMDataCollator(tokenizer=tokenizer, pad_to_multiple_of=8, max_length=20)
    assert collate(some)["input_ids"].shape == (2, width)


def test_a_row_longer_than_the_longest_sequence_is_refused(tokenizer: Any, ordinary: Any) -> None:
    line = r"^a row of 21 tokens is longer than the model's longest sequence, 20$"
    with pytest.raises(UsageError, match=line):
        CausalLMDataCollator(tokenizer, max_length=20)(rows(ordinary, [3, 21]))


def test_a_real_token_with_the_pad_id_keeps_its_label(tokenizer: Any) -> None:
    pad = tokenizer.pad_token_id
    batch = CausalLMDataCollator(tokenizer)([{"input_ids": [1, pad, 2, pad]}, {"input_ids": [3]}])
    assert batch["labels"].tolist() == [[1, pad, 2, pad], [3, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_without_a_pad_token_a_batch_has_rows_of_one_length(tokenizer: Any) -> None:
    tokenizer.pad_token = None
    collate = CausalLMDataCollator(tokenizer)
    assert collate([[1, 2], [3, 4]])["labels"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TokenizerError, match="^rows of unequal length need a tokenizer with a pad_token$"):
        collate([[1, 2], [3]])


# Hiding.


def test_at_least_one_token_of_each_row_is_hidden(tokenizer: Any, ordinary: Any) -> None:
    collate = MaskedLMDataCollator(tokenizer, mlm_probability=0.01)
    labels = collate(features(rows(ordinary, [1, 2, 3] * 50)))["labels"]
    assert ((labels != -100).sum(dim=1) == 1).all()


def test_special_tokens_are_never_hidden_and_never_put_in(tokenizer: Any, ordinary: Any) -> None:
    special = np.array(tokenizer.all_special_ids)
    framed = [np.concatenate([special, row, special]) for row in rows(ordinary, [4] * 400)]
    batch = MaskedLMDataCollator(tokenizer, mlm_probability=0.9)(features(framed))
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    ends = np.r_[0 : len(special), len(special) + 4 : 2 * len(special) + 4]
    assert (labels[:, ends] == -100).all()
    assert (ids[:, ends] == np.concatenate([special, special])).all()
    hidden = labels != -100
    assert set(np.unique(ids[hidden])) == {*ordinary.tolist(), tokenizer.mask_token_id}
    assert (ids[~hidden] == np.stack(framed)[~hidden]).all()


def test_a_row_of_special_tokens_alone_hides_nothing(tokenizer: Any) -> None:
    batch = MaskedLMDataCollator(tokenizer)([[tokenizer.cls_token_id, tokenizer.sep_token_id], [1, 2]])
    assert (batch["labels"][0] == -100).all()
    assert (batch["labels"][1] != -100).sum() == 1


def test_shares_of_hidden_masked_replaced_and_kept_tokens(tokenizer: Any, ordinary: Any) -> None:
    some = rows(ordinary, [64] * 4000)
    batch = MaskedLMDataCollator(tokenizer, mlm_probability=0.15)(features(some))
    original, ids, labels = np.stack(some), batch["input_ids"].numpy(), batch["labels"].numpy()
    hidden = labels != -100
    assert (labels[hidden] == original[hidden]).all()
    assert (ids[~hidden] == original[~hidden]).all()

    def within_4_errors(successes: int, trials: int, share: float) -> bool:
        return abs(successes - trials * share) < 4 * math.sqrt(trials * share * (1 - share))

    total, size = int(hidden.sum()), len(ordinary)
    assert within_4_errors(total, hidden.size, 0.15)
    assert within_4_errors(int((ids[hidden] == tokenizer.mask_token_id).sum()), total, 0.8)
    # A random token is the original one now and then.
    assert within_4_errors(int((ids[hidden] == original[hidden]).sum()), total, 0.1 + 0.1 / size)
    for column in range(64):
        assert within_4_errors(int(hidden[:, column].sum()), 4000, 0.15)
    replaced = ids[hidden & (ids != original) & (ids != tokenizer.mask_token_id)]
    for token in ordinary:
        assert within_4_errors(int((replaced == token).sum()), len(replaced), 1 / size)


def test_short_rows_keep_the_expected_share(tokenizer: Any, ordinary: Any) -> None:
    """10 tokens at 25 %: 2 or 3 of them, 2.5 on average; rounding would always give 2."""
    labels = MaskedLMDataCollator(tokenizer, mlm_probability=0.25)(features(rows(ordinary, [10] * 2000)))["labels"]
    counts = (labels != -100).sum(dim=1)
    assert set(counts.tolist()) == {2, 3}
    assert abs(counts.double().mean() - 2.5) < 4 * 0.5 / math.sqrt(2000)


def masks(batch: Batch, tokens: list[np.ndarray]) -> list[tuple[list[int], list[int]]]:
    """For each row its ids and labels without padding."""
    real = batch["attention_mask"].bool()
    pairs = [
        (batch["input_ids"][i][real[i]].tolist(), batch["labels"][i][real[i]].tolist()) for i in range(len(tokens))
    ]
    assert [len(ids) for ids, _ in pairs] == [len(row) for row in tokens]
    return pairs


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_follow_seed_epoch_and_row_in_any_batch(side: str, tokenizer: Any, ordinary: Any) -> None:
    tokenizer.padding_side = side
    some = rows(ordinary, [24, 9, 24, 17, 5, 24, 12, 8])
    given = features(some, epoch=3, first=100)
    together = masks(MaskedLMDataCollator(tokenizer, seed=7)(given), some)
    torch.manual_seed(1)
    for index in range(len(some)):
        alone = MaskedLMDataCollator(tokenizer, seed=7)(given[index : index + 1])
        assert masks(alone, some[index : index + 1]) == together[index : index + 1]
    backwards = MaskedLMDataCollator(tokenizer, seed=7, pad_to_multiple_of=64)(given[::-1])
    assert masks(backwards, some[::-1]) == together[::-1]


def test_other_epochs_rows_and_seeds_have_other_masks(tokenizer: Any, ordinary: Any) -> None:
    some = rows(ordinary, [24] * 16)

    def labels(seed: int, epoch: int, first: int) -> torch.Tensor:
        return MaskedLMDataCollator(tokenizer, seed=seed)(features(some, epoch=epoch, first=first))["labels"] != -100

    base = labels(0, 0, 0)
    for other in (labels(1, 0, 0), labels(0, 1, 0), labels(0, 0, 1), labels(0, 0, 16)):
        assert (base & other).sum() / base.sum() < 0.4  # 15 % by chance
    assert not torch.equal(base[:15], labels(0, 0, 1)[1:])


def test_without_a_row_number_masks_follow_torchs_generator(tokenizer: Any, ordinary: Any) -> None:
    some = [{"input_ids": row} for row in rows(ordinary, [24] * 8)]
    collate = MaskedLMDataCollator(tokenizer)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(collate(some)["input_ids"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(collate(some)["input_ids"], collate(some)["input_ids"])


# Choosing one.


def test_objective_and_settings_decide_the_collator(
    experiment: Callable[..., ExperimentConfig], tokenizer: Any, tmp_path: Path
) -> None:
    causal = get_data_collator(experiment("gpt2", tmp_path), tokenizer)
    assert isinstance(causal, CausalLMDataCollator)
    config = experiment("bert", tmp_path, training={"mlm_probability": 0.5}, seeds={"masking": 11})
    masked = get_data_collator(config, tokenizer)
    assert isinstance(masked, MaskedLMDataCollator)
    given = [{"input_ids": np.arange(1, 21), "epoch": 0, "row": 0}]
    expected = MaskedLMDataCollator(tokenizer, mlm_probability=0.5, seed=11)(given)
    assert torch.equal(masked(given)["labels"], expected["labels"])
    for collate in (causal, masked):
        with pytest.raises(UsageError, match="longest sequence, 24$"):
            collate([[1] * 25])


def test_padding_on_an_undeclared_side_is_refused(
    experiment: Callable[..., ExperimentConfig], tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.padding_side = "left"
    get_data_collator(experiment("gpt2", tmp_path), tokenizer)
    register_architecture("right_handed", config=ModelConfig)(type("RightHanded", (BaseLanguageModel,), {}))
    line = "^the tokenizer pads on the left, which right_handed does not accept: set its padding_side to right$"
    with pytest.raises(TokenizerError, match=line):
        get_data_collator(experiment("right_handed", tmp_path), tokenizer)


def test_of_a_plugins_collator_the_first_batch_is_checked() -> None:
    """The conformance kit checks more than one; a look at each batch would cost 0.14 ms."""

    def collate(some_rows: Any) -> Batch:
        ids = torch.tensor([row["input_ids"] for row in some_rows])
        return {"input_ids": ids, "attention_mask": ids, "labels": ids}

    good, bad = [{"input_ids": [1, 2], "row": 0}], [{"input_ids": [1, 99], "row": 0}]
    with pytest.raises(PluginError, match="^mine returned a batch whose input_ids contain 99: a token is from 0 to 9$"):
        CheckedCollator("mine", collate, 10)(bad)
    checked = CheckedCollator("mine", collate, 10)
    checked(good)
    assert checked(bad)["labels"].tolist() == [[1, 99]]


def test_an_objective_of_a_plugin_needs_a_collator(tokenizer: Any) -> None:
    """Core's own objectives have none to name."""
    objective = Objective("mine", "of a test", True, "overlap", None)
    config: Any = SimpleNamespace(
        objective=objective, providers={"objective": "foundry-mine 1.0"}, capabilities=Capabilities()
    )
    with pytest.raises(PluginError, match="^the objective mine of foundry-mine 1.0 has no collator: give it"):
        get_data_collator(config, tokenizer)


def test_a_collator_that_cannot_do_what_is_asked_says_so(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="use MaskedLMDataCollator$"):
        CausalLMDataCollator(tokenizer, mlm=True)
    with pytest.raises(UsageError, match="use CausalLMDataCollator$"):
        MaskedLMDataCollator(tokenizer, mlm=False)
    with pytest.raises(UsageError, match="^mlm_probability is 1.5, must be between 0 and 1$"):
        MaskedLMDataCollator(tokenizer, mlm_probability=1.5)
    tokenizer.mask_token = None
    with pytest.raises(TokenizerError, match="^masked_lm needs a tokenizer with a mask_token$"):
        MaskedLMDataCollator(tokenizer)
