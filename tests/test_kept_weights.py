"""Averaged and best weights: what is evaluated, saved and gone back to, and that a resumed run has the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from foundry_core import ExperimentConfig, run
from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.checkpoints.state import WeightsState
from foundry_core.config.sections import TrainingConfig
from foundry_core.errors import CheckpointError
from foundry_core.training.averaging import Averaging
from foundry_core.training.best_weights import BestWeights
from tests.each import each
from tests.interruption import killed_before, outcome

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, torch.Tensor]
Experiment = Callable[..., ExperimentConfig]
STEPS = 8


@pytest.fixture
def make(experiment: Experiment, corpus: Any, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """`make(name, **training)`: a tiny LSTM under plain descent, evaluated and saved after each step."""

    def made(name: str, **training: Any) -> ExperimentConfig:
        settings = {
            "output_dir": str(tmp_path / name),
            "train_steps": STEPS,
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler": "constant",
            "max_grad_norm": None,
            "evaluate_every_steps": 1,
            "checkpoints": {"every_steps": 1, "keep_optimizer": "all"},
            **training,
        }
        return experiment(
            "lstm",
            tmp_path,
            data={"test_corpus": str(corpus.test)},
            training=settings,
            tokenizer={"output_dir": str(tmp_path / "tokenizer")},
            logging={"log_every_steps": 1},
        )

    return made


def section(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": "run", "train_steps": 30, **settings})


def saved(config: ExperimentConfig, step: int) -> Tensors:
    path = Path(config.training.output_dir) / f"checkpoint-{step}" / "model.safetensors"
    tensors: Tensors = load(path.read_bytes())
    return tensors


def beside(config: ExperimentConfig, step: int, kind: str) -> Tensors:
    """The copies of a kind that a checkpoint contains, under the names of the weights file."""
    folder = Path(config.training.output_dir) / f"checkpoint-{step}"
    mark, tensors = f"weights:{kind}/", load(optimizer_file(folder).read_bytes())
    return {f"model.{key.removeprefix(mark)}": tensor for key, tensor in tensors.items() if key.startswith(mark)}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def evaluations(config: ExperimentConfig) -> list[tuple[int, float]]:
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [(each["step"], each["loss"]) for each in map(json.loads, lines) if each["kind"] == "eval"]


def weights_state(config: ExperimentConfig, step: int) -> dict[str, Any]:
    folder = Path(config.training.output_dir) / f"checkpoint-{step}"
    found: dict[str, Any] = json.loads((folder / "trainer_state.json").read_bytes())["foundry"]["weights"]
    return found


# Averages.


def test_asgd_saves_the_mean_and_trains_as_sgd(make: Callable[..., ExperimentConfig]) -> None:
    plain, averaged = make("plain"), make("averaged", optimizer="asgd")
    run(plain, quiet=True)
    run(averaged, quiet=True)
    assert same(saved(averaged, 0), saved(plain, 0))
    for step in range(1, STEPS + 1):
        assert same(beside(averaged, step, "raw"), saved(plain, step))
        for name, mean in saved(averaged, step).items():
            expected = torch.stack([saved(plain, each)[name].double() for each in range(1, step + 1)]).mean(dim=0)
            torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)
    assert evaluations(averaged)[0] == evaluations(plain)[0]
    assert evaluations(averaged)[1:] != evaluations(plain)[1:]


def merity(losses: list[float], interval: int) -> int | None:
    """The evaluation at which AWD-LSTM's main.py switches to the average; it counts as t there."""
    best_val_loss: list[float] = []
    for number, val_loss in enumerate(losses):
        if len(best_val_loss) > interval and val_loss > min(best_val_loss[:-interval]):
            return number
        best_val_loss.append(val_loss)
    return None


