"""Delimiters of documents that are about to be read as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from foundry_core.config.sections import DocumentDelimiter
from foundry_core.corpus.files import file_blocks, kind_of
from foundry_core.corpus.reader import Corpus

_SAMPLED_FILES = 16
"""Text files whose first MiB is searched: as many as take a few hundredths of a second."""


def stray_delimiter(corpus: Corpus, tokens: Sequence[str]) -> str | None:
    """Return what looks like a delimiter of documents in the first text files although none is set.

    That is `<|...|>` anywhere, or alone on a line one of the tokens, `</s>` or the like.
    """
    if isinstance(corpus.unit, DocumentDelimiter):
        return None
    alone = "|".join(map(re.escape, ["<s>", "</s>", "<eos>", "<EOS>", *tokens]))
    mark = re.compile(rf"<\|[^\s|<>]{{1,30}}\|>|(?<![^\n])(?:{alone})(?![^\r\n])")
    found = Counter[str]()
    for path, stamp in list(zip(corpus.files, corpus.stamps, strict=True))[:_SAMPLED_FILES]:
        if kind_of(path) == "text":
            found.update(mark.findall(next(file_blocks(path, stamp), b"").decode("utf-8", "replace")))
    return max(found, key=lambda token: found[token], default=None)
