"""A training corpus that consists of several, each with its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from foundry_core.config.sections import CorpusShare
from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.reader import Corpus
from foundry_core.corpus.steps import Steps


def one_or_several(given: str | Mapping[str, CorpusShare], name: str, opened: Callable[[str, str], Corpus]) -> Corpus:
    """Open what `data.training_corpus` names: one corpus, or several as one.

    opened: Opens a path under a name for messages.
    """
    if isinstance(given, str):
        return opened(given, name)
    return MixedCorpus.of({each: opened(part.path, f"{name}.{each}") for each, part in given.items()}, name)


@dataclass(frozen=True)
class MixedCorpus(Corpus):
    """The documents of several corpora, one corpus after the other; `account.parts` counts those of each."""

    parts: Mapping[str, Corpus] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, Corpus], name: str) -> MixedCorpus:
        """Put corpora together, which have one unit.

        name: The name of the whole in messages.
        """
        each = tuple(parts.values())
        return cls(
            files=tuple(path for corpus in each for path in corpus.files),
            unit=each[0].unit,
            name=name,
            stamps=tuple(stamp for corpus in each for stamp in corpus.stamps),
            found=tuple(found for corpus in each for found in corpus.found),
            parts=parts,
        )

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over the digests in their order, which is that of the documents."""
        total = hashlib.sha256(b"foundry corpora 1\n")
        for corpus in self.parts.values():
            total.update(f"{corpus.digest}\n".encode())
        return total.hexdigest()

    @cached_property
    def file_digests(self) -> tuple[str, ...]:
        return tuple(digest for corpus in self.parts.values() for digest in corpus.file_digests)

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {"corpora": {name: corpus.description for name, corpus in self.parts.items()}}

    def changed_by(self, steps: Steps | None) -> MixedCorpus:
        """Return the same corpora, each with these steps."""
        return self.of({name: corpus.changed_by(steps) for name, corpus in self.parts.items()}, self.name)

    def _documents_as_read(self, account: ByteAccount | None) -> Iterator[str]:
        """Yield every document of every corpus in order, and add to `account`, also the counts of each corpus."""
        account = account or ByteAccount()
        for name, corpus in self.parts.items():
            before = account.documents, account.words, account.bytes_text
            yield from corpus.documents(account)
            after = account.documents, account.words, account.bytes_text
            counts = (b - a for a, b in zip(before, after, strict=True))
            account.parts[name] = dict(zip(("documents", "words", "bytes_text"), counts, strict=True))
