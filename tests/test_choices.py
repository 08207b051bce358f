"""What a run computes with is decided once, for a reason that is on record, and stays as the run began."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from foundry_core import ExperimentConfig, create_model, run
from foundry_core.checkpoints.state import read_state
from foundry_core.cli import main
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import CheckpointError
from foundry_core.registry.hooks import hook_manager
from foundry_core.training.choices import Choices, choose, compile_of, precision_of
from foundry_core.training.notifier import Notifier
from foundry_core.training.trainer import Trainer
from foundry_core.training.trial import Trial
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
OLD = Path(__file__).parent / "fixtures" / "first_format" / "lstm" / "checkpoint-3"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def prepared(config: ExperimentConfig) -> tuple[ExperimentConfig, Any, Any, Any]:
    """The arguments of `choose` and of Trainer."""
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    return config, create_model(config, tokenizer), tokenizer, data


def on_record(config: ExperimentConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(config.training.output_dir) / "run.json").read_bytes())
    return content


def never() -> Any:
    raise AssertionError("measured although it was decided")


def test_a_resumed_run_keeps_what_it_began_with(experiment: Experiment, tmp_path: Path) -> None:
    """A new run here would choose fp32 and fast: nothing is proven for the LSTM."""
    begun: dict[str, Any] = {"precision": "bf16", "kernels": "reference"}
    run(experiment("lstm", tmp_path, training={**begun, "train_steps": 2}), quiet=True)
    new = experiment("lstm", tmp_path, training={"train_steps": 3})
    assert choose(*prepared(new)).values == {"precision": "fp32", "compile": False, "kernels": "fast"}
    state = run(new, resume=True, quiet=True, allowed_changes=["training.train_steps"])
    assert (state.step, state.precision, state.compile, state.kernels) == (3, "bf16", False, "reference")
    record = on_record(new)
    assert {name: record[name] for name in begun} == begun
    assert set(record["reasons"].values()) == {"as the run began"}
    everything = Choices("bf16", True, "reference")
    assert choose(*prepared(new), begun=everything) == everything


def test_another_choice_is_refused_until_it_is_allowed(experiment: Experiment, tmp_path: Path) -> None:
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    assert on_record(config)["kernels"] == "fast"
    assert run(experiment("lstm", tmp_path, training={"train_steps": 2, "kernels": "fast"}), resume=True, quiet=True)
    other = experiment("lstm", tmp_path, training={"train_steps": 2, "kernels": "reference"})
    with pytest.raises(CheckpointError, match="kernels was 'auto', is 'reference'. Put them back"):
        run(other, resume=True, quiet=True)
    assert run(other, resume=True, quiet=True, allowed_changes=["training.kernels"]).kernels == "reference"
    assert on_record(other)["reasons"]["kernels"] == "as configured"


def test_an_old_checkpoint_counts_as_it_was_configured(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD, tmp_path / OLD.name)
    assert Choices.of(read_state(folder)) == Choices("fp32", False, "reference")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"compile": false', '"compile": true'))
    assert Choices.of(read_state(folder)) == Choices("fp32", True, "reference")


@each(
    ("key", "value"), [("kernels", None), ("compile", None), ("kernels", "faster"), ("compile", 1), ("precision", "")]
)
def test_a_choice_that_cannot_be_is_damage(key: str, value: Any, experiment: Experiment, tmp_path: Path) -> None:
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    run(config, quiet=True)
    folder = Path(config.training.output_dir) / "checkpoint-1"
    path = folder / "trainer_state.json"
    content = json.loads(path.read_bytes())
    assert content["foundry"].pop(key) in ("fast", "fp32", False)
    content["foundry"] |= {} if value is None else {key: value}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"is damaged or of another version: {key}"):
        read_state(folder)


def test_the_model_is_told_which_kernels(experiment: Experiment, tmp_path: Path) -> None:
    config, model, tokenizer, data = prepared(experiment("gpt2", tmp_path, training={"kernels": "reference"}))
    assert model.kernels == "fast"
    assert Trainer(config, model, tokenizer, data, Notifier(hook_manager([]))).model.kernels == "reference"


def test_the_plan_shows_each_choice_with_its_reason(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment("lstm", tmp_path, training={"kernels": "reference"})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config.resolved()))
    command = ["plan", str(tmp_path / "x.yaml"), "--no-timing"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " kernels reference (as configured) " in shown
    assert " compile off (compiling seldom repays its cost within 30 min) " in shown
    assert re.search(r" precision fp32 \([^()]*bf16\) ", shown)
    assert main([*command, "training.train_steps=10000000", "--json"]) == 0
    long = json.loads(capsys.readouterr().out)
    assert (long["compile"], long["reasons"]["compile"]) == (
        False,
        "not tried here: if the run takes more than 30 min, it decides by a trial",
    )


def test_bf16_that_slows_a_processor_down_is_a_warning(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With layers of 16 units the conversions take longer than anything that bf16 saves, on any processor."""
    choices = choose(*prepared(experiment("lstm", tmp_path, training={"precision": "bf16"})))
    assert choices.precision == "bf16"
    assert re.search(r"warning: training.precision: bf16 .* at 0\.\d\d times the speed", capsys.readouterr().err)


def test_bf16_has_to_be_proven_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    computes = {"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}
    for name, value in computes.items():
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert precision_of(CPU, ("bf16",), never) == ("fp32", "this processor does not compute in bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision_of(CPU, (), never)[0] == "fp32"
    assert precision_of(CPU, ("bf16",), lambda: 1.29)[0] == "fp32"
    assert precision_of(CPU, ("bf16",), lambda: 1.31)[0] == "bf16"
    assert "1.31 times as fast" in precision_of(CPU, ("bf16",), lambda: 1.31)[1]


@each(
    ("found", "on"),
    [
        (Trial(cost=30, eager=1.0, compiled=0.9), True),  # 360 s saved for 30
        (Trial(cost=30, eager=1.0, compiled=0.96), False),  # within the noise
        (Trial(cost=200, eager=1.0, compiled=0.9), False),  # more than half of what is saved
        (Trial(cost=30, eager=1.0, compiled=1.2), False),
        ("there is no C++ compiler", False),
    ],
)
def test_compiling_has_to_repay_its_cost_twice(found: Any, on: bool) -> None:
    compiled, reason = compile_of("", 3600, 1e9, lambda: 1.0, lambda: found)
    assert (compiled, str(getattr(found, "eager", found)).removesuffix(".0") in reason) == (on, True)


def test_compiling_is_not_tried_where_it_cannot_pay() -> None:
    assert compile_of("no room", 3600, 1e9, never, never) == (False, "no room")
    assert compile_of("", 3600, 1799, never, never)[0] is False
    assert compile_of("", 1799, 1e9, lambda: 1.0, never)[0] is False


@pytest.mark.long
def test_a_trial_leaves_no_trace(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where it compiles, which it cannot do here."""
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    drawing = {"embedding_size": 16, "hidden_size": 16, "num_layers": 2, "dropout": 0.5}
    arguments = prepared(experiment("lstm", tmp_path, model={"rnn": drawing}, training={"train_steps": 10**8}))
    weights = {name: each.clone() for name, each in arguments[1].state_dict().items()}
    chance = (torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"], random.getstate())
    choices = choose(*arguments)
    assert (choices.compile, choices.reasons["compile"]) == (False, "there is no C++ compiler: install g++")
    assert all(torch.equal(each, weights[name]) for name, each in arguments[1].state_dict().items())
    assert all(each.grad is None for each in arguments[1].parameters())
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], chance[1])
    assert random.getstate() == chance[2]
