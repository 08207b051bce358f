"""The wheels: built from the sources, installed into an environment of their own, and removed again."""

from __future__ import annotations

import re
import shutil
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import foundry_core
from tests.each import each

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PLUGINS = ("foundry-gpt2", "foundry-bert", "foundry-rnn", "foundry-transformers", "foundry-mamba", "foundry-ngram")
KINDS = (".py", ".template")
DISTRIBUTIONS = ("model-foundry", *PLUGINS)


def source(name: str) -> Path:
    """The folder that a distribution is built from."""
    return ROOT if name == "model-foundry" else ROOT / "plugins" / name


def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = Parser().parsestr(archive.read(name).decode())
    return {key: [str(value) for value in message.get_all(key, [])] for key in message}


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_environment_has_nothing_of_foundry_but_the_wheel(environment: Any) -> None:
    place = environment.done(environment.python, "-Ic", "import foundry_core; print(foundry_core.__file__)")
    assert Path(place.strip()).is_relative_to(environment.folder)
    missing = environment.run(environment.python, "-Ic", "import foundry_gpt2")
    assert "No module named 'foundry_gpt2'" in missing.stderr


def test_core_alone_lists_nothing_and_prints_how_to_install(environment: Any) -> None:
    assert environment.architectures() == {}
    listed = environment.foundry("plugins", "list")
    assert listed.stdout == "no architecture is installed; for instance: pip install foundry-gpt2\n"
    refused = environment.foundry("validate", ROOT / "configs" / "bert.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith(
        "model.architecture: Unknown architecture: 'bert'. Available: none. "
        "Install one, for instance: pip install foundry-gpt2\n"
    )


def test_a_plugin_adds_and_removes_exactly_its_architecture(environment: Any, wheels: dict[str, Path]) -> None:
    path = ROOT / "configs" / "bert.yaml"
    environment.install(wheels["foundry-bert"], wheels["foundry-rnn"])
    try:
        assert environment.architectures() == {
            "bert": "foundry-bert 0.1.0",
            **dict.fromkeys(("gru", "lstm", "rnn"), "foundry-rnn 0.1.0"),
        }
        environment.uninstall("foundry-rnn")
        assert environment.architectures() == {"bert": "foundry-bert 0.1.0"}
        valid = environment.foundry("validate", path)
        assert (valid.returncode, valid.stderr) == (0, "")
        assert valid.stdout.startswith(f"{path}: valid; bert, masked_lm, ")

        environment.install(wheels["foundry-gpt2"])
        environment.uninstall("foundry-bert")
        assert environment.architectures() == {"gpt2": "foundry-gpt2 0.1.0"}
        refused = environment.foundry("validate", path)
        assert (refused.returncode, refused.stdout) == (2, "")
        line = r".*/bert\.yaml:\d+: model\.architecture: Unknown architecture: 'bert'\. Available: gpt2\.\n"
        assert re.fullmatch(line, refused.stderr)
    finally:
        environment.uninstall(*PLUGINS)
    assert environment.architectures() == {}


