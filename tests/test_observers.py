"""Observers cannot change training, whatever they do before they return: the judge is a run without them."""

from __future__ import annotations

import json
import os
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console  # noqa: F401 - draws from Python's generator when it is imported, which must not be in a run
import torch
from torch import nn

from foundry_core import (
    BaseLanguageModel,
    Capabilities,
    ExperimentConfig,
    ModelConfig,
    RunInfo,
    hookimpl,
    load_config,
    register_architecture,
    run,
)
from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.errors import FoundryError
from foundry_core.registry.hooks import hook_manager
from foundry_core.registry.isolation import kept_settings
from foundry_core.run_folder import OPTIMIZER
from foundry_core.storage.files import StorageError
from foundry_core.training.notifier import Notifier
from foundry_core.training.sinks import MetricsFile
from tests.each import each

pytestmark = pytest.mark.usefixtures("one_thread")


def settings() -> dict[str, Any]:
    """Return what is kept from an observer, because models, collators and libraries depend on it."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "folder": os.getcwd(),  # noqa: PTH109
    }


def change_everything() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    os.chdir("/")


class Noisy:
    """Changes whatever it can reach, in every hook, and never fails."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def _do(self, hook: str, *facts: Any) -> None:
        self.told.append(hook)
        for fact in facts:
            for name, value in vars(fact).items() if hasattr(fact, "__dataclass_fields__") else ():
                if isinstance(value, int | float):
                    object.__setattr__(fact, name, value + 1000)
        change_everything()

    @hookimpl
    def foundry_run_started(self, run: Any) -> None:
        for section in run.config.values():
            if isinstance(section, dict):
                section.clear()
        run.facts.clear()
        self._do("run_started", run)

    @hookimpl
    def foundry_step_ended(self, report: Any) -> None:
        self._do("step_ended", report)

    @hookimpl
    def foundry_evaluated(self, report: Any) -> None:
        self._do("evaluated", report)

    @hookimpl
    def foundry_checkpoint_saved(self, step: int, folder: Path) -> None:
        self._do("checkpoint_saved")

    @hookimpl
    def foundry_run_ended(self, step: int) -> None:
        self._do("run_ended")


@pytest.fixture
def fickle() -> list[dict[str, Any]]:
    """An architecture that draws from every generator there is; notes the settings of each pass in training."""
    seen: list[dict[str, Any]] = []

    class Settings(ModelConfig):
        width: int = 8

    def capabilities(config: Any) -> Capabilities:
        return Capabilities(objectives=("causal_lm", "masked_lm"), generation=False)

    @register_architecture("fickle", config=Settings, capabilities=capabilities)
    class Fickle(BaseLanguageModel):
        def __init__(self, config: ExperimentConfig, context: Any):
            super().__init__(config, context)
            self.embedding = nn.Embedding(context.vocab_size, 8)
            self.head = nn.Linear(8, context.vocab_size)

        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
            hidden = self.embedding(input_ids)
            if self.training:
                seen.append(settings())
                hidden = hidden * (random.random() + np.random.random() + torch.rand(()))
            return self.lm_output(hidden, self.head, labels, attention_mask=attention_mask, **kwargs)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

        def resize_token_embeddings(self, new_num_tokens: int) -> None:
            raise NotImplementedError

    return seen


def outcome(config: ExperimentConfig) -> dict[str, Any]:
    output = Path(config.training.output_dir)
    found: dict[str, Any] = {}
    for folder in sorted(output.glob("checkpoint-*")):
        for name in ("model.safetensors", OPTIMIZER, "trainer_state.json", "config.json"):
            path = folder / name if name != OPTIMIZER else optimizer_file(folder)
            if path.exists():
                found[f"{folder.name}/{name}"] = path.read_bytes().replace(output.name.encode(), b"RUN")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("tokens_per_second", "seconds_left", "data_wait", "communication")
    found["metrics"] = [{key: value for key, value in line.items() if key not in clock} for line in lines]
    return found


