"""A plugin whose model or optimizer does what it must not while a run goes on: one line names the plugin, and where."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli import main
from foundry_core.errors import CheckpointError, PluginError
from tests.each import each

Install = Callable[..., None]

DESCRIPTOR = """\
from foundry_core import Architecture, ModelConfig, Optimizer, hookimpl
okapi = Architecture(name="okapi", summary="of a test", config_class=ModelConfig, model_class="okapi_model:Model")

@hookimpl
def foundry_optimizers():
    return [Optimizer(name="stumbling", summary="of a test", builder="okapi_model:stumbling")]
"""
MODEL = """\
from types import SimpleNamespace
import torch
from torch import nn
from foundry_core import BaseLanguageModel

class Stumbling(torch.optim.SGD):
    def step(self, closure=None):
        raise LookupError("no such step")

def stumbling(groups, training):
    return Stumbling(groups, lr=0.1)

class Model(BaseLanguageModel):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.embedding = nn.Embedding(context.vocab_size, 8)
        self.out = nn.Linear(8, context.vocab_size)
        self.calls = 0

    def get_input_embeddings(self):
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens):
        raise NotImplementedError

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        self.calls += 1
        hidden = self.embedding(input_ids)
        return self.lm_output(hidden, self.out, labels, attention_mask=attention_mask, **kwargs)
