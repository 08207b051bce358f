"""How much of a corpus that is held out also stands in another one, such as the training corpus."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from foundry_core.corpus.reader import Corpus
from foundry_core.errors import CheckpointError
from foundry_core.storage import manifest
from foundry_core.storage.files import StorageError, write_file

_FORMAT = 1
_GROUP = 1 << 16


@dataclass(frozen=True)
class Overlap:
    """Counts of the documents of a corpus, and of those that also stand in another one.

    Documents are compared without their line ends and the white space around them.
    """

    documents: int
    shared: int
    bytes: int
    shared_bytes: int

    def line(self, other: str) -> str:
        """Return the counts in words; `other`: the name of the other corpus."""
        texts = f"{self.shared / self.documents:.1%} of the documents ({self.shared:,} of {self.documents:,})"
        return f"{texts} and {self.shared_bytes / self.bytes:.1%} of the text also stand in {other}"


def overlap(train: Corpus, test: Corpus, folder: Path) -> Overlap:
    """Return the overlap of two corpora, or what `folder` stores of it: the first one is read only once.

    Raises:
        DataError: A corpus cannot be read.
    """
    made_from = {"format": _FORMAT, "train": train.digest, "test": test.digest}
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    path = folder / f"{digest[:16]}.overlap"
    with suppress(OSError, CheckpointError, TypeError):
        stored = manifest.unsealed(path, path.read_bytes())
        if all(stored.pop(key, None) == value for key, value in made_from.items()):
            return Overlap(**stored)
    found = _compared(train, test)
    with suppress(StorageError):  # a tokenizer's folder may be shared and read-only; then it is counted each time
        write_file(path, manifest.sealed(made_from | asdict(found)))
    return found


def _compared(train: Corpus, test: Corpus) -> Overlap:
    """Compare hashes of 8 bytes, so that memory grows only with the number of test documents."""
    searched, found = set(map(hash, _texts(test))), set[int]()
    hashes = map(hash, _texts(train))
    while len(found) < len(searched) and (group := set(islice(hashes, _GROUP))):
        found |= searched & group
    counts = Counter[str]()
    for text in _texts(test):
        size = len(text.encode())
        counts.update(documents=1, bytes=size)
        if hash(text) in found:
            counts.update(shared=1, shared_bytes=size)
    return Overlap(**{field: counts[field] for field in Overlap.__annotations__})


def _texts(corpus: Corpus) -> Iterator[str]:
    """Yield the documents without what line ends, white space around them and byte-order marks can differ in."""
    for document in corpus.documents():
        if not document:
            continue
        if "\r" not in document:
            yield document.strip()
        elif corpus.unit == "line" and "\n" not in document:
            yield from filter(None, map(str.strip, document.split("\r")))  # lines of a file whose line ends are CR
        else:
            yield document.replace("\r\n", "\n").replace("\r", "\n").strip()
