"""Fixtures for the tests of core and of the plugins: a tiny corpus, a tiny vocabulary, tiny experiments.

transformers reads its environment when it is imported, so the environment is set here: offline, caches in a folder
that goes when the tests end.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.selection import ROOT, changed_files, left_out

DISK = os.environ.setdefault("FOUNDRY_TEST_DISK", tempfile.gettempdir())
"""Holds the folders of tests that need a disk."""


def _use_memory() -> None:
    """Let temporary folders be in memory, where there is room and programs may be started from there.

    The tests save thousands of checkpoints, of a dozen files each: an fsync takes 1 to 3 ms on a disk.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and os.access(memory, os.W_OK):
        facts = os.statvfs(memory)
        if facts.f_bavail * facts.f_frsize >= 4 << 30 and not facts.f_flag & os.ST_NOEXEC:
            os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


_use_memory()
_HOME = tempfile.TemporaryDirectory(prefix="foundry-tests-")
os.environ.update(HF_HOME=_HOME.name, XDG_CACHE_HOME=_HOME.name, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
for _name in ("FOUNDRY_PLUGINS", "FOUNDRY_PLUGINS_DISABLE"):
    os.environ.pop(_name, None)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from foundry_core import ExperimentConfig
    from foundry_core.testing.toy_language import ToyCorpus

ALPHABET = "abcdefghijklmnopqrstuvwxyz."
LONG = ("tests/conformance/", "tests/faults/")
"""Folders whose tests are all `long`, as those of every file named test_conformance.py are."""
LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "leave out the suites of tests/selection.py that no change concerns; with CI=true none is"
    parser.addoption("--affected", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--affected") and os.environ.get("CI") != "true"
    config.stash[LEFT_OUT] = left_out(changed_files()) if chosen else []
    subprocess.Popen.__init__ = _python_is_long  # type: ignore[assignment, method-assign]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if any(collection_path.is_relative_to(ROOT / suite) for suite in config.stash[LEFT_OUT]) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.nodeid.startswith(LONG) or item.path.name == "test_conformance.py":
        item.add_marker("long")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Pause the garbage collector while test files are imported, and torch and transformers with them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector what imports have left: it would visit all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_running: pytest.Item | None = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item
    try:
        return (yield)
    finally:
        _running = None


_begin_process = subprocess.Popen.__init__


def _python_is_long(process: Any, args: Any, *rest: Any, **options: Any) -> None:
    """Keep `make quick` quick: only a test marked `long`, `slow` or `faults` may start Python, which takes seconds.

    An audit hook would see the same, and be called for each file, import and attribute besides: an eighth of the
    processor time of the tests.
    """
    program = args if isinstance(args, str | bytes | os.PathLike) else next(iter(args))
    name = os.fsdecode(options.get("executable") or program).rpartition("/")[2]
    test = _running if name.startswith(("python", "foundry", "pytest")) else None
    if test is not None and not any(map(test.get_closest_marker, ("long", "slow", "faults"))):
        raise RuntimeError(f"{test.nodeid} starts {name}: mark it with pytest.mark.long")
    _begin_process(process, args, *rest, **options)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have recorded: the sums of each `figure: name`, and the rows of `table`.

    The table lists the mutants and the checks of the conformance kit that catch them. It is here because xdist itself
    reads no conftest but this one.
    """
    figures: Counter[str] = Counter()
    rows = set()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name.startswith("figure: "):
                    figures[name.removeprefix("figure: ")] += value
                elif name == "table":
                    rows.add(str(value))
    if figures:
        terminalreporter.section("figures")
        terminalreporter.line(", ".join(f"{name} {total:,}" for name, total in sorted(figures.items())))
    if omitted := terminalreporter.config.stash[LEFT_OUT]:
        terminalreporter.line(f"left out, as nothing they depend on has changed: {', '.join(omitted)}")
    if rows:
        terminalreporter.section("mutants, and the checks that catch them")
        terminalreporter.write("".join(f"{row}\n" for row in sorted(rows)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ToyCorpus:
    """train.txt, test.txt and minimal_pairs.jsonl of the toy language, small."""
    from foundry_core.testing.toy_language import write_corpus

    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, train_sentences=400, test_sentences=40, seed=1, pairs_each=20)


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """A character tokenizer of 32 ids with every special token that an objective asks for."""
    from foundry_core.tokenization.training import default_special_tokens, train_tokenizer

    special = default_special_tokens("character")
    return train_tokenizer("character", lambda: iter([ALPHABET]), None, special)


@pytest.fixture(scope="session")
def experiment(corpus: ToyCorpus) -> Callable[..., ExperimentConfig]:
    """`experiment(architecture, folder, example="tiny", **sections)`: a tiny experiment that writes below `folder`.

    example: one of the architecture's own. A section given is laid over the tiny one, key by key.
    """
    from foundry_core import load_config
    from foundry_core.registry.loading import get_architecture

    def make(architecture: str, folder: Path, *, example: str = "tiny", **sections: Any) -> ExperimentConfig:
        tiny: dict[str, Any] = {
            "experiment_name": "tiny",
            "data": {"training_corpus": str(corpus.train), "max_sequence_length": 24, "batch_size": 4},
            "tokenizer": {"tokenizer_type": "word", "vocab_size": 120},
            "model": {"architecture": architecture, **get_architecture(architecture).examples.get(example, {})},
            "training": {"output_dir": str(folder / "run"), "train_steps": 10, "device": "cpu"},
        }
        for name, section in sections.items():
            tiny[name] = {**tiny.get(name, {}), **section} if isinstance(section, dict) else section
        return load_config(tiny)

    return make


@pytest.fixture(autouse=True)
def _no_registration_stays() -> Iterator[None]:
    """An architecture that a test registers is gone after it, and so is a file that it loads as `--plugin` does.

    Other tests say which architectures there are, and start processes that load the files again.
    """
    from foundry_core.registry.architecture import registered_architectures
    from foundry_core.registry.loading import plugin_files

    registered = registered_architectures()
    before, files = dict(registered), set(plugin_files)
    yield
    registered.clear()
    registered.update(before)
    for name in plugin_files - files:
        sys.modules.pop(name, None)
    plugin_files.intersection_update(files)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """An empty folder that is not in memory, if the machine has such a place."""
    with tempfile.TemporaryDirectory(prefix="foundry-tests-", dir=DISK) as folder:
        yield Path(folder)


@pytest.fixture
def one_thread() -> Any:
    """Sums in one order: what is compared bit by bit must not depend on how many cores there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`distribution(name, entry_points, files, version="1.0")`: a package on the path as an installer leaves it.

    entry_points: targets by name, by group. files: texts by path. headers: further lines of its metadata. folder:
    where it stands, by default one of its own. sources: those of an editable installation, which get the files.
    Returns the folder it stands in. What is imported from there is removed from sys.modules after the test.
    """
    import importlib
    import json

    from foundry_core.registry.discovery import read_packages

    folders: list[Path] = []

    def put(
        name: str,
        entry_points: Any,
        files: Any = (),
        *,
        version: str = "1.0",
        headers: Iterable[str] = (),
        folder: Path | None = None,
        sources: Path | None = None,
    ) -> Path:
        folder = folder or tmp_path / "packages" / name
        information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        points = "".join(
            f"[{group}]\n" + "".join(f"{each} = {target}\n" for each, target in targets.items())
            for group, targets in entry_points.items()
        )
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *headers]
        # What follows an empty line is the description, whatever it looks like.
        (information / "METADATA").write_text("\n".join([*lines, "", "Requires-Dist: model-foundry>=99"]))
        (information / "entry_points.txt").write_text(points)
        if sources is not None:
            origin = {"url": sources.as_uri(), "dir_info": {"editable": True}}
            (information / "direct_url.json").write_text(json.dumps(origin))
        for path, text in dict(files).items():
            place = (sources or folder) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        folders.append(sources or folder)
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(str(folder))  # this puts back the whole path when the test ends
        if sources is not None:
            sys.path.append(str(sources))
        importlib.invalidate_caches()
        read_packages.cache_clear()
        return folder

    before = set(sys.modules)
    yield put
    for name in set(sys.modules) - before:
        place = getattr(sys.modules[name], "__file__", None)
        if place is not None and any(Path(place).is_relative_to(folder) for folder in folders):
            del sys.modules[name]
