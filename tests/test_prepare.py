"""From corpora to tokenizer and token files: what is reused, what is made anew, what is refused."""

import gzip
import json
import os
import shutil
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from foundry_core.data.overlap import Overlap
from foundry_core.data.preparation import (
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
    tokenizer_folder,
    train_tokenizer_from_config,
)
from foundry_core.errors import DataError, TokenizerError, UsageError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.models.base import create_model
from foundry_core.storage import files as storage
from foundry_core.storage.files import Disk
from foundry_core.storage.manifest import sealed
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest
from foundry_core.training.plan import RunPlan
from foundry_core.training.run import run


def prepared(config):
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    return tokenizer, experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))


def test_a_test_file_used_in_training_is_refused_by_any_name(experiment, corpus, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    shutil.copy(corpus.train, texts / "a.txt")
    (texts / "b.txt.gz").write_bytes(gzip.compress(corpus.test.read_bytes()))
    config = experiment("lstm", tmp_path, data={"training_corpus": str(texts), "test_corpus": str(corpus.test)})
    with pytest.raises(DataError, match=r"test\.txt has the content of .*b\.txt\.gz, which is in data.training_corpus"):
        experiment_corpora(config)
    (texts / "b.txt.gz").unlink()
    assert experiment_corpora(config).test is not None


def test_empty_files_are_the_same_file_and_no_overlap(experiment, corpus, tmp_path):
    for name, source in (("train", corpus.train), ("test", corpus.test)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "empty.txt").touch()
        shutil.copy(source, tmp_path / name / "text.txt")
    data = {"training_corpus": str(tmp_path / "train"), "test_corpus": str(tmp_path / "test")}
    assert experiment_corpora(experiment("lstm", tmp_path, data=data)).test is not None


def test_a_test_corpus_of_training_documents_is_refused(experiment, corpus, tmp_path):
    """Whatever differs: line ends, byte-order mark, compression, format, order, white space around a line."""
    content = corpus.train.read_bytes()
    lines = content.decode().split("\n")[:-1]
    same = {
        "crlf.txt": content.replace(b"\n", b"\r\n"),
        "cr.txt": content.replace(b"\n", b"\r"),
        "bom.txt": b"\xef\xbb\xbf" + content,
        "no_last_line_end.txt": content.rstrip(b"\n"),
        "packed.txt.gz": gzip.compress(content + b"\n"),
        "order.txt": "\n".join(reversed(lines)).encode(),
        "spaces.txt": "  \n ".join(lines).encode(),
        "lines.jsonl": "\n".join(json.dumps({"text": line}) for line in lines).encode(),
        "half.txt": "\n".join(lines[::2]).encode(),
    }
    for name, text in same.items():
        (tmp_path / name).write_bytes(text)
        data = {"training_corpus": str(corpus.train), "test_corpus": str(tmp_path / name)}
        with pytest.raises(DataError, match=r"every one of its \d+ documents also stands in data.training_corpus"):
            experiment_corpora(experiment("lstm", tmp_path, data=data))
        if name != "half.txt":
            data = {"training_corpus": data["test_corpus"], "test_corpus": data["training_corpus"]}
            with pytest.raises(DataError, match="also stands in data.training_corpus"):
                experiment_corpora(experiment("lstm", tmp_path, data=data))


def test_test_documents_seen_in_training_are_counted(experiment, corpus, tmp_path, capsys):
    seen, new = corpus.train.read_text().splitlines()[:3], "zygotes zigzag ."
    (tmp_path / "test.txt").write_text("\n".join([*seen, seen[0], new]))
    data = {"training_corpus": str(corpus.train), "test_corpus": str(tmp_path / "test.txt")}
    config = experiment("lstm", tmp_path, data=data, training={"train_steps": 1})
    size = sum(map(len, [*seen, seen[0]]))
    share = f"80.0% of the documents (4 of 5) and {size / (size + len(new)):.1%} of the text"
    line = f"warning: data.test_corpus: {share} also stand in data.training_corpus\n"
    for _ in range(2):
        assert experiment_corpora(config).overlap == Overlap(5, 4, size + len(new), size)
        assert capsys.readouterr().err == line
    run(config, quiet=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["corpora"]
    assert record["test_corpus"]["also_in_training"]["shared"] == 4
    assert record["training_corpus"]["names"] == ["train.txt"]


def test_the_overlap_is_counted_again_only_for_other_texts(experiment, corpus, tmp_path):
    data = {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test)}
    config = experiment("lstm", tmp_path, data=data)
    counted = experiment_corpora(config).overlap
    assert counted is not None
    (path,) = tokenizer_folder(config).glob("tokens/*.overlap")
    stored = json.loads(path.read_text())
    del stored["sha256"]
    path.write_bytes(sealed(stored | {"shared": 1}))
    assert experiment_corpora(config).overlap == replace(counted, shared=1)
    path.write_text(path.read_text().replace('"shared": 1', '"shared": 2'))
    assert experiment_corpora(config).overlap == counted
    (tmp_path / "more.txt").write_text(corpus.test.read_text() + "the man is new .\n")
    config = experiment("lstm", tmp_path, data=data | {"test_corpus": str(tmp_path / "more.txt")})
    more = experiment_corpora(config).overlap
    assert more is not None
    assert more.documents == counted.documents + 1


def test_the_overlap_is_counted_where_nothing_can_be_written(experiment, corpus, tmp_path, monkeypatch):
    class Full(Disk):
        def create(self, path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "disk", Full())
    data = {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test)}
    assert experiment_corpora(experiment("lstm", tmp_path, data=data)).overlap is not None
    assert not list(tokenizer_folder(experiment("lstm", tmp_path)).glob("**/*.overlap"))


