"""The strict reader: corpus files in, documents out, and where every byte went.

A corpus is an ordered tuple of `.txt` and `.jsonl` files, each optionally `.gz`. Reading streams in blocks of 1 MiB, so
memory is bounded by the longest document. Nothing is repaired and nothing is dropped in silence: a byte outside of the
documents is counted in `ByteAccount.bytes_separators`, and what cannot be read as text is a `DataError` of one line
with the file, the byte offset (after decompression) and the way out.

Only the standard library is imported here, so that a corpus can be inspected without loading torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from foundry_core.corpus.files import file_blocks, find_files, kind_of, refuse, shown, stamp_of
from foundry_core.errors import DataError

DocumentUnit = Literal["line", "block", "file"]

_BOM = b"\xef\xbb\xbf"
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n)+")
_KEY_TEXT = re.compile(r'"(?:t|\\u0074)(?:e|\\u0065)(?:x|\\u0078)(?:t|\\u0074)"')
_SPACE_OR_X = bytes(ord(" ") if chr(byte).isspace() and byte < 128 else ord("x") for byte in range(256))
WIDE_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


@dataclass
class ByteAccount:
    """Where the bytes of a corpus went; complete when `Corpus.documents` has run to its end.

    Invariant: `bytes_in == bytes_text + bytes_separators + bytes_skipped`.

    * `bytes_in`: bytes read, after decompression.
    * `bytes_text`: the documents that were yielded, as UTF-8. The count to divide by for bits per byte.
    * `bytes_separators`: every other byte of what was read: newlines between documents, the CR of each CRLF, blank
      lines, byte-order marks, and of a jsonl line all that its text does not need: braces, quotes, other keys, and what
      an escape is longer than the character it stands for (`\\u00e9` is six bytes for a text of two). An escaped
      character is never shorter than its UTF-8, so this count cannot become negative.
    * `bytes_skipped`: bytes left out for a reason listed in `skipped` (reason -> how often). This reader refuses rather
      than skips, so both stay empty.
    * `documents`: how many were yielded. `empty_documents`: how many were empty or only white space, and therefore not
      yielded: blank lines in a unit of lines, blank files in a unit of files, blank texts in jsonl.
    * `words`: white-space separated words of the documents, as `str.split()` counts them.
    """

    bytes_in: int = 0
    bytes_text: int = 0
    bytes_separators: int = 0
    bytes_skipped: int = 0
    documents: int = 0
    empty_documents: int = 0
    words: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Files in a fixed order and the rule that cuts them into documents. Make one with `Corpus.open`.

    `unit` says what one document is in a text file: a line, a block of lines between blank lines, or the whole file.
    In a jsonl file every line is one document whatever the unit. Lines end at "\\n" or "\\r\\n", nowhere else: a lone
    CR, U+2028, NEL, VT and FF are text. Inside a block or a file "\\r\\n" becomes "\\n"; the last line end is not text.

    `ignored` holds what a folder or a glob also contained and what is not read: files of other kinds, linked folders.
    The files must stay as they were when the corpus was opened; a file of another size or modification time is a
    `DataError`, so that `digest` and `documents` always speak of the same bytes.
    """

    files: tuple[Path, ...]
    unit: DocumentUnit
    name: str
    ignored: tuple[Path, ...]
    stamps: tuple[tuple[int, int], ...] = field(repr=False)
    """Size in bytes and modification time in nanoseconds of each file, at opening."""

    @classmethod
    def open(
        cls, spec: str | Path | Sequence[str | Path], *, unit: DocumentUnit = "line", name: str = "corpus"
    ) -> Corpus:
        """The corpus that a file, a folder, a glob or a sequence of those describes; `name` is for messages.

        A folder is searched recursively in sorted order without hidden files; a glob is sorted. Nothing is read yet.

        Raises:
            DataError: a path that does not exist, is not a regular file, is of an unknown kind, or is listed twice; no
                file found; only empty files.
        """
        assert unit in get_args(DocumentUnit), unit
        files: list[Path] = []
        ignored: list[Path] = []
        specs = [spec] if isinstance(spec, str | Path) else list(spec)
        for one in specs:
            try:
                path = Path(one).expanduser()
            except RuntimeError as error:  # ~nobody
                raise DataError(f"{name}: {shown(Path(one))}: {error}") from error
            found, others = find_files(path, name)
            files += found
            ignored += others
        if not files:
            instead = f", only {len(ignored)} others such as {shown(ignored[0])}" if ignored else ""
            raise DataError(
                f"{name}: no .txt or .jsonl file (optionally .gz) in {', '.join(shown(Path(one)) for one in specs)}"
                f"{instead}; name the files or rename them."
            )
        seen: set[str] = set()
        for path in files:
            absolute = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
            if absolute in seen:
                refuse(path, "listed twice in one corpus; its text would count double. Name it once.")
            seen.add(absolute)
        stamps = tuple(stamp_of(path) for path in files)
        if not any(size for size, _ in stamps):
            raise DataError(f"{name}: empty: {shown(files[0])} and all its {len(files)} files have 0 bytes.")
        return cls(tuple(files), unit, name, tuple(ignored), stamps)

    @property
    def bytes(self) -> int:
        """Sum of the file sizes on disk."""
        return sum(size for size, _ in self.stamps)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over the unit and, for each file in order, its kind and its content after decompression.

        Names and places are left out: a corpus that was moved or compressed is the same corpus.
        """
        total = hashlib.sha256(f"foundry corpus 1\n{self.unit}\n".encode())
        for path, content in zip(self.files, self.file_digests, strict=True):
            # A digest for each file has a fixed length, so that no text can pretend to be a boundary between files.
            total.update(f"{kind_of(path)} {content}\n".encode())
        return total.hexdigest()

    @cached_property
    def file_digests(self) -> tuple[str, ...]:
        """sha256 (hex) of each file's content after decompression, in order."""
        digests = []
        for path, stamp in zip(self.files, self.stamps, strict=True):
            content = hashlib.sha256()
            for block in file_blocks(path, stamp):
                content.update(block)
            digests.append(content.hexdigest())
        return tuple(digests)

    def documents(self, account: ByteAccount | None = None) -> Iterator[str]:
        """Every document in order; adds to `account`, which is complete when the iterator is exhausted.

        Raises:
            DataError: bytes that are not UTF-8, NUL bytes, a damaged gzip file, a jsonl line without a text, a file
                that cannot be read or that changed since the corpus was opened, no document in the whole corpus.
        """
        counts = ByteAccount() if account is None else account
        documents_before = counts.documents
        for path, stamp in zip(self.files, self.stamps, strict=True):
            if kind_of(path) == "jsonl":
                texts = _json_documents(path, stamp, counts)
            elif self.unit == "line":
                # Counting words is half of the work on lines, hence only when somebody wants to know.
                texts = _lines(path, stamp, counts, count_words=account is not None)
            elif self.unit == "block":
                texts = _text_blocks(path, stamp, counts)
            else:
                texts = _whole_file(path, stamp, counts)
            yield from texts
        if counts.documents == documents_before:
            raise DataError(
                f"{self.name}: {shown(self.files[0])} ({len(self.files)} files): only white space, no text."
            )


