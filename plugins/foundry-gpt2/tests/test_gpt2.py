"""Tests of what only GPT-2 has: its ids, its positions, its tied head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.models.folder import model_files
from foundry_core.random_streams import derive

Experiment = Callable[..., ExperimentConfig]

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


def test_the_output_layer_is_the_embedding(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    inner = create_model(experiment("gpt2", tmp_path), letters).to_transformers()
    assert inner.lm_head.weight is inner.transformer.wte.weight


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
