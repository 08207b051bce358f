"""Learning-rate schedules step by step, the steps at which checkpoints are made, and who is decayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import ExperimentConfig, Optimizer, create_model
from foundry_core.config.sections import TrainingConfig
from foundry_core.data.preparation import (
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
)
from foundry_core.errors import PluginError
from foundry_core.models.roles import derived_roles
from foundry_core.training.optimizers import build_optimizer, parameter_groups
from foundry_core.training.plan import RunPlan
from foundry_core.training.schedule import Schedule, warmup_steps
from tests.each import each

Experiment = Callable[..., ExperimentConfig]


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": "run", "train_steps": 10, "learning_rate": 0.5, **settings})


def rates(steps: int, **settings: Any) -> list[float]:
    schedule = Schedule(training(**settings), steps)
    return [schedule.rate(step) for step in range(1, steps + 1)]


# Schedules.


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("linear", [0.125, 0.25, 0.375, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("constant", [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("plateau", [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("cosine", [0.125, 0.25, 0.375, 0.5, *(0.25 * (1 + math.cos(math.pi * k / 5)) for k in range(5))]),
    ],
)
def test_each_schedule_warms_up_to_the_peak_and_goes_its_way(scheduler: str, expected: list[float]) -> None:
    assert rates(9, lr_scheduler=scheduler, warmup_steps=4) == pytest.approx(expected, rel=1e-12)


@each("scheduler", ["linear", "constant", "plateau", "cosine"])
@each("steps", [1, 2, 3, 10, 1000])
def test_no_step_has_rate_0_and_none_is_above_the_peak(scheduler: str, steps: int) -> None:
    for warmup in {0, 1, steps // 2, steps}:
        applied = rates(steps, lr_scheduler=scheduler, warmup_steps=warmup, train_steps=1000)
        assert min(applied) > 0
        assert max(applied) == 0.5
        assert applied[max(warmup - 1, 0)] == 0.5
        assert applied[:warmup] == sorted(applied[:warmup])
        assert applied[warmup:] == sorted(applied[warmup:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(5, lr_scheduler="linear") == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


@each(("ratio", "steps", "expected"), [(0.1, 100, 10), (0.1, 101, 11), (0.07, 100, 7), (0.0, 9, 0), (1, 9, 9)])
def test_a_warm_up_ratio_is_a_share_of_all_steps_rounded_up(ratio: float, steps: int, expected: int) -> None:
    assert warmup_steps(training(warmup_ratio=ratio), steps) == expected


def test_plateau_cuts_the_rate_when_its_patience_is_exceeded() -> None:
    schedule = Schedule(training(lr_scheduler="plateau", plateau_factor=0.1, plateau_patience=1), 100)
    seen = []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.9, 1.9, 1.9):
        schedule.observe(loss)
        seen.append(schedule.rate(50))
    assert seen == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005, 0.0005])


def test_a_schedule_goes_on_where_its_state_was_taken() -> None:
    settings = training(lr_scheduler="plateau", plateau_patience=1)
    whole, first, second = (Schedule(settings, 100) for _ in range(3))
    losses = [3.0, 3.0, 3.0, 2.0, 2.0, 2.0]
    for loss in losses:
        whole.observe(loss)
    for loss in losses[:2]:
        first.observe(loss)
    second.load(first.state())
    for loss in losses[2:]:
        second.observe(loss)
    assert second.state() == whole.state()
    assert second.rate(50) == whole.rate(50) == 0.5 * 0.5**2


# Checkpoint schedules.


@pytest.fixture
def steps_of(experiment: Experiment, tmp_path: Path) -> Callable[..., tuple[int, ...]]:
    config = experiment("lstm", tmp_path)
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))

    def make(total: int, **checkpoints: Any) -> tuple[int, ...]:
        asked = experiment("lstm", tmp_path, training={"train_steps": total, "checkpoints": checkpoints})
        return RunPlan.of(asked, data).checkpoint_steps

    return make


def test_a_log_schedule_multiplies_and_a_linear_one_adds(steps_of: Callable[..., tuple[int, ...]]) -> None:
    assert steps_of(100, log_base=2) == (0, 1, 2, 4, 8, 16, 32, 64, 100)
    assert steps_of(100, every_steps=25) == (0, 25, 50, 75, 100)
    assert steps_of(10, log_base=1.5) == (0, 1, 2, 3, 5, 8, 10)
    assert steps_of(10, every_steps=4, log_base=10, steps=[3, 11]) == (0, 1, 3, 4, 8, 10)


def test_step_0_and_the_last_are_always_kept(steps_of: Callable[..., tuple[int, ...]]) -> None:
    assert steps_of(7) == (0, 7)


# Weight decay.

MODELS = {
    "gpt2": ("gpt2", "tiny"),
    "bert": ("bert", "tiny"),
    "lstm": ("lstm", "tiny"),
    "tied": ("gru", "tiny_tied"),
}


@pytest.mark.parametrize("name", MODELS)
def test_biases_norms_embeddings_and_tied_outputs_do_not_decay(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    architecture, example = MODELS[name]
    model = create_model(experiment(architecture, tmp_path, example=example), letters)
    groups = parameter_groups(model, training(weight_decay=0.1))
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    names = {name for group in groups for name in group["names"] if group["weight_decay"]}
    kinds = ("bias", "embedding", "LayerNorm", "ln_", "wte", "wpe")
    assert names == {key for key, _ in model.named_parameters() if not any(kind in key for kind in kinds)}
    assert ("output_layer.weight" in names) == (name == "lstm")
    together = {
        name: parameter for group in groups for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    assert together == dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(together)


@pytest.mark.parametrize("name", MODELS)
def test_two_dimensional_decays_what_nanogpt_does(
    name: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """Of configure_optimizers in nanoGPT's model.py: parameters of two dimensions or more, and no others."""
    architecture, example = MODELS[name]
    model = create_model(experiment(architecture, tmp_path, example=example), letters)
    groups = parameter_groups(model, training(weight_decay=0.1, weight_decay_on="two_dimensional"))
    decaying = {id(each) for group in groups if group["weight_decay"] for each in group["params"]}
    assert decaying == {id(parameter) for parameter in model.parameters() if parameter.dim() >= 2}
    assert len(decaying) < sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