def _texts(path: Path, stamp: tuple[int, int], account: ByteAccount) -> Iterator[tuple[int, str]]:
    """The file as pieces of text with their byte offsets; each piece but the last ends with a newline.

    Adds `bytes_in`, and the byte-order mark to the separators.
    """
    offset = 0
    held: list[bytes] = []
    blocks = file_blocks(path, stamp)
    while True:
        block = next(blocks, b"")
        cut = block.rfind(b"\n") + 1 if block else 0
        if block and not cut:
            held.append(block)
            continue
        piece = b"".join([*held, block[:cut]])
        held = [block[cut:]]
        account.bytes_in += len(piece)
        if offset == 0 and piece.startswith(_BOM):
            piece = piece[len(_BOM) :]
            offset = len(_BOM)
            account.bytes_separators += len(_BOM)
        if piece:
            yield offset, _decode(path, offset, piece)
        offset += len(piece)
        if not block:
            return


def _decode(path: Path, offset: int, piece: bytes) -> str:
    nul = piece.find(b"\0")
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 <= nul < error.start:
            hint = "it looks like UTF-16; " if offset == 0 and piece[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            refuse(
                path,
                f"byte {offset + error.start} (0x{piece[error.start]:02x}) is not UTF-8: {error.reason}; {hint}"
                "convert the file to UTF-8.",
                error,
            )
    if nul >= 0:
        refuse(path, f"byte {offset + nul} is NUL: this is UTF-16 or a binary file, not UTF-8 text. Convert it.")
    return text


# Cutting documents


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def word_count(text: str) -> int:
    """`len(text.split())` at twice the speed: the words are marked in a byte string and not built."""
    if not text.isascii():
        for space in WIDE_SPACES:
            if space in text:
                text = text.replace(space, " ")
    marks = text.encode().translate(_SPACE_OR_X)
    return marks.count(b" x") + marks.startswith(b"x")


def _lines(path: Path, stamp: tuple[int, int], account: ByteAccount, *, count_words: bool) -> Iterator[str]:
    """Each line that is not blank. Counts are taken for whole pieces: by line they would cost more than the reading."""
    for _, piece in _texts(path, stamp, account):
        text = piece.replace("\r\n", "\n") if "\r" in piece else piece
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        documents = [line for line in lines if line and not line.isspace()]
        account.documents += len(documents)
        account.empty_documents += len(lines) - len(documents)
        bytes_piece = _utf8_bytes(piece)
        bytes_text = _utf8_bytes(text) - text.count("\n")
        if len(documents) < len(lines):
            bytes_text -= sum(_utf8_bytes(line) for line in lines if line.isspace())
        account.bytes_text += bytes_text
        account.bytes_separators += bytes_piece - bytes_text
        if count_words:
            account.words += word_count(text)
        yield from documents


def _text_blocks(path: Path, stamp: tuple[int, int], account: ByteAccount) -> Iterator[str]:
    """Each run of lines that are not blank, joined by newlines."""
    begun: list[str] = []  # what earlier pieces hold of a block that has not ended
    for _, piece in _texts(path, stamp, account):
        account.bytes_separators += _utf8_bytes(piece)
        lines = piece.replace("\r\n", "\n")
        # With a newline at both ends a blank line at the seam of two pieces looks like any other.
        parts = _BLANK_LINES.split("\n" + lines + ("" if lines.endswith("\n") else "\n"))
        for part in parts[:-1]:
            begun.append(part)
            block = "".join(begun).removeprefix("\n")
            begun = []
            if block:
                yield _counted(block, account)
        begun.append(parts[-1].removesuffix("\n"))
    block = "".join(begun).removeprefix("\n")
    if block:
        yield _counted(block, account)


def _whole_file(path: Path, stamp: tuple[int, int], account: ByteAccount) -> Iterator[str]:
    """The file as one document, unless it is blank."""
    pieces: list[str] = []
    for _, piece in _texts(path, stamp, account):
        account.bytes_separators += _utf8_bytes(piece)
        pieces.append(piece.replace("\r\n", "\n"))
    text = "".join(pieces).removesuffix("\n")
    if text and not text.isspace():
        yield _counted(text, account)
    else:
        account.empty_documents += 1


def _counted(text: str, account: ByteAccount) -> str:
    """Book a document whose bytes stand among the separators so far."""
    size = _utf8_bytes(text)
    account.bytes_text += size
    account.bytes_separators -= size
    account.documents += 1
    account.words += word_count(text)
    return text


def _json_documents(path: Path, stamp: tuple[int, int], account: ByteAccount) -> Iterator[str]:
    """The text of each jsonl line; blank lines are separators."""
    number = 0
    for offset, piece in _texts(path, stamp, account):
        account.bytes_separators += _utf8_bytes(piece)
        start = 0
        for line in piece.split("\n"):
            if line and not line.isspace():
                try:
                    text = _json_text(line)
                except (ValueError, RecursionError) as error:
                    byte = offset + _utf8_bytes(piece[:start])
                    refuse(Path(f"{path}:{number + 1}"), f"the line at byte {byte}: {error}.", error)
                if text and not text.isspace():
                    yield _counted(text, account)
                else:
                    account.empty_documents += 1
            start += len(line) + 1
            number += 1
        number -= piece.endswith("\n")


def _json_text(line: str) -> str:
    """The value of "text"; raises ValueError with what is wrong, or RecursionError for JSON that is nested too deep."""
    # Two equal keys are legal JSON of which Python keeps the last; the slower hook runs only where two are possible.
    spelt = len(_KEY_TEXT.findall(line)) if "\\u00" in line else line.count('"text"')
    record = json.loads(line, object_pairs_hook=_unique_keys if spelt > 1 else None)
    if not isinstance(record, dict):
        raise ValueError('not an object; each line must be {"text": "..."}')
    if "text" not in record:
        raise ValueError(f'no key "text"; its keys are {", ".join(map(ascii, list(record)[:5])) or "none"}')
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f'"text" is {type(text).__name__}, not a string')
    if "\0" in text:
        raise ValueError(f'"text" has a NUL character at position {text.index(chr(0))}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'"text" has a lone surrogate at position {error.start}, which is no character') from None
    return text


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return record
