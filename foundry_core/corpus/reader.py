"""The strict reader: corpus files in, documents out, and an account of every byte.

Memory is bounded by the longest document. Nothing is repaired and nothing is dropped in silence: what cannot be read as
text is a `DataError` of one line with the file, the byte offset (after decompression) and how to fix it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from foundry_core.config.sections import DocumentDelimiter
from foundry_core.corpus.account import ByteAccount, utf8_bytes, word_count
from foundry_core.corpus.files import KINDS, Stamp, disguised, file_blocks, kind_of, refuse, shown, stamp_of
from foundry_core.corpus.json_texts import json_text
from foundry_core.corpus.search import Found, search
from foundry_core.corpus.steps import Steps
from foundry_core.corpus.tables import table_texts
from foundry_core.errors import DataError

DocumentUnit = Literal["line", "block", "file"] | DocumentDelimiter

_NAMED_FILES = 5
_BOM = b"\xef\xbb\xbf"
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n)+")


@dataclass(frozen=True)
class Corpus:
    """Files in a fixed order and the rule that cuts them into documents. Make one with `Corpus.open`.

    In a text file a document is one `unit`: a line, a block of lines between blank lines, the whole file, or what lies
    between two delimiters, without the newlines around it. Each line of a jsonl file, and each row of a Parquet or
    Arrow file, is one document. Lines end at "\\n" or "\\r\\n", nowhere else: a lone CR, U+2028, NEL, VT and FF are
    text. Inside longer documents "\\r\\n" becomes "\\n"; the last line end is not text.
    """

    files: tuple[Path, ...]
    unit: DocumentUnit
    name: str
    stamps: tuple[Stamp, ...] = field(repr=False)
    """Size in bytes and modification time in nanoseconds of each file, at opening."""
    found: tuple[Found, ...] = field(default=(), repr=False)
    """Files of each path, folder or glob: those that are read and those that are not."""
    keep_blank_lines: bool = False
    """Makes a blank line of a text file an empty document, where documents are lines."""
    steps: Steps | None = field(default=None, repr=False)
    """Changes to the text; None: no change."""

    @classmethod
    def open(
        cls,
        spec: str | Path | Sequence[str | Path],
        *,
        unit: DocumentUnit = "line",
        name: str = "corpus",
        pattern: str | None = None,
        keep_blank_lines: bool = False,
    ) -> Corpus:
        """Find the files that a path, a folder, a glob or a sequence of those describes. Nothing is read yet.

        A folder is searched recursively in sorted order; what is not read there is named on stderr.

        Args:
            spec: Where the files are.
            unit: What a document of a text file is.
            name: The name of the corpus in messages.
            pattern: Restricts folders to files whose name or path in the folder matches, as `*.train`.
            keep_blank_lines: Whether a blank line of a text file is an empty document, where documents are lines.

        Raises:
            DataError: A path does not exist, is not a regular file, is of an unknown kind, or is listed twice; there
                are no files, or only empty ones; less than half of the bytes of a folder are read, without a pattern.
        """
        specs = [spec] if isinstance(spec, str | Path) else spec
        paths = [Path(os.path.expanduser(one)) for one in specs]  # noqa: PTH111 - leaves ~nobody as it is
        found = tuple(search(one, name, pattern) for one in paths)
        files = [path for each in found for path in each.files]
        if not files:
            where = ", ".join(map(shown, paths))
            others = [path for each in found for path in each.unread]
            where += f", only {len(others)} other such as {shown(others[0])}" if others else ""
            chosen = f" that matches {pattern!r}" if pattern else ""
            advice = "" if pattern else ": rename or convert it"
            if any(path.is_dir() for path in others):
                advice = ": name a linked folder by itself, it is not entered"
            elif any(map(kind_of, others)):
                advice = ": rename or convert it, or choose another pattern" if pattern else ": rename it without a dot"
            kinds = f"{advice}. These can be read: {KINDS}" if others else ""
            raise DataError(f"{name}: no file{chosen} to read in {where}{kinds}.")
        stamps = tuple(stamp_of(path) for path in files)
        seen: dict[Path, Path] = {}
        for path in files:
            first = seen.setdefault(path.resolve(), path)
            if first is not path:
                also = "" if first == path else f", also as {shown(first)}"
                refuse(path, f"listed twice in one corpus{also}; its text would count double. Name it once.")
        if not any(size for size, _ in stamps):
            more = "" if len(files) == 1 else f", as are the {len(files) - 1:,} others"
            raise DataError(f"{name}: {shown(files[0])} is empty{more}.")
        return cls(tuple(files), unit, name, stamps, found, keep_blank_lines)

    @property
    def bytes(self) -> int:
        """The sum of the file sizes on disk."""
        return sum(size for size, _ in self.stamps)

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over the unit, for each file in order its kind and decompressed content, and the steps.

        A corpus that was moved, renamed or compressed is the same corpus.
        """
        if self.steps is not None:
            changed = f"foundry changed corpus 1\n{self.as_read.digest}\n{self.steps.digest}\n"
            return hashlib.sha256(changed.encode()).hexdigest()
        unit = self.unit if isinstance(self.unit, str) else f"delimiter {json.dumps(self.unit.delimiter)}"
        unit += ", blank ones too" * self.keep_blank_lines
        total = hashlib.sha256(f"foundry corpus 1\n{unit}\n".encode())
        for path, content in zip(self.files, self.file_digests, strict=True):
            total.update(f"{kind_of(path)} {content}\n".encode())
        return total.hexdigest()

    @cached_property
    def file_digests(self) -> tuple[str, ...]:
        """The sha256 (hex) of each file's content after decompression, in order.

        The content of a Parquet or Arrow file is its texts, each after its length: how they are stored is no matter.
        """
        digests = [hashlib.sha256() for _ in self.files]
        for path, stamp, digest in zip(self.files, self.stamps, digests, strict=True):
            if kind_of(path) == "table":
                for _, texts in table_texts(path, stamp):
                    for text in map(str.encode, texts):
                        digest.update(len(text).to_bytes(8, "little") + text)
                continue
            for block in file_blocks(path, stamp):
                digest.update(block)
        return tuple(digest.hexdigest() for digest in digests)

    @property
    def description(self) -> dict[str, Any]:
        """Plain data on the files that are read and those that are not, for the record of a run."""
        facts: dict[str, Any] = {"files": len(self.files), "bytes": self.bytes, "digest": self.digest}
        facts["names"] = [shown(Path(path.name)) for path in self.files[:_NAMED_FILES]]
        if any(each.unread for each in self.found):
            facts["not_read"] = [
                {"files": len(each.unread), "bytes": each.unread_bytes, "by_suffix": examples}
                for each in self.found
                if each.unread
                for examples in [{suffix: names[:3] for suffix, names in each.unread_by_suffix().items()}]
            ]
        if self.steps is not None:
            facts["steps"] = self.steps.plain
        datasets = {shown(folder): mark for each in self.found for folder, mark in each.fingerprints}
        return facts | ({"datasets": datasets} if datasets else {})

    def documents(self, account: ByteAccount | None = None) -> Iterator[str]:
        """Yield every document in order, as the steps leave it, and add to `account`.

        Raises:
            DataError: There are bytes that are not UTF-8, NUL bytes, a damaged gzip file, a jsonl line without a text,
                a file that cannot be read or has changed since the corpus was opened, or no document at all; or the
                steps leave none.
        """
        if self.steps is None:
            return self._documents_as_read(account)
        return (text for text, kept in self.stream(account) if kept)

    def stream(self, account: ByteAccount | None = None) -> Iterator[tuple[str, bool]]:
        """Yield the documents of the token stream, and of each whether it is text: False for what is to be a hole."""
        if self.steps is None:
            return ((text, True) for text in self._documents_as_read(account))
        return ((text, kept) for _, text, kept in self.numbered(account))

    def numbered(self, account: ByteAccount | None = None) -> Iterator[tuple[int, str, bool]]:
        """Yield the documents of `stream`, each after its number in the files."""
        if self.steps is None:
            return ((number, text, True) for number, text in enumerate(self._documents_as_read(account)))
        return self.steps.applied(self.as_read, account or ByteAccount())

    def changed_by(self, steps: Steps | None) -> Corpus:
        """Return the same files with other steps."""
        return replace(self, steps=steps)

    @property
    def leaves_holes(self) -> bool:
        """Check whether documents of the token stream are to be holes."""
        return self.steps is not None and self.steps.leave_holes

    @property
    def as_read(self) -> Corpus:
        """The same files without any step."""
        return self.changed_by(None)

    @property
    def without_holes(self) -> Corpus:
        """The corpus without the steps that leave holes, with the text that they drop."""
        return self if self.steps is None else self.changed_by(self.steps.moving)

    def _documents_as_read(self, account: ByteAccount | None) -> Iterator[str]:
        account = account or ByteAccount()
        documents_before, delimiters = account.documents, 0
        for path, stamp in zip(self.files, self.stamps, strict=True):
            match kind_of(path), self.unit:
                case "table", _:
                    yield from _table_documents(path, stamp, account)
                case "jsonl", _:
                    yield from _json_documents(path, stamp, account)
                case _, "line":
                    yield from _lines(path, stamp, account, self.keep_blank_lines)
                case _, "block":
                    yield from _text_blocks(path, stamp, account)
                case _, "file":
                    yield from _whole_file(path, stamp, account)
                case _, DocumentDelimiter(delimiter=delimiter):
                    delimiters += yield from _delimited(path, stamp, account, delimiter)
        several = f" ({len(self.files)} files)" if len(self.files) > 1 else ""
        of = f"{self.name}: {shown(self.files[0])}{several}"
        if account.documents == documents_before:
            raise DataError(f"{of}: only white space, no text.")
        if isinstance(self.unit, DocumentDelimiter) and not delimiters and "text" in map(kind_of, self.files):
            advice = "correct it, or end the document with it if there is only one"
            raise DataError(
                f"{of}: the delimiter of data.documents, {self.unit.delimiter!r}, does not occur: {advice}."
            )


