"""Corpora that break readers, through the whole program: every byte is accounted for, or one line names file and byte.

What the reader does with each kind of file is in test_corpus.py; here the verbs are carried out. Texts in many scripts
need a folder with robustness/: FOUNDRY_TEST_DATA, or shared/data beside the checkout; skipped without.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from foundry_core import load_config, run
from foundry_core.cli import main
from foundry_core.corpus.reader import Corpus
from foundry_core.data.preparation import tokenizer_folder
from foundry_core.data.token_file import prepare_tokens
from foundry_core.errors import DataError, TokenizerError
from foundry_core.tokenization.encoding import DocumentEncoder
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.tokenization.training import TokenizerFactory
from tests.each import each

DATA = Path(os.environ.get("FOUNDRY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "robustness"
KINDS = ("sentencepiece", "wordpiece", "bpe", "character", "word")
SENTENCES = "the cat sees a dog\na dog sees the cat\n" * 30


def settings(folder: Path, corpus: Path, **tokenizer: Any) -> dict[str, Any]:
    return {
        "experiment_name": "hostile",
        "data": {"training_corpus": str(corpus), "max_sequence_length": 16, "batch_size": 4},
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 200, **tokenizer},
        "model": {"architecture": "lstm", "rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}},
        "training": {"output_dir": str(folder / "run"), "train_steps": 2, "device": "cpu"},
    }


@pytest.fixture
def carried_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None) -> Callable[..., Any]:
    """`carried_out(corpus, *verb)`: exit code, lines on standard output, lines on standard error."""

    def carry_out(corpus: Path, *verb: str) -> tuple[int, list[str], list[str]]:
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump(settings(tmp_path, corpus)))
        capsys.readouterr()
        code = main([*verb, str(path), *(["--quiet"] if verb == ("train",) else [])])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return carry_out


TEXT = SENTENCES.encode()
LONE = TEXT.replace(b" sees", b"\rsees")
ACCEPTED = {
    "CRLF": {"a.txt": TEXT.replace(b"\n", b"\r\n")},
    "byte-order mark": {"a.txt": b"\xef\xbb\xbf" + TEXT},
    "lone CR": {"a.txt": LONE},
    "line separators that are none": {"a.txt": TEXT.replace(b" a ", "\u2028a\x85\x0b\x0c\x1c".encode())},
    "no last newline": {"a.txt": TEXT[:-1]},
    "blank lines": {"a.txt": TEXT.replace(b"\n", b"\n \t\n\n")},
    "empty files among others": {"a.txt": b"", "b.txt": TEXT, "c.jsonl": b"", "d.txt": b"\n"},
    "hidden files, other kinds and folders": {".x.txt": b"\xff", "note.md": b"\xff", "sub/a.txt": TEXT},
    "marks, joiners and private characters": {"a.txt": TEXT + "a\u200d\u0301\ue000\U0010ffff\ufeff b\n".encode()},
    "one line": {"a.txt": TEXT.replace(b"\n", b" ")},
    "compressed": {"a.txt.gz": gzip.compress(TEXT)},
    "splits": {"a.train": TEXT, "sub/b.train": TEXT},
    "escaped": {"a.jsonl": b'{"text": "the cat\\u2028sees \\ud83d\\ude00 a dog"}\n' * 30},
}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "corpus"


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_corpus_trains_with_every_byte_accounted_for(
    carried_out: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    files = ACCEPTED[name]
    corpus = put(tmp_path, files)
    code, out, err = carried_out(corpus, "data", "prepare")
    unread = "2 files, 2 bytes: 1 .txt (.x.txt), 1 .md (note.md)"
    named = [f"warning: data.training_corpus: not read in {corpus}: {unread}"] * ("note.md" in files)
    assert (code, err) == (0, named)
    rows = [line.replace(",", "").split() for line in out if line.startswith("bytes")]
    size, text, separators, skipped = (int(figure) for *_, figure in rows)
    read = [content for file, content in files.items() if Path(file).suffix != ".md" and not file.startswith(".")]
    assert size == sum(len(gzip.decompress(each)) if each.startswith(b"\x1f\x8b") else len(each) for each in read)
    assert size == text + separators + skipped
    code, out, err = carried_out(corpus, "train")
    assert (code, err) == (0, named)


REFUSED = {
    "invalid UTF-8": ({"a.txt": TEXT, "b.txt": TEXT + b"caf\xe9\n"}, "b.txt", f"byte {len(TEXT) + 3} (0xe9)"),
    "cut UTF-8": ({"a.txt": TEXT + "é".encode()[:1]}, "a.txt", f"byte {len(TEXT)} (0xc3)"),
    "NUL": ({"a.txt": TEXT + b"\0"}, "a.txt", f"byte {len(TEXT)} is NUL"),
    "UTF-16": ({"a.txt": SENTENCES.encode("utf-16")}, "a.txt", "byte 0 (0xff)"),
    "UTF-32": ({"a.txt": SENTENCES.encode("utf-32-be")}, "a.txt", "byte 0 is NUL"),
    "damaged gzip": ({"a.txt.gz": gzip.compress(TEXT)[:-9]}, "a.txt.gz", "after byte "),
    "gzip under a wrong name": ({"a.txt": gzip.compress(TEXT)}, "a.txt", "gzip data: add .gz to its name"),
    "mostly other kinds": ({"LICENSE.txt": TEXT, "a.csv": TEXT * 2}, "", 'data.files: "*.txt"'),
    "JSON that is none": ({"a.jsonl": b'{"text": "a"}\n{"text": }\n'}, "a.jsonl:2", "the line at byte 14"),
    "nothing": ({"a.txt": b"", "b.txt": b""}, "a.txt", "empty"),
    "white space": ({"a.txt": b" \n\t\n"}, "a.txt", "only white space"),
    "files of other kinds": ({"a.csv": TEXT}, "a.csv", "rename or convert it"),
}


@each("verb", [("tokenizer", "train"), ("data", "prepare"), ("train",)])
@each("name", REFUSED)
def test_a_corpus_that_is_not_text_is_refused_with_file_and_byte(
    carried_out: Callable[..., Any], tmp_path: Path, name: str, verb: tuple[str, ...]
) -> None:
    files, file, place = REFUSED[name]
    code, out, (line,) = carried_out(put(tmp_path, files), *verb)
    assert (code, out) == (4, [])
    assert line.startswith("error: ")
    assert str(tmp_path / "corpus" / file) in line
    assert place in line


@pytest.mark.parametrize("verb", [("tokenizer", "train"), ("data", "prepare"), ("train",)], ids=" ".join)
def test_what_is_no_file_is_refused_without_waiting(
    carried_out: Callable[..., Any], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    put(tmp_path, {"folder.txt/.keep": b""})
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for corpus, says in (
        (tmp_path / "fifo.txt", "is a FIFO"),
        (tmp_path / "endless.txt", "is a device"),
        (tmp_path / "corpus", "no file to read in"),
        (tmp_path / "nowhere.txt", "no such file or folder"),
    ):
        code, out, (line,) = carried_out(corpus, *verb)
        assert (code, out) == (4, [])
        assert str(corpus) in line
        assert says in line


def test_a_text_that_changes_while_it_is_encoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(SENTENCES * 2000)  # more than one buffer of tokens
    corpus = Corpus.open(path)
    tokenizer = TokenizerFactory.train_character(path)

    def grow(done: int) -> None:
        with path.open("a") as file:
            file.write("more\n")

    with pytest.raises(DataError, match=r"a\.txt: changed since this corpus was opened"):
        prepare_tokens(corpus, tokenizer, tmp_path / "tokens", progress=grow)
    assert list((tmp_path / "tokens").iterdir()) == []


# Texts in many scripts, with the characters that break tokenizers.

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no robustness texts: set FOUNDRY_TEST_DATA")
SOURCES = sorted(path for path in DATA.rglob("*") if path.is_file() and "LICENSE" not in path.name)


def as_text(source: Path, folder: Path) -> Path:
    path = folder / f"{source.stem}.txt"
    path.write_bytes(source.read_bytes())
    return path


def first_fault(content: bytes) -> int | None:
    """Return where it ceases to be UTF-8 text without NUL, said by Python alone."""
    try:
        content.decode("utf-8")
        end = len(content)
    except UnicodeDecodeError as error:
        end = error.start
    nul = content.find(b"\0", 0, end)
    return nul if nul >= 0 else end if end < len(content) else None


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.parametrize("unit", ["line", "block", "file"])
def test_a_text_of_the_world_is_read_whole_or_refused_at_a_byte(source: Path, unit: Any, tmp_path: Path) -> None:
    from foundry_core.corpus.account import ByteAccount

    path, account = as_text(source, tmp_path), ByteAccount()
    fault = first_fault(path.read_bytes())
    corpus = Corpus.open(path, unit=unit)
    if fault is not None:
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: byte {fault} "):
            list(corpus.documents(account))
        return
    documents = list(corpus.documents(account))
    assert account.bytes_in == path.stat().st_size
    assert account.bytes_in == account.bytes_text + account.bytes_separators + account.bytes_skipped
    assert account.bytes_text == sum(len(document.encode()) for document in documents)
    # Nothing but line ends, blank lines and the byte-order mark lies outside of the documents.
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    assert "".join("".join(documents).split()) == "".join(content.split())


def promised(kind: str, text: str, tokenizer: Any) -> str | None:
    """Return what comes back of a text, None where nothing is promised."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id in ids
    if kind in ("sentencepiece", "bpe"):
        return text.replace("\u2581", " ") if kind == "sentencepiece" else text
    if unknown:
        return None
    if kind == "character":
        return text
    if kind == "word":
        return " ".join(text.split())
    # wordpiece: white space, U+FFFD, control, format and private characters are not encoded; marks stay as they are.
    return "".join(
        c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf", "Co") and c != "\ufffd"
    )


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_keeps_its_promise_on_texts_of_the_world(source: Path, kind: str, tmp_path: Path) -> None:
    path = as_text(source, tmp_path)
    if first_fault(path.read_bytes()) is not None:
        pytest.skip("is no UTF-8 text")
    train = getattr(TokenizerFactory, f"train_{kind}")
    tokenizer = with_a_size_that_works(train, path)
    documents = list(Corpus.open(path).documents())
    encoded = list(DocumentEncoder(tokenizer).encode(documents))
    kept = 0
    for text, ids in zip(documents, encoded, strict=True):
        expected = promised(kind, text, tokenizer)
        if expected is None:
            continue
        kept += 1
        back = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        assert ("".join(back.split()) if kind == "wordpiece" else back) == expected
    assert kept >= len(documents) * (0.1 if kind == "word" else 1)


