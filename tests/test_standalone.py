"""A checkpoint in the adapter, and its standalone folder: the same hidden states, logits and heads by the same names.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    logging,
)

from foundry_core import ExperimentConfig, create_model
from foundry_core.checkpoints.exported import export
from tests.each import each

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

IDS = torch.randint(0, 26, (4, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = MASK[1, 6:] = MASK[2, 4] = 0
TEXTS, TOKENS = AutoModelForSequenceClassification, AutoModelForTokenClassification

RNN = {"embedding_size": 12, "hidden_size": 16, "num_layers": 2, "dropout": 0.2}
MAMBA = {"hidden_size": 16, "num_layers": 2, "state_size": 4}
TIED, BOTH = {"tie_embeddings": True}, {"bidirectional": True}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", RNN),
    "lstm, projected": ("lstm", {**RNN, **TIED}),
    "lstm, tied": ("lstm", {**RNN, **TIED, "last_hidden_size": 12, "locked_dropout": True}),
    "lstm, both": ("lstm", {**RNN, **BOTH, "locked_dropout": True}),
    "lstm, both, projected": ("lstm", {**RNN, **BOTH, **TIED, "last_hidden_size": 12, "bias": False}),
    "gru": ("gru", {**RNN, "embedding_size": None, "num_layers": 1}),
    "gru, projected": ("gru", {**RNN, **TIED}),
    "gru, both": ("gru", {**RNN, **BOTH}),
    "rnn": ("rnn", RNN),
    "rnn, both": ("rnn", {**RNN, **BOTH, "embedding_size": None, "nonlinearity": "relu"}),
    "rnn, both, projected": ("rnn", {**RNN, **BOTH, **TIED}),
    "mamba": ("mamba", {**MAMBA, "dropout": 0.0, "tie_embeddings": False}),
    "mamba, tied": ("mamba", {**MAMBA, "dropout": 0.2}),
}
Opened = Callable[[str, Any], list[Any]]


def language(name: str) -> Any:
    return AutoModelForMaskedLM if "both" in name else AutoModelForCausalLM


@pytest.fixture(scope="module")
def opened(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path_factory: pytest.TempPathFactory
) -> Opened:
    """`opened(name, auto class)`: the model of a checkpoint, and that of a standalone folder of it."""
    home = tmp_path_factory.mktemp("standalone")
    logging.set_verbosity_error()  # new heads are new

    @cache
    def make(name: str, auto: Any) -> list[Any]:
        folders = home / name / "checkpoint", home / name / "alone"
        if not folders[0].exists():
            (architecture, section), objective = SETTINGS[name], "masked_lm" if "both" in name else "causal_lm"
            settings = {"mamba" if architecture == "mamba" else "rnn": section}
            model = create_model(
                experiment(architecture, home, model=settings, training={"objective": objective}), letters
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2)  # an untrained model hardly tells its tokens apart
            model.save_pretrained(folders[0])
            export(model, letters, folders[1], standalone=True)
        return [auto.from_pretrained(folder, trust_remote_code=True) for folder in folders]

    return make


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@each("name", SETTINGS)
@torch.no_grad()
def test_hidden_states_and_logits_are_those_of_the_checkpoint(opened: Opened, name: str) -> None:
    """Of all layers, of the model with and without its head, from ids and vectors, with padding and without."""
    wholes, bodies = (opened(name, auto) for auto in (language(name), AutoModel))
    vectors = wholes[0].get_input_embeddings()(IDS)
    assert len({body.config.hidden_size for body in bodies}) == 1
    for mask in (None, MASK):
        real = torch.ones_like(MASK).bool() if mask is None else MASK.bool()
        expected = wholes[0](IDS, attention_mask=mask, output_hidden_states=True)
        last = expected.hidden_states[-1]
        assert len(expected.hidden_states) == 1 + bodies[1].config.num_hidden_layers
        close(expected.hidden_states[0][real], vectors[real])
        close(wholes[1].get_output_embeddings()(last)[real], expected.logits[real])
        for given in ({"input_ids": IDS}, {"inputs_embeds": vectors}):
            for model in (*wholes, *bodies):
                found = model(**given, attention_mask=mask, output_hidden_states=True)
                for states, others in zip(found.hidden_states, expected.hidden_states, strict=True):
                    close(states[real], others[real])
                if "logits" in found:
                    close(found.logits[real], expected.logits[real])
                else:
                    assert torch.equal(found.last_hidden_state, found.hidden_states[-1])
                    assert found.last_hidden_state.shape[-1] == model.config.hidden_size


@each("name", SETTINGS)
@torch.no_grad()
def test_new_heads_read_the_same_in_the_checkpoint_and_alone(opened: Opened, name: str) -> None:
    """With the same weights by the same names; without padding, and with it on either side."""
    for auto in (TEXTS, TOKENS):
        ours, alone = opened(name, auto)
        ours.score.weight.normal_(generator=torch.Generator().manual_seed(1))
        weights, names = ours.state_dict(), set(alone.state_dict())
        assert {each for each in weights if "output_layer" not in each} == names
        alone.load_state_dict({each: weights[each] for each in names})
        for mask in (None, MASK):
            expected, found = (model.eval()(IDS, attention_mask=mask).logits for model in (ours, alone))
            real = mask.bool() if mask is not None and auto is TOKENS else ...
            assert expected.std() > 0.01
            close(found[real], expected[real])


@each("name", ("lstm", "mamba"))
@torch.no_grad()
def test_the_last_token_of_a_long_text_is_read_in_bfloat16(opened: Opened, name: str) -> None:
    """Places beyond 256 are not numbers of that type; without a mask as with one."""
    ids = torch.randint(0, 26, (2, 512), generator=torch.Generator().manual_seed(0))
    for model in opened(name, TEXTS):
        half = deepcopy(model).to(torch.bfloat16).eval()
        assert torch.equal(half(ids).logits, half(ids, attention_mask=torch.ones_like(ids)).logits)


@each("name", [name for name, (_, section) in SETTINGS.items() if section["dropout"]])
def test_dropout_is_applied_once_before_what_any_head_reads(opened: Opened, name: str) -> None:
    """In training, too, the output layer or the new head alone leads from the last hidden state to the logits."""
    torch.manual_seed(0)
    rows, zeros = IDS.repeat(16, 1), []
    for body in opened(name, AutoModel):
        quiet, loud = (body.train(on)(rows).last_hidden_state for on in (False, True))
        zeros.append(float((loud == 0)[quiet != 0].float().mean()))
        assert not torch.allclose(loud, quiet)
        body.eval()
    plain = "projected" not in name and "mamba" not in name and "relu" not in SETTINGS[name][1].values()
    assert not plain or zeros == pytest.approx([0.2, 0.2], abs=0.07)
    for auto in (language(name), TEXTS, TOKENS):
        for model in opened(name, auto):
            found = model.train()(IDS, output_hidden_states=True)
            head = getattr(model, "score", None) or model.model.output_layer
            read = found.hidden_states[-1]
            if auto is TEXTS:
                read = read.mean(dim=1) if "both" in name else read[:, -1]
            close(head(read), found.logits)
            model.eval()
