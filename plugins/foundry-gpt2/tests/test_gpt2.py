"""Tests of what only GPT-2 has: its ids, its positions, its tied head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.models.folder import model_files
from foundry_core.random_streams import derive
from foundry_core.training.optimizers import build_optimizer
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
IDS = torch.randint(0, 27, (3, 10), generator=torch.Generator().manual_seed(0))

SIZES: dict[str, Any] = {
    "model": {
        "transformer": {
            "layers": 2,
            "embedding_size": 24,
            "hidden_size": 24,
            "intermediate_hidden_size": 48,
            "attention_heads": 2,
            "activation_function": "gelu_new",
        }
    }
}


def test_its_ids_are_those_of_the_tokenizer_of_the_run(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    inner = create_model(experiment("gpt2", tmp_path), letters).to_transformers()
    assert inner.config.bos_token_id == inner.config.eos_token_id == letters.eos_token_id < 32
    assert inner.config.pad_token_id == letters.pad_token_id
    assert (inner.config.vocab_size, inner.config.n_positions) == (32, 24)
    assert inner.generation_config.eos_token_id == letters.eos_token_id


def test_the_settings_reach_the_model(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    sizes = {
        "layers": 3,
        "embedding_size": 24,
        "hidden_size": 24,
        "intermediate_hidden_size": 40,
        "attention_heads": 4,
        "activation_function": "relu",
        "dropout": 0.2,
        "attention_dropout": 0.3,
    }
    inner = create_model(experiment("gpt2", tmp_path, model={"transformer": sizes}), letters).to_transformers().config
    assert (inner.n_layer, inner.n_embd, inner.n_inner, inner.n_head) == (3, 24, 40, 4)
    assert (inner.activation_function, inner.resid_pdrop, inner.embd_pdrop, inner.attn_pdrop) == ("relu", 0.2, 0.2, 0.3)


def test_positions_count_real_tokens_with_a_carried_state_too(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model: BaseLanguageModel = create_model(experiment("gpt2", tmp_path), letters).eval()
    ids = torch.arange(10)[None]
    alone = model(ids).logits
    padded = torch.cat([torch.full((1, 3), letters.pad_token_id), ids], dim=1)
    mask = (torch.arange(13) >= 3).long()[None]
    first = model(padded[:, :8], attention_mask=mask[:, :8], use_cache=True)
    second = model(padded[:, 8:], attention_mask=mask, state=first.state)
    carried = torch.cat([first.logits[:, 3:], second.logits], dim=1)
    torch.testing.assert_close(carried, alone, rtol=0, atol=1e-5)
    given = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(1, 11)[None]).logits
    assert not torch.allclose(given, alone, atol=1e-3)


@each("tied", [True, False])
def test_the_output_layer_is_the_embedding_if_tied(
    tied: bool, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    config = experiment("gpt2", tmp_path, model={"gpt2": {"tie_embeddings": tied}})
    inner = create_model(config, letters).to_transformers()
    assert (inner.lm_head.weight is inner.transformer.wte.weight) == tied
    assert inner.config.tie_word_embeddings == tied


@each("gpt2", [{}, {"tie_embeddings": False}, {"bias": False}, {"tie_embeddings": False, "bias": False}])
@each("activation", ["gelu", "gelu_new"])
def test_a_trained_checkpoint_is_a_gpt2_of_transformers(
    activation: str, gpt2: dict[str, bool], experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """It opens there with equal logits; without biases those it stores are 0, after training too."""
    sizes = {**experiment("gpt2", tmp_path).model.transformer.model_dump(), "activation_function": activation}
    config = experiment("gpt2", tmp_path, model={"transformer": sizes, "gpt2": gpt2}, training={"weight_decay": 0.5})
    model = create_model(config, letters).train()
    before = [parameter.clone() for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(model, config.training)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS, labels=IDS, return_logits=False).loss.backward()
        optimizer.step()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert not any(map(torch.equal, before, trained))
    model.save_pretrained(tmp_path / "saved")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(opened) is GPT2LMHeadModel
    torch.testing.assert_close(opened(IDS).logits, model.eval()(IDS).logits, rtol=0, atol=1e-5)
    biases = [bool(value.any()) for name, value in opened.named_parameters() if name.endswith(".bias")]
    assert all(biases) if gpt2.get("bias", True) else not any(biases)
    again = BaseLanguageModel.from_pretrained(tmp_path / "saved")
    assert again.get_parameter_count() == model.get_parameter_count()


def test_without_biases_there_are_the_parameters_of_nanogpt(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """nanoGPT's own count of a model without biases: what is trained here."""
    model = create_model(experiment("gpt2", tmp_path, model={"gpt2": {"bias": False}}), letters)
    width, inner, layers = 32, 64, 2
    expected = (32 + 24) * width + layers * (4 * width * width + 2 * width * inner + 2 * width) + width
    assert model.get_parameter_count().trainable == expected