def with_a_size_that_works(train: Callable[..., Any], path: Path) -> Any:
    """8000 tokens where there is text enough for them; otherwise the size that the error names."""
    try:
        return train(path, vocab_size=8000)
    except TokenizerError as error:
        (size,) = re.findall(r"the (?:largest|smallest) that works is (\d+)", str(error))
        return train(path, vocab_size=int(size))


# One line of 64 MB.


@pytest.fixture(scope="module")
def one_line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = np.random.default_rng(0)
    words = np.array(["".join(random.Random(n).choices("abcdefghijklmnop", k=2 + n % 9)) for n in range(20_000)])
    path = tmp_path_factory.mktemp("line") / "line.txt"
    with path.open("w") as file:
        while file.tell() < 64_000_000:
            file.write(" ".join(words[chance.zipf(1.3, 100_000) % len(words)]) + " ")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_line_of_64_megabytes_trains_from_end_to_end(
    one_line: Path, kind: str, tmp_path: Path, one_thread: None
) -> None:
    content = settings(tmp_path, one_line, tokenizer_type=kind, vocab_size=2000)
    config = load_config(content)
    assert run(config, quiet=True).step == 2
    (sidecar,) = (tokenizer_folder(config) / "tokens").glob("*.json")
    facts = yaml.safe_load(sidecar.read_text())
    account = facts["account"]
    assert account["bytes_in"] == one_line.stat().st_size == account["bytes_text"] + account["bytes_separators"]
    assert (facts["documents"], account["bytes_skipped"], account["bytes_separators"]) == (1, 0, 0)
    assert facts["words"] == len(one_line.read_text().split())
    tokens = np.memmap(sidecar.with_suffix(".tokens"), dtype=facts["dtype"], mode="r")
    tokenizer = load_tokenizer(tokenizer_folder(config))
    end = tokenizer.decode(tokens[-4000:-1].tolist()).split()
    if kind != "word":  # which knows the frequent words only
        assert one_line.read_text().split()[-100:] == "".join(f"{w} " for w in end).split()[-100:]
