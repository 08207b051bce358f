"""The one loss, what a model returns, and building a model: each against its definition.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, ModelOutput, create_model
from foundry_core.errors import PluginError, TokenizerError
from foundry_core.models.building import build_context
from tests.each import each

MODELS = {
    "gpt2": ("gpt2", "tiny", "causal_lm"),
    "bert": ("bert", "tiny", "masked_lm"),
    "lstm": ("lstm", "tiny_tied", "causal_lm"),
    "gru": ("gru", "tiny_bidirectional", "masked_lm"),
    "llama": ("transformers", "tiny", "causal_lm"),
    "deberta-v2": ("transformers", "tiny_deberta_v2", "masked_lm"),
}


@pytest.fixture
def build(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path, one_thread: None
) -> Callable[..., BaseLanguageModel]:
    def make(name: str, **sections: Any) -> BaseLanguageModel:
        architecture, example, objective = MODELS[name]
        training = {"objective": objective}
        return create_model(experiment(architecture, tmp_path, example=example, training=training, **sections), letters)

    return make


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, build: Callable[..., BaseLanguageModel]) -> BaseLanguageModel:
    """Weights are widened, so that the tokens' losses differ from ln V and from each other."""
    built = build(request.param)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)
    return built


def batch(seed: int = 0, rows: int = 6, length: int = 16) -> dict[str, torch.Tensor]:
    """Ids with labels of which a ragged part is -100: row ends, single tokens, one whole row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (rows, length), generator=generator)
    hidden = torch.rand(rows, length, generator=generator) < 0.3
    hidden |= torch.arange(length) >= torch.randint(4, length + 1, (rows, 1), generator=generator)
    hidden[-1] = True
    return {"input_ids": ids, "labels": ids.masked_fill(hidden, -100)}


def by_definition(model: BaseLanguageModel, ids: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Minus the log-probability of every label that is not -100, in float64, one position at a time."""
    logits = model(ids).logits.detach().double()
    ahead = 1 if model.context.objective.causal else 0
    losses = []
    for row in range(labels.shape[0]):
        for place in range(ahead, labels.shape[1]):
            if labels[row, place] != -100:
                scores = logits[row, place - ahead]
                losses.append(float(torch.logsumexp(scores, 0) - scores[labels[row, place]]))
    return losses


def gradients(model: BaseLanguageModel, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_the_loss_is_the_cross_entropy_of_the_labels_not_ignored(model: BaseLanguageModel) -> None:
    losses = by_definition(model, *batch().values())
    mean = math.fsum(losses) / len(losses)
    assert abs(mean - math.log(32)) > 0.01  # else a wrong label would go unnoticed
    assert model(**batch()).loss.item() == pytest.approx(mean, rel=1e-5)


def test_sum_count_mean_and_single_losses_agree(model: BaseLanguageModel) -> None:
    data = batch()
    mean, total, single = (model(**data, reduction=kind) for kind in ("mean", "sum", "none"))
    assert int(mean.count) == int(total.count) == int(single.count) == len(by_definition(model, *data.values()))
    torch.testing.assert_close(total.loss / total.count, mean.loss)
    torch.testing.assert_close(single.loss, mean.loss)
    torch.testing.assert_close(single.token_losses.sum(), total.loss)


def test_a_single_loss_stands_at_the_token_it_is_the_loss_of(model: BaseLanguageModel) -> None:
    data = batch()
    losses = model(**data, reduction="none").token_losses
    predicted = data["labels"] != -100
    if model.context.objective.causal:
        predicted[:, 0] = False
    assert torch.equal(losses != 0, predicted)
    torch.testing.assert_close(losses[predicted].tolist(), by_definition(model, *data.values()), rtol=1e-5, atol=1e-6)


@each("reduction", ["mean", "sum", "none"])
def test_without_logits_the_loss_and_its_gradients_are_the_same(model: BaseLanguageModel, reduction: str) -> None:
    full = model(**batch(), reduction=reduction)
    lean = model(**batch(), reduction=reduction, return_logits=False)
    assert "logits" not in lean
    torch.testing.assert_close(lean.loss, full.loss, rtol=1e-5, atol=0)
    expected = gradients(model, full.loss)
    # Of the whole model: rounding is all there is of the gradient of a key's bias, which changes no attention.
    largest = max(float(each.abs().max()) for each in expected)
    for ours, theirs in zip(gradients(model, lean.loss), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, largest))


def test_without_logits_only_predicted_positions_are_projected(model: BaseLanguageModel) -> None:
    sizes: list[int] = []
    data = batch()
    hidden = torch.zeros(*data["input_ids"].shape, 8)

    def head(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x[..., 0].numel())
        return x.repeat(1, 4)

    output = model.lm_output(hidden, head, data["labels"], return_logits=False)
    assert sizes == [int(output["count"])]
    assert output["loss"].item() == pytest.approx(math.log(32))


@each("return_logits", [True, False])
@each("reduction", ["mean", "sum", "none"])
def test_no_label_left_gives_loss_0_and_gradients_0(
    model: BaseLanguageModel, reduction: str, return_logits: bool
) -> None:
    ids = batch()["input_ids"]
    output = model(ids, labels=torch.full_like(ids, -100), reduction=reduction, return_logits=return_logits)
    assert output.loss.item() == 0
    assert int(output.count) == 0
    output.loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_one_token_alone_is_no_prediction_for_a_causal_model(build: Callable[..., BaseLanguageModel]) -> None:
    ids = torch.tensor([[3]])
    assert build("lstm")(ids, labels=ids).loss.item() == 0
    assert build("bert")(ids, labels=ids).loss.item() > 1


