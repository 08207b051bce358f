"""Learning-rate schedules: their floors, decays and steps, the recipes that they write down, those of plugins."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import ConfigSection, LearningRateSchedule, load_config
from foundry_core.config.sections import TrainingConfig
from foundry_core.errors import ConfigError, PluginError, UsageError
from foundry_core.registry.schedule import CORE_SCHEDULES
from foundry_core.training.schedule import Schedule
from tests.each import each

NEEDED: dict[str, dict[str, Any]] = {"wsd": {"decay_ratio": 0.2}, "step": {"step_after_epochs": 2}}


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": "run", "epochs": 1, "learning_rate": 0.5, **settings})


def rates(total: int, epoch_steps: int = 10, **settings: Any) -> list[float]:
    schedule = Schedule(training(**settings), total)
    return [schedule.rate(step, (step - 1) / epoch_steps) for step in range(1, total + 1)]


def by_chance(seed: int) -> tuple[int, dict[str, Any]]:
    """Return the steps of a run, and settings that are valid for it."""
    rng = random.Random(seed)
    total, name = rng.choice((1, 2, 3, 17, 100)), rng.choice(sorted(CORE_SCHEDULES))
    settings: dict[str, Any] = {"lr_scheduler": name, "warmup_steps": rng.randint(0, total), **NEEDED.get(name, {})}
    if name == "wsd":
        settings["decay_ratio"] = rng.choice((0.01, 0.2, 1.0))
        settings["warmup_steps"] = rng.randint(0, total - math.ceil(settings["decay_ratio"] * total))
    if name != "constant":
        settings["min_learning_rate_ratio"] = rng.choice((0.0, 0.1, 0.9, 1.0))
    if name in ("linear", "cosine") and settings["min_learning_rate_ratio"]:
        settings["decay_steps"] = rng.randint(1, total)
    return total, settings


@each("seed", range(300))
def test_a_rate_is_above_0_within_the_peak_and_the_floor(seed: int) -> None:
    total, settings = by_chance(seed)
    warmup, floor = settings["warmup_steps"], 0.5 * settings.get("min_learning_rate_ratio", 0.0)
    found = rates(total, **settings)
    assert min(found) > 0
    assert max(found) <= 0.5
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert all(rate >= floor * (1 - 1e-12) for rate in found[warmup:])


@each("seed", range(50))
def test_a_rate_depends_on_the_step_and_not_on_the_calls_before(seed: int) -> None:
    total, settings = by_chance(seed)
    schedule, expected = Schedule(training(**settings), total), rates(total, **settings)
    order = random.Random(seed).choices(range(1, total + 1), k=2 * total)
    assert [schedule.rate(step, (step - 1) / 10) for step in order] == [expected[step - 1] for step in order]


def former(name: str, step: int, total: int, warmup: int) -> float:
    """Return the rate of a step as it was computed before schedules had floors."""
    if step <= warmup:
        return 0.3 * step / warmup
    done = (step - 1 - warmup) / max(total - warmup, 1)
    if name == "linear":
        return 0.3 * (1 - done)
    return 0.3 * 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 0.3


@each("name", ["linear", "cosine", "constant", "plateau"])
def test_without_new_keys_every_rate_is_the_same_to_the_bit(name: str) -> None:
    for total, warmup in ((1, 0), (7, 7), (1000, 30)):
        found = rates(total, lr_scheduler=name, warmup_steps=warmup, learning_rate=0.3)
        assert found == [former(name, step, total, warmup) for step in range(1, total + 1)]


def nanogpt(it: int, *, warmup_iters: int, lr_decay_iters: int, learning_rate: float, min_lr: float) -> float:
    """Return the rate of an iteration, counted from 0, as get_lr in nanoGPT's train.py does."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


@each(("warmup", "decay", "steps"), [(100, 2000, 2001), (100, 1000, 1500), (0, 700, 500), (1, 2, 10)])
def test_the_cosine_of_nanogpt_can_be_written(warmup: int, decay: int, steps: int) -> None:
    found = rates(
        steps,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        warmup_steps=warmup,
        warmup_end="below_peak",
        decay_steps=decay - warmup,
        min_learning_rate_ratio=0.1,
    )
    recipe: dict[str, Any] = {"warmup_iters": warmup, "lr_decay_iters": decay, "learning_rate": 1e-3, "min_lr": 1e-4}
    assert found == pytest.approx([nanogpt(it, **recipe) for it in range(steps)], rel=1e-12)


