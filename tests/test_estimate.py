"""Tests of what training will cost, said beforehand: against arithmetic by hand and against what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.models.cost import activation_bytes, plain_rows, saved_bytes, training_flops
from tests.each import each

Build = Callable[..., BaseLanguageModel]
SIZES = {"embedding_size": 24, "hidden_size": 32, "num_layers": 2, "dropout": 0.3}


@pytest.fixture
def build(experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path, one_thread: None) -> Build:
    """A model over the 32 letters."""

    def make(architecture: str, **sections: Any) -> BaseLanguageModel:
        return create_model(experiment(architecture, tmp_path, **sections), letters)

    return make


def test_flops_count_matrices_twice_and_lookups_not_at_all(build: Build) -> None:
    gates = 4 * 32 * (24 + 32) + 4 * 32 * (32 + 32)
    assert build("lstm", model={"rnn": SIZES}).flops(3, 5) == 2 * 15 * (gates + 32 * 32)


def test_a_tied_output_layer_counts_once_and_its_projection_too(build: Build) -> None:
    tied = build("gru", model={"rnn": {**SIZES, "tie_embeddings": True}})
    gates = 3 * 32 * (24 + 32) + 3 * 32 * (32 + 32)
    assert tied.flops(1, 1) == 2 * (gates + 32 * 24 + 24 * 32)


def test_attention_grows_with_the_square_of_the_length(build: Build) -> None:
    model = build("gpt2")
    layers, width = 2, 32
    assert model.flops(3, 8) - 8 * model.flops(3, 1) == 4 * 3 * layers * width * (8 * 8 - 8)
    assert training_flops(model, 3, 8) == 3 * model.flops(3, 8)


@each("architecture", ["gpt2", "bert", "lstm"])
@each("rows", [1, 3, 24])
def test_activations_of_many_rows_are_told_from_a_few(build: Build, architecture: str, rows: int) -> None:
    model = build(architecture).eval()
    chance = torch.random.get_rng_state()
    expected = saved_bytes(model, plain_rows(model, rows, 16, 0.25))
    assert activation_bytes(model, rows, 16, labelled=0.25) == pytest.approx(expected, rel=0.1)
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(parameter.grad is None for parameter in model.parameters())


@each("architecture", ["gpt2", "bert", "lstm"])
def test_activations_of_long_rows_are_told_from_shorter_ones(build: Build, architecture: str) -> None:
    model = build(architecture, data={"max_sequence_length": 1500})
    expected = saved_bytes(model, plain_rows(model, 3, 1500))
    assert activation_bytes(model, 3, 1500) == pytest.approx(expected, rel=0.05)


def test_a_masked_model_keeps_less_where_less_is_predicted(build: Build) -> None:
    bert = build("bert")
    few, all_of_them = (activation_bytes(bert, 8, 20, labelled=share) for share in (0.15, 1.0))
    assert few < all_of_them
    gpt2 = build("gpt2")
    assert activation_bytes(gpt2, 8, 20, labelled=0.15) == activation_bytes(gpt2, 8, 20)


def test_recomputing_activations_keeps_fewer(build: Build) -> None:
    plain, saving = build("gpt2"), build("gpt2")
    saving.gradient_checkpointing_enable()
    assert activation_bytes(saving, 8, 20) < activation_bytes(plain, 8, 20) / 2
