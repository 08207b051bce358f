"""`foundry verify`: an honest run is never accused, and a checkpoint of another run is seen."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core import ExperimentConfig, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.files import publish_folder
from foundry_core.storage.manifest import read_manifest, sealed
from foundry_core.testing.toy_language import ToyCorpus

Train = Callable[..., Path]


@pytest.fixture
def train(experiment: Callable[..., ExperimentConfig], tmp_path: Path, one_thread: None) -> Train:
    """Trains a tiny model, or goes on with it when some keys are allowed to be others; gives the run's folder."""

    def go(*allowed: str, folder: str = "a", data: Any = None, **training: Any) -> Path:
        settings = {"lr_scheduler": "constant", "warmup_steps": 0, "train_steps": None, **training}
        rnn = {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}
        shared = {"output_dir": str(tmp_path / "tokenizer")}
        config = experiment(
            "lstm", tmp_path / folder, data=data or {}, model={"rnn": rnn}, training=settings, tokenizer=shared
        )
        run(config, resume=bool(allowed), allowed_changes=allowed, quiet=True)
        return tmp_path / folder / "run"

    return go


def since(folder: Path) -> dict[str, str]:
    whole, problems = verify_run(folder)
    assert problems == []
    return {one.folder.name: one.since for one in whole}


KEPT_ONE = {"checkpoints": {"every_steps": 4, "keep": 1}}


def test_each_checkpoint_is_derived_from_the_one_before(train: Train) -> None:
    folder = train(train_steps=8, checkpoints={"every_steps": 4})
    assert since(folder) == {
        "checkpoint-0": "the beginning",
        "checkpoint-4": "checkpoint-0",
        "checkpoint-8": "checkpoint-4",
    }


def test_a_retired_parent_is_bridged_from_the_newest_earlier_one(train: Train) -> None:
    assert since(train(train_steps=8, **KEPT_ONE))["checkpoint-8"] == "checkpoint-0"


