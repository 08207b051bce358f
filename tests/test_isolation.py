"""`data.isolate_documents`: in a row of several documents the loss of each is that of the document alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core import create_model
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Batches
from foundry_core.data.collators import get_data_collator
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from tests.each import each

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(3)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, 30, generator.integers(1, 8))) for _ in range(90)]
    path = tmp_path_factory.mktemp("lines") / "train.txt"
    path.write_text("\n".join(texts) + "\n")
    return path


def batches(config: ExperimentConfig) -> tuple[Any, Iterator[Any]]:
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora), corpora)
    collate = get_data_collator(config, tokenizer)
    rows = data.train_rows
    return tokenizer, iter(Batches(rows, data.order, collate, config.data.batch_size, 0, len(rows)))


def documents_of(batch: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and labels of each document; those of a causal model have the separator after it as a label, too."""
    for ids, mask, numbers, labels in zip(
        *(batch[key] for key in ("input_ids", "attention_mask", "document_ids", "labels")), strict=True
    ):
        length = int(mask.sum())
        edges = [0, *(np.flatnonzero(np.diff(numbers[:length])) + 1).tolist(), length]
        for start, end in pairwise(edges):
            yield ids[start:end][None], labels[start : min(end + 1, length)][None]


@each("kernels", ["fast", "reference"])
@each("architecture", ["gpt2", "bert", "lstm", "gru", "rnn"])
def test_losses_are_those_of_each_document_alone(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, lines: Path, architecture: str, kernels: str
) -> None:
    config = experiment(architecture, tmp_path, data={"training_corpus": str(lines), "isolate_documents": True})
    tokenizer, made = batches(config)
    model = create_model(config, tokenizer).eval()
    model.kernels = kernels
    for parameter in model.parameters():
        parameter.data.mul_(3)  # new models hardly distinguish tokens
    causal, documents = config.objective.causal, 0
    for batch in made:
        together = float(model(**batch, reduction="sum").loss.detach())
        alone = 0.0
        for ids, labels in documents_of(batch):
            labels = labels if causal else labels[:, : ids.shape[1]]
            alone += float(model(ids, labels=labels, reduction="sum").loss.detach())
            documents += ids.shape[1] > 1
        assert together == pytest.approx(alone, rel=1e-5)
    assert documents == 90


def test_a_loss_without_isolation_is_another_one(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, lines: Path
) -> None:
    config = experiment("gpt2", tmp_path, data={"training_corpus": str(lines), "isolate_documents": True})
    tokenizer, made = batches(config)
    model = create_model(config, tokenizer).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    batch = next(made)
    apart = float(model(**batch).loss.detach())
    together = float(model(**{key: value for key, value in batch.items() if key != "document_ids"}).loss.detach())
    assert abs(apart - together) > 1e-3