def _texts(path: Path, stamp: Stamp, account: ByteAccount) -> Iterator[tuple[int, str]]:
    """Yield a file as pieces of text with their byte offsets; each piece but the last ends with a newline.

    All bytes are counted as separators until `_counted` finds a document in them.
    """
    offset, held = 0, list[bytes]()
    for block in chain(file_blocks(path, stamp), (b"",)):
        cut = block.rfind(b"\n") + 1
        if block and not cut:
            held.append(block)
            continue
        piece = b"".join([*held, block[:cut]])
        held = [block[cut:]]
        account.bytes_in += len(piece)
        account.bytes_separators += len(piece)
        if offset == 0 and piece.startswith(_BOM):
            piece = piece[len(_BOM) :]
            offset = len(_BOM)
        if piece:
            yield offset, _decode(path, offset, piece)
        offset += len(piece)


def _decode(path: Path, offset: int, piece: bytes) -> str:
    nul = piece.find(b"\0")
    looks_like = disguised(piece) if offset == 0 else None
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 <= nul < error.start:
            byte = f"byte {offset + error.start} (0x{piece[error.start]:02x})"
            way_out = f"it looks like {looks_like}" if looks_like else "convert the file to UTF-8"
            refuse(path, f"{byte} is not UTF-8: {error.reason}; {way_out}.", error)
    if nul >= 0:
        what = (
            f"it looks like {looks_like}"
            if looks_like
            else "this is UTF-16 or a binary file, not UTF-8 text. Convert it"
        )
        refuse(path, f"byte {offset + nul} is NUL: {what}.")
    return text


