"""The package that `foundry new-plugin` writes, as an installer leaves it, and mutants of its metadata and modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry_core.cli.new_plugin import plugin_files
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.keys import write_keys
from foundry_core.testing.kit.run import chosen_checks, run_check
from foundry_core.testing.kit.surroundings import kept_surroundings

NAME = "packaged"
PACKAGE = f"foundry_{NAME}"

_FILES = plugin_files(NAME)
LIGHT = _FILES[f"{PACKAGE}/__init__.py"]
MODEL = _FILES[f"{PACKAGE}/model.py"]
HOOK = """
from foundry_core import hookimpl

@hookimpl
def foundry_run_ended(step):
    pass
"""


@dataclass(frozen=True)
class Package:
    """Files of the site folder. entry: name of the entry point. requires: its requirements. light, model: text of
    the modules. committed: the model's when its names were committed; None for a package without a list.
    """

    defect: str = ""
    caught_by: str = ""
    entry: str = NAME
    requires: tuple[str, ...] = ("model-foundry<0.2,>=0.1",)
    light: str = LIGHT + HOOK
    model: str = MODEL
    committed: str | None = MODEL

    base = "package"

    def __str__(self) -> str:
        return f"package, {self.defect}"

    def but(self, **changes: Any) -> Package:
        """The same with changes."""
        return replace(self, **changes)


RIGHT = Package()


def _mutants() -> Iterator[Package]:
    def plant(defect: str, caught_by: str, **changes: Any) -> Package:
        return RIGHT.but(defect=defect, caught_by=caught_by, **changes)

    yield plant("no upper bound on model-foundry", "entry-point", requires=("model-foundry>=0.1",))
    yield plant("model-foundry not required", "entry-point", requires=("torch", "model-foundries<2"))
    yield plant("another model-foundry required", "entry-point", requires=("model-foundry<9,>=8",))
    yield plant("entry point of another name", "entry-point", entry="package")
    unstated = LIGHT.replace("    plugin_api_version=1,\n", "")
    yield plant("a plugin API that is not stated", "entry-point", light=unstated)
    yield plant("torch in the light module", "light-import", light=f"import torch\n{LIGHT}")
    yield plant("numpy in the light module", "light-import", light=f"import numpy\n{LIGHT}")
    busy = "import time\nwhile time.process_time() < 0.4: pass\n"
    yield plant("much work in the light module", "light-import", light=busy + LIGHT)
    unmarked = HOOK.replace("@hookimpl", "")
    yield plant("a hook that is not marked", "hooks", light=LIGHT + unmarked)
    yield plant(
        "a hook that is not marked, and misspelt", "hooks", light=LIGHT + unmarked.replace("foundry_", "fondry_")
    )
    unknown = unmarked.replace("run_ended", "epoch_ended")
    yield plant("a hook that there is not", "hooks", light=LIGHT + unknown)
    yield plant("an argument by keyword only", "hooks", light=LIGHT + HOOK.replace("(step)", "(*, step=None)"))
    yield plant("a misspelt hook", "hooks", light=LIGHT + HOOK.replace("run_ended", "run_endet"))
    yield plant(
        "a recipe with a key that there is not", "schema", light=LIGHT.replace("learning_rate", "lerning_rate") + HOOK
    )
    yield plant("no list of names", "keys", committed=None)
    yield plant("a weight renamed since", "keys", model=MODEL.replace("self.embedding", "self.table"))
    forgotten = MODEL.replace(f'register_auto_classes("{NAME}")', "")
    yield plant("the auto classes not told", "hugging-face", model=forgotten)


PACKAGES = list(_mutants())


@contextmanager
def installed(package: Package, site: Path) -> Iterator[None]:
    """The package lies in a folder on the path, as an installer would have left it."""
    information = site / f"foundry_{NAME}-1.0.dist-info"
    information.mkdir(parents=True)
    requires = "".join(f"Requires-Dist: {each}\n" for each in package.requires)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: foundry-{NAME}\nVersion: 1.0\n{requires}")
    (information / "entry_points.txt").write_text(f"[foundry.architectures]\n{package.entry} = {PACKAGE}:{NAME}\n")
    sys.path.insert(0, str(site))
    before = set(sys.modules)
    try:
        if package.committed is not None and package.entry == NAME:
            _write_modules(site, RIGHT.but(model=package.committed))
            write_keys(Suite.of(NAME))
            _forget(before)
        _write_modules(site, package)
        yield
    finally:
        sys.path.remove(str(site))
        _forget(before)


def _write_modules(site: Path, package: Package) -> None:
    (site / PACKAGE).mkdir(exist_ok=True)
    (site / PACKAGE / "__init__.py").write_text(package.light)
    (site / PACKAGE / "model.py").write_text(package.model)
    importlib.invalidate_caches()


def _forget(before: set[str]) -> None:
    for name in {PACKAGE, f"{PACKAGE}.model"} & (set(sys.modules) - before):
        del sys.modules[name]


def failures(package: Package, site: Path, *checks: str) -> dict[str, str]:
    """The checks that fail, each with the reason. Raises PluginError where core refuses to load the package."""
    with kept_surroundings(), installed(package, site):
        suite = Suite.of(package.entry)
        results = [run_check(check, suite) for check in chosen_checks(checks)]
    return {result.check.name: result.reason for result in results if not result.good}