class Table(torch.nn.Module):
    """A layer and parameters as research code writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, 4))
        self.time_mix = torch.nn.Parameter(torch.zeros(1, 1, 4))
        self.skip = torch.nn.Parameter(torch.zeros(4))
        self.heads_bias = torch.nn.Parameter(torch.zeros(2, 4))
        self.positions = torch.nn.Parameter(torch.zeros(5, 4))
        self.A_log = torch.nn.Parameter(torch.zeros(4, 2))
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]


class ScaleNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(4))


def marked(layer: torch.nn.Module) -> torch.nn.Module:
    layer.weight._no_weight_decay = True  # type: ignore[union-attr]
    return layer


def test_a_role_follows_from_the_layer_or_is_not_derived() -> None:
    layers = {
        "linear": torch.nn.Linear(4, 3),
        "narrow": torch.nn.Linear(1, 3),
        "lstm": torch.nn.LSTM(4, 3, proj_size=2),
        "attention": torch.nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True),
        "filter": torch.nn.Conv1d(4, 4, 3, groups=4),
        "embedding": torch.nn.Embedding(5, 4),
        "norm": torch.nn.LayerNorm((3, 4)),
        "scale": ScaleNorm(),
        "table": Table(),
        "spared": marked(torch.nn.Linear(4, 3)),
    }
    model = torch.nn.ModuleDict(layers)
    roles = derived_roles(model)
    of_role: dict[str, set[str]] = {}
    for name, _ in model.named_parameters():
        if "bias" not in name:
            of_role.setdefault(roles.get(name, "not derived"), set()).add(name)
    recurrent = {f"lstm.weight_{part}_l0" for part in ("ih", "hh", "hr")}
    projections = {f"attention.{part}_proj_weight" for part in "qkv"} | {"attention.out_proj.weight"}
    assert of_role == {
        "matrix": {"linear.weight", "narrow.weight", "table.weight", *recurrent, *projections},
        "filter": {"filter.weight"},
        "embedding": {"embedding.weight"},
        "norm": {"norm.weight", "scale.gain"},
        "other": {"table.time_mix", "table.skip", "table.A_log", "spared.weight"},
        "not derived": {"table.positions"},
    }
    biases = {name for name, _ in model.named_parameters() if "bias" in name}
    assert {roles[name] for name in biases} == {"bias"}
    decays = {name: g["weight_decay"] > 0 for g in parameter_groups(model, training()) for name in g["names"]}
    assert {name for name in decays if decays[name]} == of_role["matrix"] | of_role["filter"]


def test_a_role_that_there_is_not_is_refused(
    experiment: Experiment, letters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(experiment("lstm", tmp_path), letters)
    for wrong in ({"embedding.weight": "table"}, {"embeddings": "embedding"}):
        monkeypatch.setattr(model, "parameter_roles", wrong.copy)
        with pytest.raises(PluginError, match=r"^foundry_rnn\.model\.RNNLanguageModel\.parameter_roles returned '"):
            build_optimizer(model, training())


@pytest.mark.parametrize("name", MODELS)
def test_all_decays_every_parameter(name: str, experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    architecture, example = MODELS[name]
    model = create_model(experiment(architecture, tmp_path, example=example), letters)
    groups = parameter_groups(model, training(weight_decay_on="all", weight_decay=0.1))
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad = False
    (group,) = parameter_groups(model, training())
    assert group["params"] == [model.bias]


def flattening(groups: Any, settings: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS([parameter for group in groups for parameter in group["params"]])


def test_an_optimizer_that_knows_no_groups_is_refused() -> None:
    kind = Optimizer("flat", "of a test", f"{__name__}:flattening")
    with pytest.raises(PluginError, match=r"flattening changes the parameter groups it was given$"):
        build_optimizer(torch.nn.Linear(3, 2), training(), kind)


def test_the_optimizer_takes_its_settings_and_decays_as_asked() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    settings = training(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.2)
    optimizer = build_optimizer(model, settings)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert optimizer.defaults["eps"] == 1e-6
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    embedding, weight, bias = (parameter.detach() for parameter in model.parameters())
    assert torch.equal(embedding, before[0])
    assert torch.equal(bias, before[2])
    torch.testing.assert_close(weight, before[1] * (1 - 0.5 * 0.2))


def test_sgd_follows_the_gradient_with_momentum() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    optimizer = build_optimizer(model, training(optimizer="sgd", sgd_momentum=0.5, weight_decay=0.0, learning_rate=0.1))
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert model.weight.item() == pytest.approx(start - 0.1 * (1 + 1.5))


def test_an_optimizer_of_a_plugin_needs_a_builder() -> None:
    """Core's own have none to name."""
    with pytest.raises(PluginError, match="^the optimizer mine has no builder: give it an import string$"):
        build_optimizer(torch.nn.Linear(3, 2), training(), Optimizer("mine", "of a test"))