"""
PACKAGE = "the plugin foundry-okapi 1.0"
NO_LOSS = (
    "okapi_model.Model.forward did not return a differentiable scalar loss: end it with "
    "`return self.lm_output(hidden, head, labels, ...)`"
)

FAULTS: dict[str, tuple[str, str, str]] = {
    "a layer of a reserved name": (
        "self.calls = 0",
        "self.calls, self.targets = 0, nn.Linear(8, 8)",
        "okapi_model.Model has a layer or a tensor called 'targets', which is a name of BaseLanguageModel's own: ",
    ),
    "no class": (
        "class Model(",
        "def Model():\n    pass\n\nclass Other(",
        "okapi_model:Model is not a subclass of BaseLanguageModel",
    ),
    "of another family": (
        "Model(BaseLanguageModel)",
        "Model(nn.Module)",
        "okapi_model:Model is not a subclass of BaseLanguageModel",
    ),
    "abstract": (
        "def resize_token_embeddings",
        "def resize",
        "okapi_model.Model does not define resize_token_embeddings",
    ),
    "made of something else": (
        "def __init__(self, config, context):",
        "def __init__(self, config):",
        "okapi_model.Model cannot be made of (config, context): too many positional arguments",
    ),
    "without its base": (
        "super().__init__(config, context)",
        "nn.Module.__init__(self)",
        "okapi_model.Model.__init__ does not call super().__init__(config, context)",
    ),
    "no further keywords": (
        "labels=None, **kwargs):",
        "labels=None, kwargs={}):",
        "okapi_model.Model.forward does not take (input_ids, attention_mask=, labels=, **kwargs), which are passed on",
    ),
    "nothing made": (
        "    def get_input",
        "    @classmethod\n    def from_config(cls, config, context):\n        pass\n\n    def get_input",
        "okapi_model.Model.from_config returned a NoneType, not a BaseLanguageModel",
    ),
    "building": (
        "self.calls = 0",
        "self.calls = {}['sizes']",
        f"{PACKAGE} fails: KeyError: 'sizes' (",
    ),
    "a later step": (
        "self.calls += 1",
        "self.calls += 1; assert self.calls < 4, 'enough'",
        f"{PACKAGE} fails: AssertionError: enough (",
    ),
    "what core is given": (
        "self.embedding(input_ids)",
        "self.embedding(input_ids)[..., :7]",
        f"{PACKAGE} fails: RuntimeError: ",
    ),
    "nothing given": ("return self.lm_output", "self.lm_output", NO_LOSS),
    "labels not handed on": ("self.out, labels,", "self.out, None,", NO_LOSS),
    "a loss cut off": ("    def forward", "    @torch.no_grad()\n    def forward", NO_LOSS),
    "a loss for each row": (
        "return self.lm_output(hidden, self.out, labels, attention_mask=attention_mask, **kwargs)",
        "return SimpleNamespace(loss=hidden.sum((1, 2)))",
        "okapi_model.Model.forward did not return a differentiable scalar loss (its shape is (4,)): ",
    ),
}


@pytest.fixture
def okapi(install: Install, tmp_path: Path) -> Callable[..., None]:
    """Installs a package with a model, trains it for six steps and compares the exit code."""
    letters = random.Random(0)
    (tmp_path / "train.txt").write_text("".join(letters.choice("abcd \n") for _ in range(3000)))
    yaml = tmp_path / "okapi.yaml"
    yaml.write_text(
        "experiment_name: okapi\n"
        f"data: {{training_corpus: {tmp_path}/train.txt, max_sequence_length: 16, batch_size: 4}}\n"
        "tokenizer: {tokenizer_type: character}\nmodel: {architecture: okapi}\n"
        f"training: {{output_dir: {tmp_path}/run, train_steps: 6, device: cpu, precision: fp32}}\n"
    )

    def train(
        model: str,
        *settings: str,
        code: int = PluginError.exit_code,
        descriptor: str = DESCRIPTOR,
        requires: tuple[str, ...] = (),
    ) -> None:
        modules = {"okapi_light": descriptor, "okapi_model": model}
        install("foundry-okapi", {"okapi": "okapi_light:okapi"}, modules=modules, requires=requires)
        assert main(["train", str(yaml), "--quiet", *settings]) == code

    return train


def test_a_whole_model_is_trained(okapi: Any) -> None:
    okapi(MODEL, code=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_does_not_work_is_one_line_that_names_it(fault: str, okapi: Any, capsys: Any) -> None:
    text, instead, says = FAULTS[fault]
    assert MODEL.count(text) == 1
    model = MODEL.replace(text, instead)
    okapi(model)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")
    if says.startswith(PACKAGE):
        where = "return self.lm_output" if fault == "what core is given" else instead
        (number,) = (number for number, code in enumerate(model.splitlines(), 1) if where in code)
        assert f"okapi_model.py:{number}) " in line


def test_a_module_whose_getattr_raises_hides_no_culprit(okapi: Any, install: Install, capsys: Any) -> None:
    lazy = "def __getattr__(name):\n    raise RuntimeError(name)\n"
    install("foundry-lazy", extensions={"lazy": "lazy_module"}, modules={"lazy_module": lazy})
    importlib.import_module("lazy_module")
    okapi(MODEL.replace("self.calls += 1", "self.calls += {}['n']"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {PACKAGE} fails: KeyError: 'n' (")


def test_a_failing_optimizer_is_named_with_the_line(okapi: Any, capsys: Any) -> None:
    okapi(MODEL, "training.optimizer=stumbling")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {PACKAGE} fails: LookupError: no such step (")
    assert "okapi_model.py:8)" in line


def test_a_model_that_fails_on_the_meta_device_is_named(okapi: Any, tmp_path: Path, capsys: Any) -> None:
    okapi(MODEL.replace("self.calls = 0", "self.calls = int(torch.zeros(1).item())"), code=0)
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run")]) == CheckpointError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot be built on torch's meta device: {PACKAGE} fails: RuntimeError: Tensor.item()" in line
    assert line.endswith("okapi_model.py:18)")


def test_a_model_in_a_namespace_package_is_named(okapi: Any, tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "site" / "lab"
    place.mkdir(parents=True)
    (place / "okapi_model.py").write_text(MODEL.replace("self.calls += 1", "self.calls += {}['n']"))
    okapi(MODEL, descriptor=DESCRIPTOR.replace("okapi_model:Model", "lab.okapi_model:Model"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {PACKAGE} fails: KeyError: 'n' ({place / 'okapi_model.py'}:")


VERBS = [
    *(["validate", "{x}"], ["plan", "{x}"], ["train", "{x}"], ["tokenizer", "train", "{x}"]),
    *(["data", "prepare", "{x}"], ["check", "okapi"], ["okapi-command"]),
    *(["init", "okapi"], ["schema"], ["plugins", "list"], ["plugins", "show", "okapi"], ["plugins", "doctor"]),
]


@each("arguments", VERBS)
def test_debug_shows_the_lines_of_the_plugin_in_every_verb(
    arguments: list[str], distribution: Any, tmp_path: Path, capsys: Any
) -> None:
    for name in [name for name in sys.modules if name.startswith("okapi")]:
        del sys.modules[name]
    points = {
        "foundry.architectures": {"okapi": "okapi_light:okapi"},
        "foundry.commands": {"okapi-command": "okapi_light"},
    }
    failing = "size = {}\nwidth = size['width']\n"
    distribution("foundry-okapi", points, {"okapi_light.py": failing}, folder=tmp_path / "site")
    yaml = tmp_path / "x.yaml"
    yaml.write_text(
        "experiment_name: x\ndata: {training_corpus: x.txt}\nmodel: {architecture: okapi}\n"
        "training: {output_dir: run, train_steps: 1}\n"
    )
    command = [argument.format(x=yaml) for argument in arguments]
    main(command)
    assert "width = size" not in capsys.readouterr().err
    sys.modules.pop("okapi_light", None)
    main(["--debug", *command])
    assert "width = size['width']" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["self.calls += 1", "import torch\n"], ids=["called", "imported"])
def test_debug_shows_the_traceback_of_a_model_once(text: str, okapi: Any, capsys: Any) -> None:
    okapi(MODEL.replace(text, "failing = {}['n']\n"), "--debug")
    error = capsys.readouterr().err
    assert error.count("failing = {}['n']") == 1


def test_debug_shows_the_traceback_of_an_observer_once(okapi: Any, capsys: Any) -> None:
    observer = DESCRIPTOR + "\n@hookimpl\ndef foundry_step_ended(report):\n    raise LookupError('no such step')\n"
    okapi(MODEL, "--debug", "logging.log_every_steps=1", descriptor=observer, code=0)
    error = capsys.readouterr().err
    assert error.count("raise LookupError('no such step')") == 1
    assert "warning: observer foundry-okapi 1.0 failed in foundry_step_ended and is muted" in error


@pytest.mark.parametrize("heavy", [False, True], ids=["descriptor", "model"])
@pytest.mark.parametrize(
    ("module", "requires", "advice"),
    [
        ("zz_kernels", (), "pip install zz_kernels"),
        ("zz_kernels.fast", ("zz-kernels >=2",), "pip install 'zz-kernels>=2'"),
        ("zz_yaml", ("ZZ_PyYaml>=6", "numpy"), "pip install 'ZZ_PyYaml>=6'"),
        ("zz_kernels", ("zz-other", "zz-more; extra == 'fast'", "zz-third"), "pip install zz_kernels"),
        ("foundry_core.nowhere", (), None),
    ],
)
def test_a_missing_dependency_is_answered_with_its_installation(
    module: str, requires: tuple[str, ...], advice: str | None, heavy: bool, okapi: Any, capsys: Any
) -> None:
    """heavy: the import is in the module of the model, not in that of the descriptor."""
    model, descriptor = (
        (f"import {module}\n{MODEL}", DESCRIPTOR) if heavy else (MODEL, f"import {module}\n{DESCRIPTOR}")
    )
    okapi(model, descriptor=descriptor, code=3 if heavy else 2, requires=requires)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(advice) if advice else "pip install" not in line
