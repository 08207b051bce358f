"""Tests of what only the recurrent models have: gates, cells, directions, a state of real tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foundry_core import ExperimentConfig, create_model
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
IDS = torch.randint(0, 27, (3, 10), generator=torch.Generator().manual_seed(0))


def test_forget_gates_start_open_and_every_other_gate_neutral(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    lstm = create_model(experiment("lstm", tmp_path, example="tiny_bidirectional"), letters).recurrent
    pairs = [(f"bias_ih_l{layer}{way}", f"bias_hh_l{layer}{way}") for layer in (0, 1) for way in ("", "_reverse")]
    for first, second in pairs:
        ingoing, forgetting, cell, outgoing = (getattr(lstm, first) + getattr(lstm, second)).chunk(4)
        assert (forgetting == 1).all()
        assert not torch.cat([ingoing, cell, outgoing]).any()


def test_the_forget_bias_survives_saving_and_transformers(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    """transformers re-initialises recurrent layers unless it is told not to."""
    from transformers import AutoModelForCausalLM

    model = create_model(experiment("lstm", tmp_path), letters)
    for outer in (model.to_transformers(), _reopened(AutoModelForCausalLM, model, tmp_path)):
        assert (outer.model.recurrent.bias_ih_l0[32:64] == 1).all()
        for ours, theirs in zip(model.parameters(), outer.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def _reopened(auto_class: Any, model: Any, folder: Path) -> Any:
    model.save_pretrained(folder / "model")
    return auto_class.from_pretrained(folder / "model")


@each("name", CELLS)
@each("both", [False, True])
def test_the_settings_reach_the_layers(
    name: str, both: bool, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    sizes = {"embedding_size": 10, "hidden_size": 14, "num_layers": 3, "dropout": 0.3, "bidirectional": both}
    training = {"objective": "masked_lm" if both else "causal_lm"}
    model = create_model(experiment(name, tmp_path, model={"rnn": sizes}, training=training), letters)
    layers = model.recurrent
    assert type(layers) is CELLS[name]
    assert (layers.input_size, layers.hidden_size, layers.num_layers, layers.bidirectional) == (10, 14, 3, both)
    assert (layers.dropout, model.dropout.p) == (0.3, 0.3)
    assert model.output_layer.in_features == (28 if both else 14)


@pytest.mark.parametrize("example", ["tiny_tied", "tiny"])
def test_a_tied_output_is_the_embedding_behind_a_projection(
    example: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment("lstm", tmp_path, example=example), letters)
    tied = example == "tiny_tied"
    assert (model.output_layer.weight is model.embedding.weight) == tied
    assert (model.projection is not None) == tied


@pytest.mark.parametrize("name", CELLS)
def test_the_state_is_that_after_the_last_real_token(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment(name, tmp_path), letters).eval()
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    mask[2, :3] = 0
    together = model(IDS, attention_mask=mask).state
    for row, kept in enumerate((IDS[:1], IDS[1:2, :6], IDS[2:, 3:])):
        alone = model(kept).state
        parts = [(together, alone)] if name != "lstm" else list(zip(together, alone, strict=True))
        for ours, theirs in parts:
            torch.testing.assert_close(ours[:, row : row + 1], theirs, rtol=0, atol=1e-6)


@each("name", CELLS)
@each("example", ["tiny", "tiny_bidirectional"])
def test_a_masked_inner_token_is_as_good_as_absent(
    name: str, example: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment(name, tmp_path, example=example), letters).eval()
    mask = torch.ones_like(IDS)
    mask[:, 4] = 0
    kept = mask[0] == 1
    masked = model(IDS, attention_mask=mask).logits[:, kept]
    torch.testing.assert_close(masked, model(IDS[:, kept]).logits, rtol=0, atol=1e-5)


def test_a_row_without_a_real_token_is_no_trouble(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    model = create_model(experiment("gru", tmp_path), letters).eval()
    mask = torch.ones_like(IDS)
    mask[1] = 0
    output = model(IDS, attention_mask=mask, labels=IDS.masked_fill(mask == 0, -100))
    assert torch.isfinite(output.logits).all()
    torch.testing.assert_close(output.logits[[0, 2]], model(IDS[[0, 2]]).logits, rtol=0, atol=1e-6)


def test_both_directions_carry_no_state(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    output = create_model(experiment("gru", tmp_path, example="tiny_bidirectional"), letters)(IDS)
    assert "state" not in output


@each("name", CELLS)
def test_a_state_is_followed_by_any_mask_of_the_text(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """The mask covers the new tokens, or those before too; one row is all padding before, another one after."""
    model = create_model(experiment(name, tmp_path), letters).eval()
    ids, mask = IDS.repeat(2, 1), torch.ones(6, 10, dtype=torch.long)
    mask[1, 2:4] = mask[2, 7:] = mask[3, :8] = mask[4, 6:] = mask[5, :6] = 0
    whole, first = model(ids, attention_mask=mask), model(ids[:, :6], attention_mask=mask[:, :6])
    labels = ids[:, 6:].masked_fill(mask[:, 6:] == 0, -100)
    halves = [model(ids[:, 6:], attention_mask=m, labels=labels, state=first.state) for m in (mask[:, 6:], mask)]
    assert torch.equal(halves[0].loss, halves[1].loss)
    for half in halves:
        real = mask[:, 6:] == 1
        torch.testing.assert_close(half.logits[real], whole.logits[:, 6:][real], rtol=0, atol=1e-6)
        torch.testing.assert_close(half.state, whole.state, rtol=0, atol=1e-6)
