"""The keys of `data:` that say how text becomes batches: what they accept, refuse and come to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from foundry_core import load_config, run
from foundry_core.cli import main
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import ConfigError
from tests.each import each

SHARES = {"a": {"path": "a.txt", "share": 1}, "b": {"path": "b.txt", "share": 3}}


@each(
    ("architecture", "data", "problem"),
    [
        ("gpt2", {"batching": "contiguous"}, "data.batching: contiguous needs a model whose state is carried"),
        ("bert", {"batching": "contiguous"}, "data.batching: contiguous needs a causal objective, not masked_lm"),
        ("mamba", {"isolate_documents": True}, "data.isolate_documents: mamba cannot keep documents apart"),
        ("lstm", {"isolate_documents": True, "batching": "contiguous"}, "isolate_documents needs batching: shuffled"),
        ("gpt2", {"isolate_documents": True, "batching": "documents"}, "in which they are apart"),
        (
            "lstm",
            {"order": "sequential", "batching": "crops"},
            "order: sequential needs batching: shuffled or documents",
        ),
        ("lstm", {"order": "sequental"}, "unknown order 'sequental'. Did you mean 'sequential'?"),
        ("lstm", {"order_settings": {"a": 1}}, "data.order_settings: shuffled has none: remove this section"),
        ("lstm", {"training_corpus": SHARES, "batching": "documents"}, "several corpora need batching: shuffled"),
        ("lstm", {"training_corpus": SHARES, "order": "sequential"}, "several corpora need order: shuffled"),
        ("lstm", {"training_corpus": {"a": {"path": "x", "share": 0}}}, "the shares sum to zero"),
        ("lstm", {"training_corpus": {"a": {"path": "x", "share": -1}}}, "data.training_corpus.a.share: "),
        ("lstm", {"training_corpus": {"a": {"path": "x"}}}, "data.training_corpus.a.share: missing"),
        (
            "lstm",
            {"training_corpus": {"a": {"path": "x", "share": 1, "weight": 2}}},
            "training_corpus.a.weight: unknown",
        ),
        ("lstm", {"training_corpus": {}}, "data.training_corpus: "),
        ("lstm", {"training_corpus": 3}, "data.training_corpus: must be a string, not 3"),
        (
            "lstm",
            {"training_corpus": {"a": {"path": "x", "share": 1}, "b": {"path": "y", "share": 1e-5}}},
            "training_corpus.b: its share is less than 1/10,000 of all",
        ),
        ("lstm", {"training_corpus": SHARES, "test_corpus": "./b.txt"}, "is the training corpus"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, architecture: str, data: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(architecture, tmp_path, data=data)
    assert problem in str(refused.value)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    generator = np.random.default_rng(3)
    for name, count in (("a", 40), ("b", 200)):
        lines = [" ".join(f"{name}{word}" for word in generator.integers(0, 9, 7)) for _ in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def mixed(folder: Path, **training: Any) -> ExperimentConfig:
    paths = {name: {**part, "path": str(folder / str(part["path"]))} for name, part in SHARES.items()}
    return load_config(
        {
            "experiment_name": "mixed",
            "data": {"training_corpus": paths, "max_sequence_length": 10, "batch_size": 4},
            "tokenizer": {"tokenizer_type": "word", "vocab_size": 40},
            "model": {"architecture": "gru", "rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}},
            "training": {"output_dir": str(folder / "run"), "train_steps": 100, "device": "cpu", **training},
            "logging": {"log_every_steps": 100},
        }
    )


def test_a_mixture_is_trained_by_its_shares_and_reported(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mixed(corpora)
    state = run(config, quiet=True)
    assert state.tokens_seen == sum(state.tokens_by_corpus.values())
    assert state.tokens_by_corpus["a"] / state.tokens_seen == pytest.approx(0.25, abs=0.05)
    (record,) = map(json.loads, (corpora / "run" / "metrics.jsonl").read_text().splitlines())
    assert record["tokens_by_corpus"] == state.tokens_by_corpus
    described = json.loads((corpora / "run" / "run.json").read_text())["corpora"]["training_corpus"]
    assert {name: part["names"] for name, part in described["corpora"].items()} == {"a": ["a.txt"], "b": ["b.txt"]}
    written = corpora / "experiment.yaml"
    written.write_text(json.dumps(config.resolved()))
    assert main(["plan", str(written), "--no-timing"]) == 0
    assert "passes" in capsys.readouterr().out


def test_the_rows_of_a_mixture_are_those_of_its_corpora(corpora: Path) -> None:
    config = mixed(corpora)
    opened = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, opened.train)
    rows = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, opened), opened).train_rows
    for name, part in zip("ab", rows.parts, strict=True):  # type: ignore[union-attr]
        text = tokenizer.decode([token for index in range(len(part)) for token in part.row(index)[1:].tolist()])
        assert {word[0] for word in text.split() if word[0] in "ab"} == {name}
        assert part.total_tokens == (len((corpora / f"{name}.txt").read_text().split()) * 8) // 7


def test_each_example_of_the_guide_is_valid(experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    guide = Path(__file__).parents[1] / "docs" / "training" / "batching.md"
    blocks = re.findall(r"^```yaml\n(.+?)^```", guide.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        sections = yaml.safe_load(block)
        architecture = sections.get("model", {}).pop("architecture", "gpt2")
        experiment(architecture, tmp_path, **sections)