def test_a_package_without_an_architecture_can_be_used(
    environment: Any, wheels: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(
        ROOT / "tests" / "example_plugin", tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        "experiment_name: trial\n"
        "data: {training_corpus: corpora/train.txt}\n"
        "tokenizer: {tokenizer_type: bytes}\n"
        "model: {architecture: bert, transformer: {layers: 1, embedding_size: 4, hidden_size: 4, "
        "intermediate_hidden_size: 4, attention_heads: 1}}\n"
        "training: {output_dir: runs/trial, train_steps: 10, objective: span_corruption, optimizer: lion}\n"
        "plugins: [foundry_example]\n"
    )
    environment.install(wheels["foundry-bert"])
    environment.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet", tmp_path / "source")
    try:
        valid = environment.foundry("validate", experiment)
        assert (valid.returncode, valid.stderr) == (0, "")
        assert valid.stdout == f"{experiment}: valid; bert, span_corruption, train_steps 10\n"
        assert "of foundry-example 0.1.0" in environment.foundry("--help").stdout
        assert "foundry spans experiment.yaml" in environment.foundry("spans", "--help").stdout
    finally:
        environment.uninstall("foundry-example")
    try:
        refused = environment.foundry("validate", experiment)
        assert refused.returncode == 2
        assert "plugins: no installed package declares the module 'foundry_example'" in refused.stderr
    finally:
        environment.uninstall("foundry-bert")


@each("name", PLUGINS)
def test_a_plugin_names_the_cores_it_works_with(name: str, wheels: dict[str, Path]) -> None:
    core_version = metadata(wheels["model-foundry"])["Version"][0]
    (requirement,) = [each for each in metadata(wheels[name])["Requires-Dist"] if each.startswith("model-foundry")]
    bounds = re.fullmatch(r"model-foundry<(?P<upper>[\d.]+),>=(?P<lower>[\d.]+)", requirement)
    assert bounds is not None, requirement
    assert numbers(bounds["lower"]) <= numbers(core_version) < numbers(bounds["upper"])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@each("name", DISTRIBUTIONS)
def test_a_wheel_holds_its_typed_package_and_nothing_else(name: str, wheels: dict[str, Path]) -> None:
    package = "foundry_core" if name == "model-foundry" else name.replace("-", "_")
    files = contents(wheels[name])
    assert f"{package}/py.typed" in files
    assert {file.split("/")[0] for file in files} == {package, f"{name.replace('-', '_')}-0.1.0.dist-info"}
    here = source(name) / package
    sources = {f"{package}/{path.relative_to(here)}" for kind in KINDS for path in here.rglob(f"*{kind}")}
    assert {file for file in files if file.endswith(KINDS)} == sources
    assert (f"{package}/state_keys.txt" in files) == (name in PLUGINS)
    assert metadata(wheels[name])["License-Expression"] == ["Apache-2.0"]


def test_the_wheel_of_core_holds_licence_promises_and_guide(wheels: dict[str, Path]) -> None:
    (licence,) = [file for file in contents(wheels["model-foundry"]) if file.endswith("/LICENSE")]
    sources = {
        licence: "LICENSE",
        "foundry_core/RELIABILITY.md": "foundry_core/RELIABILITY.md",
        "foundry_core/PLUGINS.md": "plugins/README.md",
        "foundry_core/STABILITY.md": "plugins/STABILITY.md",
    }
    with zipfile.ZipFile(wheels["model-foundry"]) as archive:
        for file, path in sources.items():
            assert archive.read(file) == (ROOT / path).read_bytes(), file


@each("name", DISTRIBUTIONS)
def test_a_wheel_links_to_the_page_of_core(name: str, wheels: dict[str, Path]) -> None:
    assert metadata(wheels[name])["Project-URL"] == ["Documentation, https://pypi.org/project/model-foundry/"]


def test_the_version_is_the_same_wherever_it_stands(wheels: dict[str, Path], environment: Any) -> None:
    version = metadata(wheels["model-foundry"])["Version"][0]
    assert environment.foundry("--version").stdout == f"model-foundry {version}\n"


def test_building_leaves_nothing_in_the_tree(wheels: dict[str, Path]) -> None:
    assert wheels
    assert not [name for name in DISTRIBUTIONS if (source(name) / "build").exists()]


def test_one_version_stands_in_every_file_of_a_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {"CITATION.cff": citation["version"], "foundry_core": foundry_core.__version__}
    for name in DISTRIBUTIONS:
        project = tomllib.loads((source(name) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        versions[name] = project["version"]
    assert len(set(versions.values())) == 1, versions


@each("name", DISTRIBUTIONS)
def test_a_wheel_names_its_authors_and_is_marked_as_typed(name: str, wheels: dict[str, Path]) -> None:
    said = metadata(wheels[name])
    assert said["Author"] == ["the foundry developers"]
    assert "Typing :: Typed" in said["Classifier"]
    # PEP 639 forbids such a classifier where there is a license expression.
    assert not [each for each in said["Classifier"] if each.startswith("License ::")]
    assert len(set(said["Requires-Dist"])) == len(said["Requires-Dist"])