@each("seed", range(40))
def test_the_average_begins_as_that_of_awd_lstm(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.rand(30, generator=generator) - torch.arange(30) / 40).tolist()
    interval, model, state = 1 + seed % 6, torch.nn.Linear(2, 2), WeightsState()
    averaging = Averaging(section(optimizer="asgd", asgd_nonmonotonic_interval=interval), model, state)
    begun = None
    for number, loss in enumerate(losses):
        averaging.step_taken()
        averaging.observe(loss)
        if begun is None and state.averaged:
            begun = number
    assert begun == merity(losses, interval)
    assert state.averaged == (0 if begun is None else 30 - begun)


def test_the_model_is_the_same_after_an_average_was_applied() -> None:
    model, state = torch.nn.Linear(2, 2), WeightsState()
    averaging = Averaging(section(optimizer="asgd"), model, state)
    averaging.step_taken()
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    averaging.step_taken()

    def evaluate() -> float:
        with averaging.applied():
            torch.testing.assert_close(model.weight.detach(), first + 0.5)
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert torch.equal(model.weight.detach(), first + 1)


# The best weights.

WORSE = {"lr_scheduler": "plateau", "plateau_factor": 0.5, "plateau_patience": 0, "learning_rate": 40.0}
"""Steps so long that evaluations get worse again and again."""


@each("optimizer", ["sgd", "asgd"])
def test_the_last_checkpoint_has_the_best_weights(optimizer: str, make: Callable[..., ExperimentConfig]) -> None:
    settings = {**WORSE, "optimizer": optimizer}
    plain, restored = make(f"plain {optimizer}", **settings), make(optimizer, restore_best="at_end", **settings)
    run(plain, quiet=True)
    run(restored, quiet=True)
    best, loss = min(evaluations(plain), key=lambda pair: pair[1])
    assert best < STEPS
    assert weights_state(restored, STEPS)["best_step"] == best
    for step in range(STEPS):
        assert same(saved(restored, step), saved(plain, step))
    assert same(saved(restored, STEPS), saved(plain, best))
    assert evaluations(restored) == [*evaluations(plain), (STEPS, loss)]


def test_a_lowered_rate_goes_on_from_the_best_weights(make: Callable[..., ExperimentConfig]) -> None:
    config = make("run", restore_best="when_lowered", **WORSE)
    run(config, quiet=True)
    losses = dict(evaluations(config)[:STEPS])
    lowered = [step for step in range(2, STEPS + 1) if losses[step] >= min(losses[each] for each in range(1, step))]
    assert lowered
    for step in lowered:
        best = min(range(1, step), key=lambda each: losses[each])
        assert same(saved(config, step), saved(config, best))


def test_without_an_evaluation_that_is_worse_nothing_goes_back(make: Callable[..., ExperimentConfig]) -> None:
    plain, restored = make("plain", learning_rate=0.1), make("restored", learning_rate=0.1, restore_best="at_end")
    run(plain, quiet=True)
    run(restored, quiet=True)
    assert evaluations(restored) == evaluations(plain)
    assert same(saved(restored, STEPS), saved(plain, STEPS))


def test_the_best_weights_are_those_of_the_average() -> None:
    model, state = torch.nn.Linear(2, 2), WeightsState()
    settings = section(optimizer="asgd", restore_best="at_end")
    averaging, best = Averaging(settings, model, state), BestWeights(settings, model, state)
    averaging.step_taken()
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    averaging.step_taken()
    with averaging.applied():
        best.observe("improved", 2)
    assert not best.restore(2)
    assert best.restore(3)
    torch.testing.assert_close(model.weight.detach(), first + 0.5)


# The loss.


