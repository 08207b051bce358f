"""Fixtures for the tests of core: distributions made by hand as an installer leaves them, and real wheels.

A clean environment sees the third-party dependencies of this one through links, and nothing of foundry but the wheels
that are installed into it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from foundry_core.registry.discovery import read_packages

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path: the `*.dist-info` that an installer would leave, and its modules.

    What is imported from there is gone after the test. place: another folder, before those so far. sources: those of
    an editable installation, which get the modules.
    """

    def put(
        distribution: str,
        architectures: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        extensions: Mapping[str, str] | None = None,
        place: str = "site",
        requires: Sequence[str] = (),
        summary: str = "",
        sources: Path | None = None,
    ) -> None:
        site = tmp_path / place
        folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        headers = [f"Name: {distribution}", f"Version: {version}"]
        headers += [f"Summary: {summary}"] if summary else []
        headers += [f"Requires-Dist: {requirement}" for requirement in requires]
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.1", *headers, "", "Requires-Dist: foundry-core>=99"])
        )
        groups = {"foundry.architectures": architectures or {}, "foundry.plugins": extensions or {}}
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in groups.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        if sources is not None:
            origin = {"url": sources.as_uri(), "dir_info": {"editable": True}}
            (folder / "direct_url.json").write_text(json.dumps(origin))
            sources.mkdir(exist_ok=True)
        for name, text in (modules or {}).items():
            ((sources or site) / f"{name}.py").write_text(textwrap.dedent(text))
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))  # this puts back the whole path when the test ends
        if sources is not None:
            sys.path.append(str(sources))
        importlib.invalidate_caches()
        read_packages.cache_clear()

    yield put
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


ROOT = Path(__file__).parents[1]
PLUGINS = ("foundry-gpt2", "foundry-bert", "foundry-rnn", "foundry-transformers", "foundry-mamba")


def source(name: str) -> Path:
    """The folder that a distribution of this repository is built from."""
    return ROOT if name == "foundry-core" else ROOT / "plugins" / name


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command; no environment variable but those given lends Python a module."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    texts = [str(part) for part in command]
    return subprocess.run(texts, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False)


def done(*command: str | Path, cwd: Path, **variables: str) -> str:
    result = run(*command, cwd=cwd, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution, built from a copy of its sources, so that no build folder litters the tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("foundry-core", *PLUGINS):
        copy = tmp_path_factory.mktemp(name)
        for part in ("pyproject.toml", "README.md", "LICENSE", name.replace("-", "_")):
            path = source(name) / part
            if path.is_dir():
                shutil.copytree(path, copy / part, ignore=shutil.ignore_patterns("__pycache__", "build"))
            else:
                shutil.copy(path, copy / part)
        options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
        done(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, copy, cwd=folder)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert set(found) == {"foundry-core", *PLUGINS}
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

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--quiet", wheel)

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "--yes", "--quiet", name)

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
    fresh.install(wheels["foundry-core"])
    return fresh
