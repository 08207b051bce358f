"""What a release consists of: packed sources, and wheels built from them, installed into an environment and removed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from release import version
from tests.each import each

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("gpt2", "bert", "rnn", "transformers", "mamba", "ngram")
PLUGINS = (*(f"foundry-{name}" for name in ARCHITECTURES), "foundry-babylm")
DISTRIBUTIONS = ("model-foundry", *PLUGINS)
VERSION = version.kept(ROOT)


def source(name: str) -> Path:
    """The folder that a distribution is built from."""
    return ROOT if name == "model-foundry" else ROOT / "plugins" / name


def metadata(wheel: Path) -> dict[str, list[str]]:
    """The headers of a wheel, and its readme as `Description`."""
    (text,) = [text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    message = Parser().parsestr(text.decode())
    headers = {key: [str(value) for value in message.get_all(key, [])] for key in message}
    return headers | {"Description": [str(message.get_payload())]}


def contents(archive: Path) -> dict[str, bytes]:
    """The files of a wheel, or of packed sources without the folder that they all stand in, by path."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sources:
        files = {member.name.partition("/")[2]: sources.extractfile(member) for member in sources if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


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
            "bert": f"foundry-bert {VERSION}",
            **dict.fromkeys(("gru", "lstm", "rnn"), f"foundry-rnn {VERSION}"),
        }
        environment.uninstall("foundry-rnn")
        assert environment.architectures() == {"bert": f"foundry-bert {VERSION}"}
        valid = environment.foundry("validate", path)
        assert (valid.returncode, valid.stderr) == (0, "")
        assert valid.stdout.startswith(f"{path}: valid; bert, masked_lm, ")

        environment.install(wheels["foundry-gpt2"])
        environment.uninstall("foundry-bert")
        assert environment.architectures() == {"gpt2": f"foundry-gpt2 {VERSION}"}
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
    assert {file.split("/")[0] for file in files} == {package, f"{name.replace('-', '_')}-{VERSION}.dist-info"}
    here = source(name) / package
    sources = {f"{package}/{path.relative_to(here)}" for path in here.rglob("*") if path.is_file()}
    packed = {file for file in files if file.startswith(f"{package}/")}
    assert packed == {path for path in sources if "__pycache__" not in path}
    assert (f"{package}/state_keys.txt" in files) == (name.removeprefix("foundry-") in ARCHITECTURES)
    assert metadata(wheels[name])["License-Expression"] == ["Apache-2.0"]


def test_the_wheel_of_core_holds_promises_and_guide(wheels: dict[str, Path]) -> None:
    sources = {
        "foundry_core/RELIABILITY.md": "foundry_core/RELIABILITY.md",
        "foundry_core/PLUGINS.md": "plugins/README.md",
        "foundry_core/STABILITY.md": "plugins/STABILITY.md",
    }
    files = contents(wheels["model-foundry"])
    for file, path in sources.items():
        assert files[file] == (ROOT / path).read_bytes(), file


