"""Every example of hookspecs.py is complete: its files make a package, its YAML trains with it."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import ExperimentConfig, StepReport, load_config, run
from foundry_core.checkpoints.checkpoint import checkpoints
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


@pytest.mark.parametrize("hook", HOOKS)
def test_an_example_trains_and_no_observer_is_muted(
    hook: str, trained: Callable[[str], ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained(hook)
    said, output = capsys.readouterr().err, Path(config.training.output_dir)
    assert "muted" not in said
    if hook == "foundry_run_started":
        assert json.loads((output / "note.json").read_text())["to"] == 4
    elif hook == "foundry_evaluated":
        assert re.search(r"^step \d: the best so far, perplexity \d+\.\d\d$", said, re.MULTILINE)
    elif hook == "foundry_checkpoint_saved":
        listed = (output / "checkpoints.txt").read_text().splitlines()
        assert listed == [f"{folder.name.split('-')[1]} {folder}" for folder in checkpoints(output)]
    elif hook == "foundry_run_ended":
        assert said == "\aended after step 4\n"
    elif hook == "foundry_step_ended":
        assert said == ""
        report = StepReport(7, 10, 0.5, 2.0, 1e-3, 1234.5, 100, 50, 10.0, 1.0)
        sys.modules["foundry_spikes"].foundry_step_ended(report=report)
        assert capsys.readouterr().err == "step 7: gradient norm 1234\n"
    else:
        assert set(config.providers.values()) == {f"{config.plugins[0].replace('_', '-')} 1.0"}
        kind = next(iter(config.providers))
        assert {"objective": "second_half", "optimizer": "rmsprop", "tokenizer type": "words_and_marks"}[kind] in {
            config.training.objective,
            config.training.optimizer,
            config.tokenizer.tokenizer_type,
        }


def test_the_example_of_a_command_counts(
    distribution: Callable[..., Path], corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    example = files(hookspecs.__doc__ or "")
    distribution("foundry-count", {"foundry.commands": {"count": "foundry_count.command"}}, example)
    assert main(["count", str(corpus.train)]) == 0
    assert capsys.readouterr().out == f"{len(corpus.train.read_text().split())}\n"
    with pytest.raises(SystemExit):
        main(["count", "--help"])
    assert "foundry count corpora/train.txt" in capsys.readouterr().out


def test_every_hook_has_an_example() -> None:
    assert len(HOOKS) == 8
    assert all("experiment.yaml" in files(hook.__doc__) for hook in HOOKS.values())
