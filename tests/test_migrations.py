"""Models that an older version of a plugin saved open under the names of the present one."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from foundry_core import Architecture, BaseLanguageModel, Migration, ModelConfig, create_model, load_config
from foundry_core.errors import CheckpointError, PluginError
from foundry_core.models.migrations import migrated, pending

PACKAGE = Path(__file__).parent / "example_plugin"
IDS = torch.tensor([[1, 5, 3, 7], [2, 2, 9, 4]])


@pytest.fixture
def saved(
    tmp_path: Path, corpus: Any, distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, torch.Tensor]:
    """A model of the example package as its version 0.0.3 saved it, and the logits that it had."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(str(PACKAGE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "foundry_example"]:
        monkeypatch.delitem(sys.modules, name)
    distribution(project["name"], project["entry-points"], version=project["version"])
    content = {
        "data": {"training_corpus": str(corpus.train), "max_sequence_length": 16},
        "tokenizer": {"vocab_size": 20},
        "model": {"architecture": "averages", "averages": {"hidden_size": 12}},
        "training": {"train_steps": 1, "output_dir": str(tmp_path / "run")},
    }
    model = create_model(load_config({"experiment_name": "old", **content})).eval()
    folder = tmp_path / "old"
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.table.weight"] = weights.pop("model.embedding.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    described = config["foundry"]
    described["plugin"]["version"] = "0.0.3"
    described["experiment"]["model"]["averages"] = {"width": 12}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model(IDS).logits


def test_an_old_model_opens_with_the_same_logits(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, logits = saved
    opened = BaseLanguageModel.from_pretrained(folder)
    by_transformers = AutoModelForCausalLM.from_pretrained(folder)
    for model in (opened, by_transformers):
        assert torch.equal(model(IDS).logits, logits)
    opened.save_pretrained(tmp_path / "new")
    assert "model.embedding.weight" in load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(BaseLanguageModel.from_pretrained(tmp_path / "new")(IDS).logits, logits)


def test_old_names_under_a_new_version_are_refused(saved: tuple[Path, torch.Tensor]) -> None:
    folder, _ = saved
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"0.0.3"', '"0.1.0"'))
    with pytest.raises(CheckpointError, match="model.averages.hidden_size: missing"):
        BaseLanguageModel.from_pretrained(folder)


def test_migrations_follow_each_other_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {
        "0.10": Migration(keys={"a.middle": "b.new"}),
        "0.9": Migration(keys={"a.old": "a.middle"}),
        "0.2": Migration(keys={"a.old": "a.wrong"}),
    }
    architecture = Architecture("any", "", ModelConfig, "any:Any", migrations=steps)
    monkeypatch.setattr("foundry_core.models.migrations.get_architecture", lambda name: architecture)
    description = {"plugin": {"version": "0.2.1"}, "experiment": {"model": {"architecture": "any"}}}
    found = pending(description)
    assert found == [steps["0.9"], steps["0.10"]]
    assert migrated({"a": {"old": 1, "kept": 2}}, found) == {"a": {"kept": 2}, "b": {"new": 1}}


def test_a_migration_of_another_type_is_refused() -> None:
    with pytest.raises(PluginError, match=r"its migrations\['0.2'\] is .* not a Migration"):
        Architecture("any", "", ModelConfig, "any:Any", migrations={"0.2": {"keys": {}}})  # type: ignore[dict-item]
