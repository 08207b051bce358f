"""Plugins: found from metadata, imported when asked for, and named, with the cause, when they do not work."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, Objective, hookimpl, load_config, register_architecture
from foundry_core.cli import main
from foundry_core.errors import ConfigError, PluginError
from foundry_core.registry.architecture import PLUGIN_API_VERSION, Architecture
from foundry_core.registry.discovery import installed, read_packages
from foundry_core.registry.hooks import hook_manager, observing, offers
from foundry_core.registry.loading import (
    active_modules,
    available_architectures,
    get_architecture,
    import_string,
    load_plugin_file,
)
from foundry_core.schema import ModelConfig
from tests.each import each

Install = Callable[..., None]

AVAILABLE = "Available: bert, gpt2, gru, lstm, mamba, ngram, rnn, transformers."
DESCRIPTOR = """\
from foundry_core import Architecture, ModelConfig
{name} = Architecture(name="{name}", summary="of a test", config_class=ModelConfig, model_class="{name}_model:Model")
"""
YAML = """\
experiment_name: trial
data: {{training_corpus: corpora/train.txt}}
model: {{architecture: {name}{sizes}}}
training: {{output_dir: runs/trial, train_steps: 10}}
"""


SIZES = {
    "gpt2": ", transformer: {layers: 1, embedding_size: 8, hidden_size: 8, intermediate_hidden_size: 8, "
    "attention_heads: 2}"
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """What a test imports is gone after it."""
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("foundry_core", "torch", "transformers", "numpy")):
            del sys.modules[name]


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on which no distribution stands; what is imported already stays imported."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])


def explained(name: str) -> str:
    """Return what is said about an architecture that cannot be had: one line."""
    with pytest.raises(PluginError) as raised:
        get_architecture(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def experiment(tmp_path: Path, name: str, more: str = "") -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML.format(name=name, sizes=SIZES.get(name, "")) + more)
    return path


def test_an_installed_architecture_is_found_by_its_name(install: Install) -> None:
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": DESCRIPTOR.format(name="mamba")})
    assert "mamba" in available_architectures()
    descriptor = get_architecture("mamba")
    assert (descriptor.name, descriptor.plugin_api_version) == ("mamba", None)
    claim = installed()["mamba"]
    assert [(str(each), each.module) for each in claim] == [("foundry-mamba 1.0", "mamba_light")]


def test_a_plugins_section_is_validated_by_its_own_class(install: Install, tmp_path: Path) -> None:
    light = """\
        from pydantic import Field
        from foundry_core import Architecture, Capabilities, ModelConfig

        class MambaConfig(ModelConfig):
            state_size: int = Field(16, ge=1)

        mamba = Architecture("mamba", "state spaces", MambaConfig, "no:where",
                             capabilities=lambda config: Capabilities(objectives=("masked_lm",)),
                             default_tokenizer="bpe")
    """
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": light})
    config = load_config(experiment(tmp_path, "mamba"), ["model.state_size=32"])
    assert config.resolved()["model"] == {"architecture": "mamba", "state_size": 32}
    assert (config.training.objective, config.tokenizer.tokenizer_type) == ("masked_lm", "bpe")
    with pytest.raises(ConfigError, match=r"model\.state_siz: unknown key\. Did you mean 'state_size'\?"):
        load_config(experiment(tmp_path, "mamba"), ["model.state_siz=32"])


@pytest.mark.parametrize(
    ("light", "message"),
    [
        (
            "import mamba_kernels\n",
            "the plugin foundry-mamba 1.0 ('mamba' from mamba_light:mamba) fails to import: "
            "ModuleNotFoundError: No module named 'mamba_kernels': pip install mamba_kernels",
        ),
        (
            "raise RuntimeError('needs\\n  two lines')\n",
            "the plugin foundry-mamba 1.0 ('mamba' from mamba_light:mamba) fails to import: "
            "RuntimeError: needs two lines. Upgrade or remove it: pip uninstall foundry-mamba",
        ),
        (
            "raise SystemExit('a licence is needed')\n",
            "the plugin foundry-mamba 1.0 ('mamba' from mamba_light:mamba) fails to import: "
            "SystemExit: a licence is needed. Upgrade or remove it: pip uninstall foundry-mamba",
        ),
        (
            "mumba = 3\n",
            "the plugin foundry-mamba 1.0 ('mamba' from mamba_light:mamba) fails to import: AttributeError: module "
            "'mamba_light' has no attribute 'mamba'. Upgrade or remove it: pip uninstall foundry-mamba",
        ),
        (
            "mamba = {'name': 'mamba'}\n",
            "the plugin foundry-mamba 1.0: mamba_light:mamba is a dict, not an Architecture descriptor. "
            "Upgrade or remove it: pip uninstall foundry-mamba",
        ),
        (
            DESCRIPTOR.format(name="mamba2") + "mamba = mamba2\n",
            "the plugin foundry-mamba 1.0: its entry point 'mamba' leads to an architecture 'mamba2'. "
            "Upgrade or remove it: pip uninstall foundry-mamba",
        ),
        (
            DESCRIPTOR.format(name="mamba") + "import dataclasses\n"
            "mamba = dataclasses.replace(mamba, plugin_api_version=99)\n",
            f"the plugin foundry-mamba 1.0 is made for plugin API 99, this core has {PLUGIN_API_VERSION}: "
            "pip install --upgrade model-foundry foundry-mamba",
        ),
    ],
    ids=["import error", "error of two lines", "exit", "no such name", "wrong type", "other name", "other API"],
)
def test_a_broken_plugin_is_one_line_with_the_way_out(
    light: str, message: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": light})
    assert explained("mamba") == message
    path = experiment(tmp_path, "mamba")
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}:3: model.architecture: {message}\n"


PANIC = "class Panic(BaseException): ...\nraise Panic('in Rust')\n"


@pytest.mark.parametrize("text", [PANIC, "raise GeneratorExit('in Rust')\n"])
def test_what_is_no_exception_is_a_failure_like_any_other(
    text: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": text})
    assert re.search(r" fails to import: (Panic|GeneratorExit): in Rust\. Upgrade or remove it", explained("mamba"))
    assert main(["plugins", "list"]) == 0
    (tmp_path / "my_arch.py").write_text(text)
    assert main(["validate", str(experiment(tmp_path, "gpt2")), "--plugin", str(tmp_path / "my_arch.py")]) == 3
    assert capsys.readouterr().err.endswith(": in Rust\n")


def test_an_interruption_during_an_import_is_an_interruption(install: Install) -> None:
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": "raise KeyboardInterrupt\n"})
    with pytest.raises(KeyboardInterrupt):
        get_architecture("mamba")


def test_a_broken_plugin_fails_only_the_run_that_asks_for_it(install: Install, tmp_path: Path) -> None:
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": "1 / 0\n"})
    assert load_config(experiment(tmp_path, "gpt2")).architecture.name == "gpt2"
    assert "mamba_light" not in sys.modules


def test_two_distributions_that_claim_one_name_are_both_named(install: Install) -> None:
    for distribution, version in (("foundry-mamba", "1.0"), ("mamba-fork", "2.1")):
        install(distribution, {"mamba": "mamba_light:mamba"}, {"mamba_light": "1 / 0\n"}, version)
    assert re.fullmatch(
        r"the architecture 'mamba' is claimed by (foundry-mamba 1\.0 and mamba-fork 2\.1|"
        r"mamba-fork 2\.1 and foundry-mamba 1\.0): uninstall one, pip uninstall (?P<one>foundry-mamba|mamba-fork), "
        r"or switch it off, FOUNDRY_PLUGINS_DISABLE=(?P=one)",
        explained("mamba"),
    )


def test_of_two_copies_of_a_package_the_first_counts(install: Install) -> None:
    light = {"mamba_light": DESCRIPTOR.format(name="mamba")}
    install("foundry-mamba", {"mamba": "stale:mamba", "gone": "stale:gone"}, {}, "0.9", place="stale")
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, light, "1.0", place="fresh")
    assert [str(each) for each in installed()["mamba"]] == ["foundry-mamba 1.0"]
    assert get_architecture("mamba").name == "mamba"
    assert "gone" not in installed()


@pytest.mark.long
def test_listing_plugins_loads_neither_torch_nor_a_model() -> None:
    program = (
        "import sys\nfrom foundry_core.cli import main\ncode = main(['plugins', 'list', '--json'])\n"
        "assert code == 0\n"
        "assert not {'torch', 'transformers', 'foundry_gpt2.model', 'foundry_rnn.model'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert {row["name"]: (row["distribution"], row["problem"]) for row in rows} == {
        "babylm": ("foundry-babylm", None),
        "bert": ("foundry-bert", None),
        "gpt2": ("foundry-gpt2", None),
        "gru": ("foundry-rnn", None),
        "lstm": ("foundry-rnn", None),
        "mamba": ("foundry-mamba", None),
        "ngram": ("foundry-ngram", None),
        "rnn": ("foundry-rnn", None),
        "transformers": ("foundry-transformers", None),
    }


@pytest.mark.usefixtures("no_packages")
def test_core_alone_says_how_to_get_an_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert available_architectures() == []
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out == "no architecture is installed; for instance: pip install foundry-gpt2\n"
    message = "Unknown architecture: 'gpt2'. Available: none. Install one, for instance: pip install foundry-gpt2"
    assert explained("gpt2") == message
    path = experiment(tmp_path, "gpt2")
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}:3: model.architecture: {message}\n"


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    assert explained("lstn") == f"Unknown architecture: 'lstn'. Did you mean 'lstm'? {AVAILABLE}"


def a_model() -> type[BaseLanguageModel]:
    return type("Model", (BaseLanguageModel,), {"__doc__": "A model of a test.\n\nMore.", "__module__": __name__})


def test_a_registered_class_is_an_architecture_like_any_other(tmp_path: Path) -> None:
    class Settings(ModelConfig):
        width: int = 8

    model = a_model()
    assert register_architecture("mine", config=Settings)(model) is model
    descriptor = get_architecture("mine")
    assert (descriptor.model_class, descriptor.summary) == (model, "A model of a test.")
    config = load_config(experiment(tmp_path, "mine"), ["model.width=9"])
    assert config.resolved()["model"] == {"architecture": "mine", "width": 9}


def test_a_name_is_registered_once() -> None:
    register_architecture("mine", config=ModelConfig)(a_model())
    with pytest.raises(PluginError, match=r"'mine' is registered already, by .*Model"):
        register_architecture("mine", config=ModelConfig)(a_model())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"capabilities": 5}, "its capabilities is 5, not a function of the section"),
        ({"config": dict}, "its config_class is <class 'dict'>, not a subclass of ModelConfig"),
    ],
    ids=str,
)
def test_a_wrong_registration_is_refused_where_it_is_made(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError) as raised:
        register_architecture("mine", **{"config": ModelConfig, **given})(a_model())
    assert str(raised.value) == f"the architecture 'mine': {problem}"
    assert "mine" not in available_architectures()


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ("lambda config: config.nothing", "AttributeError: 'ModelConfig' object has no attribute 'nothing'"),
        ("lambda config: None", "NoneType, not Capabilities"),
        ("lambda config: exit(1)", "SystemExit: 1"),
    ],
)
def test_capabilities_that_fail_are_the_plugins_problem(
    capabilities: str, said: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DESCRIPTOR.format(name="mamba").replace('Model")', f'Model", capabilities={capabilities})')
    install("foundry-mamba", {"mamba": "mamba_light:mamba"}, {"mamba_light": text})
    path = experiment(tmp_path, "mamba")
    for command, place, code in (
        (["validate", str(path)], f"{path}:3: model.architecture", 2),
        (["init", "mamba"], "error", 3),
    ):
        assert main(command) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{place}: the plugin foundry-mamba 1.0: ")
        assert f"{said}. " in line
        assert line.endswith("pip uninstall foundry-mamba")


def test_a_registered_name_that_a_package_ships_is_refused() -> None:
    register_architecture("gpt2", config=ModelConfig)(a_model())
    assert re.fullmatch(
        r"the architecture 'gpt2' is registered in this process and shipped by foundry-gpt2 [\d.]+: "
        r"register yours under another name",
        explained("gpt2"),
    )


PLUGIN_FILE = """\
from foundry_core import BaseLanguageModel, Capabilities, ModelConfig, register_architecture


