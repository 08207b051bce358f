"""Tests that the fast formulations compute what torch's and transformers' own do, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.models import kernels, wrapped
from foundry_core.registry.loading import get_architecture
from tests.each import each

Experiment = Callable[..., ExperimentConfig]


@each(
    "rows,bias,scale,dtype",
    [(5, True, 1.0, torch.float32), (1, False, 300.0, torch.float32), (0, True, 1.0, torch.float64)],
)
def test_the_loss_in_parts_is_the_cross_entropy(
    rows: int, bias: bool, scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rows: at a time, of the 13; 0: all. A scale of 300 makes probabilities that fp32 rounds to 0."""
    torch.manual_seed(0)
    monkeypatch.setitem(kernels.LOGITS_AT_A_TIME, "cpu", rows * 29 or 1 << 22)
    monkeypatch.setattr(kernels, "LEAST_ROWS", 1)
    head, hidden = nn.Linear(7, 29, bias, dtype=dtype), torch.randn(13, 7, dtype=dtype).mul_(scale).requires_grad_()
    targets = torch.randint(0, 29, (13,))
    tensors = (hidden, *head.parameters())
    found = kernels.summed_cross_entropy(hidden, head, targets)
    expected = F.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found / 3, tensors), torch.autograd.grad(expected / 3, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * scale, rtol=1e-5)


def test_a_loss_that_is_not_finite_is_returned_as_it_is() -> None:
    head = nn.Linear(3, 5)
    hidden = torch.full((2, 3), torch.inf, requires_grad=True)
    assert not kernels.summed_cross_entropy(hidden, head, torch.tensor([1, 2])).isfinite()


def test_dropout_drops_its_share_and_gradients_of_the_same() -> None:
    x = torch.ones(501, 401, requires_grad=True)
    torch.manual_seed(3)
    dropped = kernels.dropout(x, 0.1, True)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(dropped, gradient)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert dropped.mean().item() == pytest.approx(1, abs=0.003)
    for axis in (0, 1):
        assert (dropped == 0).float().mean(dim=axis).sub(0.1).abs().max() < 0.08
    torch.manual_seed(3)
    assert torch.equal(kernels.dropout(x, 0.1, True), dropped)
    assert not torch.equal(kernels.dropout(x, 0.1, True), dropped)
    assert torch.equal(kernels.dropout(x, 0.1, False), x)


def test_attention_with_dropout_attends_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 6).unbind()
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, 5:] = False
    monkeypatch.setattr(kernels, "dropout", lambda x, share, training: x)
    for causal in (True, False):
        for mask in (None, kernels.attention_mask(real, causal=causal)):
            expected = kernels.attention(query, key, value, causal=causal, mask=mask, share=0.0)
            dropped = kernels.attention(query, key, value, causal=causal, mask=mask, share=0.5)
            torch.testing.assert_close(dropped, expected)


SUBJECTS = [("gpt2", "gelu_new"), ("gpt2", "gelu"), ("bert", "gelu"), ("lstm", ""), ("gru", ""), ("rnn", "")]


@each("saving", [False, True])
@each("architecture,activation", SUBJECTS)
def test_a_model_computes_the_same_with_either_kernels(
    architecture: str,
    activation: str,
    saving: bool,
    experiment: Experiment,
    letters: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """saving: by the formulations that need less memory, as larger tensors are."""
    if saving:
        monkeypatch.setattr(kernels, "WORTH_SAVING", 1)
        monkeypatch.setattr(wrapped, "WORTH_SAVING", 1)
    model = create_model(experiment(architecture, tmp_path, **_with(architecture, activation)), letters)
    ids = torch.randint(5, 27, (4, 12), generator=torch.Generator().manual_seed(1))
    padded = torch.ones_like(ids)
    padded[0, 7:], padded[1, :3], padded[2] = 0, 0, 0
    for mask in (torch.ones_like(ids), padded):
        # Dropout is 0, so that training differs from evaluation only in what is read and projected.
        for training in (True, False):
            fast, reference = (_computed(model.train(training), kind, ids, mask) for kind in ("fast", "reference"))
            for ours, theirs in zip(fast, reference, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _with(architecture: str, activation: str) -> dict[str, Any]:
    """Return sections that change the activation function of the tiny example."""
    sizes = get_architecture(architecture).examples["tiny"].get("transformer", {})
    return {"model": {"transformer": {**sizes, "activation_function": activation}}} if activation else {}


def _computed(model: BaseLanguageModel, kind: str, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss, every gradient, and the logits of real tokens."""
    model.kernels = kind
    labels = torch.where(mask.bool(), ids, -100)
    output = model(ids, attention_mask=mask, labels=labels, reduction="sum", return_logits=False)
    gradients = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
    logits = model(ids, attention_mask=mask).logits[mask.bool()]
    return [output.loss, *(each for each in gradients if each is not None), logits]


@each("cell", ["gru", "rnn"])
def test_carried_states_have_the_gradients_of_torch(
    cell: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment(cell, tmp_path), letters)
    ids = torch.randint(5, 27, (3, 8), generator=torch.Generator().manual_seed(1))
    found = []
    for model.kernels in ("fast", "reference"):
        before = torch.full((2, 3, 32), 0.3, requires_grad=True)
        output = model(ids, state=before)
        found.append((output.state, *torch.autograd.grad(output.state.sum() + output.logits.sum(), [before])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_gelu_of_gpt2_has_the_values_of_the_formula(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    model = create_model(experiment("gpt2", tmp_path, **_with("gpt2", "gelu_new")), letters)
    gelu = model.to_transformers().transformer.h[0].mlp.act
    x = torch.linspace(-9, 9, 70_001, requires_grad=True)
    found = {}
    for model.kernels in ("fast", "reference"):
        values = gelu(x)
        found[model.kernels] = values.detach(), *torch.autograd.grad(values.sum(), x)
    for ours, formula in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, formula, atol=2e-6, rtol=1e-5)
    model.kernels = "fast"
    torch.testing.assert_close(gelu(x.detach()), found["fast"][0], atol=1e-6, rtol=1e-6)


@each("normed", [False, True])
def test_a_projection_and_its_gelu_are_those_of_torch(normed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WORTH_SAVING", 1)
    shapes = ((70, 9), (9, 1500), (1500,), (9,), (9,))[: 5 if normed else 3]
    x, weight, bias, *norm = tensors = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    given = (norm[0], norm[1], 1e-5) if norm else None
    change = torch.randn(70, 1500)
    usual = torch.addmm(bias, F.layer_norm(x, (9,), *given) if given else x, weight)
    for found, expected in (
        (kernels.projected(x, weight, bias, given), usual),
        (kernels.projected_tanh_gelu(x, weight, bias, given), F.gelu(usual, approximate="tanh")),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        ours, theirs = (torch.autograd.grad(each, tensors, change, retain_graph=True) for each in (found, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


@each("parts", ["rows", "table", "both"])
def test_a_shared_table_has_the_gradient_of_both_its_uses(parts: str) -> None:
    table, ids = torch.randn(11, 4, requires_grad=True), torch.tensor([[3, 3, 0], [5, 3, 10]])
    change = torch.randn(11, 4)

    def gradient(rows: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        terms = {"rows": (rows.sin() * 2).sum(), "table": (whole * change).sum()}
        loss = sum(term for name, term in terms.items() if parts in (name, "both"))
        (found,) = torch.autograd.grad(torch.as_tensor(loss), table)
        return found

    torch.testing.assert_close(gradient(*kernels.tied_rows(ids, table)), gradient(F.embedding(ids, table), table))