def test_over_rows_the_gradient_is_as_large_as_a_row_is_long(make: Callable[..., ExperimentConfig]) -> None:
    """Zaremba et al. (2014) sum over time; split into micro-batches it is the same gradient."""
    once = {"train_steps": 1, "weight_decay": 0.0}
    tokens, rows = make("tokens", **once), make("rows", loss_sum_over="rows", **once)
    split = make("split", loss_sum_over="rows", gradient_accumulation_steps=2, **once)
    reports = []
    for config in (tokens, rows, split):
        run(config, quiet=True)
        lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
        reports.append(json.loads(lines[0]))
    assert reports[1]["loss"] == reports[0]["loss"]
    longer = reports[0]["tokens_seen"] / 4
    assert longer > 10
    assert reports[1]["grad_norm"] == pytest.approx(longer * reports[0]["grad_norm"], rel=1e-5)
    assert reports[2]["tokens_seen"] == 2 * reports[0]["tokens_seen"]
    assert reports[2]["grad_norm"] == pytest.approx(longer * reports[0]["grad_norm"], rel=0.5)
    for name, start in saved(tokens, 0).items():
        moved = saved(rows, 1)[name] - start
        torch.testing.assert_close(moved, longer * (saved(tokens, 1)[name] - start), rtol=1e-3, atol=1e-5)


def test_a_schedule_of_epochs_follows_those_of_the_run(make: Callable[..., ExperimentConfig]) -> None:
    schedule = {"lr_scheduler": "step", "step_after_epochs": 1}
    config = make("run", train_steps=None, epochs=3.3, gradient_accumulation_steps=13, **schedule)
    run(config, quiet=True)
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    steps = [each for each in map(json.loads, lines) if each["kind"] == "train"]
    before = [0.0, *(each["epoch"] for each in steps[:-1])]
    assert [each["learning_rate"] for each in steps] == [0.5 ** int(epoch) for epoch in before]
    assert {each["learning_rate"] for each in steps} == {1.0, 0.5, 0.25, 0.125}


# Interrupted equals uninterrupted.

RECIPES: dict[str, dict[str, Any]] = {
    "average from the first step": {"optimizer": "asgd", "sgd_momentum": 0.5},
    "average from a bad evaluation": {
        "optimizer": "asgd",
        "asgd_nonmonotonic_interval": 1,
        "learning_rate": 40.0,
        "restore_best": "at_end",
    },
    "best at the end": {**WORSE, "restore_best": "at_end"},
    "best when lowered": {**WORSE, "restore_best": "when_lowered", "sgd_momentum": 0.5},
    "steps over rows": {"lr_scheduler": "step", "step_after_epochs": 0, "epochs": 0.2, "loss_sum_over": "rows"},
}


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_and_resumed_run_keeps_the_same_weights(recipe: str, make: Callable[..., ExperimentConfig]) -> None:
    settings = {"checkpoints": {"every_steps": 3}, **RECIPES[recipe]}
    if "epochs" in settings:
        settings["train_steps"] = None
    alone = make("alone", **settings)
    steps = run(alone, quiet=True).step
    expected = outcome(alone)
    weights = expected["state"]["foundry"]["weights"]
    if "average" in recipe:
        assert weights["averaged"] or weights["best_step"]
    for forward_pass in (2, 5, steps):
        broken = make(f"broken-{forward_pass}", **settings)
        killed_before(broken, forward_pass)
        run(broken, resume=True, quiet=True)
        assert outcome(broken) == expected


def test_a_checkpoint_without_its_copies_is_refused(make: Callable[..., ExperimentConfig]) -> None:
    """The state records an average or a best step that the optimizer's file does not contain."""
    config = make("run", train_steps=1)
    run(config, quiet=True)
    file, model = optimizer_file(Path(config.training.output_dir) / "checkpoint-1"), torch.nn.Linear(2, 2)
    averaging = Averaging(section(optimizer="asgd"), model, WeightsState())
    best = BestWeights(section(restore_best="at_end"), model, WeightsState())
    with pytest.raises(CheckpointError, match="lacks weights:raw/weight$"):
        averaging.load(file, WeightsState(averaged=3))
    with pytest.raises(CheckpointError, match="lacks weights:best/weight$"):
        best.load(file, WeightsState(best_step=1))