class Settings(ModelConfig):
    width: int = 8


@register_architecture("from_a_file", config=Settings, capabilities=Capabilities(objectives=("masked_lm",)))
class Model(BaseLanguageModel):
    pass
"""


def test_a_plugin_file_makes_its_architecture_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = tmp_path / "my_arch.py"
    plugin.write_text(PLUGIN_FILE)
    path = experiment(tmp_path, "from_a_file")
    assert main(["validate", str(path), "model.width=4", "--plugin", str(plugin)]) == 0
    assert capsys.readouterr().out == f"{path}: valid; from_a_file, masked_lm, train_steps 10\n"
    assert {each.name for each in tmp_path.iterdir()} - {"__pycache__"} == {"experiment.yaml", "my_arch.py"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", "fails: ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')\n", "fails: ValueError: one two"),
        ("def f(:\n", "fails: SyntaxError: .*"),
    ],
)
def test_a_plugin_file_that_raises_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "my_arch.py"
    plugin.write_text(text)
    assert main(["validate", str(experiment(tmp_path, "gpt2")), "--plugin", str(plugin)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"error: --plugin {re.escape(str(plugin))} {message}\n", captured.err)
    assert "my_arch" not in sys.modules


HOOKS = """\
from foundry_core import hookimpl

@hookimpl
def foundry_run_ended(step):
    pass

