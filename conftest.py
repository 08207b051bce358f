"""Fixtures for the tests of core and of the plugins: a tiny corpus, a tiny vocabulary, tiny experiments.

transformers reads its environment when it is imported, so the environment is set here: offline, caches in a folder
that goes when the tests end.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="foundry-tests-")
os.environ.update(HF_HOME=_HOME.name, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from foundry_core import ExperimentConfig
    from foundry_core.testing.toy_language import ToyCorpus

ALPHABET = "abcdefghijklmnopqrstuvwxyz."


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ToyCorpus:
    """train.txt, test.txt and minimal_pairs.jsonl of the toy language, small."""
    from foundry_core.testing.toy_language import write_corpus

    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, train_sentences=400, test_sentences=40, seed=1, pairs_each=20)


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """A character tokenizer of 32 ids with every special token that an objective asks for."""
    from foundry_core.tokenizers import default_special_tokens, train_tokenizer

    special = default_special_tokens("character", masked=True)
    return train_tokenizer("character", lambda: iter([ALPHABET]), None, special)


@pytest.fixture(scope="session")
def experiment(corpus: ToyCorpus) -> Callable[..., ExperimentConfig]:
    """`experiment(architecture, folder, example="tiny", **sections)`: a tiny experiment that writes below `folder`.

    example: one of the architecture's own. A section given is laid over the tiny one, key by key.
    """
    from foundry_core import load_config
    from foundry_core.plugins import get_architecture

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have recorded under `table`: which checks of the conformance kit catch which mutant."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    recorded = [each for report in reports for each in getattr(report, "user_properties", ())]
    rows = sorted({str(value) for name, value in recorded if name == "table"})  # each phase of a test has them
    if rows:
        terminalreporter.section("mutants, and the checks that catch them")
        terminalreporter.write("".join(f"{row}\n" for row in rows))


@pytest.fixture(autouse=True)
def _no_registration_stays() -> Iterator[None]:
    """An architecture that a test registers is gone after it: other tests say which ones there are."""
    from foundry_core.architecture import _registered

    before = dict(_registered)
    yield
    _registered.clear()
    _registered.update(before)


@pytest.fixture
def one_thread() -> Any:
    """Sums in one order: what is compared bit by bit must not depend on how many cores there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
