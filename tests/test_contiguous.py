"""Contiguous batching: the state is carried from row to row, as in a loop written for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foundry_core import create_model, load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import CheckpointError, PluginError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.carried import CarriedState

LANES, LENGTH = 4, 9


@pytest.fixture
def text(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    lines = [" ".join(f"w{word}" for word in generator.integers(0, 9, generator.integers(1, 9))) for _ in range(70)]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(line[::-1].replace("w", "") for line in lines[:9]) + "\n")
    return path


def config(text: Path, **changes: Any) -> ExperimentConfig:
    content: dict[str, Any] = {
        "experiment_name": "contiguous",
        "data": {
            "training_corpus": str(text),
            "max_sequence_length": LENGTH + 2,
            "batch_size": LANES,
            "batching": "contiguous",
        },
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 30, "output_dir": str(text.parent / "tokenizer")},
        "model": {
            "architecture": "lstm",
            "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 2, "dropout": 0.0},
        },
        "training": {
            "output_dir": str(text.parent / "run"),
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 0.25,
            "train_steps": 30,
            "device": "cpu",
        },
        "logging": {"log_every_steps": 1},
    }
    for section, update in changes.items():
        content[section] = {**content[section], **update}
    return load_config(content)


def steps_of(stream: np.ndarray) -> int:
    """Steps of an epoch."""
    return math.ceil(math.ceil((len(stream) - 1) / LANES) / LENGTH)


def stream_of(config: ExperimentConfig) -> tuple[Any, np.ndarray]:
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    return tokenizer, np.array(experiment_tokens(config, tokenizer, corpora)[0].tokens, dtype=np.int64)


def test_training_follows_a_plain_loop_that_carries_its_state(text: Path) -> None:
    torch.set_num_threads(1)
    settings = config(text)
    tokenizer, stream = stream_of(settings)
    model: Any = create_model(settings, tokenizer)
    embedding, lstm, output = model.embedding, model.recurrent, model.output_layer
    lanes = [stream[lane * (len(stream) - 1) // LANES :] for lane in range(LANES)]
    steps = steps_of(stream)
    assert 2 * steps < 30
    losses: list[float] = []
    state: Any = None
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(30):
        at = step % steps * LENGTH
        state = None if at == 0 else tuple(each.detach() for each in state)
        ends = [
            min(at + LENGTH, (lane + 1) * (len(stream) - 1) // LANES - lane * (len(stream) - 1) // LANES)
            for lane in range(LANES)
        ]
        rows = [torch.from_numpy(each[at : end + 1]) for each, end in zip(lanes, ends, strict=True)]
        # Only the last rows of an epoch differ in length, and nothing is carried on from them.
        width = max(map(len, rows)) - 1
        ids = torch.stack([nn.functional.pad(row[:-1], (0, width - len(row) + 1)) for row in rows])
        labels = torch.stack([nn.functional.pad(row[1:], (0, width - len(row) + 1), value=-100) for row in rows])
        hidden, state = lstm(embedding(ids), state)
        loss = nn.functional.cross_entropy(output(hidden).transpose(1, 2), labels, ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.item())
    run(settings, quiet=True)
    records = [json.loads(line) for line in (text.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records if "loss" in record] == pytest.approx(losses, rel=1e-5)


def test_the_state_matters_and_each_epoch_begins_without_one(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[Any] = []

    def noted(self: CarriedState) -> None:
        reset.append(self.state)
        self.state = None

    monkeypatch.setattr(CarriedState, "reset", noted)
    run(config(text), quiet=True)
    settings = config(text)
    _, stream = stream_of(settings)
    steps = steps_of(stream)
    assert len(reset) == math.ceil(30 / steps)
    assert reset[0] is None
    assert all(state is not None for state in reset[1:])


def test_an_evaluation_reads_each_lane_through(text: Path) -> None:
    settings = config(text)
    run(settings, quiet=True)
    folder = text.parent / "run" / "checkpoint-30"
    model = BaseLanguageModel.from_pretrained(folder)
    tokenizer, _ = stream_of(settings)
    report = evaluate_corpus(model, tokenizer, text)
    corpora = experiment_corpora(settings)
    data = experiment_rows(settings, tokenizer, experiment_tokens(settings, tokenizer, corpora), corpora)
    stream = torch.from_numpy(np.array(data.train.tokens, dtype=np.int64))
    size, total = len(stream) - 1, 0.0
    for lane in range(LANES):
        whole = stream[lane * size // LANES : (lane + 1) * size // LANES + 1][None]
        total += float(model(whole, labels=whole, reduction="sum").loss.detach())
    assert report.tokens == size
    assert report.loss == pytest.approx(total / size, rel=1e-5)


def test_a_run_is_verified_and_its_lanes_are_not_moved(text: Path) -> None:
    settings = config(text, training={"checkpoints": {"every_steps": 7}})
    run(settings, quiet=True)
    whole, problems = verify_run(text.parent / "run")
    assert problems == []
    assert [each.since for each in whole[1:]] == [each.folder.name for each in whole[:-1]]
    other = config(text, data={"batch_size": 2}, training={"train_steps": 32})
    with pytest.raises(CheckpointError, match=r"data.batch_size was 4, is 2.*The rows of its epoch would move"):
        run(other, resume=True, quiet=True, allowed_changes=["data.batch_size", "training.train_steps"])


def test_the_rows_of_a_step_of_documents_stay_together(text: Path) -> None:
    settings = config(text, data={"batching": "documents"}, training={"train_steps": 3})
    run(settings, quiet=True)
    allowed = ["data.batch_size", "training.gradient_accumulation_steps", "training.train_steps"]
    smaller = {"batching": "documents", "batch_size": LANES // 2}
    with pytest.raises(CheckpointError, match=r"data.batch_size was 4, is 2.*The rows of its epoch would move"):
        run(config(text, data=smaller, training={"train_steps": 6}), resume=True, quiet=True, allowed_changes=allowed)
    same = config(text, data=smaller, training={"train_steps": 6, "gradient_accumulation_steps": 2})
    assert run(same, resume=True, quiet=True, allowed_changes=allowed).step == 6


def test_a_budget_in_tokens_ends_with_a_whole_batch(text: Path) -> None:
    settings = config(text, training={"train_steps": None, "train_tokens": 100})
    state = run(settings, quiet=True)
    assert state.samples % LANES == 0
    assert state.tokens_seen <= 100


def test_a_state_that_cannot_be_saved_is_refused() -> None:
    carried = CarriedState()
    with pytest.raises(PluginError, match="the model returned no state in training"):
        carried.advance(None)
    with pytest.raises(PluginError, match="the model's state has a SimpleNamespace"):
        carried.advance((torch.zeros(1), __import__("types").SimpleNamespace()))


def test_a_carried_state_is_the_same_after_saving() -> None:
    carried, again = CarriedState(), CarriedState()
    carried.advance(({"b": torch.arange(3.0), "a": [torch.ones(2), None]}, torch.zeros(1)))
    layout = json.loads(json.dumps(carried.layout()))
    again.load(layout, carried.tensors(), torch.device("cpu"))
    assert str(again.state) == str(carried.state)
    with pytest.raises(CheckpointError, match="its carried state is damaged"):
        again.load(layout, {}, torch.device("cpu"))
