"""Tests of what only GPT-2 has: its ids, its positions, its tied head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model

Experiment = Callable[..., ExperimentConfig]


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
