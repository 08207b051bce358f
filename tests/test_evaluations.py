"""Which text is evaluated when, what its loss decides, and how much had been seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foundry_core import ExperimentConfig, hookimpl, load_config
from foundry_core.checkpoints.checkpoint import checkpoints, is_ephemeral
from foundry_core.checkpoints.state import read_state
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.data.preparation import experiment_corpora
from foundry_core.errors import CheckpointError, DataError
from foundry_core.training.run import run
from tests.interruption import die, killed, outcome

Experiment = Callable[..., ExperimentConfig]
ROUGH = {"learning_rate": 0.3, "lr_scheduler": "constant"}
"""Training whose validation loss soon goes up and down."""


@pytest.fixture(scope="session")
def texts(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The test text in two halves: one to choose by, one for the end."""
    folder, lines = tmp_path_factory.mktemp("held_out"), corpus.test.read_text().splitlines(keepends=True)
    (folder / "validation.txt").write_text("".join(lines[::2]))
    (folder / "test.txt").write_text("".join(lines[1::2]))
    return {"validation_corpus": str(folder / "validation.txt"), "test_corpus": str(folder / "test.txt")}


def metrics(config: ExperimentConfig, kind: str) -> list[dict[str, Any]]:
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def evaluated(config: ExperimentConfig) -> list[tuple[int, str]]:
    return [(record["step"], record["corpus"]) for record in metrics(config, "eval")]


def test_the_test_corpus_waits_for_the_end_unless_asked(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path
) -> None:
    schedule, outcomes = {"train_steps": 4, "evaluate_every_steps": 2}, {}
    for name, data, more in (
        ("both", texts, {}),
        ("always", texts, {"evaluate_test": "always"}),
        ("test alone", {"test_corpus": texts["test_corpus"]}, {}),
        ("validation alone", {"validation_corpus": texts["validation_corpus"]}, {}),
    ):
        config = experiment("lstm", tmp_path / name, data=data, training={**schedule, **more})
        run(config, quiet=True)
        outcomes[name] = evaluated(config)
    assert outcomes == {
        "both": [(2, "validation"), (4, "validation"), (4, "test")],
        "always": [(2, "validation"), (2, "test"), (4, "validation"), (4, "test")],
        "test alone": [(2, "test"), (4, "test")],
        "validation alone": [(2, "validation"), (4, "validation")],
    }


def test_the_validation_loss_decides_whatever_the_test_loss(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path
) -> None:
    """Two runs with other texts for the test take the same course; what the schedule has seen is the validation."""
    schedule = {"lr_scheduler": "plateau", "plateau_patience": 0, "learning_rate": 0.3, "optimizer": "sgd"}
    schedule |= {"train_steps": 8, "evaluate_every_steps": 1, "evaluate_test": "always"}
    (tmp_path / "other.txt").write_text("the man is the man .\n" * 3)
    runs = {}
    for name, test in (("one", texts["test_corpus"]), ("two", str(tmp_path / "other.txt"))):
        config = experiment("lstm", tmp_path / name, data=texts | {"test_corpus": test}, training=schedule)
        state = run(config, quiet=True)
        weights = (Path(config.training.output_dir) / "checkpoint-8" / "model.safetensors").read_bytes()
        records = metrics(config, "eval")
        losses = {name: [each["loss"] for each in records if each["corpus"] == name] for name in ("validation", "test")}
        assert state.schedule.best == min(losses["validation"])
        assert [each["validation_loss"] for each in state.log if "validation_loss" in each] == losses["validation"]
        assert [each["eval_loss"] for each in state.log if "eval_loss" in each] == losses["test"]
        runs[name] = (weights, state.schedule, losses["validation"]), losses["test"]
    assert runs["one"][0] == runs["two"][0]
    assert runs["one"][1] != runs["two"][1]


