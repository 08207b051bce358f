"""`foundry data diff`: what differs between two training texts, by number where they read the same files."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli import main
from foundry_core.corpus.difference import difference
from foundry_core.corpus.reader import Corpus

YAML = """\
experiment_name: {name}
data: {{training_corpus: {name}.txt, documents: line, steps: [{steps}]}}
model: {{architecture: lstm, rnn: {{embedding_size: 8, hidden_size: 8, num_layers: 1}}}}
training: {{output_dir: run, train_steps: 1}}
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`written(name, lines, steps="")`: a corpus and the YAML of an experiment on it; gives the name of the YAML."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, lines: list[str], steps: str = "") -> str:
        Path(f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        Path(f"{name}.yaml").write_text(YAML.format(name=name, steps=steps))
        return f"{name}.yaml"

    return write


def documents(sizes: list[dict[str, int]]) -> list[int]:
    return [size["documents"] for size in sizes]


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["data", "diff", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_two_corpora_are_compared_by_their_texts(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = written("one", ["a b c d", "same", "gone for good", "twice", "twice", "the end of it", "last"])
    second = written("two", ["a b c X", "same", "twice", "last", "the end of it", "new", "new"])
    found = compared(capsys, first, second, "--examples", "9")
    assert not found["by_number"]
    assert documents(found["only"]) == [2, 2]
    assert documents(found["changed"]) == [1, 1]
    assert found["same"]["documents"] == 4
    assert found["examples"] == {
        "first": ["gone for good", "twice"],
        "second": ["new", "new"],
        "changed": [["a b c d", "a b c X"]],
    }


def test_one_experiment_is_compared_with_its_corpus_as_read(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written("one", ["a cat", "a dog", "a cow"], "drop: {words: [cat]}, replace: {words: [dog], by: pig}")
    found = compared(capsys, path)
    assert found["names"] == ["as read", path]
    assert found["by_number"]
    assert found["examples"] == {"first": ["a cat"], "second": [], "changed": [["a dog", "a pig"]]}
    assert [step["documents_dropped"] for step in found["accounts"][1]["steps"]] == [1, 0]
    assert main(["data", "diff", path, "--examples", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["changed, for instance:", "- a dog", "+ a pig"]
    assert ["1", "drop", "{words:", "[cat]}", "-1", "0", "-2", "-5"] in [line.split() for line in lines]


def test_the_counts_are_those_of_the_multisets(written: Callable[..., str], tmp_path: Path) -> None:
    """Whatever two corpora are like: each document is the same, changed or in one of them alone, and none is lost."""
    rng = random.Random(0)
    for _ in range(60):
        texts = [[f"{rng.choice('abc')} {rng.randint(0, 30)}" for _ in range(rng.randint(1, 80))] for _ in range(2)]
        if rng.random() < 0.5:
            texts[1] = rng.sample(texts[0], k=len(texts[0]))
            texts[1][0] = "x"
        for name, lines in zip(("one", "two"), texts, strict=True):
            written(name, lines)
        ours, theirs = map(Counter, texts)
        found = difference(Corpus.open("one.txt"), Corpus.open("two.txt"), 2)
        if found.by_number:
            continue
        assert found.same.documents == (ours & theirs).total()
        for own, only, changed, account in zip(texts, found.only, found.changed, found.accounts, strict=True):
            assert only.documents + changed.documents + found.same.documents == len(own) == account.documents
            assert only.words + changed.words + found.same.words == account.words == 2 * len(own) - own.count("x")
            assert only.bytes + changed.bytes + found.same.bytes == account.bytes_text
        assert found.changed[0].documents == found.changed[1].documents


def test_a_long_run_of_other_documents_is_counted_whole(written: Callable[..., str]) -> None:
    """More documents than are looked at for changed ones at a time."""
    written("one", ["begin", *(f"{number} one" for number in range(900)), "end", "a b c d", "last"])
    written("two", ["begin", "end", "a b c X", "last"])
    found = difference(Corpus.open("one.txt"), Corpus.open("two.txt"), 0)
    assert [size.documents for size in found.only] == [900, 0]
    assert (found.same.documents, found.changed[0].documents) == (3, 1)
    assert found.examples == {"first": [], "second": [], "changed": []}
