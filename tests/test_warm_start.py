"""`training.start_from`: the weights of another run's checkpoint, checked, verified and recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from foundry_core import ExperimentConfig, load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.errors import CheckpointError, UsageError
from foundry_core.storage.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the cat sees a dog\na dog sees the cat\nthe dog runs\na cat runs\n"


@pytest.fixture(scope="module")
def first(experiment: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """A run of two steps, whose checkpoints others start from; its tokenizer can be shared."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "train.txt").write_text(TEXT * 20)
    config = experiment(
        "lstm",
        folder,
        data={"training_corpus": str(folder / "train.txt"), "max_sequence_length": 8},
        tokenizer={"vocab_size": 12, "output_dir": str(folder / "tokenizer")},
        model={"rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1, "dropout": 0.1}},
        training={"output_dir": str(folder / "first"), "train_steps": 2},
    )
    run(config, quiet=True)
    return config


@pytest.fixture
def second(first: ExperimentConfig, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """`second(*overrides)`: the same experiment in another folder, from the last checkpoint of the first."""

    def make(*overrides: str, **training: Any) -> ExperimentConfig:
        settings = first.resolved()
        start = Path(first.training.output_dir) / "checkpoint-2"
        settings["training"] |= {"output_dir": str(tmp_path / "second"), "start_from": str(start), **training}
        return load_config(settings, overrides)

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load((folder / "model.safetensors").read_bytes())
    return tensors


def test_a_run_starts_from_the_weights_and_records_them(second: Callable[..., ExperimentConfig]) -> None:
    config = second()
    state = run(config, quiet=True)
    output, start = Path(config.training.output_dir), Path(config.training.start_from or "")
    begun = weights(output / "checkpoint-0")
    assert begun.keys() == weights(start).keys()
    assert all(torch.equal(begun[name], tensor) for name, tensor in weights(start).items())
    assert (state.step, state.samples) == (2, 8)
    digest = json.loads((start / "MANIFEST.json").read_bytes())["sha256"]
    origin = {"checkpoint": str(start), "step": 2, "sha256": digest}
    for step in (0, 2):
        assert read_manifest(output / f"checkpoint-{step}")["started_from"] == origin
    assert json.loads((output / "run.json").read_bytes())["started_from"] == origin
    whole, problems = verify_run(output)
    assert problems == []
    assert [each.since for each in whole] == [str(start), "checkpoint-0"]


def test_a_resumed_run_goes_on_without_its_start(second: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    start = tmp_path / "start" / "checkpoint-2"
    shutil.copytree(second().training.start_from or "", start)
    run(second(start_from=str(start)), quiet=True)
    shutil.rmtree(start)
    longer = second(start_from=str(start), train_steps=3)
    assert run(longer, resume=True, allowed_changes=["training.train_steps"], quiet=True).step == 3
    recorded = read_manifest(Path(longer.training.output_dir) / "checkpoint-3")["started_from"]
    assert recorded["checkpoint"] == str(start)
    with pytest.raises(CheckpointError, match=r"training\.start_from was .*, is None"):
        run(second("training.start_from=null"), resume=True, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.rnn.hidden_size=5"], "model.rnn.hidden_size was 4, is 5"),
        (
            ["model.rnn.dropout=0.3"],
            r"model.rnn.dropout was 0.1, is 0.3. Put them back, or allow a key by name: --allow",
        ),
        (["model.architecture=gru"], "model.architecture was 'lstm', is 'gru'"),
        (
            ["tokenizer.vocab_size=9", "tokenizer.output_dir=null"],
            "was trained with another tokenizer, and its weights",
        ),
    ],
)
def test_another_architecture_setting_or_tokenizer_is_refused(
    overrides: list[str], said: str, second: Callable[..., ExperimentConfig]
) -> None:
    with pytest.raises(CheckpointError, match=f"^training.start_from: .*{said}") as refused:
        run(second(*overrides), quiet=True)
    assert "\n" not in str(refused.value)


def test_a_setting_that_is_allowed_may_differ(second: Callable[..., ExperimentConfig]) -> None:
    config = second("model.rnn.dropout=0.3")
    with pytest.raises(UsageError, match="--allow model.rnn.drop: there is no such key"):
        run(config, allowed_changes=["model.rnn.drop"], quiet=True)
    assert run(config, allowed_changes=["model.rnn.dropout"], quiet=True).step == 2


def test_a_size_that_is_allowed_still_has_to_fit(second: Callable[..., ExperimentConfig]) -> None:
    config = second("model.rnn.hidden_size=5")
    with pytest.raises(CheckpointError, match=r"^training.start_from: .* has shape \(.*\), the model \(.*\)$"):
        run(config, allowed_changes=["model.rnn.hidden_size"], quiet=True)


def test_a_damaged_checkpoint_is_never_loaded(second: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    start = tmp_path / "start" / "checkpoint-2"
    shutil.copytree(second().training.start_from or "", start)
    content = bytearray((start / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (start / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^training.start_from: .*model.safetensors is damaged"):
        run(second(start_from=str(start)), quiet=True)
    (start / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"^training.start_from: .* is not a checkpoint: it has no MANIFEST.json"):
        run(second(start_from=str(start)), quiet=True)
    with pytest.raises(CheckpointError, match="is a run: name a checkpoint in it, such as .*checkpoint-2$"):
        run(second(start_from=str(Path(second().training.start_from or "").parent)), quiet=True)


def test_allow_is_for_resuming_and_for_a_warm_start(
    second: Callable[..., ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "second.yaml"
    path.write_text(json.dumps(second("training.start_from=null").resolved()))
    assert main(["train", str(path), "--allow", "model.rnn.dropout"]) == 2
    assert "--allow can only be used with --resume, or with training.start_from" in capsys.readouterr().err