@hookimpl
def foundry_step_ended(report):
    pass
"""


@pytest.mark.parametrize("overrides", [[], ["plugins=[my_arch]"]], ids=["not named", "named"])
@pytest.mark.parametrize(
    ("text", "architecture", "silent"),
    [
        (HOOKS, "gpt2", "foundry_run_ended, foundry_step_ended"),
        (HOOKS.replace("@hookimpl\ndef foundry_run_ended", "def foundry_run_ended"), "gpt2", None),
        (PLUGIN_FILE + HOOKS, "gpt2", "foundry_run_ended, foundry_step_ended"),
        (PLUGIN_FILE + HOOKS, "from_a_file", ""),
        (PLUGIN_FILE, "gpt2", ""),
    ],
    ids=["observer", "unmarked", "another architecture", "the architecture in use", "no hooks"],
)
def test_a_plugin_file_whose_hooks_are_not_active_is_named(
    text: str,
    architecture: str,
    silent: str | None,
    overrides: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin = tmp_path / "my_arch.py"
    plugin.write_text(text)
    code = main(["validate", str(experiment(tmp_path, architecture)), *overrides, "--plugin", str(plugin)])
    said = capsys.readouterr().err
    if silent is None and overrides:
        assert code == 2
        assert "the hook foundry_run_ended of my_arch is not marked" in said
        return
    assert code == 0
    hooks = "foundry_run_ended, foundry_step_ended" if silent is None else silent
    warning = (
        f"warning: --plugin {plugin} has hooks, {hooks}, which are not active in this run: "
        "name it in the YAML, plugins: [my_arch]\n"
    )
    assert said == ("" if overrides or not hooks else warning)


@each(
    ("name", "message"),
    [
        ("json.py", "there is another module 'json', which it would replace: rename the file"),
        ("antigravity.py", "there is another module 'antigravity', which it would replace: rename the file"),
        ("my-arch.py", "the file's name must be a Python module name, such as my_arch.py"),
        ("none.py", "there is no such file"),
        ("plain", "the file's name must be a Python module name, such as my_arch.py"),
    ],
)
def test_a_plugin_file_replaces_no_other_module(name: str, message: str, tmp_path: Path) -> None:
    before = json
    if name != "none.py":
        (tmp_path / name).write_text("loaded = True\n")
    with pytest.raises(PluginError) as raised:
        load_plugin_file(tmp_path / name)
    assert str(raised.value) == f"--plugin {tmp_path / name}: {message}"
    assert sys.modules["json"] is before


def test_importing_a_plugin_keeps_the_working_folder(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = "import os\nos.chdir('/')\n"
    (tmp_path / "my_arch.py").write_text(elsewhere + PLUGIN_FILE)
    experiment(tmp_path, "from_a_file")
    assert main(["validate", "experiment.yaml", "--plugin", "my_arch.py"]) == 0
    install("foundry-mamba", {"mamba": "moving:mamba"}, {"moving": elsewhere + DESCRIPTOR.format(name="mamba")})
    get_architecture("mamba")
    assert Path.cwd() == tmp_path


@each("module", ["os", "antigravity", "in_the_folder", "yaml.constructor", "", "../x", "a b"])
def test_a_yaml_imports_nothing_that_no_package_declares(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "in_the_folder.py").write_text("raise SystemExit(9)\n")
    path = experiment(tmp_path, "gpt2", f"plugins: ['{module}']\n")
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"{path}:5: plugins: no installed package declares the module '{module}'. "
        "Declared: foundry_bert, foundry_gpt2, foundry_mamba, foundry_ngram, foundry_rnn, foundry_transformers.\n"
    )
    assert not {"antigravity", "in_the_folder"} & set(sys.modules)


def test_a_misspelt_module_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the module 'foundry_gtp2'\. Did you mean 'foundry_gpt2'\? Declared: "):
        load_config(experiment(tmp_path, "bert", "plugins: [foundry_gtp2]\n"))


OBJECTIVE = """\
from foundry_core import Objective, hookimpl

