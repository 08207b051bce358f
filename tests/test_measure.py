"""Tests of `foundry plan --measure`: the table of what architectures need and how fast they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import ExperimentConfig, create_model
from foundry_core.cli import main
from foundry_core.registry.architecture import registered_architectures
from foundry_core.registry.loading import available_architectures, capabilities_of, get_architecture


def test_each_architecture_of_ours_has_a_valid_base_size() -> None:
    for name in ("bert", "gpt2", "gru", "lstm", "mamba", "rnn", "transformers"):
        architecture = get_architecture(name)
        model = architecture.config_class.model_validate({"architecture": name, **architecture.base})
        assert capabilities_of(architecture, model).objectives, name
        assert architecture.base.keys() == architecture.recipe["model"].keys(), name


@pytest.mark.long
def test_architectures_are_measured_at_base_size_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, like in (("wide", "gpt2"), ("masked", "bert")):
        tiny = get_architecture(like).examples["tiny"]
        registered_architectures()[name] = replace(get_architecture(like), name=name, base=tiny)
    settings = ("data.batch_size=3", "training.device=cpu")
    assert main(["plan", "--measure", "wide", "masked", *settings, "--json"]) == 0
    wide, masked = json.loads(capsys.readouterr().out)
    assert (wide["architecture"], wide["objective"]) == ("wide", "causal_lm")
    assert (masked["architecture"], masked["objective"]) == ("masked", "masked_lm")
    for row in (wide, masked):
        assert (row["vocabulary"], row["max_sequence_length"], row["batch_size"]) == (32_000, 128, 3)
        assert row["parameters"] == pytest.approx(32_000 * 32, rel=0.1)
        assert row["memory_bytes"] > 16 * row["parameters"]
        assert row["tokens_per_second"] > 0
        assert row["measured_batch_size"] == 3
        assert row["processor"]
    assert not list(tmp_path.glob("tmp*"))  # torch keeps a cache beside


def test_a_yaml_is_measured_with_its_own_data_and_sizes(
    experiment: Callable[..., ExperimentConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    letters: Any,
    one_thread: None,
) -> None:
    config = experiment("lstm", tmp_path)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config.resolved()))
    rows = []
    for size in (4, 8):
        command = ["plan", "--json", str(tmp_path / "x.yaml"), "--measure", f"data.batch_size={size}"]
        assert main(command) == 0
        rows += json.loads(capsys.readouterr().out)
    small, large = rows
    assert [row["measured_batch_size"] for row in rows] == [4, 8]
    assert small["vocabulary"] == 120
    assert small["parameters"] == create_model(config).get_parameter_count().total
    # What fits does not depend on what was asked for, and has room for the weights and more.
    assert large["largest_batch_size"] == pytest.approx(small["largest_batch_size"], rel=0.1)
    activations = (large["memory_bytes"] - small["memory_bytes"]) / 4
    assert small["largest_batch_size"] * activations < 0.5 * small["device_memory"]
    assert not list(tmp_path.glob("run/checkpoint-*"))

    assert main(["plan", str(tmp_path / "x.yaml"), "--measure"]) == 0
    head, _, figures, *notes = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "architecture parameters memory largest batch tokens/s measured"
    assert figures.split()[:2] == ["lstm", f"{small['parameters'] / 1e6:,.1f}M"]
    assert "vocabulary 120" in " ".join(notes)


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "--measure" in capsys.readouterr().err
    assert main(["plan", "--measure", "gtp2"]) != 0
    assert "gpt2" in capsys.readouterr().err
    registered_architectures()["bare"] = replace(get_architecture("lstm"), name="bare", base={}, recipe={})
    assert "bare" in available_architectures()
    assert main(["plan", "--measure", "bare"]) == 2
    assert "bare has neither a base size nor a recipe" in capsys.readouterr().err
