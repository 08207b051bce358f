"""The wheels: built from the sources, installed into an environment of their own, and removed again.

The environment sees the third-party dependencies of this one through links, and nothing of foundry but the wheels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "foundry-core": (ROOT, ["pyproject.toml", "README.md", "LICENSE", "foundry_core"]),
    **{
        name: (ROOT / "plugins" / name, ["pyproject.toml", "README.md", name.replace("-", "_")])
        for name in ("foundry-gpt2", "foundry-bert", "foundry-rnn")
    },
}
PLUGINS = [name for name in SOURCES if name != "foundry-core"]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command; no environment variable lends Python a module."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    texts = [str(part) for part in command]
    return subprocess.run(texts, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def done(*command: str | Path, cwd: Path) -> str:
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution, built from a copy of its sources, so that no build folder litters the tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, (source, parts) in SOURCES.items():
        copy = tmp_path_factory.mktemp(name)
        for part in parts:
            if (source / part).is_dir():
                shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "build"))
            else:
                shutil.copy(source / part, copy / part)
        options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
        done(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, copy, cwd=folder)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert set(found) == set(SOURCES)
    return found


class Environment:
    """A virtual environment without pip; the pip of this one installs into it."""

    def __init__(self, folder: Path):
        self.folder = folder
        done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        site = Path(
            done(self.python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
        )
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for outer in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(outer).iterdir():
                target = borrowed / entry.name
                if "foundry" not in entry.name and entry.suffix != ".pth" and not target.exists():
                    target.symlink_to(entry)
        (site / "borrowed.pth").write_text(f"{borrowed}\n")

    def pip(self, *arguments: str | Path) -> None:
        done(
            sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments,
            cwd=self.folder,
        )  # fmt: skip

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--quiet", wheel)

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "--yes", "--quiet", name)

    def foundry(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "bin" / "foundry", *arguments, cwd=self.folder)

    def architectures(self) -> dict[str, str]:
        listed = self.foundry("plugins", "list", "--json")
        assert listed.returncode == 0, listed.stderr
        return {row["name"]: f"{row['distribution']} {row['version']}" for row in json.loads(listed.stdout)}


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with core alone; each test leaves it so."""
    fresh = Environment(tmp_path_factory.mktemp("environment") / "venv")
    fresh.install(wheels["foundry-core"])
    return fresh


def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = Parser().parsestr(archive.read(name).decode())
    return {key: [str(value) for value in message.get_all(key, [])] for key in message}


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_environment_has_nothing_of_foundry_but_the_wheel(environment: Environment) -> None:
    place = done(environment.python, "-Ic", "import foundry_core; print(foundry_core.__file__)", cwd=environment.folder)
    assert Path(place.strip()).is_relative_to(environment.folder)
    missing = run(environment.python, "-Ic", "import foundry_gpt2", cwd=environment.folder)
    assert "No module named 'foundry_gpt2'" in missing.stderr


def test_core_alone_lists_no_architecture_and_says_how_to_get_one(environment: Environment) -> None:
    assert environment.architectures() == {}
    listed = environment.foundry("plugins", "list")
    assert listed.stdout == "no architecture is installed; for instance: pip install foundry-gpt2\n"
    refused = environment.foundry("validate", ROOT / "configs" / "bert.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith(
        "model.architecture: Unknown architecture: 'bert'. Available: none. "
        "Install one, for instance: pip install foundry-gpt2\n"
    )


def test_a_plugin_adds_its_architecture_and_only_that_and_takes_it_away_again(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    path = ROOT / "configs" / "bert.yaml"
    environment.install(wheels["foundry-bert"])
    environment.install(wheels["foundry-rnn"])
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
        for name in PLUGINS:
            environment.uninstall(name)
    assert environment.architectures() == {}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_names_the_cores_it_works_with(name: str, wheels: dict[str, Path]) -> None:
    core_version = metadata(wheels["foundry-core"])["Version"][0]
    (requirement,) = [each for each in metadata(wheels[name])["Requires-Dist"] if each.startswith("foundry-core")]
    bounds = re.fullmatch(r"foundry-core<(?P<upper>[\d.]+),>=(?P<lower>[\d.]+)", requirement)
    assert bounds is not None, requirement
    assert numbers(bounds["lower"]) <= numbers(core_version) < numbers(bounds["upper"])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_holds_its_package_with_its_types_and_nothing_else(name: str, wheels: dict[str, Path]) -> None:
    package = name.replace("-", "_")
    files = contents(wheels[name])
    assert f"{package}/py.typed" in files
    assert {file.split("/")[0] for file in files} == {package, f"{package}-0.1.0.dist-info"}
    here = SOURCES[name][0] / package
    sources = {f"{package}/{path.relative_to(here)}" for path in here.rglob("*.py")}
    assert {file for file in files if file.endswith(".py")} == sources
    assert metadata(wheels[name])["License-Expression"] == ["Apache-2.0"]


def test_the_wheel_of_core_holds_the_licence_and_the_promises(wheels: dict[str, Path]) -> None:
    files = contents(wheels["foundry-core"])
    assert "foundry_core/RELIABILITY.md" in files
    (licence,) = [file for file in files if file.endswith("/LICENSE")]
    with zipfile.ZipFile(wheels["foundry-core"]) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_version_is_the_same_wherever_it_stands(wheels: dict[str, Path], environment: Environment) -> None:
    version = metadata(wheels["foundry-core"])["Version"][0]
    assert environment.foundry("--version").stdout == f"foundry-core {version}\n"


def test_building_leaves_nothing_in_the_tree(wheels: dict[str, Path]) -> None:
    assert wheels
    assert not [source for source, _ in SOURCES.values() if (source / "build").exists()]