def _counted(documents: list[str], account: ByteAccount) -> list[str]:
    """Count documents whose bytes are counted as separators so far, all at once because of the cost of each call."""
    if documents:
        text = "\n".join(documents)
        size = utf8_bytes(text) - len(documents) + 1
        account.bytes_text += size
        account.bytes_separators -= size
        account.documents += len(documents)
        account.words += word_count(text)
    return documents


def _lines(path: Path, stamp: Stamp, account: ByteAccount, keep_blank: bool) -> Iterator[str]:
    """Yield each line that is not blank; with `keep_blank`, the others too, as empty texts."""
    for _, piece in _texts(path, stamp, account):
        lines = piece.replace("\r\n", "\n").removesuffix("\n").split("\n")
        documents = [line for line in lines if line and not line.isspace()]
        if keep_blank:
            documents = ["" if line.isspace() else line for line in lines]
        account.empty_documents += len(lines) - len(documents)
        yield from _counted(documents, account)


def _text_blocks(path: Path, stamp: Stamp, account: ByteAccount) -> Iterator[str]:
    """Yield each run of lines that are not blank, joined by newlines."""
    begun: list[str] = []  # what earlier pieces hold of a block that has not ended
    pieces = (piece for _, piece in _texts(path, stamp, account))
    for piece in chain(pieces, ("\n\n",)):
        lines = piece.replace("\r\n", "\n")
        # With a newline at both ends a blank line at the seam of two pieces looks like any other.
        *ended, rest = _BLANK_LINES.split("\n" + lines + ("" if lines.endswith("\n") else "\n"))
        for part in ended:
            block = "".join([*begun, part]).removeprefix("\n")
            begun = []
            yield from _counted([block] if block else [], account)
        begun.append(rest.removesuffix("\n"))