@pytest.fixture
def stalling(experiment: Experiment, texts: dict[str, str], tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """A run that would take 40 steps and ends after three evaluations in a row that bring nothing."""

    def make(name: str, **training: Any) -> ExperimentConfig:
        schedule = {"train_steps": 40, "evaluate_every_steps": 2, "early_stopping_patience": 3, **ROUGH}
        logging = {"log_every_steps": 3}
        return experiment("lstm", tmp_path / name, data=texts, training={**schedule, **training}, logging=logging)

    return make


def test_a_run_without_improvement_ends_in_order(
    stalling: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = stalling("run")
    state = run(config, quiet=True)
    losses = [each["loss"] for each in metrics(config, "eval") if each["corpus"] == "validation"]
    assert state.step == 2 * len(losses) < 40
    assert min(losses) == losses[-4]
    # No earlier evaluation had three behind it that brought nothing.
    assert all(min(losses[: at + 1]) < min(losses[: at - 2]) for at in range(3, len(losses) - 1))
    folder = Path(config.training.output_dir)
    last = checkpoints(folder)[-1]
    assert last.name == f"checkpoint-{state.step}"
    assert not is_ephemeral(last)
    assert read_state(last).log == state.log
    assert evaluated(config)[-2:] == [(state.step, "validation"), (state.step, "test")]
    assert metrics(config, "train")[-1]["step"] == state.step
    assert (
        f"stopped after step {state.step} of 40: no better loss than {min(losses):.4f} in 3" in capsys.readouterr().err
    )
    assert verify_run(folder)[1] == []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("run.json", ".lock")]
    before = {path: path.read_bytes() for path in files}
    assert run(config, resume=True, quiet=True).step == state.step
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.long
def test_a_stalled_run_killed_anywhere_ends_at_the_same_step(stalling: Callable[..., ExperimentConfig]) -> None:
    """Also in the evaluation that ends it, before its checkpoint is saved."""
    schedule = {"checkpoints": {"every_steps": 3}}
    whole = stalling("whole", **schedule)
    end = run(whole, quiet=True).step
    # Killed at the evaluation of a step, with a checkpoint every 3 steps: evaluations before it are taken again or not.
    for step in (2, end - 4, end - 2, end):
        config = stalling(f"killed at {step}", **schedule)

        class Die:
            at = step

            @hookimpl
            def foundry_evaluated(self, report: Any) -> None:
                if report.step == self.at:
                    die()

        killed(partial(run, config, extra_observers=[Die()], quiet=True))
        assert run(config, resume=True, quiet=True).step == end
        assert outcome(config) == outcome(whole), step


def test_evaluations_fall_on_the_steps_of_the_checkpoints(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path
) -> None:
    """As the same schedule and by name, step 0 included; the short form leaves step 0 out, as it always has."""
    data = {"test_corpus": texts["test_corpus"]}
    schedule = {"log_base": 2, "steps": [5], "milestones": {"words": [300]}}
    for name, at in (("written", schedule), ("named", "checkpoints")):
        settings = {"train_steps": 6, "checkpoints": schedule, "evaluate_at": at}
        config = experiment("lstm", tmp_path / name, data=data, training=settings)
        run(config, quiet=True)
        saved = [int(path.name.partition("-")[2]) for path in checkpoints(config.training.output_dir)]
        assert {0, 1, 2, 4, 5, 6} <= set(saved)
        assert [step for step, _ in evaluated(config)] == saved
        assert [each["step"] for each in read_state(checkpoints(config.training.output_dir)[0]).log] == [0]
    short = experiment("lstm", tmp_path / "short", data=data, training={"train_steps": 6, "evaluate_every_steps": 3})
    run(short, quiet=True)
    assert [step for step, _ in evaluated(short)] == [3, 6]


def test_every_evaluation_says_how_much_had_been_seen(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train_steps": 4, "evaluate_at": {"every_steps": 2}}
    config = experiment("lstm", tmp_path, data=texts, training=settings, logging={"log_every_steps": 1})
    run(config)
    amounts = ("tokens_seen", "words_seen", "bytes_seen")
    steps = {each["step"]: [each[amount] for amount in amounts] for each in metrics(config, "train")}
    steps[0] = [0, 0, 0]
    assert all(min(steps[step]) > 0 for step in (1, 2, 3, 4))
    for record in metrics(config, "eval"):
        assert [record[amount] for amount in amounts] == steps[record["step"]]
    lines = [line for line in capsys.readouterr().err.splitlines() if " loss " in line and " after " in line]
    assert [line.split("  ")[1].split()[0] for line in lines] == ["validation", "validation", "validation", "test"]
    assert lines[-1].endswith(f"after {steps[4][1]} words, {steps[4][0]} tokens")


def test_a_sink_gets_the_curves_of_both_texts(experiment: Experiment, texts: dict[str, str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"train_steps": 4, "evaluate_every_steps": 2}
    config = experiment("lstm", tmp_path, data=texts, training=settings, logging={"tensorboard": True})
    run(config, quiet=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for group, steps in (("validation", [2, 4]), ("eval", [4])):
        for name in ("loss", "perplexity", "tokens_seen", "words_seen", "bytes_seen"):
            assert [event.step for event in events.Scalars(f"{group}/{name}")] == steps


def test_a_validation_corpus_of_other_texts_is_refused(
    experiment: Experiment, corpus: Any, texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether its documents stand in the training or in the test text; of a part of them, the share is reported."""
    test, training = Path(texts["test_corpus"]).read_text(), corpus.train.read_text()
    reordered = "".join(reversed(test.splitlines(keepends=True)))
    for content, other in (
        (test, r"has the content of .*test\.txt, which is in data\.test_corpus"),
        (reordered, "every one of its .* documents also stands in data.test_corpus"),
        (training, r"has the content of .*train\.txt, which is in data\.training_corpus"),
        (
            training[: training.index("\n", len(training) // 2)],
            "every one of its .* documents also stands in data.training_corpus",
        ),
    ):
        (tmp_path / "validation.txt").write_text(content)
        data = texts | {"validation_corpus": str(tmp_path / "validation.txt")}
        with pytest.raises(DataError, match=rf"^data\.validation_corpus: .*{other}"):
            experiment_corpora(experiment("lstm", tmp_path, data=data))
    (tmp_path / "validation.txt").write_text(test.splitlines()[0] + "\nzygotes zigzag .\n")
    capsys.readouterr()
    corpora = experiment_corpora(experiment("lstm", tmp_path, data=data))
    assert "data.validation_corpus: 50.0% of the documents (1 of 2)" in capsys.readouterr().err
    assert corpora.description()["validation_corpus"]["names"] == ["validation.txt"]


def test_the_validation_text_belongs_to_the_run(experiment: Experiment, texts: dict[str, str], tmp_path: Path) -> None:
    """Another one is other data on resuming; the text that was trained on is the same with and without it."""
    validation = tmp_path / "validation.txt"
    shutil.copy(texts["validation_corpus"], validation)
    settings = {"train_steps": 2, "evaluate_every_steps": 1}
    config = experiment("lstm", tmp_path / "a", data={"validation_corpus": str(validation)}, training=settings)
    run(config, quiet=True)
    without = experiment("lstm", tmp_path / "b", training={"train_steps": 2})
    run(without, quiet=True)
    first, second = (verify_run(each.training.output_dir)[0][-1].text_seen for each in (config, without))
    assert first == second
    shutil.copy(texts["test_corpus"], validation)
    with pytest.raises(CheckpointError, match="the validation corpus changed since"):
        run(load_config(config.resolved(), ["training.train_steps=2"]), resume=True, quiet=True)


def test_checkpoints_that_are_evaluated_keep_their_schedule(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path
) -> None:
    """Evaluations decide, and so their schedule is no longer free on resuming; how many checkpoints are kept is."""
    settings = {"train_steps": 4, "checkpoints": {"every_steps": 2}, "evaluate_at": "checkpoints"}
    config = experiment("lstm", tmp_path, data=texts, training=settings)
    run(config, quiet=True)
    other = load_config(config.resolved(), ["training.checkpoints={every_steps: 3, keep: 1}"])
    with pytest.raises(
        CheckpointError, match=r"evaluate_at is checkpoints, and training\.checkpoints\.every_steps was 2"
    ):
        run(other, resume=True, quiet=True)
    assert run(other, resume=True, quiet=True, allowed_changes=["training.evaluate_at"]).step == 4
    kept = load_config(config.resolved(), ["training.checkpoints.keep=1"])
    assert run(kept, resume=True, quiet=True).step == 4


def test_prepare_and_plan_show_the_validation_corpus(
    experiment: Experiment, texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    config = experiment("lstm", tmp_path, data=texts, training={"evaluate_at": "checkpoints"})
    path.write_text(json.dumps(config.resolved()))
    assert main(["data", "prepare", str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["corpus", "training", "validation", "test"]
    assert [line.split()[-1] for line in printed if line.startswith("documents")] == ["20"]
    assert any(line.startswith("validation_corpus: 1 file: validation.txt") for line in printed)
    assert main(["plan", str(path), "--no-timing", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["unknown_share_of_validation"], plan["unknown_share_of_test"]) == (0, 0)
    assert plan["evaluations"] == plan["checkpoints"] == [0, 10]
