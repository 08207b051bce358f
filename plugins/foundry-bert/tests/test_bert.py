"""Tests of what only BERT has: segments, sentence vectors, a padding row that learns, a head of two layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model

Experiment = Callable[..., ExperimentConfig]
IDS = torch.randint(0, 27, (2, 10), generator=torch.Generator().manual_seed(0))


def test_segments_reach_the_model(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    model = create_model(experiment("bert", tmp_path), letters).eval()
    segments = torch.zeros_like(IDS)
    plain = model(IDS).logits
    assert torch.equal(model(IDS, token_type_ids=segments).logits, plain)
    segments[:, 5:] = 1
    assert (model(IDS, token_type_ids=segments).logits != plain).any(dim=-1).all()


def test_there_are_as_many_segments_as_asked_for(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    model = create_model(experiment("bert", tmp_path, model={"bert": {"type_vocab_size": 5}}), letters).eval()
    assert torch.isfinite(model(IDS, token_type_ids=torch.full_like(IDS, 4)).logits).all()
    assert model.to_transformers().bert.embeddings.token_type_embeddings.num_embeddings == 5


@pytest.mark.parametrize("pooler_type", ["first", "mean"])
def test_a_sentence_is_represented_as_pooler_type_says(
    pooler_type: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment("bert", tmp_path, model={"bert": {"pooler_type": pooler_type}}), letters).eval()
    hidden = model.to_transformers().bert(IDS).last_hidden_state
    expected = hidden[:, 0] if pooler_type == "first" else hidden.mean(dim=1)
    torch.testing.assert_close(model.sentence_representation(IDS), expected, rtol=0, atol=1e-6)
    for columns in ((3, 0), (0, 3)):
        ids, mask = F.pad(IDS, columns, value=5), F.pad(torch.ones_like(IDS), columns)
        torch.testing.assert_close(model.sentence_representation(ids, mask), expected, rtol=0, atol=1e-5)


def test_pooler_type_is_stored_where_others_can_read_it(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    assert create_model(experiment("bert", tmp_path), letters).to_transformers().config.pooler_type == "first"
    mean = create_model(experiment("bert", tmp_path, model={"bert": {"pooler_type": "mean"}}), letters)
    mean.save_pretrained(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").pooler_type == "mean"
    reopened = BaseLanguageModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(reopened.sentence_representation(IDS), mean.eval().sentence_representation(IDS))


def test_the_row_of_the_padding_token_is_trained_like_any_other(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    pad = letters.pad_token_id
    model = create_model(experiment("bert", tmp_path), letters)
    rows = model.get_input_embeddings().weight
    ids = torch.full((1, 4), pad)
    embedded = torch.autograd.grad(model.get_input_embeddings()(ids).sum(), rows)[0]
    assert embedded[pad].tolist() == [4.0] * 32
    model.resize_token_embeddings(40)
    grown = model.get_input_embeddings()
    assert torch.autograd.grad(grown(ids).sum(), grown.weight)[0][pad].tolist() == [4.0] * 32


def test_only_positions_with_a_label_pass_through_the_head(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment("bert", tmp_path), letters)
    seen: list[tuple[int, ...]] = []
    model.to_transformers().cls.predictions.transform.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(output.shape))
    )
    labels = IDS.masked_fill(torch.arange(10) % 3 != 0, -100)
    model(IDS, labels=labels, return_logits=False)
    assert seen == [(8, 32)]


def test_a_document_opens_with_cls_and_closes_with_sep(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    inner = create_model(experiment("bert", tmp_path), letters).to_transformers().config
    assert (inner.bos_token_id, inner.eos_token_id) == (letters.cls_token_id, letters.sep_token_id)
    assert inner.pad_token_id == letters.pad_token_id