@pytest.mark.parametrize(
    ("architecture", "objective", "workers"),
    [("fickle", "causal_lm", 0), ("fickle", "masked_lm", 2), ("lstm", "causal_lm", 0), ("bert", "masked_lm", 2)],
)
def test_a_run_with_a_noisy_observer_is_the_run_without_it(
    fickle: list[dict[str, Any]],
    experiment: Callable[..., ExperimentConfig],
    corpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    objective: str,
    workers: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    before, outcomes, passes = settings(), [], []
    noisy = Noisy()
    for name, observers in (("quiet", ()), ("noisy", (noisy,))):
        schedule = {"objective": objective, "num_workers": workers, "train_steps": 5, "evaluate_every_steps": 2}
        config = experiment(
            architecture,
            Path(name),
            data={"test_corpus": str(corpus.test)},
            training={**schedule, "checkpoints": {"every_steps": 2}, "output_dir": name},
            logging={"log_every_steps": 1},
        )
        fickle.clear()
        random.seed(7)
        np.random.seed(7)
        run(config, extra_observers=observers, quiet=True)
        outcomes.append(outcome(config))
        passes.append([*fickle, settings()])
    assert set(noisy.told) == {"run_started", "step_ended", "evaluated", "checkpoint_saved", "run_ended"}
    assert len(outcomes[0]) == 4 * 3 + 3 + 1  # the optimizer state of step 0 and of the newest two
    assert outcomes[0] == outcomes[1]
    assert passes[0] == passes[1]
    after, generators = settings(), ("torch", "numpy", "python")
    assert {k: v for k, v in after.items() if k not in generators} == {
        k: v for k, v in before.items() if k not in generators
    }


def test_each_observer_is_given_its_own_copies() -> None:
    heard: list[Any] = []

    class Hearing:
        @hookimpl
        def foundry_run_started(self, run: Any) -> None:
            heard.append(run)

    told = RunInfo("x", Path("x"), {"training": {"steps": [1]}}, 10, 0, {"device": "cpu"})
    Notifier(hook_manager([Hearing(), Noisy(), Hearing()])).tell("foundry_run_started", run=told)
    assert heard == [told, told]
    assert len({id(run.config["training"]["steps"]) for run in (told, *heard)}) == 3


class _Panic(BaseException):
    """As the panic of an extension in Rust arrives."""


@each(
    ("error", "said"),
    [
        (RuntimeError("one\ntwo"), "RuntimeError: one two"),
        (SystemExit(3), "SystemExit: 3"),
        (MemoryError(), "MemoryError"),
        (KeyError("a"), "KeyError: 'a'"),
        (_Panic("in Rust"), "_Panic: in Rust"),
        (GeneratorExit(), "GeneratorExit"),
        (StorageError("a file of its own"), "a file of its own"),
    ],
)
def test_a_failing_observer_is_named_once_and_muted(
    error: BaseException, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []

    class Failing:
        @hookimpl
        def foundry_run_ended(self, step: int) -> None:
            change_everything()
            heard.append(step)
            raise error

    class Hearing:
        @hookimpl
        def foundry_run_ended(self, step: int) -> None:
            heard.append(step)

    notifier = Notifier(hook_manager([Failing(), Hearing()]))
    before = settings()
    for step in (1, 2):
        notifier.tell("foundry_run_ended", step=step)
    assert settings() == before
    assert sorted(heard) == [1, 1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: observer Failing failed in foundry_run_ended and is muted: ")
    assert line.endswith(said)


def test_a_disk_that_refuses_the_metrics_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    metrics = MetricsFile(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(StorageError):
        Notifier(hook_manager([metrics])).tell("foundry_run_started", run=RunInfo("x", tmp_path, {}, 10, 0))


def test_an_interruption_of_an_observer_is_an_interruption() -> None:
    class Interrupted:
        @hookimpl
        def foundry_run_ended(self, step: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Notifier(hook_manager([Interrupted()])).tell("foundry_run_ended", step=1)


def test_a_module_of_a_package_is_named_by_its_package(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], tmp_path: Path, capsys: Any
) -> None:
    failing = (
        "from foundry_core import hookimpl\n\n@hookimpl\ndef foundry_run_ended(step):\n    raise OSError('full')\n"
    )
    distribution("foundry-loud", {"foundry.plugins": {"loud": "foundry_loud"}}, {"foundry_loud.py": failing})
    run(experiment("lstm", tmp_path, training={"train_steps": 1}, plugins=["foundry_loud"]), quiet=True)
    said = "warning: observer foundry-loud 1.0 failed in foundry_run_ended and is muted: OSError: full\n"
    assert capsys.readouterr().err == said


def test_an_observer_may_be_added_when_a_run_goes_on(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    silent = "from foundry_core import hookimpl\n\n@hookimpl\ndef foundry_run_ended(step):\n    pass\n"
    distribution("foundry-silent", {"foundry.plugins": {"silent": "foundry_silent"}}, {"foundry_silent.py": silent})
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    observed = load_config({**config.resolved(), "plugins": ["foundry_silent"]}, ["training.checkpoints.every_steps=1"])
    assert run(observed, resume=True, quiet=True).step == 2


def test_a_checkpoint_opens_without_its_observers(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], tmp_path: Path, monkeypatch: Any
) -> None:
    silent = "from foundry_core import hookimpl\n\n@hookimpl\ndef foundry_run_ended(step):\n    pass\n"
    distribution("foundry-silent", {"foundry.plugins": {"silent": "foundry_silent"}}, {"foundry_silent.py": silent})
    run(experiment("lstm", tmp_path, training={"train_steps": 1}, plugins=["foundry_silent"]), quiet=True)
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "silent")
    model = BaseLanguageModel.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert model.config.plugins == ()


def test_a_checkpoint_opens_without_its_optimizers_package(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], tmp_path: Path, monkeypatch: Any
) -> None:
    light = (
        "from foundry_core import Optimizer, hookimpl\n\n@hookimpl\ndef foundry_optimizers():\n"
        "    return [Optimizer(name='own', summary='of a test', builder='foundry_own_torch:make')]\n"
    )
    heavy = "import torch\n\ndef make(groups, training):\n    return torch.optim.SGD(groups, lr=0.1)\n"
    files = {"foundry_own.py": light, "foundry_own_torch.py": heavy}
    distribution("foundry-own", {"foundry.plugins": {"own": "foundry_own"}}, files)
    config = experiment("lstm", tmp_path, training={"train_steps": 1, "optimizer": "own"}, plugins=["foundry_own"])
    run(config, quiet=True)
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "own")
    model = BaseLanguageModel.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert (model.config.plugins, model.config.training.optimizer) == ((), "adamw")


@pytest.mark.parametrize("broken", [False, True], ids=["works", "fails"])
def test_weights_and_biases_is_an_observer_like_any_other(
    experiment: Callable[..., ExperimentConfig],
    corpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: bool,
) -> None:
    """The library itself is not at hand: a module with the three functions that are used stands in for it."""
    calls: list[tuple[str, Any]] = []

    def init(**settings: Any) -> None:
        change_everything()
        calls.append(("init", settings))
        if broken:
            raise ConnectionError("no network")

    library = types.ModuleType("wandb")
    library.init = init  # type: ignore[attr-defined]
    library.log = lambda facts, step: calls.append(("log", (step, facts)))  # type: ignore[attr-defined]
    library.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", library)
    outcomes = []
    for name, logging in (("with", {"use_wandb": True, "wandb_project": "p"}), ("without", {})):
        training = {"train_steps": 3, "checkpoints": {"every_steps": 1}}
        config = experiment(
            "lstm",
            tmp_path / name,
            data={"test_corpus": str(corpus.test)},
            training=training,
            logging={"log_every_steps": 1, **logging},
        )
        run(config, quiet=True)
        folder = Path(config.training.output_dir) / "checkpoint-3"
        outcomes.append([path.read_bytes() for path in (folder / "model.safetensors", optimizer_file(folder))])
    assert outcomes[0] == outcomes[1]
    said = capsys.readouterr().err
    if broken:
        assert [name for name, _ in calls] == ["init"]
        assert (
            "observer WeightsAndBiases failed in foundry_run_started and is muted: ConnectionError: no network" in said
        )
    else:
        assert said == ""
        assert [name for name, _ in calls] == ["init", *["log"] * 4, "finish"]
        assert calls[0][1]["config"]["training"]["train_steps"] == 3


@pytest.mark.parametrize("content", ["", "log = print\n"])
def test_a_module_named_as_a_package_is_not_taken_for_it(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "wandb.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    config = experiment("lstm", tmp_path, logging={"use_wandb": True, "wandb_project": "p"})
    with pytest.raises(
        FoundryError, match=r"pip install model-foundry\[wandb\]; what Python imports as wandb is .*wandb"
    ):
        run(config, quiet=True)
    assert not Path(config.training.output_dir).exists()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_settings_are_kept_where_the_working_folder_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with kept_settings():
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 1
