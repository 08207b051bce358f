"""Corpus files -> documents: what counts as a document, where every byte goes, and what is refused in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from foundry_core.config.sections import DocumentDelimiter
from foundry_core.corpus.account import ByteAccount, word_count
from foundry_core.corpus.reader import Corpus, DocumentUnit
from foundry_core.errors import DataError
from tests.each import each

MIB = 1 << 20
PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
if find_spec("zstandard"):
    import zstandard

    PACKED[".zst"] = zstandard.ZstdCompressor(write_checksum=True).compress


def read(path: Path, unit: DocumentUnit = "line") -> tuple[list[str], ByteAccount]:
    account = ByteAccount()
    documents = list(Corpus.open(path, unit=unit).documents(account))
    assert account.bytes_in == account.bytes_text + account.bytes_separators + account.bytes_skipped
    assert account.bytes_text == sum(len(document.encode()) for document in documents)
    assert account.documents == len(documents)
    assert account.words == sum(len(document.split()) for document in documents)
    return documents, account


def refused(path: Path, unit: DocumentUnit = "line") -> str:
    """The one line of the DataError."""
    with pytest.raises(DataError) as caught:
        list(Corpus.open(path, unit=unit).documents())
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@each(
    ("content", "unit", "documents", "separators", "empty"),
    [
        (b"a b\nc\n", "line", ["a b", "c"], 2, 0),
        (b"a\nlast", "line", ["a", "last"], 1, 0),
        (b"a\r\nb\r\n", "line", ["a", "b"], 4, 0),
        (b"a\r\r\nb\r", "line", ["a\r", "b\r"], 2, 0),
        (b"one\rtwo\n", "line", ["one\rtwo"], 1, 0),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", "line", ["a", "\ufeffb"], 5, 0),
        (b"\n  \n\t\r\n a \n\n", "line", [" a "], 9, 4),
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\n".encode(), "line", ["a\u2028b\u0085c\x0bd\x0ce\x1cf"], 1, 0),
        ("\u2003\u00a0\nä\n".encode(), "line", ["ä"], 7, 1),
        ("日本 語\n🙂\n".encode(), "line", ["日本 語", "🙂"], 2, 0),
        (b"a\nb\n\n\nc", "block", ["a\nb", "c"], 3, 0),
        (b"\r\n\r\na\r\nb\r\n \t\r\nc\r\n", "block", ["a\nb", "c"], 13, 0),
        (b"a\n   ", "block", ["a"], 4, 0),
        (b"\xef\xbb\xbf\na\n", "block", ["a"], 5, 0),
        (b"\na\r\n\r\nb\n\n", "file", ["\na\n\nb\n"], 3, 0),
        (b"a\r", "file", ["a\r"], 0, 0),
    ],
)
def test_documents_and_separators_add_up_to_the_bytes(
    tmp_path: Path, content: bytes, unit: DocumentUnit, documents: list[str], separators: int, empty: int
) -> None:
    found, account = read(written(tmp_path / "a.txt", content), unit)
    assert found == documents
    assert account.bytes_in == len(content)
    assert account.bytes_separators == separators
    assert account.empty_documents == empty
    assert account.skipped == {}


def test_blank_files_are_counted_when_a_file_is_a_document(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"")
    written(tmp_path / "b.txt", b" \n\n")
    written(tmp_path / "c.txt", b"x\n")
    found, account = read(tmp_path, "file")
    assert found == ["x"]
    assert account.empty_documents == 2
    assert account.bytes_separators == 4


def test_jsonl_counts_everything_but_the_text_as_separators(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a\\nb"}',
        b"",
        b'{"id": 1, "text": "\\u00e9\\ud83d\\ude42", "meta": {"text": 2}}\r',
        b'{"text": "  "}',
        '{"text": "é\u2028x"}'.encode(),
    ]
    content = b"\xef\xbb\xbf" + b"\n".join(lines)
    found, account = read(written(tmp_path / "a.jsonl", content))
    assert found == ["a\nb", "é🙂", "é\u2028x"]
    assert account.bytes_in == len(content)
    assert account.bytes_text == 3 + 6 + 6
    assert account.empty_documents == 1


@pytest.mark.parametrize("unit", ["line", "block", "file"])
def test_a_jsonl_line_is_a_document_whatever_the_unit(tmp_path: Path, unit: DocumentUnit) -> None:
    found, _ = read(written(tmp_path / "a.jsonl", b'{"text": "a\\n\\nb"}\n{"text": "c"}\n'), unit)
    assert found == ["a\n\nb", "c"]


@each("unit", ["line", "block", "file"])
@each("suffix", [*PACKED])
def test_compressed_files_read_and_digest_as_their_content(tmp_path: Path, unit: DocumentUnit, suffix: str) -> None:
    pack, content = PACKED[suffix], b"a\r\nb\n\nc"
    plain = written(tmp_path / "a.txt", content)
    packed = written(tmp_path / f"a.txt{suffix}", pack(content[:4]) + b"\0" * 8 + pack(content[4:]) + b"\0" * 4)
    assert read(packed, unit) == read(plain, unit)
    assert Corpus.open(packed, unit=unit).digest == Corpus.open(plain, unit=unit).digest
    assert Corpus.open(packed).bytes == packed.stat().st_size


def test_a_compressed_text_of_many_reads_is_whole(tmp_path: Path) -> None:
    lines = [os.urandom(60).hex() for _ in range(5000)]
    for suffix, pack in PACKED.items():
        path = written(tmp_path / f"a.train{suffix}", pack("\n".join(lines).encode()))
        assert path.stat().st_size > 4 * (1 << 16)
        assert read(path)[0] == lines


DELIMITER = DocumentDelimiter(delimiter="<|end|>")


@each(
    ("content", "documents", "separators", "empty"),
    [
        (b"a\nb\n<|end|>\nc\n<|end|>\n", ["a\nb", "c"], 18, 0),
        (b"a<|end|>b<|end|>c", ["a", "b", "c"], 14, 0),
        (b"<|end|>\r\na \r\n\r\nb\r\n<|end|> c", ["a \n\nb", " c"], 20, 1),
        (b"<|end|><|end|>\n \n<|end|>a<|end|>", ["a"], 31, 3),
        (b"\xef\xbb\xbf<|en<|end|>d|>\n", ["<|en", "d|>"], 11, 0),
    ],
)
def test_a_document_lies_between_two_delimiters(
    tmp_path: Path, content: bytes, documents: list[str], separators: int, empty: int
) -> None:
    found, account = read(written(tmp_path / "a.txt", content), DELIMITER)
    assert found == documents
    assert (account.bytes_in, account.bytes_separators, account.empty_documents) == (len(content), separators, empty)


@each("delimiter", ["<|end|>", "\n--\n--\n", "\r\n--\r\n--\r\n", "\n\n\n"])
@each("shift", [-8, -7, -4, -1, 0, 1])
def test_a_delimiter_may_lie_across_reads(tmp_path: Path, delimiter: str, shift: int) -> None:
    long = ("x" * 99 + "\n") * (MIB // 100)
    long += "y" * (MIB + shift - len(long))
    content = delimiter.join([long, "z", long, "\n-", "end"])
    found, _ = read(written(tmp_path / "a.txt", content.encode()), DocumentDelimiter(delimiter=delimiter))
    assert found == [long, "z", long, "-", "end"]


def test_a_delimiter_that_never_occurs_is_refused(tmp_path: Path) -> None:
    assert "data.documents, '<|end|>', does not occur" in refused(
        written(tmp_path / "a.txt", b"a\n<|END|>\n"), DELIMITER
    )
    assert read(written(tmp_path / "a.jsonl", b'{"text": "a"}\n'), DELIMITER)[0] == ["a"]


@each("unit", ["line", "block"])
@each("shift", [-2, -1, 0, 1, 2, 3])
def test_what_lies_across_a_block_boundary_reads_the_same(tmp_path: Path, unit: DocumentUnit, shift: int) -> None:
    """CRLF, blank lines and characters of several bytes at the seam of two reads of 1 MiB."""
    lines = "x" * (MIB + shift - 1)
    text = f"{lines}\r\n\r\n€€\r\ny\n\nz"
    found, _ = read(written(tmp_path / "a.txt", text.encode()), unit)
    assert found == ([lines, "€€", "y", "z"] if unit == "line" else [lines, "€€\ny", "z"])


def test_a_byte_order_mark_is_one_only_at_the_start_of_a_file(tmp_path: Path) -> None:
    later = "\ufeff" + "x" * MIB  # begins a piece of text, but not the file
    assert read(written(tmp_path / "a.txt", f"a\n{later}\n".encode()))[0] == ["a", later]


def test_a_block_may_be_longer_than_many_reads(tmp_path: Path) -> None:
    line = "word " * 40 + "\n"
    block = (line * (5 * MIB // len(line))).removesuffix("\n")
    found, _ = read(written(tmp_path / "a.txt", f"{block}\n\n\n{block}\n".encode()), "block")
    assert found == [block, block]


@pytest.mark.long
def test_a_single_line_of_64_mib_is_one_document(tmp_path: Path) -> None:
    content = b"0123456 " * (8 * MIB)
    found, account = read(written(tmp_path / "a.txt", content))
    assert len(found) == 1
    assert account.bytes_text == len(content) == 64 * MIB


@pytest.mark.long
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"some words in a line\n" * (64 * MIB // 21))
    code = (
        "import resource, sys; from collections import deque; from foundry_core.corpus.reader import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "corpus = Corpus.open(sys.argv[1]); corpus.digest; deque(corpus.documents(ByteAccount()), maxlen=0)\n"
        "sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 40 * 1024)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], check=False).returncode == 0


def test_words_are_counted_as_split_counts_them() -> None:
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    for text in ["", " ", "a", " a", "a ", "a\u200bb", "é ü", *(f"{s}{s}a{s}é{s}{s}b{s}" for s in spaces)]:
        assert word_count(text) == len(text.split()), ascii(text)


# Refusals


@each("unit", ["line", "block", "file"])
@each("before", [b"", b"\xef\xbb\xbf", b"ok\r\n" * MIB])
def test_invalid_utf8_names_file_offset_and_byte(tmp_path: Path, unit: DocumentUnit, before: bytes) -> None:
    path = written(tmp_path / "a.txt", before + "é".encode() + b"\xff\n")
    message = refused(path, unit)
    assert message.startswith(str(path))
    assert f"byte {len(before) + 2} (0xff)" in message


def test_a_character_cut_off_by_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    assert "byte 3 (0xe2)" in refused(written(tmp_path / "a.txt", b"ab\n\xe2\x82"))


@pytest.mark.parametrize("content", [b"\xed\xa0\x80\n", b"\xc0\x80\n"])
def test_surrogates_and_overlong_forms_are_not_utf8(tmp_path: Path, content: bytes) -> None:
    assert "byte 0 (0x" in refused(written(tmp_path / "a.txt", content))


def test_nul_is_refused_with_its_offset(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.txt", b"abc\nde\0f\n"))
    assert "byte 6 is NUL" in message
    assert "binary" in message


def test_the_first_of_two_faults_is_named(tmp_path: Path) -> None:
    assert "byte 1 is NUL" in refused(written(tmp_path / "a.txt", b"a\0\xff"))
    assert "byte 1 (0xff)" in refused(written(tmp_path / "b.txt", b"a\xff\0"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_called_by_its_name(tmp_path: Path, encoding: str) -> None:
    assert "UTF-16" in refused(written(tmp_path / "a.txt", "text\n".encode(encoding)))


@each(
    ("line", "reason"),
    [
        (b"{text: 1}", "Expecting property name"),
        (b'{"text": "cut off', "Unterminated string"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b'{"Text": "a", "id": 3}', "no key \"text\"; its keys are 'Text', 'id'"),
        (b"{}", "no key"),
        (b'{"text": null}', "NoneType, not a string"),
        (b'{"text": 5}', "int, not a string"),
        (b'{"text": "\\ud800 x"}', "lone surrogate at position 0"),
        (b'{"text": "ab\\u0000"}', "NUL character at position 2"),
        (b'{"text": "a", "text": "b"}', "occurs twice"),
        (rb'{"text": "a", "te\u0078t": "b"}', "occurs twice"),
        (rb'{"\u0074\u0065\u0078\u0074": "a", "text": "b"}', "occurs twice"),
        (rb'{"tex\u0074": "a", "tex\u0074": "b"}', "occurs twice"),
        (b'{"text": "a\tb"}', "Invalid control character"),
        (b"[" * 100_000, "recursion"),
        (b'{"n": ' + b"1" * 5000 + b', "text": ""}', "limit"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_line_and_byte(tmp_path: Path, line: bytes, reason: str) -> None:
    first = '{"text": "é"}\r\n\n'.encode()
    path = written(tmp_path / "a.jsonl", first + line + b"\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: the line at byte {len(first)}: ")
    assert reason in message


def test_jsonl_lines_are_numbered_across_reads(tmp_path: Path) -> None:
    good = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path = written(tmp_path / "a.jsonl", good * 5000 + b"{}\n")
    assert refused(path).startswith(f"{path}:5001: the line at byte {5000 * len(good)}: ")


@each(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-8] + b"\0\0\0\0" + data[-4:],
        lambda data: data[:20] + bytes([data[20] ^ 255]) + data[21:],
        lambda data: b"plain text\n",
        lambda data: data + b"trailing",
        lambda data: b"",
    ],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage) -> None:
    written(tmp_path / "a.txt", b"fine\n")
    path = written(tmp_path / "b.txt.gz", damage(gzip.compress(os.urandom(5000).hex().encode())))
    message = refused(tmp_path)
    assert message.startswith(f"{path}: ")
    assert "gzip" in message


@each("suffix", [*PACKED])
def test_damage_of_any_compression_is_refused(tmp_path: Path, suffix: str) -> None:
    data = PACKED[suffix](os.urandom(3 * (1 << 16)).hex().encode())
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    for damaged in (data[:-9], data[:middle], flipped, data + b"trailing", data + data[:9], data[:8]):
        path = written(tmp_path / f"a.txt{suffix}", damaged)
        assert refused(path).startswith(f"{path}: damaged ")
    plain = written(tmp_path / f"a.txt{suffix}", b"plain text\n")
    assert ": rename it, or compress it again" in refused(plain)


def test_a_file_under_a_wrong_name_is_called_what_it_is(tmp_path: Path) -> None:
    text = b"a line of text\n" * 100
    for suffix, pack in PACKED.items():
        for name in ("a.txt", "a.jsonl", "a.train", "a.txt.gz" if suffix != ".gz" else "a.txt.bz2"):
            assert f"data: add {suffix} to its name, or decompress it" in refused(written(tmp_path / name, pack(text)))
        twice = written(tmp_path / f"a.txt{suffix}", pack(pack(text)))
        assert f"it looks like {'' if suffix != '.zst' else 'zstandard'}" in refused(twice)
    assert "a zip archive: extract it" in refused(written(tmp_path / "a.txt", b"PK\3\4\0\0\0\0\x9c"))
    assert "Parquet data: rename it to .parquet" in refused(written(tmp_path / "a.txt", b"PAR1\x15\4\x15\xf0"))


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name, extra in (("zstandard", "a.txt.zst", "zst"), ("pyarrow", "a.parquet", "parquet")):
        path = written(tmp_path / name, b"x")
        for found in (None, ModuleType(package)):  # the second is a folder of that name
            monkeypatch.setitem(sys.modules, package, found)
            command = f"pip install model-foundry[{extra}]"
            assert refused(path) == f"{path}: reading {path.suffix} files needs a package: {command}"


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "a FIFO" in refused(tmp_path / "a.txt")
    assert "a FIFO" in refused(tmp_path)


def test_devices_sockets_and_folders_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/dev/zero")
    assert "a device" in refused(tmp_path / "a.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "b.txt"))
        assert "a socket" in refused(tmp_path / "b.txt")


def test_a_missing_path_or_link_target_is_named(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "missing.txt")
    (tmp_path / "link.txt").symlink_to("nowhere.txt")
    assert "nowhere.txt" in refused(tmp_path / "link.txt")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("a.txt")
    assert "cannot be read" in refused(tmp_path / "a.txt")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a regular file whose reading fails")
def test_an_error_while_reading_is_one_line(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"fine\n")
    (tmp_path / "b.txt").symlink_to("/proc/self/mem")
    assert "cannot be read at byte 0: Input/output error" in refused(tmp_path)


def test_a_name_with_a_newline_still_gives_one_line(tmp_path: Path) -> None:
    assert "bad\\nname.txt" in refused(written(tmp_path / "bad\nname.txt", b"\xff"))


@each("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
@each("unit", ["line", "block", "file"])
def test_a_corpus_without_a_document_is_refused(tmp_path: Path, content: bytes, unit: DocumentUnit) -> None:
    assert str(tmp_path / "a.txt") in refused(written(tmp_path / "a.txt", content), unit)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"line\n" * MIB)
    documents = Corpus.open(path).documents()
    next(documents)
    with path.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(DataError, match="changed since"):
        list(documents)


def test_a_file_changing_between_digest_and_reading_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"old\n")
    corpus = Corpus.open(path)
    assert corpus.digest
    os.utime(written(path, b"new\n"), ns=(0, 1))
    with pytest.raises(DataError, match="changed since"):
        list(corpus.documents())


# Finding files


def test_a_folder_is_read_recursively_and_sorted_but_not_hidden(tmp_path: Path) -> None:
    for name in [
        "b/z.txt",
        "b/a.jsonl",
        "a.txt",
        "c.TXT.GZ",
        ".hidden.txt",
        ".git/x.txt",
        "b.txt",
        "note.md",
        "b/.x.txt",
    ]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        content = json.dumps({"text": name}).encode() if ".jsonl" in name else name.encode()
        path.write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    corpus = Corpus.open(tmp_path)
    assert list(corpus.documents()) == ["a.txt", "b/a.jsonl", "b/z.txt", "b.txt", "c.TXT.GZ"]
    assert corpus.bytes == sum(path.stat().st_size for path in corpus.files)


def test_a_glob_is_sorted_and_a_literal_name_wins(tmp_path: Path) -> None:
    for name in ["b.txt", "a.txt", "c.md", "[ab].txt"]:
        written(tmp_path / name, name.encode())
    assert [path.name for path in Corpus.open(tmp_path / "?.*").files] == ["a.txt", "b.txt"]
    assert list(Corpus.open(str(tmp_path / "[ab].txt")).documents()) == ["[ab].txt"]


def test_a_sequence_keeps_its_order(tmp_path: Path) -> None:
    b, a = written(tmp_path / "b.txt", b"b"), written(tmp_path / "a.txt", b"a")
    assert list(Corpus.open([b, str(a)]).documents()) == ["b", "a"]


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"a")
    with pytest.raises(DataError, match=r"a\.txt: listed twice"):
        Corpus.open([tmp_path, path])
    (tmp_path / "b.txt").symlink_to(path)
    with pytest.raises(DataError, match=r"b\.txt: listed twice.*, also as .*a\.txt"):
        Corpus.open(tmp_path)


def test_files_of_unknown_kind_are_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a.doc", b"text")
    assert "These can be read: .txt, .train" in refused(path)
    assert "a.doc" in refused(tmp_path)
    assert refused(tmp_path / "*.none").endswith("no file to read in " + f"{tmp_path / '*.none'}.")


@each("name", ["a.txt", "a.train", "a.DEV", "a.test.gz", "a.Txt.GZ"])
def test_the_splits_of_a_corpus_are_text_files(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, gzip.compress(b"a\nb\n") if name.lower().endswith("gz") else b"a\nb\n")
    assert list(Corpus.open(path).documents()) == ["a", "b"]
    assert Corpus.open(path).digest == Corpus.open(written(tmp_path / "b.txt", b"a\nb\n")).digest


def test_ndjson_is_jsonl(tmp_path: Path) -> None:
    line = b'{"text": "a"}\n'
    digests = {Corpus.open(written(tmp_path / name, line)).digest for name in ("a.jsonl", "a.ndjson")}
    assert read(tmp_path / "a.ndjson")[0] == ["a"]
    assert len(digests) == 1


def folder_of_many_kinds(folder: Path) -> Path:
    """A folder of 100 bytes of text and 63 bytes of other kinds, 21 of them in a linked folder."""
    for name, size in {"a.txt": 60, "sub/b.train": 40, "notes.md": 21, "sub/more.md": 20, "LICENSE": 1}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written(folder / name, b"x" * size)
    written(folder / ".hidden.bin", b"x" * 1000)
    (folder.parent / "elsewhere" / ".git").mkdir(parents=True)
    written(folder.parent / "elsewhere" / "c.txt", b"x" * 21)
    written(folder.parent / "elsewhere" / ".git" / "c.txt", b"x" * 1000)
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    return folder


def test_what_is_not_read_in_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_many_kinds(tmp_path / "texts")
    for spec in (folder, folder / "*"):
        corpus = Corpus.open(spec, name="data.training_corpus")
        examples = "2 .md (notes.md), 1 no suffix (LICENSE), 1 linked (linked)"
        line = f"warning: data.training_corpus: not read in {spec}: 4 files, 63 bytes: {examples}\n"
        assert capsys.readouterr().err == line
        assert [path.name for path in corpus.files] == ["a.txt", "b.train"]
        by_suffix = {".md": ["notes.md", "more.md"], "no suffix": ["LICENSE"], "linked": ["linked"]}
        assert corpus.description["not_read"] == [{"files": 4, "bytes": 63, "by_suffix": by_suffix}]
    Corpus.open(folder / "*.txt")
    assert capsys.readouterr().err == ""
    written(folder / ".hidden.txt", b"x" * 100)
    assert [path.name for path in Corpus.open(folder).files] == ["a.txt", "b.train"]
    assert "1 .txt (.hidden.txt)" in capsys.readouterr().err


def test_a_folder_that_is_mostly_not_read_is_refused(tmp_path: Path) -> None:
    folder = folder_of_many_kinds(tmp_path / "texts")
    enough, extra = folder / "notes.md", tmp_path / "elsewhere" / "c.txt"
    for grown, size in ((enough, 21 + 37), (extra, 21 + 37)):
        before = grown.read_bytes()
        written(grown, b"x" * size)
        assert len(Corpus.open(folder).files) == 2
        written(grown, b"x" * (size + 1))
        for spec in (folder, folder / "*", folder / "**"):
            message = refused(spec)
            assert "only 100 bytes of " in message
            assert "not read are 4 files, 101 bytes: " in message
            assert 'data.files: "*.txt"' in message
            assert len(Corpus.open(spec, pattern="*.t*").files) == 2
        written(grown, before)


def test_a_folder_without_a_file_to_read_says_what_to_do(tmp_path: Path) -> None:
    for name, way_out in (
        ("a.md", "convert it"),
        (".a.txt", "rename it without a dot"),
        ("link", "name a linked folder"),
    ):
        (tmp_path / name).mkdir()
        if name == "link":
            (tmp_path / name / "link").symlink_to(tmp_path)
        else:
            written(tmp_path / name / name, b"x")
        assert way_out in refused(tmp_path / name)


@each("name", ["b/z.txt", "a.txt", "b/c/y.train", "x.md"])
def test_a_folder_and_its_glob_read_the_same_files(tmp_path: Path, name: str) -> None:
    for each_name in ("q.txt", "b/a.jsonl", "b/.h/x.txt", name):
        (tmp_path / "f" / each_name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / "f" / each_name, b'{"text": "a"}')
    files = Corpus.open(tmp_path / "f").files
    assert [Corpus.open(tmp_path / glob).files for glob in ("f/*", "f/**", "f/**/*", "?")] == [files] * 4


@each(
    ("pattern", "names"),
    [
        ("*.train", ["a.train", "sub/b.train"]),
        ("a.*", ["a.dev", "a.train"]),
        ("sub/*", ["sub/b.train"]),
        ("**/*.train", ["a.train", "sub/b.train"]),
        ("*", ["a.dev", "a.train", "sub/b.train"]),
    ],
)
def test_a_pattern_chooses_by_name_or_path(
    tmp_path: Path, pattern: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.train", "a.dev", "sub/b.train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, b"x")
    for spec in (tmp_path, tmp_path / "*"):
        assert [str(path.relative_to(tmp_path)) for path in Corpus.open(spec, pattern=pattern).files] == names
        assert ("not read in" in capsys.readouterr().err) == (len(names) < 3)
    with pytest.raises(DataError, match=r"no file that matches '\*\.none' to read in .*, only 3 other"):
        Corpus.open(tmp_path, pattern="*.none")


def test_splits_that_are_read_as_one_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.train", "a.dev", "a.test.gz"):
        written(tmp_path / name, b"x")
    Corpus.open(tmp_path)
    assert "all its .dev, .test, .train files are read" in capsys.readouterr().err
    Corpus.open(tmp_path, pattern="*.train")
    assert "are read" not in capsys.readouterr().err


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / os.fsdecode(b"caf\xe9.txt"), b"text")
    written(tmp_path / os.fsdecode(b"\xe9.md"), b"x")
    assert list(Corpus.open(tmp_path).documents()) == ["text"]
    assert "1 .md ('\\udce9.md')" in capsys.readouterr().err
    assert Corpus.open(tmp_path).description["names"] == ["'caf\\udce9.txt'"]
    written(tmp_path / os.fsdecode(b"caf\xe9.txt"), b"\xff")
    assert "caf\\udce9.txt'" in refused(tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    written(tmp_path / "target", b"text\n")
    (tmp_path / "a.txt").symlink_to("target")
    assert read(tmp_path / "a.txt")[0] == ["text"]


# The digest


def test_a_moved_corpus_is_the_same_corpus(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"a\n")
    written(tmp_path / "b.txt", b"b\n")
    before = Corpus.open(tmp_path).digest
    (tmp_path / "elsewhere").mkdir()
    for old, new in [("a.txt", "first.txt"), ("b.txt", "second.txt")]:
        (tmp_path / old).rename(tmp_path / "elsewhere" / new)
    assert Corpus.open(tmp_path / "elsewhere").digest == before


def test_the_digest_depends_on_unit_kind_order_and_every_byte(tmp_path: Path) -> None:
    def digest(*contents: bytes, unit: DocumentUnit = "line", kind: str = "txt") -> str:
        files = [written(tmp_path / f"{number}.{kind}", content) for number, content in enumerate(contents)]
        return Corpus.open(files, unit=unit).digest

    digests = [
        digest(b"a\n", b"b\n"),
        digest(b"b\n", b"a\n"),
        digest(b"a\nb\n"),
        digest(b"a\nb"),
        digest(b"a\r\nb\n"),
        digest(b"a\n", b"", b"b\n"),
        digest(b"a\n", b"b\n", unit="block"),
        digest(b"a\n", b"b\n", unit=DELIMITER),
        digest(b"a\n", b"b\n", unit=DocumentDelimiter(delimiter="line")),
        digest(b"a\n", b"b\n", kind="jsonl"),
    ]
    assert len(set(digests)) == len(digests)
    # Tokenizers, token files and checkpoints of earlier versions name a corpus by its digest.
    assert digests[0] == "6833737f9cb40daeb3c29a79b5af2abe41b2539f772388549da2df9d02642dad"