def _whole_file(path: Path, stamp: Stamp, account: ByteAccount) -> Iterator[str]:
    """Yield the file as one document, unless it is blank."""
    text = "".join(piece.replace("\r\n", "\n") for _, piece in _texts(path, stamp, account)).removesuffix("\n")
    if text and not text.isspace():
        yield from _counted([text], account)
    else:
        account.empty_documents += 1


def _delimited(path: Path, stamp: Stamp, account: ByteAccount, delimiter: str) -> Generator[str, None, int]:
    """Yield what stands between two delimiters, without newlines around it; return the number of delimiters."""
    delimiter = delimiter.replace("\r\n", "\n")
    begun: list[str] = []  # what earlier pieces hold of a document that has not ended
    edge, found = "", 0  # the end of those, in which a delimiter may begin
    for _, piece in _texts(path, stamp, account):
        *ended, rest = (edge + piece.replace("\r\n", "\n")).split(delimiter)
        if ended:
            ended[0] = "".join([*begun, ended[0]])
            begun = []
            found += len(ended)
            documents = [text for part in ended if (text := part.strip("\n")) and not text.isspace()]
            account.empty_documents += len(ended) - len(documents)
            yield from _counted(documents, account)
        at = max(0, len(rest) - len(delimiter) + 1)
        begun.append(rest[:at])
        edge = rest[at:]
    last = "".join([*begun, edge]).strip("\n")
    yield from _counted([last] if last and not last.isspace() else [], account)
    return found


def _table_documents(path: Path, stamp: Stamp, account: ByteAccount) -> Iterator[str]:
    """Yield the text of each row of a Parquet or Arrow file."""
    for row, texts in table_texts(path, stamp):
        size = sum(map(utf8_bytes, texts))
        account.bytes_in += size
        account.bytes_separators += size
        for number, text in enumerate(texts):
            if "\0" in text:
                refuse(path, f'row {row + number}: "text" has a NUL character at position {text.index(chr(0))}.')
        documents = [text for text in texts if text and not text.isspace()]
        account.empty_documents += len(texts) - len(documents)
        yield from _counted(documents, account)


def _json_documents(path: Path, stamp: Stamp, account: ByteAccount) -> Iterator[str]:
    """Yield the text of each jsonl line; blank lines are separators."""
    number = 0
    for offset, piece in _texts(path, stamp, account):
        start = 0
        documents: list[str] = []
        for line in piece.split("\n"):
            if line and not line.isspace():
                try:
                    text = json_text(line)
                except (ValueError, RecursionError) as error:
                    byte = offset + utf8_bytes(piece[:start])
                    refuse(Path(f"{path}:{number + 1}"), f"the line at byte {byte}: {error}.", error)
                if text and not text.isspace():
                    documents.append(text)
                else:
                    account.empty_documents += 1
            start += len(line) + 1
            number += 1
        number -= piece.endswith("\n")
        yield from _counted(documents, account)


def placed_lines(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield each line of a small text file with its place, `file:line`; read as strictly as a corpus.

    After a last newline there is no further line.
    """
    offset = 0
    lines = b"".join(file_blocks(path, stamp_of(path))).split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        start = len(_BOM) if offset == 0 and line.startswith(_BOM) else 0
        place = Path(f"{path}:{number}")
        yield place, _decode(place, offset + start, line[start:]).removesuffix("\r")
        offset += len(line) + 1
