"""Encoding in windows, blocks and processes: the ids are those of each text by itself, whatever the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import Corpus
from foundry_core.data.token_file import prepare_tokens
from foundry_core.tokenization import processes
from foundry_core.tokenization.encoding import DocumentEncoder
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from tests.each import each
from tests.test_tokenizers import KINDS, corpus, nasty_texts, plain, trained


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: trained(kind) for kind in KINDS}


def whole_or_cut(texts: list[str]) -> Iterator[str]:
    """Texts, and what lies between their spaces: most windows of one such text have simple cuts."""
    for text in texts:
        yield text
        yield from text.split(" ")
        yield " " + " ".join(text.split())


@each("kind", KINDS)
def test_texts_in_windows_of_their_own_get_the_plain_ids(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str
) -> None:
    encoder = DocumentEncoder(tokenizers[kind])
    for text in whole_or_cut(
        [*nasty_texts(150, 60), *corpus()[:50], "a\t b", " \n a", "a \n", "x" * 150, "<unk>s", ""]
    ):
        (ids,) = encoder.encode([text])
        assert ids.tolist() == plain(tokenizers[kind], text), ascii(text)


@each("kind", ["sentencepiece", "word"])
def test_special_tokens_in_letters_alone_stay_text_inside_words(kind: str) -> None:
    special = default_special_tokens(kind) | {"unk_token": "unk", "eos_token": "end", "sep_token": "end"}
    tokenizer = train_tokenizer(kind, lambda: corpus() + ["a trunk ends the chunk"] * 50, 360, special)
    texts = ["the end of the trunk", "unk", "end", "chunk unknown bend end"]
    assert [ids.tolist() for ids in DocumentEncoder(tokenizer).encode(texts)] == [
        plain(tokenizer, text) for text in texts
    ]


def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus of some windows, which is worth several processes."""
    monkeypatch.setattr(processes, "WORTH_IT", 0)
    monkeypatch.setattr(DocumentEncoder, "WINDOW", 2000)
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    (folder / "corpus.txt").write_text("\n".join([*corpus(), "word " * 2000, *corpus()[:99]]))
    return Corpus.open(folder / "corpus.txt")


@each("kind", KINDS)
def test_several_processes_write_the_token_file_of_one(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = large(tmp_path, monkeypatch)
    several = prepare_tokens(found, tokenizers[kind], tmp_path / "several")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    assert processes.process_count(found.bytes) == 1
    assert prepare_tokens(found, tokenizers[kind], tmp_path / "one").info == several.info


@each("harm", ["fails", "dies"])
def test_what_a_process_leaves_undone_is_encoded_here(
    tokenizers: dict[str, PreTrainedTokenizerFast], harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = list(large(tmp_path, monkeypatch).documents())
    expected = np.concatenate(list(processes.streams(DocumentEncoder(tokenizers["bpe"]), documents, 1)))
    here, stream = os.getpid(), DocumentEncoder.stream

    def harmed(self: DocumentEncoder, window: tuple[list[str], bool]) -> np.ndarray:
        if os.getpid() != here and harm == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.getpid() != here and len(window[0]) % 2:
            raise ValueError
        return stream(self, window)

    monkeypatch.setattr(DocumentEncoder, "stream", harmed)
    found = list(processes.streams(DocumentEncoder(tokenizers["bpe"]), documents, 3))
    assert np.concatenate(found).tolist() == expected.tolist()


def test_processes_are_limited_by_cores_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert processes.process_count(1 << 30) == 6
    assert processes.process_count(1 << 20) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert processes.process_count(1 << 30) == 4
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    assert processes.process_count(1 << 30) == 2


PARENT = """
import signal, sys
from foundry_core.tokenization import processes
from foundry_core.tokenization.encoding import DocumentEncoder
from tests.test_tokenizers import trained

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

def documents():
    yield from ["the cat"] * 400_000
    print("begun", flush=True)
    sys.stdin.read()

list(processes.streams(DocumentEncoder(trained("word")), documents(), 2))
"""


@pytest.mark.long
@each("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_encoding_processes_end_with_their_parent(number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"begun\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    parent.send_signal(number)
    assert parent.wait() != 0
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline
