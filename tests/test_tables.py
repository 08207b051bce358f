"""Parquet and Arrow files, and folders that the datasets library has saved: their column `text` is the corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.reader import Corpus
from foundry_core.errors import DataError
from tests.each import each

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one two", "", "drei\nvier ü", " \t", "日本"]


def stored(path: Path, texts: Any = TEXTS, **columns: Any) -> Path:
    """Write a table as Parquet, as an Arrow file (feather), or as an Arrow stream, which is how datasets are saved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({"id": range(len(texts)), "text": texts, **columns})
    if path.suffix.lower() == ".parquet":
        parquet.write_table(table, path, row_group_size=2, write_page_checksum=True)
        return path
    new = arrow.ipc.new_file if path.stem == "file" else arrow.ipc.new_stream
    with path.open("wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def saved(folder: Path, *shards: Sequence[str], fingerprint: str = "f1") -> Path:
    """Write what `Dataset.save_to_disk` writes."""
    names = [f"data-{number:05}-of-{len(shards):05}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        stored(folder / name, texts)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": fingerprint}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(Corpus.open(path).documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_row_is_a_document_and_its_text_all_its_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.parquet", "file.arrow", "stream.arrow", "B.PARQUET"):
        corpus, account = Corpus.open(stored(tmp_path / name)), ByteAccount()
        assert list(corpus.documents(account)) == ["one two", "drei\nvier ü", "日本"]
        assert account == ByteAccount(7 + 12 + 2 + 6, 7 + 12 + 6, 2, 0, 3, 2, 6)
        digests.add(corpus.digest)
    assert len(digests) == 1
    assert Corpus.open(stored(tmp_path / "a.parquet", [*TEXTS, "x"])).digest not in digests
    moved = ["one tw", "o", *TEXTS[2:]]
    assert Corpus.open(stored(tmp_path / "a.parquet", moved)).digest not in digests
    assert Corpus.open(stored(tmp_path / "a.parquet", ["one two\n", *TEXTS[1:]])).digest not in digests


@each("kind", ["string", "large_string", "string_view", "dictionary"])
def test_any_column_of_strings_is_read(tmp_path: Path, kind: str) -> None:
    texts = arrow.array(["a", "b", "a"] * 1000)
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(arrow, kind)())
    assert list(Corpus.open(stored(tmp_path / "file.arrow", texts)).documents()) == ["a", "b", "a"] * 1000


@each("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_a_table_that_is_not_a_text_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    stored(path, [1, 2, 3])
    assert refused(path) == f'{path}: the column "text" contains int64, not strings.'
    stored(path, ["a", "b", "c", None])
    assert refused(path) == f'{path}: row 4: "text" is null, not a string.'
    stored(path, ["a", "b", "c\0d"])
    assert refused(path) == f'{path}: row 3: "text" has a NUL character at position 1.'
    table = arrow.table({"content": ["a"], "id": [1]})
    parquet.write_table(table, tmp_path / "b.parquet")
    assert "needs one column \"text\", and its columns are 'content', 'id'" in refused(tmp_path / "b.parquet")
    path.write_bytes(b"plain text\n")
    assert refused(path).startswith(f"{path}: cannot be read as {path.suffix} from row 1 on: ")


def test_a_table_under_a_wrong_name_is_called_what_it_is(tmp_path: Path) -> None:
    for kind, other in ((".parquet", ".arrow"), (".arrow", ".parquet")):
        content = stored(tmp_path / f"a{kind}").read_bytes()
        for name in (f"b{other}", "b.txt", "b.jsonl"):
            (tmp_path / name).write_bytes(content)
            assert f"{kind[1:].title()} data: rename it to {kind}" in refused(tmp_path / name)


def test_a_table_that_was_cut_off_or_damaged_is_refused(tmp_path: Path) -> None:
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        path = stored(tmp_path / name, [f"text {number}" for number in range(7)])
        whole = path.read_bytes()
        ends = {len(whole) - 8, len(whole) // 2}
        if name == "stream.arrow":  # between two batches, too
            ends |= {at for at in range(8, len(whole), 8) if whole[at : at + 4] == b"\xff\xff\xff\xff"}
        for end in ends:
            path.write_bytes(whole[:end])
            assert refused(path).startswith(f"{path}: ")
        path.write_bytes(whole + whole)
        if name == "stream.arrow":
            assert "it was cut off, or files were joined" in refused(path)
    for name, wrong in (("file.arrow", b"\xff" * 6), ("stream.arrow", b"\xff" * 6), ("a.parquet", "日木".encode())):
        path = stored(tmp_path / name)
        path.write_bytes(path.read_bytes().replace("日本".encode(), wrong))
        assert refused(path).startswith(f"{path}: cannot be read as {path.suffix} from row ")


def test_a_saved_dataset_is_read_without_its_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "set", ["a", "b"], ["c"])
    stored(folder / "cache-0123.arrow", ["a", "b", "c", "a longer text than those of the dataset"] * 100)
    for spec in (folder, folder / "*", tmp_path):
        corpus = Corpus.open(spec)
        assert list(corpus.documents()) == ["a", "b", "c"]
        assert "1 file, " in capsys.readouterr().err
        assert corpus.description["datasets"] == {str(folder): "f1"}
    for content, problem in (
        ("{", "is damaged"),
        ('{"_data_files": [{"filename": "x.arrow"}], "_fingerprint": ""}', "no such"),
    ):
        (folder / "state.json").write_text(content)
        assert problem in refused(folder)
    (folder / "state.json").write_text('{"_data_files": [], "_fingerprint": "", "_indices_data_files": [{}]}')
    assert "only some rows" in refused(folder)


def test_the_splits_of_a_saved_dataset_are_not_one_text(tmp_path: Path) -> None:
    folder = tmp_path / "dict"
    saved(folder / "train", ["a"])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert list(Corpus.open(folder).documents()) == ["a"]
    saved(folder / "test", ["b"])
    for spec in (folder, folder / "*", tmp_path):
        assert f"{folder}: contains 2 splits, test, train" in refused(spec)
        assert list(Corpus.open(spec, pattern="train/*" if spec != tmp_path else "dict/train/*").documents()) == ["a"]
    assert list(Corpus.open(folder / "train").documents()) == ["a"]
