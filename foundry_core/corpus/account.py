"""Counts of the bytes and words of a corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WIDE_SPACE = re.compile(r"[^\S\0-\x7f]")
_SPACE_OR_X = bytes(ord(" ") if chr(byte).isspace() and byte < 128 else ord("x") for byte in range(256))


@dataclass
class ByteAccount:
    """Counts of the bytes of a corpus, after decompression; complete when `Corpus.documents` has run to its end.

    Of a Parquet or Arrow file the bytes are those of its texts in UTF-8: other columns and its own layout do not count.

    `bytes_in == bytes_text + bytes_separators + bytes_skipped`
    """

    bytes_in: int = 0
    bytes_text: int = 0
    """The UTF-8 of the documents."""
    bytes_separators: int = 0
    """All other bytes: line ends, blank lines, byte-order marks, and of a jsonl line all but the UTF-8 of its text."""
    bytes_skipped: int = 0
    """Bytes left out for a reason listed in `skipped` (reason -> how often); this reader refuses rather than skips."""
    documents: int = 0
    empty_documents: int = 0
    """Blank lines, files or jsonl texts, which are not documents; blank lines between blocks are not counted."""
    words: int = 0
    """Words of the documents, as `str.split()` separates them."""
    skipped: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Documents, words and bytes of text of each corpus by name, where there are several."""


def utf8_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def word_count(text: str) -> int:
    """Return `len(text.split())`: words are marked in a byte string, not built, which is three times as fast."""
    if not text.isascii():
        text = _WIDE_SPACE.sub(" ", text)
    marks = text.encode().translate(_SPACE_OR_X)
    return marks.count(b" x") + marks.startswith(b"x")