def test_micro_batches_weighted_by_tokens_are_the_whole_batch(model: BaseLanguageModel) -> None:
    data = batch(rows=8)
    whole = model(**data)
    expected = gradients(model, whole.loss)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    counts = []
    for part in (slice(0, 1), slice(1, 5), slice(5, 8)):
        output = model(**{key: value[part] for key, value in data.items()}, reduction="sum")
        counts.append(int(output.count))
        for total, gradient in zip(sums, gradients(model, output.loss / whole.count), strict=True):
            total += gradient
    assert sum(counts) == int(whole.count)
    assert len(set(counts)) == 3  # unequal, so that a mean of means would differ
    for total, gradient in zip(sums, expected, strict=True):
        torch.testing.assert_close(total, gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_nothing_is_predicted_from_padding(model: BaseLanguageModel) -> None:
    """With padding on the left, the column before a row's first token is padding: not a place to predict from."""
    ids = batch()["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    count = int(model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).count)
    ahead = 1 if model.context.objective.causal else 0
    assert count == ids.shape[0] * (ids.shape[1] - 3 - ahead)


def test_an_output_is_read_by_attribute_key_and_position(model: BaseLanguageModel) -> None:
    data = batch()
    output = model(**data)
    assert isinstance(output, ModelOutput)
    assert output.loss is output["loss"] is output[0] is output.to_tuple()[0]
    assert output.logits is output["logits"] is output[1]
    assert output.logits.shape == (6, 16, 32)
    assert output.attentions is None
    assert "attentions" not in output
    bare = model(data["input_ids"])
    assert bare.loss is None
    assert "loss" not in bare
    assert bare[0] is bare.logits
    assert "token_losses" not in output
    assert next(iter(model(**data, return_logits=False))) == "loss"


def test_building_follows_the_seed_and_keeps_the_random_state(build: Callable[..., BaseLanguageModel]) -> None:
    for name in MODELS:
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first = build(name)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(6)
        again, other = build(name), build(name, seeds={"initialisation": 8})
        unrelated = build(name, seeds={"data_order": 8, "masking": 8, "dropout": 8})
        states = [m.state_dict() for m in (first, again, unrelated, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert all(torch.equal(states[0][key], states[2][key]) for key in states[0])
        assert any(not torch.equal(states[0][key], states[3][key]) for key in states[0])


def test_sizes_and_ids_come_from_the_tokenizer_that_exists(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path
) -> None:
    config = experiment("lstm", tmp_path)
    assert config.tokenizer.vocab_size == 120
    context = build_context(config, letters)
    assert context.vocab_size == len(letters) == 32
    assert (context.pad_token_id, context.mask_token_id) == (letters.pad_token_id, letters.mask_token_id)
    assert create_model(config, letters)(torch.tensor([[31]])).logits.shape == (1, 1, 32)
    assert build_context(config).vocab_size == 120
    assert build_context(config).pad_token_id is None


def test_an_objective_that_hides_tokens_needs_a_mask_token(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    from foundry_core.tokenization.training import default_special_tokens, train_tokenizer

    special = default_special_tokens("character")
    del special["mask_token"]
    plain = train_tokenizer("character", lambda: iter(["abc"]), None, special)
    with pytest.raises(TokenizerError, match=r"^masked_lm needs a tokenizer with a mask_token"):
        create_model(experiment("bert", tmp_path), plain)


# Names.

WAYS: dict[str, Callable[[Any, str], None]] = {
    "a layer": lambda model, name: setattr(model, name, torch.nn.Linear(2, 2)),
    "a parameter": lambda model, name: setattr(model, name, torch.nn.Parameter(torch.zeros(2))),
    "a tensor": lambda model, name: setattr(model, name, torch.zeros(2)),
    "add_module": lambda model, name: model.add_module(name, torch.nn.Linear(2, 2)),
    "register_module": lambda model, name: model.register_module(name, torch.nn.Linear(2, 2)),
    "register_parameter": lambda model, name: model.register_parameter(name, torch.nn.Parameter(torch.zeros(2))),
    "register_buffer": lambda model, name: model.register_buffer(name, torch.zeros(2), persistent=False),
}


@each("way", WAYS)
def test_a_layer_or_tensor_cannot_have_a_name_of_core(way: str, build: Callable[..., BaseLanguageModel]) -> None:
    model = build("gpt2")
    of_core = ("output", "config", "context", "targets", "flops", "settings", "lm_output", "generate", "model_type")
    for name in (*of_core, "head", "train", "training", "forward"):
        with pytest.raises(PluginError, match=rf"^foundry_gpt2\.model\.GPT2LanguageModel .* called '{name}', which "):
            WAYS[way](model, name)
    WAYS[way](model, "flops_layer")
    assert model.flops(1, 4) > 0


def test_what_core_keeps_on_a_model_is_not_replaced(build: Callable[..., BaseLanguageModel]) -> None:
    model: Any = build("gpt2")
    for name, kind in (("config", "ExperimentConfig"), ("context", "BuildContext")):
        with pytest.raises(PluginError, match=rf"sets self\.{name} to a dict, and core keeps its {kind} there"):
            setattr(model, name, {})
    model.set_vocabulary_size(model.context.vocab_size + 1)
