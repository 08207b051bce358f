"""The token file: a corpus as one flat array of token ids on disk, memory-mapped.

    separator d d d separator d d separator ...     uint16 or uint32; the d are the token ids of a document

It is stored under the digest of everything that shaped it, and reused while that is unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.reader import Corpus
from foundry_core.data.holes import HoleFinder, Holes
from foundry_core.errors import CheckpointError, DataError
from foundry_core.storage import files as storage
from foundry_core.storage import manifest
from foundry_core.tokenization.encoding import DocumentEncoder, newline_is_predicted, separator_id
from foundry_core.tokenization.parts import END
from foundry_core.tokenization.processes import process_count, streams
from foundry_core.tokenization.tokenizer_folder import tokenizer_digest

Progress: TypeAlias = Callable[[int], None]
"""Called now and then with the bytes of the corpus (decompressed) that were read so far."""

_FORMAT = 2


@dataclass(frozen=True)
class TokenInfo:
    """The content and the origin of a token file; stored as its sidecar, which is sealed."""

    format: int
    digest: str
    """sha256 (hex) of everything that shaped the file: format, corpus, tokenizer, separator."""
    corpus_digest: str
    tokenizer_digest: str
    separator_id: int
    dtype: Literal["<u2", "<u4"]
    tokens: int
    """Length of the stream, separators included: 1 + the sum of (tokens + 1) over the documents."""
    documents: int
    """Number of documents that are text: those in holes do not count, here, in words or in bytes."""
    unknown: int
    """Number of tokens of the documents that are the tokenizer's unk_token, which hides what the text was."""
    words: int
    line_ends: int
    """Ends of lines that the stream predicts: those of the documents, and newlines inside them that are tokens."""
    text_bytes: int
    account: dict[str, Any]
    tokens_sha256: str
    documents_sha256: str
    holes: dict[str, Any] | None = None
    """Holes that the steps of a corpus leave: their `number`, the `tokens` in them, the `sha256` of their file."""

    @property
    def unknown_share(self) -> float:
        """Share of the unknown tokens among the tokens of the documents, without separators."""
        # Behind each hole the separator of its last document stays.
        in_holes = self.holes["tokens"] + self.holes["number"] if self.holes else 0
        return self.unknown / max(self.tokens - 1 - self.documents - in_holes, 1)


@dataclass(frozen=True)
class TokenFile:
    """A tokenized corpus, memory-mapped and read-only: document k is `tokens[documents[k] : documents[k + 1] - 1]`."""

    tokens: np.memmap[Any, Any]
    documents: np.memmap[Any, Any]
    """Index in `tokens` (int64) where each document starts, and at the end the length of the stream."""
    info: TokenInfo
    holes: Holes = field(default_factory=Holes)

    def parts(self) -> list[NDArray[Any]]:
        """Return the tokens of each of several corpora, each with a separator at both ends."""
        counts = [each["documents"] for each in self.info.account["parts"].values()]
        edges = np.concatenate([[0], np.cumsum(counts)])
        tokens = np.asarray(self.tokens)
        starts = [int(each) for each in self.documents[edges]]
        return [tokens[first - 1 : end] for first, end in pairwise(starts)]


