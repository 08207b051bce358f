"""Measure how long `foundry plugins list` takes with 20 more plugins installed.

    python benchmarks/discovery.py

The plugins are hand-made `*.dist-info` folders with a light module each, added to the path with PYTHONPATH. Every
descriptor is imported and checked. Bare Python, `foundry --help`, which reads metadata only, and the listing are run in
turn, and paired differences are reported, so that a busy period of the machine affects all of them. If the machine is
always busy, use the processor time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGINS = 20
ROUNDS = 21
LIST = "import sys; from foundry_core.cli import main; sys.exit(main(['plugins', 'list']))"
HELP = "import sys; from foundry_core.cli import main; sys.exit(main(['--help']))"

MODULE = """\
from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, ModelConfig


class Section(ConfigSection):
    hidden_size: int = Field(64, ge=1, description="width")
    layers: int = Field(2, ge=1, description="number of layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings")


class Config(ModelConfig):
    {name}: Section = Field(Section(), description="sizes")


{name} = Architecture(
    name="{name}",
    summary="an architecture of the benchmark",
    config_class=Config,
    model_class="foundry_{name}.model:Model",
    capabilities=lambda config: Capabilities(objectives=("causal_lm",)),
    examples={{"tiny": {{"{name}": {{"hidden_size": 8}}}}}},
)
"""


def install(site: Path, name: str) -> None:
    """Write the files that an installer leaves for a package with one architecture."""
    information = site / f"foundry_{name}-1.0.dist-info"
    package = site / f"foundry_{name}"
    information.mkdir(parents=True)
    package.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: foundry-{name}\nVersion: 1.0\nSummary: one of {PLUGINS}\n"
        f"Requires-Dist: model-foundry<1,>=0.1\n\n{'A README of some length.' * 100}\n"
    )
    (information / "entry_points.txt").write_text(f"[foundry.architectures]\n{name} = foundry_{name}:{name}\n")
    (package / "__init__.py").write_text(MODULE.format(name=name))
    (package / "model.py").write_text("")


def measured(program: str, environment: dict[str, str]) -> tuple[float, float]:
    """Run a process and return the elapsed seconds and the seconds of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        for index in range(PLUGINS):
            install(site, f"bench{index:02}")
        environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "PYTHONPYCACHEPREFIX": str(Path(folder, "compiled")),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", LIST]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert shown.count("an architecture of the benchmark") == PLUGINS, shown
        bare, helped, listed = [], [], []
        for _ in range(ROUNDS):
            bare.append(measured("pass", environment))
            helped.append(measured(HELP, environment))
            listed.append(measured(LIST, environment))
    print(f"{f'median of {ROUNDS}, {PLUGINS} plugins more':<32}{'ms':>8}{'of processor':>14}")
    wall, processor = map(statistics.median, zip(*bare, strict=True))
    print(f"{'bare Python':<32}{wall * 1e3:>8.1f}{processor * 1e3:>14.1f}")
    for name, runs in {"foundry --help": helped, "foundry plugins list": listed}.items():
        wall, processor = more_than(bare, runs)
        print(f"{name:<32}{wall * 1e3:>+8.1f}{processor * 1e3:>+14.1f}")
    return 0


def more_than(bare: list[tuple[float, float]], other: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians of the paired differences."""
    pairs = list(zip(bare, other, strict=True))
    wall, processor = (statistics.median(b[kind] - a[kind] for a, b in pairs) for kind in (0, 1))
    return wall, processor


if __name__ == "__main__":
    sys.exit(main())