@each(("factor", "first"), [(0.5, 4), (1 / 1.2, 6), (1 / 1.15, 14), (0.25, 0)])
def test_the_steps_of_zaremba_et_al_can_be_written(factor: float, first: int) -> None:
    """Of the code that the authors published with TensorFlow, in which i counts epochs from 0."""
    found = rates(200, lr_scheduler="step", step_factor=factor, step_after_epochs=first, learning_rate=1.0)
    assert found == pytest.approx([factor ** max(step // 10 + 1 - first, 0.0) for step in range(200)])


def test_wsd_is_stable_and_falls_in_the_last_steps() -> None:
    found = rates(12, lr_scheduler="wsd", warmup_steps=2, decay_steps=4, min_learning_rate_ratio=0.2)
    assert found == pytest.approx([0.25, 0.5, *[0.5] * 6, 0.5, 0.4, 0.3, 0.2])
    assert found == rates(12, lr_scheduler="wsd", warmup_steps=2, decay_ratio=0.33, min_learning_rate_ratio=0.2)


def test_inverse_sqrt_falls_with_the_root_of_the_step() -> None:
    found = rates(400, lr_scheduler="inverse_sqrt", warmup_steps=25, min_learning_rate_ratio=0.3)
    assert found[24] == 0.5
    assert found[99] == pytest.approx(0.25)
    assert found[-1] == pytest.approx(0.15)


def test_plateau_divides_as_the_examples_of_pytorch_do() -> None:
    """Of word_language_model/main.py: lr /= 4.0 unless the loss is the best so far."""
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.1, 2.9, 2.9]
    schedule = Schedule(training(lr_scheduler="plateau", plateau_factor=0.25, plateau_patience=0), 100)
    rate, best = 0.5, None
    for loss in losses:
        verdict = schedule.observe(loss)
        if not best or loss < best:
            best = loss
            assert verdict == "improved"
        else:
            rate /= 4.0
            assert verdict == "lowered"
        assert schedule.rate(9) == rate


@each(
    ("settings", "said"),
    [
        (
            {"lr_scheduler": "wsd", "decay_steps": 8, "warmup_steps": 3},
            "8 steps of decay and 3 of warm-up exceed the 10",
        ),
        ({"lr_scheduler": "linear", "decay_steps": 5}, "the learning rate is 0 after step 5 of 10: give training.min"),
        (
            {"lr_scheduler": "cosine", "decay_ratio": 0.5, "warmup_steps": 2},
            "the learning rate is 0 after step 7 of 10",
        ),
    ],
)
def test_a_decay_that_does_not_fit_into_the_run_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Schedule(training(**settings), 10)


# The YAML.

BASE = """\
experiment_name: base
data:
  training_corpus: train.txt
  test_corpus: test.txt
model:
  architecture: lstm
  rnn: {embedding_size: 8, hidden_size: 8, num_layers: 1}
training:
  output_dir: runs/base
  train_steps: 100
"""


@each(
    ("lines", "problem"),
    [
        (
            "decay_steps: 5\n  decay_ratio: 0.5\n  min_learning_rate_ratio: 0.1",
            "8: training: give decay_steps or decay_r",
        ),
        ("lr_scheduler: wsd", "11: training.lr_scheduler: wsd needs training.decay_steps or training.decay_ratio"),
        ("lr_scheduler: step", "8: training.step_after_epochs: missing: lr_scheduler: step needs it"),
        ("step_after_epochs: 3", "11: training.step_after_epochs: is for lr_scheduler: step"),
        (
            "lr_scheduler: step\n  step_after_epochs: 3\n  decay_steps: 3",
            "13: training.decay_steps: has no meaning for st",
        ),
        (
            "lr_scheduler: constant\n  min_learning_rate_ratio: 0.1",
            "12: training.min_learning_rate_ratio: has no meaning",
        ),
        ("lr_scheduler: linaer", "11: training.lr_scheduler: unknown lr scheduler 'linaer'. Did you mean 'linear'?"),
        ("schedule_settings: {cycles: 3}", "11: training.schedule_settings: linear has none: remove this section"),
        (
            "restore_best: at_end",
            "11: training.restore_best: needs data.validation_corpus or data.test_corpus, and training.evaluate",
        ),
        (
            "restore_best: when_lowered\n  evaluate_every_steps: 5",
            "11: training.restore_best: when_lowered needs lr_sched",
        ),
        (
            "restore_best: when_lowered\n  evaluate_every_steps: 5\n  lr_scheduler: plateau\n  optimizer: asgd",
            "11: training.restore_best: when_lowered cannot be used with asgd",
        ),
        (
            "asgd_nonmonotonic_interval: 5\n  evaluate_every_steps: 5",
            "11: training.asgd_nonmonotonic_interval: is for opt",
        ),
        (
            "asgd_nonmonotonic_interval: 5\n  optimizer: asgd",
            "11: training.asgd_nonmonotonic_interval: needs data.validation_c",
        ),
        ("start_from: runs/base/checkpoint-3", "11: training.start_from: is in training.output_dir: continue that run"),
    ],
)
def test_wrong_combinations_are_refused_at_their_line(lines: str, problem: str, tmp_path: Any) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"{BASE}  {lines}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert [str(each) for each in refused.value.problems if f":{problem}" in str(each)] != [], str(refused.value)


# Schedules of plugins.


class Settings(ConfigSection):
    value: float = 1.0


RETURNED: dict[str, Any] = {}


def returned(step: int, total: int, training: TrainingConfig) -> Any:
    RETURNED["called"] = (step, total, training)
    return RETURNED["value"]


OWN = LearningRateSchedule("own", "of a test", f"{__name__}:returned", settings=Settings)


def test_a_schedule_of_a_plugin_counts_after_the_warm_up() -> None:
    RETURNED["value"] = 1.5
    settings = training(lr_scheduler="own", warmup_steps=4)
    schedule = Schedule(settings, 10, OWN)
    assert [schedule.rate(step) for step in (1, 4, 5, 10)] == [0.125, 0.5, 0.75, 0.75]
    assert RETURNED["called"] == (6, 6, settings)


@each("value", [-0.1, math.nan, math.inf, None, True, "1"])
def test_a_factor_that_is_not_a_finite_share_is_refused(value: Any) -> None:
    RETURNED["value"] = value
    with pytest.raises(
        PluginError, match=r"^the schedule own, .*:returned, returned .* in step 1, not a finite number"
    ):
        Schedule(training(lr_scheduler="own"), 10, OWN).rate(1)


def test_a_schedule_of_a_plugin_needs_a_function() -> None:
    with pytest.raises(PluginError, match="^the schedule mine has no function: give it an import string$"):
        Schedule(training(lr_scheduler="mine"), 10, LearningRateSchedule("mine", "of a test"))


# The documentation.

PAGE = (Path(__file__).parents[1] / "docs" / "training" / "schedules.md").read_text()


def test_every_example_of_the_documentation_is_valid() -> None:
    examples = re.findall(r"(?m)^```yaml\n(.*?)^```", PAGE, re.DOTALL)
    assert len(examples) >= 8
    for example in examples:
        content = yaml.safe_load(BASE)
        for name, section in yaml.safe_load(example).items():
            content[name] = {**content.get(name, {}), **section}
        if "epochs" in content["training"]:
            del content["training"]["train_steps"]
        load_config(content)


def test_every_key_of_this_page_is_explained() -> None:
    keys = (
        "min_learning_rate_ratio decay_steps decay_ratio warmup_end step_factor step_after_epochs schedule_settings "
        "restore_best loss_sum_over asgd_nonmonotonic_interval start_from weight_decay_on foundry_schedules"
    )
    assert [key for key in keys.split() if not re.search(rf"`{key}\b", PAGE)] == []
    assert [name for name in CORE_SCHEDULES if f"`{name}`" not in PAGE] == []