@each("name", DISTRIBUTIONS)
def test_licence_and_readme_are_in_wheel_and_sources(
    name: str, wheels: dict[str, Path], sdists: dict[str, Path]
) -> None:
    (licence,) = [text for file, text in contents(wheels[name]).items() if file.endswith("/LICENSE")]
    packed = contents(sdists[name])
    assert licence == packed["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    said = metadata(wheels[name])
    assert said["Description-Content-Type"] == ["text/markdown"]
    if name != "model-foundry":  # whose links are adapted
        assert said["Description"] == [packed["README.md"].decode()]
    assert len(said["Summary"]) == len(said["Keywords"]) == 1


@each("name", DISTRIBUTIONS)
def test_a_readme_has_no_link_into_the_checkout(name: str, wheels: dict[str, Path]) -> None:
    (readme,) = metadata(wheels[name])["Description"]
    assert "foundry" in readme.splitlines()[0]
    assert not re.findall(r"\]\((?!https://|#)[^)]*\)", readme)


def test_links_of_the_readme_lead_to_an_address_that_is_known(tmp_path: Path) -> None:
    for file in ("README.md", "LICENSE", "setup.py", "pyproject.toml", "foundry_core/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    project, address = tmp_path / "pyproject.toml", "https://example.org/foundry"
    project.write_text(project.read_text().replace("[project.urls]", f'[project.urls]\nSource = "{address}"'))
    command = [sys.executable, "setup.py", "--quiet", "--long-description"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    version_of_core = version.kept(ROOT)
    kept = {
        re.sub(rf"{address}/(blob|raw)/v{re.escape(version_of_core)}/", "", link)
        for link in re.findall(r"\]\(([^)]*)\)", result.stdout)
    }
    assert kept == set(re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text()))
    assert all((ROOT / link).exists() for link in kept)
    assert f"]({address}/raw/v{version_of_core}/docs/start/comparison.png)" in result.stdout


def test_the_sources_of_core_hold_what_the_tests_read(sdists: dict[str, Path]) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a checkout")
    tracked = {file for file in listed.stdout.split("\0") if file and not file.startswith(".")}
    assert {file for file in tracked if (ROOT / file).exists()} - contents(sdists["model-foundry"]).keys() == set()


@each("name", PLUGINS)
def test_the_sources_of_a_plugin_hold_its_tests(name: str, sdists: dict[str, Path]) -> None:
    tests = {f"tests/{path.name}" for path in (source(name) / "tests").glob("*.py")}
    assert tests
    assert tests <= contents(sdists[name]).keys()


@each("name", DISTRIBUTIONS)
def test_a_wheel_links_to_the_page_of_core(name: str, wheels: dict[str, Path]) -> None:
    assert metadata(wheels[name])["Project-URL"] == ["Documentation, https://pypi.org/project/model-foundry/"]


def test_the_version_is_the_one_that_core_states(wheels: dict[str, Path], environment: Any) -> None:
    assert {name: metadata(wheels[name])["Version"] for name in DISTRIBUTIONS} == {
        name: [VERSION] for name in DISTRIBUTIONS
    }
    assert environment.foundry("--version").stdout == f"model-foundry {VERSION}\n"


def test_building_leaves_nothing_in_the_tree(wheels: dict[str, Path]) -> None:
    assert wheels
    assert not [name for name in DISTRIBUTIONS if (source(name) / "build").exists()]


def test_one_command_writes_the_version_everywhere(sdists: dict[str, Path], tmp_path: Path) -> None:
    for name, content in contents(sdists["model-foundry"]).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    kept = version.kept(tmp_path)
    assert version.write(tmp_path, kept) == []  # all of it agrees now
    changed = version.write(tmp_path, "1.2.0rc1")
    assert set(changed) >= {"foundry_core/__init__.py", "CITATION.cff", "plugins/README.md", "plugins/STABILITY.md"}
    assert "version = {1.2.0rc1}" in (tmp_path / "docs" / "project.md").read_text("utf-8")
    for name in PLUGINS:
        project = (tmp_path / "plugins" / name / "pyproject.toml").read_text("utf-8")
        assert 'version = "1.2.0rc1"' in project
        assert '"model-foundry>=1.2,<2"' in project
    assert version.write(tmp_path, kept) == changed
    with pytest.raises(SystemExit, match="1.2 is not a version"):
        version.write(tmp_path, "1.2")


@each("name", DISTRIBUTIONS)
def test_a_wheel_names_its_authors_and_is_marked_as_typed(name: str, wheels: dict[str, Path]) -> None:
    said = metadata(wheels[name])
    assert said["Author"] == ["the foundry developers"]
    assert "Typing :: Typed" in said["Classifier"]
    # PEP 639 forbids such a classifier where there is a license expression.
    assert not [each for each in said["Classifier"] if each.startswith("License ::")]
    assert len(set(said["Requires-Dist"])) == len(said["Requires-Dist"])
    core = metadata(wheels["model-foundry"])
    assert pythons(said) == pythons(core) != []
    assert said["Requires-Python"] == core["Requires-Python"]


def pythons(said: dict[str, list[str]]) -> list[str]:
    return [each for each in said["Classifier"] if each.startswith("Programming Language :: Python :: 3.")]