@hookimpl
def foundry_objectives():
    return [Objective("prefix_lm", "of a test", True, "overlap", "no:where")]
"""
TWO_OBJECTIVES = """\
from foundry_core import Architecture, Capabilities, ModelConfig
willing = Architecture("willing", "of a test", ModelConfig, "no:where",
                       capabilities=lambda config: Capabilities(objectives=("causal_lm", "prefix_lm")))
"""


def test_an_objective_counts_only_where_its_module_is_active(install: Install, tmp_path: Path) -> None:
    install("foundry-willing", {"willing": "willing_light:willing"}, {"willing_light": TWO_OBJECTIVES})
    install("foundry-prefix", modules={"prefix_plugin": OBJECTIVE}, extensions={"prefix": "prefix_plugin"})
    path = experiment(tmp_path, "willing")
    line = r"'prefix_lm'\. Available: causal_lm, masked_lm\. Installed, but not named under plugins: prefix_plugin$"
    with pytest.raises(ConfigError, match=f"unknown objective {line}"):
        load_config(path, ["training.objective=prefix_lm"])
    assert "prefix_plugin" not in sys.modules
    active = load_config(path, ["training.objective=prefix_lm", "plugins=[prefix_plugin]"])
    assert active.objective.name == "prefix_lm"
    assert load_config(path).training.objective == "causal_lm"


def test_an_objective_is_active_with_its_architecture(install: Install, tmp_path: Path) -> None:
    install("foundry-willing", {"willing": "willing_light:willing"}, {"willing_light": TWO_OBJECTIVES + OBJECTIVE})
    assert load_config(experiment(tmp_path, "willing"), ["training.objective=prefix_lm"]).objective.name == "prefix_lm"
    with pytest.raises(ConfigError, match="unknown objective 'prefix_lm'"):
        load_config(experiment(tmp_path, "gpt2"), ["training.objective=prefix_lm"])


def test_a_plugin_file_of_hooks_can_be_made_active(tmp_path: Path) -> None:
    plugin = tmp_path / "my_objectives.py"
    plugin.write_text(OBJECTIVE)
    load_plugin_file(plugin)
    config = load_config(experiment(tmp_path, "gpt2", "plugins: [my_objectives]\n"))
    names = set(offers(hook_manager(active_modules(config.architecture, config.plugins))).objectives)
    assert names == {"causal_lm", "masked_lm", "prefix_lm"}


def test_an_active_module_that_fails_to_import_is_named(install: Install, tmp_path: Path) -> None:
    install(
        "foundry-prefix", modules={"prefix_plugin": "raise SystemExit(1)\n"}, extensions={"prefix": "prefix_plugin"}
    )
    message = (
        r"plugins: the plugin foundry-prefix 1\.0 \('prefix' from prefix_plugin\) fails to import: SystemExit: 1\. "
        r"Upgrade or remove it: pip uninstall foundry-prefix$"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(experiment(tmp_path, "gpt2", "plugins: [prefix_plugin]\n"))


def module_with(called: str = "mine", **functions: Callable[..., object]) -> types.ModuleType:
    module = types.ModuleType(called)
    for name, function in functions.items():
        setattr(module, name, hookimpl(function))
    return module


def test_a_misspelt_hook_is_refused() -> None:
    with pytest.raises(PluginError, match=r"^unknown hook 'foundry_step_endd' in plugin .*mine.*hookspecs\.py$"):
        hook_manager([module_with(foundry_step_endd=lambda report: None)])


def test_a_hook_with_an_argument_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PluginError, match=r"^Plugin 'mine' for hook 'foundry_step_ended' .*'rapport'.*hookspecs\.py$"):
        hook_manager([module_with(foundry_step_ended=lambda rapport: None)])


def test_a_function_without_the_mark_is_no_hook() -> None:
    module = types.ModuleType("mine")
    module.foundry_step_endd = lambda report: None  # type: ignore[attr-defined]
    assert offers(hook_manager([module])).objectives.keys() == {"causal_lm", "masked_lm"}


def test_an_offering_hook_that_raises_is_the_plugins_error() -> None:
    def broken() -> list[Objective]:
        raise ValueError("one\ntwo")

    with pytest.raises(PluginError, match=r"^the hook foundry_objectives of mine fails: ValueError: one two$"):
        offers(hook_manager([module_with(foundry_objectives=broken)]))

    def panicking() -> list[Objective]:
        raise type("Panic", (BaseException,), {})

    with pytest.raises(PluginError, match=r"^the hook foundry_objectives of mine fails: Panic$"):
        offers(hook_manager([module_with(foundry_objectives=panicking)]))


def test_a_descriptor_cannot_be_changed() -> None:
    descriptor = get_architecture("gpt2")
    with pytest.raises(AttributeError):
        descriptor.name = "gpt3"  # type: ignore[misc]
    assert isinstance(descriptor, Architecture)


def test_settings_are_restored_after_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setting.py").write_text(
        "import os, random, torch\n"
        "torch.set_num_threads(3)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.manual_seed(0)\n"
        "random.seed(0)\n"
        "os.chdir('/')\n"
        "class Model: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def settings() -> list[object]:
        return [torch.get_num_threads(), torch.get_default_dtype(), Path.cwd(), random.getstate()]

    before, chance = settings(), torch.get_rng_state()
    assert import_string("setting:Model").__name__ == "Model"
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_cell_of_a_notebook_may_register_its_class_again() -> None:
    first, second = a_model(), a_model()
    for model in (first, second):
        model.__module__, model.__qualname__ = "__main__", "Cell"
        register_architecture("mine", config=ModelConfig)(model)
    assert get_architecture("mine").model_class is second


def test_packages_are_read_once_until_one_is_installed(install: Install, tmp_path: Path) -> None:
    read_packages.cache_clear()
    for _ in range(2):
        load_config(experiment(tmp_path, "gpt2"))
    assert read_packages.cache_info().misses == 1
    install("foundry-sun", {"sun": "sun_light:sun"}, {"sun_light": ""})
    assert "sun" in available_architectures()


def test_observers_are_registered_for_a_run_only() -> None:
    class Watching:
        @hookimpl
        def foundry_run_ended(self, step: int) -> None:
            pass

    manager = hook_manager([])
    with observing(manager, [Watching(), Watching()]):
        assert len(manager.hook.foundry_run_ended.get_hookimpls()) == 2
    misspelt = module_with(foundry_run_endet=lambda step: None)
    with pytest.raises(PluginError, match="unknown hook 'foundry_run_endet'"), observing(manager, [misspelt]):
        pass
    assert manager.get_plugins() == set()
