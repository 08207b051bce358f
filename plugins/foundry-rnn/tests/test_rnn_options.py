"""The options of the recurrent models, each against the same network written directly in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.errors import ConfigError
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
CELLS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
IDS = torch.randint(0, 27, (3, 10), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[1, 7:] = PADDED[2, :4] = PADDED[0, 5] = 0
SIZES: dict[str, Any] = {"embedding_size": 12, "hidden_size": 16, "num_layers": 2, "dropout": 0.0}


class WordLanguageModel(nn.Module):
    """The RNNModel of pytorch/examples, word_language_model/model.py, with the batch first."""

    def __init__(self, cell: Any, words: int, width: int, size: int, layers: int, tied: bool, **settings: Any) -> None:
        super().__init__()
        self.encoder = nn.Embedding(words, width)
        self.rnn = cell(width, size, layers, batch_first=True, **settings)
        self.decoder = nn.Linear(size, words)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        output, state = self.rnn(self.encoder(ids), state)
        return self.decoder(output), state


def built(experiment: Experiment, letters: Any, folder: Path, name: str, **settings: Any) -> BaseLanguageModel:
    rnn = {**SIZES, **settings}
    training = {"objective": "masked_lm"} if rnn.get("bidirectional") else {}
    return create_model(experiment(name, folder, model={"rnn": rnn}, training=training), letters)


def detached(state: Any) -> Any:
    return tuple(each.detach() for each in state) if isinstance(state, tuple) else state.detach()


@each("name, tied, relu", [("lstm", True, False), ("lstm", False, False), ("gru", False, False), ("rnn", True, False),
                           ("rnn", False, True)])  # fmt: skip
@each("kernels", ["fast", "reference"])
@pytest.mark.long
def test_training_follows_the_model_of_pytorch_examples(
    kernels: str, name: str, tied: bool, relu: bool, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """SGD with a rate of 2, gradients clipped at 0.25, the state carried from row to row."""
    sizes = {"embedding_size": 16, "init_range": 0.1, "recurrent_init": "torch", "tie_embeddings": tied}
    kind = {"nonlinearity": "relu"} if relu else {}
    ours = built(experiment, letters, tmp_path, name, **sizes, **kind).train()
    ours.kernels = kernels
    theirs = WordLanguageModel(CELLS[name], 32, 16, 16, 2, tied, **kind)
    for source, target in zip(ours.parameters(), theirs.parameters(), strict=True):
        target.data.copy_(source.data)
    stream = torch.randint(0, 27, (4, 201), generator=torch.Generator().manual_seed(1))
    states: list[Any] = [None, None]
    for start in range(0, 200, 10):
        read, wanted = stream[:, start : start + 10], stream[:, start + 1 : start + 11]
        output = ours(read, state=states[0])
        logits, state = theirs(read, states[1])
        states = [detached(output.state), detached(state)]
        losses = []
        for model, found in ((ours, output.logits), (theirs, logits)):
            loss = F.cross_entropy(found.flatten(0, 1), wanted.flatten())
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 2 * parameter.grad
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def awd(model: Any, ids: torch.Tensor, shares: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward pass of AWD-LSTM (Merity, Keskar and Socher 2018) in training: last states, raw and dropped."""

    def locked(x_BTE: torch.Tensor, share: float) -> torch.Tensor:
        return x_BTE * F.dropout(torch.ones_like(x_BTE[:, :1]), share)

    words = F.dropout(torch.ones(len(model.embedding.weight), 1), shares["embedding_dropout"])
    x = locked(F.embedding(ids, model.embedding.weight * words), shares["input_dropout"])
    for number, source in enumerate((model.recurrent, model.last_recurrent)):
        if number:
            x = locked(x, shares["hidden_dropout"])
        with torch.random.fork_rng(devices=[]):  # what a layer draws for its initial values is not of the pass
            alone = type(source)(x.shape[-1], source.hidden_size, batch_first=True)
        for weight in ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l"):
            value = getattr(source, f"{weight}0").detach()
            dropped = F.dropout(value, shares["weight_drop"]) if weight == "weight_hh_l" else value
            getattr(alone, f"{weight}0").data.copy_(dropped)
        x, _ = alone(x)
    return x, locked(x, shares["output_dropout"])


