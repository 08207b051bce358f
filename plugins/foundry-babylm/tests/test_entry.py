"""An entry to BabyLM: its configuration, and what is found in a run and in a folder before the pipeline reads it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import load_config
from foundry_core.cli import main
from foundry_core.registry.loading import available_architectures
from foundry_core.testing.toy_language import write_corpus
from tests.each import each

pytestmark = pytest.mark.long

MILLION = 10**6
SIZES = {
    "lstm": {"rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
    "gpt2": {
        "transformer": {
            "layers": 1,
            "embedding_size": 8,
            "hidden_size": 8,
            "intermediate_hidden_size": 8,
            "attention_heads": 1,
        }
    },
}


@each("architecture", available_architectures())
def test_an_entry_has_the_limits_and_the_names_of_its_track(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for track, seen, checkpoints in (("strict-small", 100, 19), ("strict", 1000, 28)):
        path = tmp_path / f"{track}.yaml"
        assert main(["babylm", "init", track, "--architecture", architecture, "-o", str(path)]) == 0
        config = load_config(path)
        training, words = config.training, config.training.checkpoints.milestones.words
        assert (training.train_words, len(words), words[0], words[-1]) == (
            seen * MILLION,
            checkpoints,
            MILLION,
            seen * MILLION,
        )
        assert (training.checkpoints.names, training.epochs) == ("babylm", None)
        assert config.data.max_sequence_length == (512 if architecture in ("gpt2", "bert", "transformers") else 128)
        assert main(["babylm", "init", track, "--architecture", architecture, "-o", str(path)]) == 2
        assert "exists and is not overwritten" in capsys.readouterr().err


def test_a_name_that_is_not_one_is_a_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["strict", "--architecture", "lstm", "--name", "a/b", "-o", str(tmp_path / "entry.yaml")]
    assert main(["babylm", "init", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --name: ")
    assert not (tmp_path / "entry.yaml").exists()


def trained(architecture: str, folder: Path, **changes: Any) -> Path:
    """Train the entry of an architecture with a ten-thousandth of the words of its track, and return its run."""
    corpus = write_corpus(folder / "corpus", train_sentences=125, test_sentences=5, seed=1)
    assert len(corpus.train.read_text().split()) < 1_000
    path = folder / "entry.yaml"
    assert main(["babylm", "init", "strict-small", "--architecture", architecture, "-o", str(path)]) == 0
    given = yaml.safe_load(re.sub(r'"?\b(\d+)M\b"?', r"\g<1>00", path.read_text()))
    given["data"] |= {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test), "batch_size": 4}
    given["tokenizer"] = {"tokenizer_type": "word", "vocab_size": 200}
    given["model"] = {"architecture": architecture, **SIZES[architecture]}
    given["training"] |= {"output_dir": str(folder / architecture), "device": "cpu", **changes}
    given["data"]["max_sequence_length"] = 16
    path.write_text(yaml.safe_dump(given))
    assert main(["plan", str(path)]) == 0
    assert main(["train", str(path)]) == 0
    return folder / architecture


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run of an entry, every count of words ten thousand times as large: as if it had seen 100M."""
    whole = trained("lstm", tmp_path_factory.mktemp("entry"))
    run = whole.parent / "larger" / "lstm"
    shutil.copytree(whole, run, symlinks=True)
    for link in run.glob("chck_*"):
        millions = int(link.name.removeprefix("chck_").replace("K", "000")) // 100
        link.rename(link.with_name(f"chck_{millions}M"))
    files = [run / "metrics.jsonl", run / "run.json", *run.glob("checkpoint-*/trainer_state.json")]
    for file in files:
        larger = re.sub(r'("(?:words_seen|words|words_per_epoch)": )([1-9]\d*)', r"\g<1>\g<2>0000", file.read_text())
        file.write_text(larger)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("train_words: 10000\n", "train_words: 100000000\n"))
    return run


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["babylm", "check", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_nothing_stops_an_entry_that_is_as_it_should_be(
    entry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, errors = answer(capsys, entry)
    assert (code, errors) == (0, ""), found
    assert found.endswith(f"{entry}: nothing stops the official pipeline\n")
    assert "stops: " not in found
    assert "foundry export CHECKPOINT FOLDER --standalone" in found
    assert "entry/chck_1M/lstm" in found
    assert "there is no chck" not in found
    for options, code in (["--standalone"], 0), ([], 1):
        folder = tmp_path / f"exported-{code}"
        assert main(["export", str(entry.parents[1] / "lstm" / "chck_2K"), str(folder), *options]) == 0
        assert answer(capsys, folder)[0] == code
    assert "foundry export --standalone" in answer(capsys, tmp_path / "exported-1")[1]


def last(run: Path) -> str:
    return (run / "chck_100M").readlink().name


def change(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Return what replaces a text, a regular expression, in a file of a run; LAST is its last checkpoint."""

    def do(run: Path) -> None:
        file = run / path.replace("LAST", last(run))
        text, count = re.subn(old, new, file.read_text())
        assert count, old
        file.write_text(text)

    return do


def link(name: str, other: str) -> Callable[[Path], None]:
    """Return what lets a name lead where another one does."""

    def do(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to((run / other).readlink())

    return do


FAULTS = {
    "there is no chck_3M": lambda run: (run / "chck_3M").unlink(),
    "chck_6M and chck_7M are both checkpoint-": link("chck_7M", "chck_6M"),
    "chck_1M has seen ": link("chck_1M", "chck_100M"),
    "allows 10M: train on less text": change("run.json", '"words_per_epoch": (\\d+)', r'"words_per_epoch": 1\1'),
    "allows 100M: set training.train_words: 100M": change("run.json", '"words": (\\d+)', r'"words": 1\1'),
    "has no pad token": change("LAST/tokenizer_config.json", '"pad_token": "<pad>"', '"pad_token": null'),
    "has no bos token": lambda run: (
        change("LAST/tokenizer_config.json", '"bos_token": "</s>"', '"bos_token": null')(run),
        change("LAST/config.json", '"bos_token_id": \\d+', '"bos_token_id": null')(run),
    ),
    "GLUE is fine-tuned, and there is no AutoModel:": change("LAST/config.json", ' "AutoModel": .*\n', ""),
}


@each("finding", FAULTS)
def test_a_fault_of_an_entry_is_found(
    finding: str, entry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "lstm"
    shutil.copytree(entry, run, symlinks=True)
    FAULTS[finding](run)
    code, found, errors = answer(capsys, run, "--track", "strict-small")
    assert code == 1
    stops = [line for line in found.splitlines() if line.startswith("stops: ")]
    assert any(finding in line for line in stops), found
    assert errors.startswith(f"error: {run}: of {len(found.splitlines())} findings {len(stops)} stop the official ")


def test_short_positions_and_a_dot_in_the_name_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("gpt2", tmp_path, train_words=500, output_dir=str(tmp_path / "gpt2-0.1"))
    run = tmp_path / "gpt2-0.1"
    code, found, _ = answer(capsys, run)
    assert code == 1
    assert "the model reads 16 tokens, fine-tuning on GLUE 512: train with data.max_sequence_length: 512" in found
    assert "into results/gpt2-0: " in found
    assert "--standalone" not in found
    assert answer(capsys, tmp_path)[0] == 6
