"""Features of models of any type: sizes and ids of the tokenizer, its own head, its own positions, a proof."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, FoundryError, create_model, run
from foundry_core.errors import ConfigError
from foundry_core.registry.loading import get_architecture
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
Build = Callable[..., BaseLanguageModel]
EXAMPLES = get_architecture("transformers").examples
IDS = torch.randint(0, 27, (2, 10), generator=torch.Generator().manual_seed(0))
BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def build(experiment: Experiment, letters: Any, tmp_path: Path, one_thread: None) -> Build:
    def make(settings: str | dict[str, Any], **sections: Any) -> BaseLanguageModel:
        model = EXAMPLES[settings] if isinstance(settings, str) else {"transformers": settings}
        return create_model(experiment("transformers", tmp_path, example="", model=model, **sections), letters)

    return make


# What the model is built with.


@each("example", EXAMPLES)
def test_sizes_and_ids_are_those_of_the_tokenizer(build: Build, letters: Any, example: str) -> None:
    model = build(example)
    inner = model.to_transformers().config
    masked = not model.context.objective.causal
    start = letters.cls_token_id if masked else letters.eos_token_id
    assert (inner.vocab_size, inner.pad_token_id) == (32, letters.pad_token_id)
    assert (inner.bos_token_id, inner.eos_token_id) == (start, letters.eos_token_id)
    assert inner._attn_implementation == ("eager" if example in ("tiny_deberta_v2", "tiny_mamba") else "sdpa")


def test_a_missing_token_has_no_id_of_a_published_vocabulary(build: Build) -> None:
    inner = build({"model_type": "modernbert", **BERT_SIZES, "num_hidden_layers": 2}).to_transformers().config
    assert inner.cls_token_id == inner.bos_token_id < 32
    decoder = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    inner = build({"model_type": "bart", **decoder}).to_transformers().config
    assert inner.forced_eos_token_id is None


def test_the_settings_reach_the_model_and_the_rest_is_default(build: Build) -> None:
    inner = build(
        {"model_type": "llama", **BERT_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    )
    config = inner.to_transformers().config
    assert (config.hidden_size, config.num_hidden_layers, config.rms_norm_eps) == (32, 1, 1e-6)
    assert config.rope_parameters["rope_theta"] == 77.0


def test_settings_that_the_class_refuses_are_one_line(build: Build) -> None:
    for wrong, said in (
        ({"num_attention_heads": 3}, "hidden size"),
        ({"hidden_act": "gulu"}, "gulu"),
        ({"hidden_size": -32}, ""),
    ):
        with pytest.raises(FoundryError, match="^transformers refuses these settings of a llama: ") as caught:
            build({"model_type": "llama", **BERT_SIZES, **wrong})
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_model_is_looked_for_in_the_network(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for example in EXAMPLES:
        build(example)


# Its head.


@each(
    "settings",
    [
        *EXAMPLES.values(),
        {"transformers": {"model_type": "deberta-v2", **BERT_SIZES, "legacy": False}},
        {"transformers": {"model_type": "electra", "embedding_size": 16, **BERT_SIZES}},
        {"transformers": {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 16, "num_hidden_layers": 1,
                          "ffn_dim": 32, "num_attention_heads": 2}},
        {"transformers": {"model_type": "gemma2", **BERT_SIZES, "num_key_value_heads": 1, "head_dim": 16,
                          "final_logit_softcapping": 0.01}},
        {"transformers": {"model_type": "cohere", **BERT_SIZES, "logit_scale": 7.0}},
    ],
)  # fmt: skip
def test_only_labelled_positions_are_projected_to_equal_logits(build: Build, settings: dict[str, Any]) -> None:
    """A transform, a smaller embedding, the embedding itself as weights, capped and scaled logits."""
    model = build(settings["transformers"]).eval()
    torch.testing.assert_close(model(IDS).logits, model.to_transformers()(IDS).logits, rtol=0, atol=1e-6)
    labels = IDS.masked_fill(torch.arange(10) % 3 != 0, -100)
    full, few = model(IDS, labels=labels), model(IDS, labels=labels, return_logits=False)
    torch.testing.assert_close(few.loss, full.loss, rtol=1e-6, atol=0)
    projected: list[int] = []
    head = model.head
    model.kernels = "reference"
    model.head = lambda hidden: (projected.append(hidden[..., 0].numel()), head(hidden))[1]
    model(IDS, labels=labels, return_logits=False)
    assert projected == [int(few.count)]


def test_the_head_is_counted_once_and_follows_a_resize(build: Build) -> None:
    model = build("tiny_roberta").eval()
    assert all(name.startswith("model.") for name in model.state_dict())
    model.resize_token_embeddings(40)
    copy = deepcopy(model)
    with torch.no_grad():
        copy.model.lm_head.dense.weight.mul_(2)
    assert not torch.equal(copy(IDS).logits, model(IDS).logits)
    assert copy(IDS).logits.shape == (2, 10, 40)


def test_parameters_have_the_roles_that_foundry_mamba_gives(
    build: Build, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    settings = {"hidden_size": 32, "num_layers": 2, "state_size": 4}
    ours = create_model(experiment("mamba", tmp_path, example="", model={"mamba": settings}), letters)
    theirs = build("tiny_mamba")
    assert Counter(theirs.parameter_roles().values()) == Counter(ours.parameter_roles().values())
    others = {name.rpartition(".")[2] for name, role in theirs.parameter_roles().items() if role == "other"}
    assert others == {"A_log", "D"}


@each(
    ("settings", "expected"),
    [
        (
            {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2},
            {"time_decay": "other", "time_mix_key": "other", "receptance.weight": "matrix", "head.weight": "output"},
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 2, **BERT_SIZES},
            {"experts.gate_up_proj": "matrix", "experts.down_proj": "matrix", "gate.weight": "matrix"},
        ),
    ],
)
def test_parameters_outside_layers_have_a_role(
    settings: dict[str, Any], expected: dict[str, str], build: Build
) -> None:
    model = build(settings)
    roles = model.parameter_roles()
    assert roles.keys() == {name for name, _ in model.named_parameters()}
    for end, role in expected.items():
        assert {roles[name] for name in roles if name.endswith(end)} == {role}, end


def test_a_type_whose_bias_is_not_resized_reports_it(build: Build) -> None:
    model = build({"model_type": "esm", **BERT_SIZES})
    with pytest.raises(FoundryError, match=r"^EsmForMaskedLM cannot be resized: [^\n]+$"):
        model.resize_token_embeddings(40)


# Its positions.


@pytest.mark.parametrize("decoder", [False, True])
def test_roberta_has_a_position_for_each_token_of_a_row(build: Build, letters: Any, decoder: bool) -> None:
    model = build({"model_type": "roberta", **BERT_SIZES, "is_decoder": decoder}).eval()
    assert model.to_transformers().config.max_position_embeddings == 24 + letters.pad_token_id + 1
    row = torch.arange(24)[None]
    torch.testing.assert_close(model(row).logits, model.to_transformers()(row).logits, rtol=0, atol=1e-6)
    places = model.to_transformers().roberta.embeddings.position_embeddings
    seen: list[torch.Tensor] = []
    places.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with_padding_id = torch.tensor([[3, letters.pad_token_id, 5, 7]])
    model(with_padding_id)
    assert (seen[-1] - letters.pad_token_id - 1).tolist() == [[0, 1, 2, 3]]
    model(with_padding_id, attention_mask=torch.tensor([[1, 0, 1, 1]]))
    assert (seen[-1] - letters.pad_token_id - 1)[0, [0, 2, 3]].tolist() == [0, 1, 2]
    if decoder:
        state = model(row[:, :6], use_cache=True).state
        model(row[:, 6:8], state=state)
        assert (seen[-1] - letters.pad_token_id - 1).tolist() == [[6, 7]]


def test_roberta_without_a_padding_token_counts_from_0(experiment: Experiment, tmp_path: Path) -> None:
    model = create_model(experiment("transformers", tmp_path, example="tiny_roberta")).eval()
    assert model.context.pad_token_id is None
    assert model(torch.arange(24)[None]).logits.shape == (1, 24, 120)


# Its state.


def test_a_recurrent_state_of_transformers_takes_single_tokens(build: Build) -> None:
    model = build("tiny_mamba").eval()
    ids = torch.randint(0, 27, (2, 40), generator=torch.Generator().manual_seed(1))
    whole = model(ids).logits
    output = model(ids[:, :30], use_cache=True)
    assert "state" not in model(ids)
    with pytest.raises(FoundryError, match=r"^this transformers .* one token at a time: [^\n]+$"):
        model(ids[:, 30:], state=output.state)
    for t in range(30, 40):
        output = model(ids[:, t : t + 1], state=output.state)
        torch.testing.assert_close(output.logits[:, 0], whole[:, t], rtol=0, atol=1e-5)


# The proof.


@each(
    ("settings", "problem"),
    [
        (
            {"model_type": "bert-generation", **BERT_SIZES},
            "BertGenerationDecoder cannot be trained here: it sees the tokens that it has to predict: set is_decoder",
        ),
        (
            {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64},
            "XLNetLMHeadModel cannot be trained here: it sees the tokens that it has to predict",
        ),
        (
            {"model_type": "fnet", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64},
            "FNetForMaskedLM cannot be trained here: padding on the left changes its logits for real tokens",
        ),
        (
            {"model_type": "llama4_text", **BERT_SIZES, "num_local_experts": 2, "intermediate_size_mlp": 64},
            "Llama4ForCausalLM cannot be trained here: it has no base model besides a head",
        ),
        (
            {"model_type": "cpmant", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "dim_head": 16, "dim_ff": 32},
            "CpmAntForCausalLM cannot be trained here: its forward does not pass inputs_embeds to its base model",
        ),
    ],
)  # fmt: skip
def test_a_type_that_breaks_what_training_relies_on_is_refused(
    build: Build, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(FoundryError) as caught:
        build(settings)
    assert str(caught.value) == problem


def test_the_proof_leaves_random_state_and_training_mode_alone(build: Build) -> None:
    model = build("tiny_opt")
    chance, before = torch.random.get_rng_state(), {name: p.clone() for name, p in model.named_parameters()}
    heard: list[Any] = []
    model.register_forward_hook(lambda *call: heard.append(call))
    model.prove()
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert model.training
    assert heard == []


def test_a_model_without_storage_is_built_without_proof(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = create_model(experiment("transformers", tmp_path), letters)
    assert all(parameter.is_meta for parameter in model.parameters())


# Training and what comes of it.


def test_unsupported_gradient_checkpointing_is_refused_early(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training.gradient_checkpointing: transformers does not support it"):
        experiment(
            "transformers",
            tmp_path,
            model={"transformers": {"model_type": "xlm", "emb_dim": 32, "n_layers": 1, "n_heads": 2}},
            training={"gradient_checkpointing": True},
        )


def test_an_encoder_that_looks_back_only_is_trained_causally(
    build: Build, experiment: Experiment, tmp_path: Path
) -> None:
    decoder = {**EXAMPLES["tiny_roberta"]["transformers"], "is_decoder": True}
    state = run(experiment("transformers", tmp_path, example="", model={"transformers": decoder}), quiet=True)
    assert state.step == 10
    model = BaseLanguageModel.from_pretrained(tmp_path / "run" / "checkpoint-10")
    assert model.supports_generation
    assert type(model.to_transformers()).__name__ == "RobertaForCausalLM"


STRANGER = """
import json, sys
from pathlib import Path
import torch, transformers
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
ids = torch.tensor(json.loads(sys.argv[2]))
for folder in Path(sys.argv[1]).iterdir():
    masked = "MaskedLM" in json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    found = {"logits": model(ids).logits.detach()}
    if not masked:
        mask = torch.ones_like(ids)
        found["text"] = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    torch.save(found, folder / "found.pt")
assert not any(name.startswith("foundry") for name in sys.modules)
"""


@pytest.mark.long
def test_transformers_alone_opens_every_example_without_trust(build: Build, tmp_path: Path) -> None:
    models = {example: build(example).eval() for example in EXAMPLES}
    for example, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # an untrained model hardly tells its tokens apart
        model.save_pretrained(tmp_path / "saved" / example)
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "saved"), json.dumps(IDS.tolist())]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    for example, model in models.items():
        folder = tmp_path / "saved" / example
        found = torch.load(folder / "found.pt")
        assert torch.equal(found["logits"], model(IDS).logits), example
        back = BaseLanguageModel.from_pretrained(folder)
        assert back.config == model.config
        assert torch.equal(back(IDS).logits, model(IDS).logits)
        if "text" in found:
            mask = torch.ones_like(IDS)
            assert torch.equal(
                found["text"], model.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False)
            )
