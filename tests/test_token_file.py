"""The token file: nothing of the corpus lost, nothing stale, nothing damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.reader import Corpus, DocumentUnit
from foundry_core.data.token_file import prepare_tokens
from foundry_core.errors import DataError
from tests.each import each

TEXT = "the cat sat\nthe dog\n\na cat saw the dog sit\nunseen words\n"


def word_tokenizer(words: str = "the cat sat dog a saw sit", filler: int = 0) -> PreTrainedTokenizerFast:
    vocabulary = ["<unk>", "</s>", *words.split(), *(f"filler{number}" for number in range(filler))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def corpus_of(folder: Path, text: str = TEXT, unit: DocumentUnit = "line") -> Corpus:
    (folder / "corpus.txt").write_text(text)
    return Corpus.open(folder / "corpus.txt", unit=unit)


def test_the_stream_has_separators_around_every_document(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    corpus = corpus_of(tmp_path)
    file = prepare_tokens(corpus, tokenizer, tmp_path)
    expected, starts = [1], []
    for document in corpus.documents():
        starts.append(len(expected))
        expected += [*tokenizer(document)["input_ids"], 1]
    assert file.tokens.tolist() == expected == [1, 2, 3, 4, 1, 2, 5, 1, 6, 3, 7, 2, 5, 8, 1, 0, 0, 1]
    assert file.documents.tolist() == [*starts, len(expected)]
    assert (file.tokens.dtype, file.documents.dtype) == (np.uint16, np.int64)
    assert not file.tokens.flags.writeable


def test_the_sidecar_says_what_was_counted(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    info = prepare_tokens(corpus, word_tokenizer(), tmp_path).info
    account = ByteAccount()
    words = sum(len(document.split()) for document in corpus.documents(account))
    assert (info.tokens, info.documents, info.words, info.text_bytes) == (18, 4, words, account.bytes_text)
    assert ByteAccount(**info.account) == account
    assert (info.corpus_digest, info.separator_id) == (corpus.digest, 1)


def test_unknown_tokens_are_counted_and_separators_are_not(tmp_path: Path) -> None:
    one_for_both = word_tokenizer()
    one_for_both.eos_token = "<unk>"
    for tokenizer in (word_tokenizer(), one_for_both):
        info = prepare_tokens(corpus_of(tmp_path), tokenizer, tmp_path).info
        assert (info.unknown, info.unknown_share) == (2, 2 / 13)
    known = prepare_tokens(corpus_of(tmp_path, "the cat\n"), word_tokenizer(), tmp_path).info
    assert (known.unknown, known.unknown_share) == (0, 0)


@pytest.mark.long
def test_a_stream_of_many_buffers_is_whole(tmp_path: Path) -> None:
    """Documents of very different lengths, more than two buffers of 2**20 tokens, and one that fills a buffer."""
    lengths = [*np.random.default_rng(0).integers(1, 400, 6000).tolist(), 1_100_000, 1, 2]
    corpus = corpus_of(tmp_path, "".join("cat " * length + "\n" for length in lengths))
    calls: list[int] = []
    file = prepare_tokens(corpus, word_tokenizer(), tmp_path, progress=calls.append)
    assert file.documents.tolist() == np.cumsum([1, *(length + 1 for length in lengths)]).tolist()
    assert len(file.tokens) == file.info.tokens == file.documents[-1]
    assert np.flatnonzero(file.tokens == 1).tolist() == [0, *(file.documents[1:] - 1).tolist()]
    assert len(calls) > 2
    assert calls == sorted(calls)
    assert calls[-1] == corpus.bytes


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocabulary: int, dtype: type) -> None:
    tokenizer = word_tokenizer("", filler=vocabulary - 2)
    last = vocabulary - 1
    file = prepare_tokens(corpus_of(tmp_path, f"filler{last - 2}\n"), tokenizer, tmp_path)
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [1, last, 1]


def test_an_unchanged_corpus_is_not_tokenized_again(tmp_path: Path) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    calls: list[int] = []
    # Written anew and opened anew, with a tokenizer built anew: the same content.
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert calls == []
    assert again.info == first.info
    assert again.tokens.tolist() == first.tokens.tolist()
    assert len(list(tmp_path.glob("*.tokens"))) == 1


def test_whatever_shapes_the_tokens_gives_a_new_file(tmp_path: Path) -> None:
    variants: list[tuple[str, DocumentUnit, PreTrainedTokenizerFast]] = [
        (TEXT, "line", word_tokenizer()),
        (TEXT + "\n", "line", word_tokenizer()),
        (TEXT, "block", word_tokenizer()),
        (TEXT, "line", word_tokenizer("a cat sat dog the saw sit")),
        (TEXT, "line", word_tokenizer(filler=1)),
        (TEXT, "line", word_tokenizer()),
    ]
    variants[-1][2].eos_token = "sit"
    files = [prepare_tokens(corpus_of(tmp_path, text, unit), tokenizer, tmp_path) for text, unit, tokenizer in variants]
    assert len({file.info.digest for file in files}) == len(list(tmp_path.glob("*.tokens"))) == len(variants)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(bytes(content))


@each("suffix", ["tokens", "documents", "json"])
@each("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_torn_or_damaged_token_file_is_rebuilt(tmp_path: Path, suffix: str, damage: Any) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    expected = (first.tokens.tolist(), first.documents.tolist())
    (path,) = tmp_path.glob(f"*.{suffix}")
    damage(path)
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    assert (again.tokens.tolist(), again.documents.tolist()) == expected
    calls: list[int] = []
    prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert calls == []


@each(("key", "value"), [("words", 10**6), ("text_bytes", 1), ("unknown", 1), ("dtype", "zzz"), ("account", [])])
def test_a_sidecar_is_believed_when_it_is_as_it_was_written(tmp_path: Path, key: str, value: Any) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text()) | {key: value}
    path.write_bytes(json.dumps(content, indent=1).encode() + b"\n")
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.info == first.info


def test_a_sidecar_without_a_seal_is_built_anew(tmp_path: Path) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    calls: list[int] = []
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert (again.info, len(calls)) == (first.info, 1)


def test_a_corpus_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((b"the cat " * 4 + b"\n") * 140_000 + b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        prepare_tokens(Corpus.open(tmp_path / "a.txt"), word_tokenizer(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory"):
        prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path / "file")


@pytest.mark.long
def test_two_processes_that_prepare_the_same_both_end_well(tmp_path: Path) -> None:
    corpus_of(tmp_path, TEXT * 20_000)
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys; from pathlib import Path; from transformers import AutoTokenizer\n"
        "from foundry_core.corpus.reader import Corpus; from foundry_core.data.token_file import prepare_tokens\n"
        "folder = Path(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(folder / 'tokenizer')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "file = prepare_tokens(Corpus.open(folder / 'corpus.txt'), tokenizer, folder / 'out')\n"
        "print(file.info.tokens_sha256, int(file.tokens.astype('int64').sum()), flush=True)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1] != ""
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".documents", ".json", ".tokens"]


def test_the_sidecar_is_json_that_names_its_inputs(tmp_path: Path) -> None:
    info = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path).info
    (path,) = tmp_path.glob("*.json")
    assert path.stem == info.digest[:16]
    assert json.loads(path.read_text())["corpus_digest"] == info.corpus_digest
