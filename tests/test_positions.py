"""More positions than the rows of training have: `max_positions`, for tools that read longer texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.checkpoints.compatibility import changed_settings
from foundry_core.cli.common import shown_fact
from foundry_core.errors import ConfigError, FoundryError
from foundry_core.registry.loading import get_architecture
from tests.each import each

# name: architecture, example, section of `model`, objective
MODELS = {
    "gpt2": ("gpt2", "tiny", "transformer", "causal_lm"),
    "bert": ("bert", "tiny", "transformer", "masked_lm"),
    "llama": ("transformers", "tiny", "transformers", "causal_lm"),
    "roberta": ("transformers", "tiny_roberta", "transformers", "masked_lm"),
}
Experiment = Callable[..., ExperimentConfig]


@each("name", MODELS)
def test_positions_beyond_training_are_there_and_untrained(
    experiment: Experiment, letters: Any, tmp_path: Path, name: str
) -> None:
    """Rows of 24 tokens and 48 positions: the model reads 48, in foundry and in transformers, and refuses 49."""
    architecture, example, section, objective = MODELS[name]
    config = experiment(
        architecture,
        tmp_path,
        example=example,
        model={section: {**get_architecture(architecture).examples[example][section], "max_positions": 48}},
        training={"objective": objective},
    )
    assert config.data.max_sequence_length == 24
    model = create_model(config, letters)
    first = letters.pad_token_id + 1 if name == "roberta" else 0
    tables = {key: each for key, each in model.named_parameters() if each.shape[0] == first + 48}
    assert len(tables) == (0 if name == "llama" else 1)
    ids = torch.arange(48)[None] % 26
    model.train()(ids[:, :24], labels=ids[:, :24]).loss.backward()
    for table in tables.values():
        assert table.grad is not None
        assert not table.grad[first + 24 :].any()
        assert table.data[first + 24 :].std() == pytest.approx(float(table.data[first : first + 24].std()), rel=0.2)
    with pytest.raises(FoundryError, match=r"^49 tokens are more than this \w+ was built for \(max_positions: 48\)$"):
        model(torch.zeros(1, 49, dtype=torch.long))
    model.eval().save_pretrained(tmp_path / "saved")
    auto: Any = AutoModelForCausalLM if objective == "causal_lm" else AutoModelForMaskedLM
    opened = auto.from_pretrained(tmp_path / "saved")
    assert opened.config.max_position_embeddings == first + 48
    logits = BaseLanguageModel.from_pretrained(tmp_path / "saved")(ids).logits
    torch.testing.assert_close(logits, model(ids).logits)
    torch.testing.assert_close(opened(ids).logits, logits, rtol=0, atol=1e-5)


def test_rows_longer_than_the_positions_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    sizes = get_architecture("gpt2").examples["tiny"]["transformer"]
    with pytest.raises(ConfigError, match="data.max_sequence_length: gpt2 takes at most 16 tokens"):
        experiment("gpt2", tmp_path, model={"transformer": {**sizes, "max_positions": 16}})


def test_a_run_from_before_the_key_resumes_unless_it_is_set() -> None:
    before = {"model": {"transformer": {"layers": 2}}}
    now = {"model": {"transformer": {"layers": 2, "max_positions": None}}}
    assert changed_settings(before, now) == {}
    now["model"]["transformer"]["max_positions"] = 512
    assert list(changed_settings(before, now, ["model.transformer.max_positions"])) == [
        "model.transformer.max_positions"
    ]


def test_the_plan_names_the_pipelines_that_read_more() -> None:
    wanted = "128 (GLUE, as the BabyLM pipeline fine-tunes on it, reads 512: set max_positions, or longer rows)"
    assert [shown_fact("positions", number) for number in (None, 128, 512)] == ["any number", wanted, "512"]