def test_a_delimiter_that_is_read_as_text_is_named(experiment, tmp_path, capsys):
    def warned(text, **sections):
        (tmp_path / "a.txt").write_text(text)
        experiment_corpora(
            experiment("lstm", tmp_path, **sections, data={"training_corpus": f"{tmp_path}/a.txt"} | data)
        )
        return capsys.readouterr().err

    data = {}
    for text, mark in {
        "a story .\n<|endoftext|>\nanother .\n<|endoftext|>": "<|endoftext|>",
        "a story .<|im_end|> another .": "<|im_end|>",
        "a\n</s>\nb\n": "</s>",
    }.items():
        assert (
            f'{mark} is read as text; where it separates documents, set data.documents: {{delimiter: "{mark}"}}'
            in warned(text)
        )
    special = {"tokenizer": {"special_tokens": {"eos_token": "=END="}}}
    assert "=END= is read as text" in warned("a\n=END=\nb", **special)
    for text in ("the <unk> of </s> html , a < b | c > d\n<unk>\n", "a =END= b"):
        assert warned(text, **special) == ""
    data = {"documents": {"delimiter": "<|endoftext|>"}}
    assert warned("a story .<|endoftext|>another .") == ""


def test_files_of_a_folder_are_chosen_by_data_files(experiment, corpus, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    shutil.copy(corpus.train, texts / "a.train")
    shutil.copy(corpus.test, texts / "a.dev")
    data = {"training_corpus": str(texts), "test_corpus": str(texts / "a.dev"), "files": "*.train"}
    assert experiment_corpora(experiment("lstm", tmp_path, data=data)).train.files == (texts / "a.train",)
    with pytest.raises(DataError, match=r"a\.dev is also in data\.training_corpus"):
        experiment_corpora(experiment("lstm", tmp_path, data=data | {"files": None}))


def test_a_half_written_tokenizer_is_trained_again(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    tokenizer, _ = prepared(config)
    folder = tokenizer_folder(config)
    sidecar = folder / "foundry.json"
    complete = json.loads(sidecar.read_bytes())
    sidecar.write_text(json.dumps(complete | {"tokenizer": None}))
    (folder / "tokenizer.json").unlink()
    assert prepared(config)[0].get_vocab() == tokenizer.get_vocab()
    assert json.loads(sidecar.read_bytes()) == complete


def test_a_tokenizer_that_was_changed_since_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    prepared(config)
    path = tokenizer_folder(config) / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"thee"'))
    with pytest.raises(TokenizerError, match="was changed after it was trained.* --force"):
        prepared(config)
    assert experiment_tokenizer(config, experiment_corpora(config).train, force=True).get_vocab()["the"]


def test_a_damaged_sidecar_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    prepared(config)
    for content in ("{", "[]", "{}", '{"tokenizer": 7}'):
        (tokenizer_folder(config) / "foundry.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"foundry\.json is damaged: delete "):
            prepared(config)


def test_a_warm_up_longer_than_the_run_is_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": None, "train_tokens": 500, "warmup_steps": 900})
    _, data = prepared(config)
    with pytest.raises(UsageError, match=r"warmup_steps \(900\) exceeds the \d+ steps that the budget comes to"):
        RunPlan.of(config, data)


def test_checkpoints_beyond_the_end_are_named(experiment, tmp_path):
    schedule = {"steps": [3, 4000], "milestones": {"words": ["5M"]}, "every_steps": 50}
    config = experiment("lstm", tmp_path, training={"checkpoints": schedule})
    plan = RunPlan.of(config, prepared(config)[1])
    assert plan.checkpoint_steps == (0, 3, 10)
    assert plan.unreached_checkpoints == ("step 4,000", "5,000,000 words")


def test_a_text_without_anything_to_predict_has_no_score(experiment, tmp_path):
    config = experiment("bert", tmp_path)
    tokenizer, _ = prepared(config)
    text = tmp_path / "unknown.txt"
    text.write_text("zygote zygote zygote\n")
    with pytest.raises(DataError, match="nothing to predict: every token of it is special or unknown"):
        evaluate_corpus(create_model(config, tokenizer), tokenizer, Path(text))


class Together(Disk):
    """Two threads at one tokenizer: the first to finish it waits, half-way through its files, until the second says
    that it waits for the first.
    """

    def __init__(self):
        self.half_way, self.said, self.lines = threading.Event(), threading.Event(), []

    def rename(self, old, new):
        super().rename(old, new)
        if new.name == "tokenizer.json" and not self.half_way.is_set():
            self.half_way.set()
            assert self.said.wait(60)

    def write_line(self, line):
        self.lines.append(line)
        self.said.set()


@pytest.mark.parametrize("size", [120, 60], ids=["the same", "another size"])
def test_two_runs_never_train_one_tokenizer_at_once(experiment, tmp_path, monkeypatch, size):
    disk = Together()
    monkeypatch.setattr(storage, "disk", disk)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=disk.write_line))
    shared = {"output_dir": str(tmp_path / "tokenizer")}
    one = experiment("lstm", tmp_path / "one", tokenizer={"vocab_size": 120, **shared})
    other = experiment("lstm", tmp_path / "other", tokenizer={"vocab_size": size, **shared})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(train_tokenizer_from_config, one)
        assert disk.half_way.wait(60)
        if size == 120:
            assert tokenizer_digest(train_tokenizer_from_config(other)) == tokenizer_digest(first.result())
        else:
            with pytest.raises(TokenizerError, match="from other inputs .vocab_size was 120, is 60.: name another"):
                train_tokenizer_from_config(other)
        assert first.result().get_vocab() == load_tokenizer(tmp_path / "tokenizer").get_vocab()
    (line,) = disk.lines
    owner = f"pid {os.getpid()} on {socket.gethostname()}, started "
    assert line.startswith(f"warning: waiting for the tokenizer in {tmp_path / 'tokenizer'}: {owner}")


def test_a_tokenizer_replaced_while_it_is_saved_is_refused(experiment, tmp_path, monkeypatch):
    """By something that heeds no lock."""
    train_tokenizer_from_config(experiment("lstm", tmp_path / "other", tokenizer={"vocab_size": 60}))
    files = tmp_path / "other" / "run" / "tokenizer"

    class Exchanging(Disk):
        def rename(self, old, new):
            super().rename(old, new)
            if new.name.startswith("tokenizer"):
                shutil.copy(files / new.name, new)

    monkeypatch.setattr(storage, "disk", Exchanging())
    config = experiment("lstm", tmp_path)
    with pytest.raises(TokenizerError, match="does not hold the tokenizer that was just saved there"):
        train_tokenizer_from_config(config)


def test_a_finished_tokenizer_is_used_without_writing_anything(experiment, tmp_path, monkeypatch):
    """It may lie where only reading is allowed."""
    config = experiment("lstm", tmp_path, tokenizer={"output_dir": str(tmp_path / "tokenizer")})
    made, _ = prepared(config)
    monkeypatch.setattr(storage, "disk", None)
    assert prepared(config)[0].get_vocab() == made.get_vocab()


@pytest.mark.parametrize("key", ["training", "tokenizer"])
def test_a_corpus_containing_the_run_folder_is_refused_at_once(experiment, corpus, tmp_path, key):
    texts = tmp_path / "texts"
    texts.mkdir()
    shutil.copy(corpus.train, texts / "a.txt")
    data = {"training_corpus": str(texts)}
    inside = {key: {"output_dir": str(texts / "runs" / "x")}}
    says = rf"^data\.training_corpus: \S+/texts contains {key}\.output_dir \(\S+/x\), whose files would join the corpus"
    with pytest.raises(DataError, match=says):
        experiment_corpora(experiment("lstm", tmp_path, data=data, **inside))
    scored = {"test_corpus": str(texts)}
    with pytest.raises(DataError, match=r"^data\.test_corpus: "):
        experiment_corpora(experiment("lstm", tmp_path, data=scored, **inside))
    hidden = {key: {"output_dir": str(texts / ".runs" / "x")}}
    for sections in ({}, hidden):
        assert experiment_corpora(experiment("lstm", tmp_path, data=data, **sections)).train.files == (texts / "a.txt",)


def test_a_corpus_that_the_log_of_the_run_has_joined_says_so(experiment, corpus, tmp_path):
    shutil.copy(corpus.train, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "the man is old ."}\n')
    config = experiment("lstm", tmp_path, data={"training_corpus": f"{tmp_path}/**/*.jsonl"})
    assert len(experiment_corpora(config).train.files) == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl is written by the run itself: leave training\.output_dir out"):
        experiment_corpora(config)
