"""Fixtures for the tests of core: distributions made by hand as an installer leaves them, and real wheels.

A clean environment sees the third-party dependencies of this one through links, and nothing of foundry but the wheels
that are installed into it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from foundry_core import BaseLanguageModel

Install = Callable[..., None]


@pytest.fixture
def install(distribution: Callable[..., Path], tmp_path: Path) -> Install:
    """Put a distribution of architectures, extensions and modules on the path, all in one folder.

    place: another folder, before those so far. sources: those of an editable installation, which get the modules.
    """

    def put(
        name: str,
        architectures: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        extensions: Mapping[str, str] | None = None,
        place: str = "site",
        requires: Sequence[str] = (),
        summary: str = "",
        sources: Path | None = None,
    ) -> None:
        distribution(
            name,
            {"foundry.architectures": architectures or {}, "foundry.plugins": extensions or {}},
            {f"{module}.py": textwrap.dedent(text) for module, text in (modules or {}).items()},
            version=version,
            headers=[f"Summary: {summary}"] * bool(summary) + [f"Requires-Dist: {each}" for each in requires],
            folder=tmp_path / place,
            sources=sources,
        )

    return put


@pytest.fixture
def model(experiment: Callable[..., Any], letters: Any, tmp_path: Path) -> Callable[..., BaseLanguageModel]:
    """`model(architecture, scale=4.0)`: an untrained one of letters, with logits as large as those of a trained one."""
    import torch

    from foundry_core import create_model

    def build(architecture: str, scale: float = 4.0) -> BaseLanguageModel:
        objective = {"objective": "masked_lm"} if architecture == "bert" else {}
        config = experiment(architecture, tmp_path, training=objective)
        torch.manual_seed(0)
        built = create_model(config, letters)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.mul_(scale if parameter.ndim > 1 else 1)
        return built

    return build


ROOT = Path(__file__).parents[1]
PLUGINS = tuple(f"foundry-{name}" for name in ("gpt2", "bert", "rnn", "transformers", "mamba", "ngram", "babylm"))


def package(name: str) -> str:
    """The import package of a distribution."""
    return "foundry_core" if name == "model-foundry" else name.replace("-", "_")


def source(name: str) -> Path:
    """The folder that a distribution of this repository is built from."""
    return ROOT if name == "model-foundry" else ROOT / "plugins" / name


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command; no environment variable but those given lends Python a module."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    texts = [str(part) for part in command]
    return subprocess.run(texts, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False)


def done(*command: str | Path, cwd: Path, **variables: str) -> str:
    result = run(*command, cwd=cwd, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


_BUILD_SDISTS = """
import os, sys
from setuptools import build_meta
target, *folders = sys.argv[1:]  # each build replaces the list
for folder in folders:
    os.chdir(folder)
    build_meta.build_sdist(target)
"""


@pytest.fixture(scope="session")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sources of each distribution, packed from a copy, so that nothing litters the tree."""
    manifest = [line.split() for line in (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()]
    grafted = [part for words in manifest if words[:1] in (["graft"], ["include"]) for part in words[1:]]
    folder = tmp_path_factory.mktemp("sdists")
    copies = []
    for name in ("model-foundry", *PLUGINS):
        copies.append(tmp_path_factory.mktemp(name))
        own = ("MANIFEST.in", *grafted) if name == "model-foundry" else ("tests",)
        for part in ("pyproject.toml", "README.md", "LICENSE", package(name), *own):
            path = source(name) / part
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "build", "_build", "*.egg-info")
                shutil.copytree(path, copies[-1] / part, ignore=ignored)
            else:
                shutil.copy(path, copies[-1] / part)
    done(sys.executable, "-c", _BUILD_SDISTS, folder, *copies, cwd=folder)
    return _by_distribution(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheels(sdists: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution, built from its packed sources as a release is."""
    folder = tmp_path_factory.mktemp("wheels")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    done(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, *sdists.values(), cwd=folder)
    return _by_distribution(folder.glob("*.whl"))


def _by_distribution(files: Iterable[Path]) -> dict[str, Path]:
    found = {path.name.split("-")[0].replace("_", "-"): path for path in files}
    assert set(found) == {"model-foundry", *PLUGINS}
    return found


class Environment:
    """A virtual environment without pip; the pip of this one installs into it."""

    def __init__(self, folder: Path):
        self.folder = folder
        done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        site = Path(self.done(self.python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for outer in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(outer).iterdir():
                target = borrowed / entry.name
                if "foundry" not in entry.name and entry.suffix != ".pth" and not target.exists():
                    target.symlink_to(entry)
        (site / "borrowed.pth").write_text(f"{borrowed}\n")

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*command, cwd=self.folder)

    def done(self, *command: str | Path) -> str:
        return done(*command, cwd=self.folder)

    def pip(self, *arguments: str | Path) -> None:
        self.done(sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments)

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--quiet", *wheels)

    def uninstall(self, *names: str) -> None:
        self.pip("uninstall", "--yes", "--quiet", *names)

    def foundry(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(self.folder / "bin" / "foundry", *arguments)

    def architectures(self) -> dict[str, str]:
        listed = self.foundry("plugins", "list", "--json")
        assert listed.returncode == 0, listed.stderr
        return {row["name"]: f"{row['distribution']} {row['version']}" for row in json.loads(listed.stdout)}


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with core alone; each test leaves it so."""
    fresh = Environment(tmp_path_factory.mktemp("environment") / "venv")
    fresh.install(wheels["model-foundry"])
    return fresh