def test_a_new_batch_size_with_a_retired_start_raises_no_alarm(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(train_steps=8, **KEPT_ONE)
    train("data.batch_size", "training.train_steps", data={"batch_size": 2}, train_steps=16, **KEPT_ONE)
    assert since(folder) == {"checkpoint-0": "the beginning", "checkpoint-16": "not derivable: checkpoint-12 is gone"}
    assert main(["verify", str(folder)]) == 0
    assert "all 2 checkpoints are whole, and 1 follow from the one before" in capsys.readouterr().out


def test_after_another_batch_size_every_step_still_has_its_rows(train: Train) -> None:
    folder = train(train_steps=8)
    train("data.batch_size", "training.train_steps", data={"batch_size": 2}, train_steps=16)
    assert [one.state.samples for one in verify_run(folder)[0]] == [0, 32, 48]


def test_a_budget_that_leaves_steps_without_rows_is_refused(train: Train) -> None:
    folder = train(epochs=0.1)
    with pytest.raises(CheckpointError, match=r"rows for \d+ steps of 2: a step was larger before"):
        train("data.batch_size", "training.epochs", data={"batch_size": 2}, epochs=0.12)
    assert since(folder)


def test_a_batch_size_that_changed_in_between_raises_no_alarm(train: Train) -> None:
    folder = train(train_steps=4, **KEPT_ONE)
    train("data.batch_size", "training.train_steps", data={"batch_size": 2}, train_steps=8, **KEPT_ONE)
    train("data.batch_size", "training.train_steps", data={"batch_size": 4}, train_steps=16, **KEPT_ONE)
    assert since(folder) == {"checkpoint-0": "the beginning", "checkpoint-16": "not derivable: checkpoint-12 is gone"}


def test_a_budget_resumed_after_a_short_step_raises_no_alarm(train: Train) -> None:
    schedule = {"checkpoints": {"keep": 1, "every_steps": 1}}
    folder = train(epochs=0.04, **schedule)
    (one,) = [each for each in verify_run(folder)[0] if each.state.step]
    assert one.state.samples % 4
    train("training.epochs", epochs=0.08, **schedule)
    beginning, end = since(folder).values()
    assert (beginning, end.startswith("not derivable: ")) == ("the beginning", True)


def edited(checkpoint: Path, **facts: Any) -> None:
    (checkpoint / MANIFEST).write_bytes(sealed(read_manifest(checkpoint) | facts))


def test_a_checkpoint_of_another_run_is_seen(train: Train) -> None:
    schedule = {"train_steps": 6, "checkpoints": {"every_steps": 2}}
    folder, other = train(**schedule), train(folder="b", learning_rate=0.5, **schedule)
    shutil.rmtree(folder / "checkpoint-4")
    shutil.copytree(other / "checkpoint-4", folder / "checkpoint-4")
    whole, problems = verify_run(folder)
    assert [one.folder.name for one in whole] == ["checkpoint-0", "checkpoint-2", "checkpoint-6"]
    assert len(problems) == 1
    assert "does not follow from the checkpoint-2 next to it, but from another one of that name" in problems[0]


def test_a_checkpoint_after_a_foreign_one_is_noticed(train: Train) -> None:
    schedule = {"train_steps": 6, "checkpoints": {"every_steps": 2}}
    folder, other = train(**schedule), train(folder="b", learning_rate=0.5, **schedule)
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.rmtree(folder / name)
    shutil.rmtree(folder / "optimizer-4")
    for name in ("checkpoint-4", "optimizer-4"):
        shutil.copytree(other / name, folder / name)
    _, problems = verify_run(folder)
    assert len(problems) == 1
    assert "checkpoint-6 does not follow from the checkpoint-4 next to it" in problems[0]


def test_settings_that_were_allowed_to_change_are_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(train_steps=2)
    train("training.learning_rate", "training.train_steps", train_steps=4, learning_rate=0.25)
    assert main(["verify", str(folder)]) == 0
    assert "checkpoint-4 continues with changes: training.learning_rate was 0.0005, is 0.25; " in (
        capsys.readouterr().out
    )


def test_another_text_or_plugin_is_named_where_it_was_allowed(
    train: Train, corpus: ToyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "train.txt"
    text.write_text(corpus.train.read_text())
    folder = train(train_steps=2, data={"training_corpus": str(text)})
    text.write_text(corpus.test.read_text())
    train("training.train_steps", "data", train_steps=4, data={"training_corpus": str(text)})
    last = folder / "checkpoint-4"
    content = json.loads((last / "config.json").read_bytes())
    content["foundry"]["plugin"]["version"] = "9.9"
    published(last, "config.json", json.dumps(content).encode())
    assert main(["verify", str(folder)]) == 0
    named = "data: the training corpus changed since"
    assert f"plugin was foundry-rnn 0.1.0, is foundry-rnn 9.9; {named}\n" in capsys.readouterr().out


def test_runs_with_the_same_text_seen_have_equal_digests(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folders = train(train_steps=2), train(folder="b", train_steps=2, learning_rate=0.5)
    other = train(folder="c", train_steps=2, data={"tokens_per_row": 21})
    seen = [[each.text_seen for each in verify_run(folder)[0]] for folder in (*folders, other)]
    assert seen[0] == seen[1]
    assert len({*seen[0], *seen[2]}) == 4
    assert main(["verify", str(other)]) == 0
    assert seen[2][-1] in capsys.readouterr().out


def test_a_parent_removed_during_training_stops_nothing(train: Train) -> None:
    folder = train(train_steps=4)
    edited(folder / "checkpoint-4", parent={"checkpoint": "checkpoint-0", "sha256": None})
    assert since(folder)["checkpoint-4"] == "checkpoint-0"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"parent": 3}, "its parent is damaged"),
        ({"parent": {"checkpoint": "checkpoint-0"}}, "its parent is damaged"),
        ({"parent": {"checkpoint": "checkpoint-0", "sha256": 1}}, "does not follow from"),
        ({"parent": None}, None),
    ],
)
def test_a_lineage_that_is_none_is_one_line(train: Train, facts: dict[str, Any], says: str | None) -> None:
    folder = train(train_steps=2)
    edited(folder / "checkpoint-2", **facts)
    _, problems = verify_run(folder)
    assert [says in line for line in problems] == [True] if says else problems == []


def published(checkpoint: Path, *replaced: Any, **changed: Any) -> None:
    """Publish a checkpoint whose state, and a file, differ from this one's, with a manifest that fits."""
    manifest = read_manifest(checkpoint)
    files = {name: (checkpoint / name).read_bytes() for name in manifest["files"]} | dict(
        [replaced] if replaced else []
    )
    state = json.loads(files["trainer_state.json"])
    state["foundry"].update(changed)
    files["trainer_state.json"] = json.dumps(state).encode()
    facts = {key: value for key, value in manifest.items() if key not in ("format", "files")}
    step = state["foundry"]["step"]
    shutil.rmtree(checkpoint)
    with publish_folder(checkpoint.with_name(f"checkpoint-{step}"), facts | {"step": step}) as sink:
        for name, content in files.items():
            sink.write(name, content)


@pytest.mark.parametrize("changed", [{"ledger": "0" * 64}, {"tokens_seen": 1}, {"words_seen": 1}, {"samples": 9}])
def test_a_position_that_does_not_follow_is_a_problem(train: Train, changed: dict[str, Any]) -> None:
    folder = train(train_steps=2)
    published(folder / "checkpoint-2", **changed)
    _, (problem,) = verify_run(folder)
    assert problem.startswith(f"{folder}/checkpoint-2: its {next(iter(changed))} is ")


def test_a_position_too_expensive_to_derive_is_not_derived(train: Train) -> None:
    folder, far = train(train_steps=2), 10**15
    published(folder / "checkpoint-2", step=far, samples=4 * far)
    started = time.perf_counter()
    assert since(folder)[f"checkpoint-{far}"].startswith("not derived: 4,000,000,000,000,000 rows since ")
    assert time.perf_counter() - started < 5