@each("name", CELLS)
@each("kernels", ["fast", "reference"])
def test_training_draws_and_computes_as_awd_lstm(
    kernels: str, name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """One mask for all time steps, whole words, recurrent weights; the same numbers drawn in the same order."""
    shares = {"embedding_dropout": 0.3, "input_dropout": 0.4, "hidden_dropout": 0.5, "output_dropout": 0.6}
    shares |= {"weight_drop": 0.7}
    terms = {"activation_regularization": 2.0, "temporal_regularization": 0.5}
    settings = {**shares, **terms, "locked_dropout": True, "last_hidden_size": 12, "tie_embeddings": True}
    model = built(experiment, letters, tmp_path, name, **settings).train()
    model.kernels = kernels
    torch.manual_seed(3)
    output = model(IDS, labels=IDS)
    torch.manual_seed(3)
    raw, dropped = awd(model, IDS, shares)
    torch.testing.assert_close(output.logits, model.output_layer(dropped), rtol=0, atol=1e-5)
    # Nothing is predicted from the last state here.
    expected = {
        "activation_regularization": 2.0 * dropped[:, :-1].square().mean(),
        "temporal_regularization": 0.5 * raw[:, :-1].diff(dim=1).square().mean(),
    }
    torch.testing.assert_close(output.auxiliary, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(output.loss, output.cross_entropy + sum(expected.values()), rtol=1e-5, atol=0)
    model.eval()
    plain = built(experiment, letters, tmp_path, name, last_hidden_size=12, tie_embeddings=True)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        evaluated = model(IDS, labels=IDS)
        torch.testing.assert_close(evaluated.logits, plain.eval()(IDS).logits, rtol=0, atol=1e-6)
    assert "auxiliary" not in evaluated


@each("name", CELLS)
def test_recurrent_weights_that_are_dropped_get_no_gradient(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = built(experiment, letters, tmp_path, name, weight_drop=0.5).train()
    model(IDS, labels=IDS).loss.backward()
    for layer in range(2):
        untouched = {
            kind: (getattr(model.recurrent, f"weight_{kind}_l{layer}").grad == 0).double().mean()
            for kind in ("hh", "ih")
        }
        assert 0.3 < untouched["hh"] < 0.7
        assert untouched["ih"] < 0.1


@each("settings, places", [
    ({"input_dropout": 0.5}, "input"),
    ({"hidden_dropout": 0.5}, "hidden"),
    ({"output_dropout": 0.5}, "output"),
    ({"dropout": 0.5}, "input hidden output"),
    ({"dropout": 0.5, "hidden_dropout": 0.0}, "input output"),
    ({"embedding_dropout": 0.5}, "input"),
])  # fmt: skip
def test_dropout_is_where_its_key_puts_it(
    settings: dict[str, float], places: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """With fast kernels and with torch's own layers: what each place lets through is changed in training, or is not."""
    model = built(experiment, letters, tmp_path, "lstm", **settings, num_layers=3)
    quiet = model.eval()(IDS, output_hidden_states=True)
    for kernels in ("fast", "reference"):
        model.kernels = kernels
        loud = model.train()(IDS, output_hidden_states=True)
        changed = [not torch.equal(*pair) for pair in zip(loud.hidden_states, quiet.hidden_states, strict=True)]
        torch.testing.assert_close(model.output_layer(loud.hidden_states[-1]), loud.logits)
        found = {"input": changed[0], "output": (loud.hidden_states[-1] == 0).float().mean() > 0.3}
        # The second layer differs by the input of the first one too, unless that is unchanged.
        found["hidden"] = changed[2] if not changed[0] else "hidden" in places
        assert {name for name, each in found.items() if each} == set(places.split())
        assert (model.recurrent.dropout > 0) == ("hidden" in places)


def test_embedding_dropout_drops_every_occurrence_of_a_word(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = built(experiment, letters, tmp_path, "gru", embedding_dropout=0.4).train()
    ids = torch.arange(27).repeat(3, 2)
    read = model(ids, output_hidden_states=True).hidden_states[0]
    kept = (read != 0).all(dim=-1)
    assert ((read == 0).all(dim=-1) == ~kept).all()
    assert (kept == kept[0, :27].repeat(3, 2)).all()
    assert 0 < kept[0].sum() < 54
    torch.testing.assert_close(read[kept], model.embedding(ids)[kept] / 0.6)


@each("name", CELLS)
@each("both", [False, True])
@each("settings", [{}, {"nonlinearity": "relu"}, {"bias": False}, {"last_hidden_size": 9}, {"embedding_size": None}])
@each("mask", [torch.ones_like(IDS), PADDED])
def test_layer_by_layer_gives_what_the_stack_of_torch_gives(
    name: str, both: bool, settings: dict[str, Any], mask: torch.Tensor, experiment: Experiment, letters: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Logits and gradients of rows alone, through layers of torch with the same weights, of padded rows and states."""
    if "nonlinearity" in settings and name != "rnn":
        return
    model = built(experiment, letters, tmp_path, name, bidirectional=both, **settings).train()
    inputs = F.one_hot(IDS, 32).float() if settings.get("embedding_size", 1) is None else model.embedding(IDS)
    layers = []
    for source in (model.recurrent, model.last_recurrent):
        if source is not None:
            kind = {"nonlinearity": "relu"} if settings.get("nonlinearity") else {}
            alone = CELLS[name](source.input_size, source.hidden_size, source.num_layers, bias=source.bias,
                                batch_first=True, bidirectional=both, **kind)  # fmt: skip
            alone.load_state_dict(source.state_dict(), strict=False)
            layers.append(alone)
    if settings.get("embedding_size", 1) is None:
        for way, weight in zip(
            ("", "_reverse"), model.embedding.weight.detach().t().chunk(2 if both else 1), strict=False
        ):
            getattr(layers[0], f"weight_ih_l0{way}").data.copy_(weight)
    expected = torch.zeros(*IDS.shape, 32)
    for row, kept in enumerate(mask.bool()):
        x = inputs[row, kept][None]
        for layer in layers:
            x, _ = layer(x)
        expected[row, kept] = model.output_layer(x)[0]
    real = mask.bool()
    for asked in ({}, {"output_hidden_states": True}):
        found = model(IDS, attention_mask=mask, **asked)
        torch.testing.assert_close(found.logits[real], expected[real], rtol=0, atol=1e-6)
    torch.autograd.backward(found.logits[real].square().sum())
    torch.autograd.backward(expected[real].square().sum(), inputs=list(layers[0].parameters()))
    for part, parameter in model.recurrent.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(layers[0], part).grad, rtol=1e-4, atol=1e-5)


@each("name", CELLS)
@each("settings", [{}, {"last_hidden_size": 9}, {"embedding_size": None}])
def test_a_state_of_any_stack_continues_the_text(
    name: str, settings: dict[str, Any], experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = built(experiment, letters, tmp_path, name, locked_dropout=True, **settings).eval()
    whole = model(IDS, attention_mask=PADDED)
    first = model(IDS[:, :6], attention_mask=PADDED[:, :6])
    second = model(IDS[:, 6:], attention_mask=PADDED[:, 6:], state=first.state)
    real = PADDED[:, 6:].bool()
    torch.testing.assert_close(second.logits[real], whole.logits[:, 6:][real], rtol=0, atol=1e-6)
    torch.testing.assert_close(second.state, whole.state, rtol=0, atol=1e-6)
    parts = second.state if isinstance(second.state, tuple) else (second.state,)
    assert all(isinstance(part, torch.Tensor) for part in parts)


@each("name", CELLS)
@each("kernels", ["fast", "reference"])
def test_labels_of_one_more_column_let_every_token_predict(
    name: str, kernels: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """And the state after the last token is there to be carried on, in training without logits too."""
    model = built(experiment, letters, tmp_path, name).train()
    model.kernels = kernels
    seen: list[int] = []
    given = {"labels": IDS, "return_logits": False, "read": lambda hidden, head: seen.append(hidden.shape[1])}
    output = model(input_ids=IDS[:, :-1], **given)
    assert seen == [9]
    torch.testing.assert_close(output.state, model.eval()(IDS[:, :-1]).state, rtol=0, atol=1e-6)
    model.train()
    if kernels == "fast":
        assert "state" not in model(input_ids=IDS, **given)
        assert seen == [9, 9]


@each("name", CELLS)
def test_uniform_draws_everything_from_one_range(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """Zaremba, Sutskever and Vinyals 2014: biases too."""
    settings = {"init_range": 0.04, "recurrent_init": "uniform"}
    model = built(experiment, letters, tmp_path, name, **settings, tie_embeddings=True)
    model.resize_token_embeddings(50)
    for _, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.04
        assert len(parameter.unique()) > 10
        if parameter.ndim == 2:
            assert parameter.detach().std() == pytest.approx(0.04 / 3**0.5, rel=0.1)


@each("name", CELLS)
def test_pytorch_examples_draw_embeddings_and_layers_apart(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = built(experiment, letters, tmp_path, name, init_range=0.1, recurrent_init="torch")
    assert not model.output_layer.bias.any()
    for weight in (model.embedding.weight, model.output_layer.weight):
        assert 0.09 < weight.abs().max() <= 0.1
    for _, parameter in model.recurrent.named_parameters():
        assert 0.2 < parameter.abs().max() <= 0.25  # 1 / sqrt(16)


@each("settings, start", [({}, 1.0), ({"forget_bias": 2.5}, 2.5), ({"forget_bias": 0.0}, 0.0),
                          ({"init_range": 0.1, "recurrent_init": "uniform", "forget_bias": 1.0}, 1.0)])  # fmt: skip
def test_forget_gates_start_where_they_are_set(
    settings: dict[str, Any], start: float, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """The second bias vector of torch's layers stays what it is: 0, or drawn."""
    lstm: Any = built(experiment, letters, tmp_path, "lstm", **settings, last_hidden_size=8)
    for stack in (lstm.recurrent, lstm.last_recurrent):
        assert (stack.bias_ih_l0.chunk(4)[1] == start).all()
        assert bool(stack.bias_hh_l0.any()) == ("init_range" in settings)
        assert stack.bias_hh_l0.abs().max() <= 0.1


@pytest.mark.parametrize("name", CELLS)
def test_hidden_states_are_those_of_the_layers(name: str, experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    """From the model, from transformers' adapter, and step by step from its generate."""
    model = built(experiment, letters, tmp_path, name, num_layers=3).eval()
    found = model(IDS, attention_mask=PADDED, output_hidden_states=True)
    assert len(found.hidden_states) == 4
    real = PADDED.bool()
    assert torch.equal(found.hidden_states[0][real], model.embedding(IDS)[real])
    torch.testing.assert_close(model.output_layer(found.hidden_states[-1])[real], found.logits[real])
    theirs = model.to_transformers()(IDS, attention_mask=PADDED, output_hidden_states=True)
    assert all(map(torch.equal, theirs.hidden_states, found.hidden_states))
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    written = model.generate(IDS, output_hidden_states=True, **settings)
    assert [states[-1].shape[1] for states in written.hidden_states] == [10, 1, 1]


@each("name, settings, problem", [
    ("lstm", {"recurrent_init": "uniform"}, "recurrent_init: uniform needs init_range"),
    ("lstm", {"embedding_size": None, "tie_embeddings": True}, "tie_embeddings needs an embedding_size"),
    ("lstm", {"num_layers": 1, "last_hidden_size": 8}, "last_hidden_size needs num_layers of at least 2"),
    ("lstm", {"bias": False, "forget_bias": 1.0}, "forget_bias needs bias: true"),
    ("lstm", {"nonlinearity": "relu"}, "rnn.nonlinearity is of architecture: rnn"),
    ("rnn", {"forget_bias": 1.0}, "rnn.forget_bias is of architecture: lstm"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    name: str, settings: dict[str, Any], problem: str, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(name, tmp_path, model={"rnn": {**SIZES, **settings}})
    assert len(refused.value.problems) == 1
    assert problem in str(refused.value)
    assert refused.value.problems[0].key.startswith("model")
