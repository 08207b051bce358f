"""Every example of hookspecs.py is complete: its files make a package, its YAML trains with it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import ExperimentConfig, load_config, run
from foundry_core.cli import main
from foundry_core.registry import hookspecs

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("foundry_")}


def files(documentation: str) -> dict[str, str]:
    """The files of an example by their path, which stands as a comment before each."""
    _, *parts = re.split(r"(?m)^# ([\w/]+\.(?:py|yaml))\n", inspect.cleandoc(documentation))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def laid_over(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Sections key by key, everything else as a whole."""
    both = {key: laid_over(base[key], more[key]) for key in more if isinstance(base.get(key), dict)}
    return {**base, **more, **both}


@pytest.fixture
def trained(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], corpus: Any, tmp_path: Path
) -> Callable[[str], ExperimentConfig]:
    """Installs the example of a hook and trains with its YAML laid over a tiny experiment."""

    def train(hook: str) -> ExperimentConfig:
        example = files(HOOKS[hook].__doc__)
        settings = yaml.safe_load(example.pop("experiment.yaml"))
        (module,) = settings["plugins"]
        assert f"def {hook}(" in example[f"{module}/__init__.py"]
        distribution(module.replace("_", "-"), {"foundry.plugins": {"example": module}}, example)
        test = {"test_corpus": str(corpus.test)}
        tiny = experiment("lstm", tmp_path, data=test, training={"train_steps": 4, "evaluate_every_steps": 2})
        config = load_config(laid_over(tiny.resolved(), settings))
        assert run(config, quiet=True).step == 4
        return config

    return train


OFFERED = {
    "foundry_objectives": ("objective", "second_half"),
    "foundry_optimizers": ("optimizer", "rmsprop"),
    "foundry_schedules": ("schedule", "restarts"),
    "foundry_tokenizer_types": ("tokenizer type", "words_and_marks"),
    "foundry_orders": ("order", "short_to_long"),
    "foundry_corpus_steps": ("corpus step", "long_enough"),
}


@pytest.mark.parametrize("hook", OFFERED)
def test_an_example_trains_with_what_it_offers(
    hook: str, trained: Callable[[str], ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained(hook)
    kind, name = OFFERED[hook]
    assert capsys.readouterr().err == ""
    assert config.providers == {kind: f"{config.plugins[0].replace('_', '-')} 1.0"}
    training, steps = config.training, [key for step in config.data.steps for key in step]
    named = (training.objective, training.optimizer, training.lr_scheduler, config.tokenizer.tokenizer_type)
    assert name in (*named, config.data.order, *steps)


def test_labels_that_are_left_out_leave_no_bits_per_byte(
    trained: Callable[[str], ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = Path(trained("foundry_objectives").training.output_dir)
    reports = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [report["bits_per_byte"] for report in reports if report["kind"] == "eval"] == [None, None]
    assert main(["evaluate", str(run_folder)]) == 0
    assert "not given: the objective does not predict every token" in capsys.readouterr().out


def test_the_example_of_an_observer_sees_the_whole_run(
    trained: Callable[[str], ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained("foundry_run_started")
    assert capsys.readouterr().err == ""
    diary = (Path(config.training.output_dir) / "diary.txt").read_text().splitlines()
    assert re.fullmatch(rf"{config.experiment_name} with \d+ parameters", diary[0])
    assert [line.split()[2] for line in diary if line.startswith("step 4 ")] == [
        "gradient",
        "perplexity",
        "saved",
        "ended",
    ]


def test_every_hook_has_an_example() -> None:
    code = "".join(text for hook in HOOKS.values() for text in files(hook.__doc__ or "").values())
    assert [name for name in HOOKS if f"def {name}(" not in code] == []
