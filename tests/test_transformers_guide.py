"""The examples of docs/evaluation/transformers.md run as they stand, on a checkpoint of the test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from foundry_core import ExperimentConfig, create_model, load_config
from foundry_core.tokenization.encoding import as_trained
from foundry_core.tokenization.tokenizer_folder import save_tokenizer

GUIDE = (Path(__file__).parents[1] / "docs" / "evaluation" / "transformers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_classifier_of_the_guide_is_trained_and_opens(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "lstm" / "checkpoint-1000"
    create_model(experiment("lstm", tmp_path), letters).save_pretrained(folder)
    save_tokenizer(as_trained(letters, framed=False), folder)
    monkeypatch.chdir(tmp_path)
    example, *_ = blocks("python")  # the others need TransformerLens
    names: dict[str, Any] = {}
    exec(example, names)
    ids = torch.arange(6)[None]
    again = AutoModelForSequenceClassification.from_pretrained("runs/lstm-fine-tuned")
    assert torch.equal(again(ids).logits, names["model"].eval()(ids).logits)


def test_the_positions_of_the_guide_are_valid(tmp_path: Path) -> None:
    (example,) = map(yaml.safe_load, blocks("yaml"))
    data = {**example.pop("data"), "training_corpus": "train.txt"}
    training = {"output_dir": str(tmp_path), "epochs": 1}
    config: Any = load_config({"experiment_name": "guide", "data": data, **example, "training": training})
    assert config.model.transformer.max_positions == 512
