"""Counts of the bytes and words of a corpus."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

_WIDE_SPACE = re.compile(r"[^\S\0-\x7f]")
_SPACE_OR_X = bytes(ord(" ") if chr(byte).isspace() and byte < 128 else ord("x") for byte in range(256))


@dataclass
class ByteAccount:
    """Counts of the bytes of a corpus, after decompression; complete when `Corpus.documents` has run to its end.

    Of a Parquet or Arrow file the bytes are those of its texts in UTF-8: other columns and its own layout do not count.

    `bytes_in + bytes_added == bytes_text + bytes_separators + bytes_skipped`

    Documents, words and text are those that are trained on, as `data.steps` leave them.
    """

    bytes_in: int = 0
    bytes_text: int = 0
    """The UTF-8 of the documents."""
    bytes_separators: int = 0
    """All other bytes: line ends, blank lines, byte-order marks, and of a jsonl line all but the UTF-8 of its text."""
    bytes_skipped: int = 0
    """Bytes left out for a reason listed in `skipped` (reason -> how often): by the steps, as the reader refuses."""
    documents: int = 0
    empty_documents: int = 0
    """Blank lines, files or jsonl texts, which are not documents; blank lines between blocks are not counted."""
    words: int = 0
    """Words of the documents, as `str.split()` separates them."""
    skipped: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Documents, words and bytes of text of each corpus by name, where there are several."""
    bytes_added: int = 0
    """Bytes by which steps have made documents longer."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The counts of each step, of class `StepCount`; the sums over them are bytes_skipped and bytes_added."""

    def plain(self) -> dict[str, Any]:
        """Return the counts as plain data; those of steps only if there are any."""
        of_steps = () if self.steps else ("bytes_added", "steps")
        return {name: value for name, value in asdict(self).items() if name not in of_steps}


@dataclass
class StepCount:
    """Counts of what one step did to the documents that reached it."""

    step: str
    documents_dropped: int = 0
    documents_changed: int = 0
    lines_dropped: int = 0
    """Count, for steps whose unit is a line; also those of documents that were dropped with them."""
    words_removed: int = 0
    words_added: int = 0
    """Words that a changed document has more or less; the difference counts, on either side."""
    bytes_removed: int = 0
    bytes_added: int = 0

    def drop(self, text: str) -> None:
        """Count a document that is left out."""
        self.documents_dropped += 1
        self.words_removed += word_count(text)
        self.bytes_removed += utf8_bytes(text)

    def change(self, before: str, after: str) -> None:
        """Count a document that is replaced by another text."""
        self.documents_changed += 1
        words, size = word_count(after) - word_count(before), utf8_bytes(after) - utf8_bytes(before)
        self.words_removed += max(-words, 0)
        self.words_added += max(words, 0)
        self.bytes_removed += max(-size, 0)
        self.bytes_added += max(size, 0)

    def enter(self, account: ByteAccount) -> None:
        """Take what the step did out of an account of the corpus as it was read."""
        account.documents -= self.documents_dropped
        account.words += self.words_added - self.words_removed
        account.bytes_text += self.bytes_added - self.bytes_removed
        account.bytes_skipped += self.bytes_removed
        account.bytes_added += self.bytes_added
        if self.bytes_removed:
            account.skipped[f"left out by {self.step}"] = self.documents_dropped + self.documents_changed
        account.steps.append(asdict(self))


def utf8_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def word_count(text: str) -> int:
    """Return `len(text.split())`: words are marked in a byte string, not built, which is three times as fast."""
    if not text.isascii():
        text = _WIDE_SPACE.sub(" ", text)
    marks = text.encode().translate(_SPACE_OR_X)
    return marks.count(b" x") + marks.startswith(b"x")
