"""Checks of suites: the data that a package ships are read, the same each time, and damage is refused in one line."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from foundry_core.errors import FoundryError, PluginError
from foundry_core.evaluation.suites.reading import LoadedSuite, read_suite
from foundry_core.models.base import create_model
from foundry_core.registry.loading import import_string, load_plugin_file, plugin_files
from foundry_core.storage.files import write_file
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import experiment, letters
from foundry_core.testing.extensions.subjects import Subject, find
from foundry_core.testing.kit.check import NonconformanceError, NotApplicableError, NotLookedAtError, require
from foundry_core.testing.kit.processes import fresh

_SCORED = 20
"""Items that a scorer is tried on."""


@dataclass(frozen=True, eq=False)
class SuiteBench:
    """A suite that ships its data."""

    subject: Subject

    def read(self, path: Path | None = None) -> LoadedSuite:
        """Read the data of the suite, or another file in its format."""
        modules = [self.subject.module] if self.subject.module is not None else []
        return read_suite(f"{self.subject.name}={path or ''}", modules)

    @cached_property
    def loaded(self) -> LoadedSuite:
        """The data of the suite."""
        return self.read()


@bench("suite")
def suite_bench(subject: Subject) -> SuiteBench:
    if subject.module is None:
        raise NotApplicableError("it is core's own")
    if subject.descriptor.data is None:
        raise NotLookedAtError("a format without files: name a file or folder of examples in `data`")
    return SuiteBench(subject)


@check(
    "suite",
    "reads",
    fix="`data` is a file or folder inside the package, relative to it: list it under [tool.setuptools.package-data], "
    "too. `f(path)` yields a SuiteItem for each item; paradigm and name together are unique, a paradigm has one "
    "phenomenon, and predictions are about conditions and regions that the item has.",
)
def reads(bench: SuiteBench) -> str:
    """The data that the package ships are read as items that can be scored."""
    items = bench.loaded.items
    return f"{len(items):,} items in {len({item.paradigm for item in items}):,} paradigms"


@check(
    "suite",
    "same-again",
    fix="Yield the items in the order of the file, and nothing that follows from a set, a clock or hash(text), which "
    "differs between processes.",
)
def same_again(bench: SuiteBench) -> None:
    """The same files give the same items in the same order, in this process and in another one."""
    require(bench.read().digest == bench.loaded.digest, "a second reading gives other items")
    subject, file = bench.subject, None
    if subject.module is not None and subject.module.__name__ in plugin_files:
        file = subject.module.__file__
    elif subject.point is None:
        raise NotLookedAtError("defined in this process: no other process can import it")
    program = "import sys\nfrom foundry_core.testing.extensions.suites import answer\nanswer(sys.argv[1])"
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = fresh(program, json.dumps([subject.name, file]), hash_seed=other_seed).splitlines()[-1]
    require(found == bench.loaded.digest, "in another process, with another hash seed, it gives other items")


def answer(request: str) -> None:
    """Print the digest of a suite: what the other process runs."""
    name, file = json.loads(request)
    if file is not None:
        load_plugin_file(file)
    sys.stdout.write(SuiteBench(find(name, "suite")).loaded.digest + "\n")


@check(
    "suite",
    "damage",
    fix="Check what you read before you use it, and raise FoundryError(f'{path}:{line}: problem'). Bytes that are not "
    "UTF-8 need no care: core reports the UnicodeDecodeError of path.read_text('utf-8').",
)
def damage(bench: SuiteBench) -> None:
    """A file that is cut, emptied, or has other bytes in it is read, or refused in one line that names it."""
    original = bench.loaded.files[0]
    with TemporaryDirectory(prefix="foundry-check-") as folder:
        for what, content in _damaged(original.read_bytes()):
            path = Path(folder) / original.name
            write_file(path, content)
            try:
                bench.read(path)
            except PluginError as error:
                raise NonconformanceError(f"{what}: {error}") from error
            except FoundryError as error:
                lines = str(error).splitlines()
                require(len(lines) == 1 and original.name in lines[0], f"{what}: the error is {str(error)[:200]!r}")


def _damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    middle = len(content) // 2
    yield "an empty file", b""
    yield "a file cut in the middle", content[:middle]
    yield "a file without its beginning", content[middle:]
    yield "a file without its first line", content.partition(b"\n")[2]
    yield "a byte that is not UTF-8", content[:middle] + b"\xff" + content[middle:]
    yield "an empty line", content.replace(b"\n", b"\n\n", 1)
    yield "text that is something else", b"The cat sat.\n" * 3


@check(
    "suite",
    "scorer",
    fix="`f(model, tokenizer, items)` returns a list with a pair for each item, in their order: whether the model is "
    "right, and by how many nats (a finite number).",
)
def scorer(bench: SuiteBench) -> None:
    """The scorer returns for each item whether the model is right and by how many nats, the same each time."""
    target = bench.subject.descriptor.scorer
    if target is None:
        raise NotApplicableError("the items are scored by their predictions")
    items, function = bench.loaded.items[:_SCORED], import_string(target)
    model = create_model(experiment(bench.subject), letters())
    model.eval()
    first = list(function(model, letters(), items))
    require(len(first) == len(items), f"{len(items)} items have {len(first)} results")
    for right, margin in first:
        require(right in (True, False), f"whether the model is right is {right!r}")
        require(isinstance(margin, int | float) and math.isfinite(margin), f"a margin is {margin!r}")
    require(list(function(model, letters(), items)) == first, "a second time the results are others")
