"""The optimizer's state is kept of the newest two checkpoints, beside them: each stays as it was published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, hookimpl, load_config, run
from foundry_core.checkpoints.checkpoint import checkpoints, newest_valid, optimizer_file
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.errors import CheckpointError
from foundry_core.storage.files import publish_folder
from tests.faults.scenario import outcome

Finished = tuple[ExperimentConfig, Path, dict[str, Any]]


class _AsPublished:
    """Keeps the files of every checkpoint as they are when it is acknowledged."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    @hookimpl
    def foundry_checkpoint_saved(self, step: int, folder: Path) -> None:
        self.content[folder.name] = content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def finished(experiment: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with checkpoints at 0 to 4, and what each was when it was published."""
    folder = tmp_path_factory.mktemp("finished")
    config = experiment(
        "lstm",
        folder,
        tokenizer={"output_dir": str(folder / "tokenizer")},
        model={"rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}},
        training={"train_steps": 4, "checkpoints": {"every_steps": 1}},
    )
    published, threads = _AsPublished(), torch.get_num_threads()
    torch.set_num_threads(1)
    run(config, quiet=True, extra_observers=[published])
    torch.set_num_threads(threads)
    return config, folder / "run", published.content


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, one_thread: None) -> Path:
    return shutil.copytree(finished[1], tmp_path / "run")


def going_on(finished: Finished, folder: Path, *overrides: str) -> ExperimentConfig:
    settings = finished[0].resolved()
    settings["training"]["output_dir"] = str(folder)
    return load_config(settings, list(overrides))


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*optimizer-*"))


def test_two_states_stay_and_no_checkpoint_changes(finished: Finished) -> None:
    _, folder, published = finished
    assert {path.name: content(path) for path in checkpoints(folder)} == published
    assert states(folder) == ["optimizer-3", "optimizer-4"]
    assert [optimizer_file(path).exists() for path in checkpoints(folder)] == [True, False, False, True, True]
    whole, problems = verify_run(folder)
    assert problems == []
    assert [one.resumable for one in whole] == [True, False, False, True, True]
    BaseLanguageModel.from_pretrained(folder / "checkpoint-1")


def flip(folder: Path) -> None:
    raw = bytearray((folder / "optimizer.safetensors").read_bytes())
    raw[-3] ^= 1
    (folder / "optimizer.safetensors").write_bytes(raw)


def cut(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_bytes(path.read_bytes()[:-1])


def emptied(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def of_another_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("optimizer-3"), folder)


def of_another_run(folder: Path) -> None:
    """A whole folder under the right name, with other content."""
    other = (folder.with_name("optimizer-3") / "optimizer.safetensors").read_bytes()
    shutil.rmtree(folder)
    with publish_folder(folder, {"step": 4}) as sink:
        sink.write("optimizer.safetensors", other)


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


DAMAGE: dict[Callable[[Path], None], str] = {
    flip: "optimizer.safetensors is damaged",
    cut: "MANIFEST.json is damaged",
    emptied: "optimizer.safetensors is missing",
    gone: "its optimizer state was not kept",
    of_another_checkpoint: "is not the state that checkpoint-4 was saved with",
    of_another_run: "is not the state that checkpoint-4 was saved with",
    linked: "is not a folder of the run",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_passed_over_to_the_one_before(
    finished: Finished, copied: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    config, folder, _ = finished
    damage(copied / "optimizer-4")
    _, problems = verify_run(copied)
    assert [DAMAGE[damage] in line for line in problems] == ([] if damage is gone else [True])
    assert newest_valid(copied)[0].name == "checkpoint-4"
    run(going_on(finished, copied), resume=True, quiet=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: checkpoint-4 is passed over: ")
    assert DAMAGE[damage] in line
    shutil.rmtree(copied / "elsewhere", ignore_errors=True)
    for name in ("checkpoint-4/model.safetensors", "optimizer-4/optimizer.safetensors"):
        assert (copied / name).read_bytes() == (folder / name).read_bytes()
    assert states(copied) == ["optimizer-3", "optimizer-4"]
    assert config.training.checkpoints.keep_optimizer == "newest"


@pytest.mark.parametrize("step", [3, 4])
def test_a_damaged_checkpoint_leaves_one_with_a_state(finished: Finished, copied: Path, step: int) -> None:
    path = copied / f"checkpoint-{step}" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert newest_valid(copied, to_resume=True)[0].name == f"checkpoint-{7 - step}"
    run(going_on(finished, copied, "training.train_steps=6"), resume=True, quiet=True, allowed_changes=["training"])
    assert states(copied) == ["optimizer-5", "optimizer-6"]


def test_a_state_that_was_not_kept_is_an_error_that_says_so(finished: Finished, copied: Path, tmp_path: Path) -> None:
    """Training does not begin again at step 0 in silence."""
    for name in ("checkpoint-3", "checkpoint-4"):
        shutil.rmtree(copied / name)
    says = (
        r"only step 0 is left to begin again from.*checkpoint-2 is passed over: \S+checkpoint-2: its optimizer state "
        "was not kept: training.checkpoints.keep_optimizer: all keeps it"
    )
    with pytest.raises(CheckpointError, match=says):
        run(going_on(finished, copied), resume=True, quiet=True)
    assert newest_valid(copied)[0].name == "checkpoint-2"
    assert main(["verify", str(copied)]) == 0
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.rmtree(copied / name)
    run(going_on(finished, copied), resume=True, quiet=True)
    assert {path.name: content(path) for path in checkpoints(copied)}.keys() == finished[2].keys()


def test_all_keeps_each_state_in_its_checkpoint(finished: Finished, copied: Path) -> None:
    """From where the setting changes, and back."""
    more = going_on(finished, copied, "training.train_steps=7", "training.checkpoints.keep_optimizer=all")
    run(more, resume=True, quiet=True, allowed_changes=["training.train_steps"])
    assert states(copied) == ["optimizer-3", "optimizer-4"]
    kept = {step: (copied / f"checkpoint-{step}" / "optimizer.safetensors").read_bytes() for step in (5, 6, 7)}
    run(going_on(finished, copied, "training.train_steps=8"), resume=True, quiet=True, allowed_changes=["training"])
    assert states(copied) == ["optimizer-8"]
    for step, state in kept.items():
        assert optimizer_file(copied / f"checkpoint-{step}").read_bytes() == state
    shutil.rmtree(copied / "checkpoint-8")
    assert newest_valid(copied, to_resume=True)[0].name == "checkpoint-7"


def test_a_state_without_its_checkpoint_is_removed(finished: Finished, copied: Path) -> None:
    """Left by a process that ended between the two, or by retention that could not finish."""
    for name in ("optimizer-1", "optimizer-2"):
        shutil.copytree(copied / "optimizer-3", copied / name)
    shutil.rmtree(copied / "checkpoint-1")
    shutil.rmtree(copied / "checkpoint-4")
    (copied / "optimizer-notes").mkdir()
    run(going_on(finished, copied), resume=True, quiet=True)
    assert states(copied) == ["optimizer-3", "optimizer-4", "optimizer-notes"]
    found, alone = outcome(copied), outcome(finished[1])
    assert found["checkpoint-4/model.safetensors"] == alone["checkpoint-4/model.safetensors"]


def test_retention_takes_a_state_with_its_checkpoint(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("training.checkpoints.keep=1", "training.checkpoints.ephemeral_minutes=1e-9")
    run(going_on(finished, folder, "training.checkpoints.every_steps=2", *settings), quiet=True)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-0", "checkpoint-4"]
    assert states(folder) == ["optimizer-4"]