def test_residual_projections_start_smaller(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    sizes = {**experiment("gpt2", tmp_path).model.transformer.model_dump(), "layers": 8}
    blocks = create_model(experiment("gpt2", tmp_path, model={"transformer": sizes}), letters).model.transformer.h
    for weights, std in (
        ([layer.c_proj.weight for block in blocks for layer in (block.attn, block.mlp)], 0.02 / 16**0.5),
        ([part for block in blocks for part in (block.attn.c_attn.weight, block.mlp.c_fc.weight)], 0.02),
    ):
        assert torch.cat([weight.flatten() for weight in weights]).std().item() == pytest.approx(std, rel=0.03)


@each("activation, expected", [
    ("gelu", F.gelu), ("gelu_new", partial(F.gelu, approximate="tanh")),
])  # fmt: skip
@each("kernels", ["fast", "reference"])
def test_gelu_is_exact_and_gelu_new_the_tanh_approximation(
    kernels: str, activation: str, expected: Any, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """Two blocks of the network, written down."""
    sizes = {**experiment("gpt2", tmp_path).model.transformer.model_dump(), "activation_function": activation}
    model = create_model(experiment("gpt2", tmp_path, model={"transformer": sizes}), letters).double().eval()
    model.kernels = kernels
    base = model.model.transformer
    x = base.wte(IDS) + base.wpe.weight[: IDS.shape[1]]
    for block in base.h:
        x = x + block.attn(block.ln_1(x))[0]
        y = block.ln_2(x) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        x = x + expected(y) @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    torch.testing.assert_close(model(IDS).logits.double(), model.model.lm_head(base.ln_f(x)), rtol=0, atol=1e-7)


def test_it_begins_with_the_weights_that_transformers_would_draw(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    config = experiment("gpt2", tmp_path, **SIZES)
    model = create_model(config, letters)
    own = dict(model.named_parameters(remove_duplicate=False))
    saved, inner = model_files(model), model.to_transformers()
    assert type(inner) is GPT2LMHeadModel
    torch.manual_seed(derive(config.seed("initialisation"), "initialisation"))
    theirs = {f"model.{name}": each for name, each in GPT2LMHeadModel(inner.config).named_parameters()}
    assert list(theirs) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(own[name], each) for name, each in theirs.items())
    assert all(each is own[name] for name, each in model.named_parameters(remove_duplicate=False))
    assert model_files(model) == saved


def test_what_has_been_set_before_its_inner_model_is_built_holds(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment("gpt2", tmp_path, **SIZES), letters)
    model.gradient_checkpointing_enable()
    next(model.parameters()).requires_grad_(False)
    roles, flops = model.eval().parameter_roles(), model.flops(2, 9)
    inner = model.to_transformers()
    assert not inner.training
    assert inner.transformer.h[0].gradient_checkpointing
    assert not inner.transformer.wte.weight.requires_grad
    assert (model.parameter_roles(), model.flops(2, 9)) == (roles, flops)


@pytest.mark.long
def test_training_does_not_import_the_models_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("the keys to the cabinet are here .\n" * 40)
    settings: dict[str, Any] = {
        "experiment_name": "light",
        "data": {"training_corpus": "corpus.txt", "max_sequence_length": 12, "batch_size": 4},
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 20},
        "model": {"architecture": "gpt2", **SIZES["model"]},
        "training": {"output_dir": "run", "train_steps": 2},
    }
    heavy = {"transformers.modeling_utils", "transformers.generation.utils", "sympy"}
    program = (
        "import sys; from foundry_core import load_config, run\n"
        f"run(load_config({settings}), quiet=True); sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