def prepare_tokens(
    corpus: Corpus, tokenizer: Any, folder: Path, *, progress: Progress | None = None, own: Path | None = None
) -> TokenFile:
    """Return the token file of a corpus: the one in `folder` if it was made from the same inputs and is undamaged.

    Otherwise it is built: `<digest>.tokens`, `<digest>.documents`, for a corpus whose steps leave holes
    `<digest>.holes`, where each begins and ends (int64), and, last, the sidecar `<digest>.json`. The content
    is a function of the inputs, so two processes may build it at once. Memory does not grow with the corpus.

    Args:
        own: The folder to use instead if this user may not write to `folder`.

    Raises:
        DataError: The corpus, or a token file that exists, cannot be read, or the corpus has no tokens.
        StorageError: The folder cannot be written.
    """
    made_from: dict[str, Any] = {
        "format": _FORMAT,
        "corpus_digest": corpus.digest,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "separator_id": separator_id(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    stem = folder / digest[:16]
    info = _undamaged(stem, digest)
    if info is None:
        try:
            info = TokenInfo(**made_from, digest=digest, **_build(stem, corpus, tokenizer, progress))
        except storage.StorageError as error:
            if own is None or getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return prepare_tokens(corpus, tokenizer, own, progress=progress)
        if info.tokens == info.documents + 1:  # separators only
            raise DataError(f"{corpus.name}: its tokenizer leaves nothing of the text: it drops every character of it.")
        storage.write_file(stem.with_suffix(".json"), manifest.sealed(_plain(info)))
    return _mapped(stem, info)


def stored_tokens(folders: Iterable[Path], corpus_digest: str, tokenizer_digest: str) -> TokenFile | None:
    """Return the token file of a corpus that was encoded before; None if there is none, or only a damaged one."""
    for sidecar in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        try:
            found = TokenInfo(**manifest.unsealed(sidecar, sidecar.read_bytes()))
        except (CheckpointError, TypeError, OSError):
            continue
        if (found.corpus_digest, found.tokenizer_digest) == (corpus_digest, tokenizer_digest):
            info = _undamaged(sidecar.with_suffix(""), found.digest)
            if info is not None:
                return _mapped(sidecar.with_suffix(""), info)
    return None


def _mapped(stem: Path, info: TokenInfo) -> TokenFile:
    return TokenFile(
        tokens=np.memmap(stem.with_suffix(".tokens"), dtype=info.dtype, mode="r"),
        documents=np.memmap(stem.with_suffix(".documents"), dtype="<i8", mode="r"),
        info=info,
        holes=Holes(np.fromfile(stem.with_suffix(".holes"), "<i8")) if info.holes else Holes(),
    )


def _plain(info: TokenInfo) -> dict[str, Any]:
    return {name: value for name, value in asdict(info).items() if value is not None}


def _undamaged(stem: Path, digest: str) -> TokenInfo | None:
    """Return the sidecar's content if it and both files are complete and as they were written."""
    sidecar = stem.with_suffix(".json")
    try:
        info = TokenInfo(**manifest.unsealed(sidecar, sidecar.read_bytes()))
        whole = (
            info.digest == digest
            and info.tokens_sha256 == manifest.file_digest(stem.with_suffix(".tokens"))
            and info.documents_sha256 == manifest.file_digest(stem.with_suffix(".documents"))
            and (info.holes is None or info.holes["sha256"] == manifest.file_digest(stem.with_suffix(".holes")))
        )
    except (FileNotFoundError, CheckpointError, TypeError):
        return None
    except OSError as error:
        raise DataError(f"{error.filename or stem}: cannot be read: {error.strerror}; remove it or fix it.") from error
    return info if whole else None


class _Column:
    """An array that grows on disk, with its length and sha256."""

    def __init__(self, file: storage.Writer, dtype: str):
        self.file, self.dtype, self.sha256, self.length = file, np.dtype(dtype), hashlib.sha256(), 0

    def append(self, values: NDArray[Any]) -> None:
        data = values.astype(self.dtype).tobytes()
        self.file.write(data)
        self.sha256.update(data)
        self.length += len(values)


def _build(stem: Path, corpus: Corpus, tokenizer: Any, progress: Progress | None) -> dict[str, Any]:
    """Write both files; return the fields of TokenInfo that were counted on the way."""
    facts: dict[str, Any] = {}
    vocabulary, unknown_id = len(tokenizer), tokenizer.unk_token_id
    dtype = "<u2" if vocabulary <= 1 << 16 else "<u4"

    def fill(tokens_file: storage.Writer, documents_file: storage.Writer, holes_file: storage.Writer | None) -> None:
        holes = _Column(holes_file, "<i8") if holes_file is not None else None
        finder = HoleFinder(holes.append) if holes is not None else None
        tokens, documents, account = _Column(tokens_file, dtype), _Column(documents_file, "<i8"), ByteAccount()
        end = separator_id(tokenizer)
        tokens.append(np.array([end]))
        documents.append(np.array([tokens.length]))
        unknown, newlines, processes = 0, 0, process_count(corpus.bytes)

        def counted() -> Iterator[tuple[str, bool]]:
            nonlocal newlines
            for document, kept in corpus.stream(account):
                newlines += document.count("\n") if kept else 0
                yield document, kept

        texts = (text for text, _ in counted()) if finder is None else finder.texts(counted())
        for ids in streams(DocumentEncoder(tokenizer), texts, processes):
            ends = ids == END
            dropped = None if finder is None else finder.window(ends, tokens.length)
            if unknown_id is not None:
                # Before the separators are written: a tokenizer of another origin may have one token for both.
                found = ids == unknown_id
                unknown += int(np.count_nonzero(found if dropped is None else found & ~dropped))
            ids = np.where(ends, np.uint32(end), ids)
            assert int(ids.max()) < vocabulary, f"token id {int(ids.max())} in a vocabulary of {vocabulary}"
            documents.append(tokens.length + np.flatnonzero(ends) + 1)
            tokens.append(ids)
            if progress is not None:
                progress(account.bytes_in)
        in_stream = account.documents
        if finder is not None and holes is not None:
            finder.close()
            facts["holes"] = {"number": finder.number, "tokens": finder.tokens, "sha256": holes.sha256.hexdigest()}
            in_stream += finder.documents
        assert documents.length == in_stream + 1, "the encoder lost or added a document"
        facts.update(dtype=dtype, tokens=tokens.length, documents=account.documents, words=account.words)
        facts.update(unknown=unknown, line_ends=account.documents + newlines * newline_is_predicted(tokenizer))
        facts.update(text_bytes=account.bytes_text, account=account.plain())
        facts.update(tokens_sha256=tokens.sha256.hexdigest(), documents_sha256=documents.sha256.hexdigest())

    def fill_with_holes(tokens: storage.Writer, documents: storage.Writer) -> None:
        if corpus.leaves_holes:
            storage.write_file_with(stem.with_suffix(".holes"), lambda holes: fill(tokens, documents, holes))
        else:
            fill(tokens, documents, None)

    storage.write_file_with(
        stem.with_suffix(".tokens"),
        lambda tokens: storage.write_file_with(
            stem.with_suffix(".documents"), lambda documents: fill_with_holes(tokens, documents)
        ),
    )
    return facts
