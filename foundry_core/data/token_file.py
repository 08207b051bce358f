"""The token file: a corpus as one flat array of token ids on disk, memory-mapped.

    separator d d d separator d d separator ...     uint16 or uint32; the d are the token ids of a document

It is kept under the digest of everything that shaped it, and reused while that is unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from foundry_core.corpus.reader import ByteAccount, Corpus
from foundry_core.errors import CheckpointError, DataError
from foundry_core.storage import files as storage
from foundry_core.storage import manifest
from foundry_core.tokenization.encoding import DocumentEncoder, separator_id
from foundry_core.tokenization.tokenizer_folder import tokenizer_digest

_FORMAT = 2
_FLUSH_TOKENS = 1 << 20


@dataclass(frozen=True)
class TokenInfo:
    """What a token file holds and what it was made from; the content of its sidecar, which is sealed."""

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
    words: int
    text_bytes: int
    account: dict[str, Any]
    tokens_bytes: int
    tokens_sha256: str
    documents_bytes: int
    documents_sha256: str

    def __post_init__(self) -> None:
        """Raises ValueError for counts that do not belong to one file."""
        widths = (self.tokens * np.dtype(self.dtype).itemsize, (self.documents + 1) * np.dtype("<i8").itemsize)
        if widths != (self.tokens_bytes, self.documents_bytes) or self.tokens < 1:
            raise ValueError("its counts and its bytes disagree")


_SIDECAR = TypeAdapter(TokenInfo)


@dataclass(frozen=True)
class TokenFile:
    """A tokenized corpus, memory-mapped and read-only.

    `tokens` is the stream: a separator, then of each document its ids and a separator. `documents` (int64) has the
    index in `tokens` where each document starts, and at the end the length of the stream: document k is
    `tokens[documents[k] : documents[k + 1] - 1]`.
    """

    tokens: np.memmap[Any, Any]
    documents: np.memmap[Any, Any]
    info: TokenInfo


def prepare_tokens(
    corpus: Corpus, tokenizer: Any, folder: Path, *, progress: Callable[[int], None] | None = None
) -> TokenFile:
    """The token file of a corpus, from `folder` if one made from exactly the same inputs is there and whole.

    Otherwise it is built: `<digest>.tokens`, `<digest>.documents` and, last, the sidecar `<digest>.json`. A file whose
    size or sha256 is not what its sidecar says is built anew. The content is a function of the inputs, therefore two
    processes may build it at once: either one's files serve both. Memory does not grow with the corpus.

    tokenizer: a fast tokenizer. progress: called now and then with the bytes of the corpus (decompressed) read so far.

    Raises:
        DataError: the corpus cannot be read, or a token file that is there cannot.
        StorageError: the folder cannot be written.
    """
    made_from: dict[str, Any] = {
        "format": _FORMAT,
        "corpus_digest": corpus.digest,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "separator_id": separator_id(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    stem = folder / digest[:16]
    info = _whole(stem, digest)
    if info is None:
        info = TokenInfo(**made_from, digest=digest, **_build(stem, corpus, tokenizer, progress))
        storage.write_file(stem.with_suffix(".json"), manifest.sealed(asdict(info)))
    return TokenFile(
        tokens=np.memmap(stem.with_suffix(".tokens"), dtype=info.dtype, mode="r"),
        documents=np.memmap(stem.with_suffix(".documents"), dtype="<i8", mode="r"),
        info=info,
    )


def _whole(stem: Path, digest: str) -> TokenInfo | None:
    """The sidecar's content, if it and both files are complete and undamaged."""
    sidecar = stem.with_suffix(".json")
    try:
        info = _SIDECAR.validate_json(json.dumps(manifest.unsealed(sidecar, sidecar.read_bytes())), strict=True)
        for suffix, size, sha256 in (
            (".tokens", info.tokens_bytes, info.tokens_sha256),
            (".documents", info.documents_bytes, info.documents_sha256),
        ):
            path = stem.with_suffix(suffix)
            if path.stat().st_size != size or manifest.file_digest(path) != sha256:
                return None
    except (FileNotFoundError, CheckpointError, ValidationError):
        return None
    except OSError as error:
        raise DataError(f"{error.filename or stem}: cannot be read: {error.strerror}; remove it or fix it.") from error
    return info if info.digest == digest else None


class _Column:
    """An array that grows on disk, with its size and sha256."""

    def __init__(self, file: storage.Writer, dtype: str):
        self.file, self.dtype, self.sha256, self.bytes = file, np.dtype(dtype), hashlib.sha256(), 0

    def append(self, values: NDArray[Any]) -> None:
        data = values.astype(self.dtype).tobytes()
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)


def _build(stem: Path, corpus: Corpus, tokenizer: Any, progress: Callable[[int], None] | None) -> dict[str, Any]:
    """Write both files; returns the fields of TokenInfo that were counted on the way."""
    facts: dict[str, Any] = {}

    def fill(tokens_file: storage.Writer, documents_file: storage.Writer) -> None:
        dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
        tokens, documents = _Column(tokens_file, dtype), _Column(documents_file, "<i8")
        account = _encode(corpus, tokenizer, tokens, documents, progress)
        facts.update(
            dtype=dtype,
            tokens=tokens.bytes // tokens.dtype.itemsize,
            documents=account.documents,
            words=account.words,
            text_bytes=account.bytes_text,
            account=asdict(account),
            tokens_bytes=tokens.bytes,
            tokens_sha256=tokens.sha256.hexdigest(),
            documents_bytes=documents.bytes,
            documents_sha256=documents.sha256.hexdigest(),
        )

    storage.write_file_with(
        stem.with_suffix(".tokens"),
        lambda tokens: storage.write_file_with(
            stem.with_suffix(".documents"), lambda documents: fill(tokens, documents)
        ),
    )
    return facts


def _encode(
    corpus: Corpus, tokenizer: Any, tokens: _Column, documents: _Column, progress: Callable[[int], None] | None
) -> ByteAccount:
    account = ByteAccount()
    separator = separator_id(tokenizer)
    vocabulary = len(tokenizer)
    waiting: list[NDArray[np.uint32]] = []
    held = 0
    written = 1
    tokens.append(np.array([separator]))

    def flush() -> None:
        nonlocal written, held
        lengths = np.fromiter(map(len, waiting), dtype=np.int64, count=len(waiting)) + 1
        ends = np.cumsum(lengths)
        ids = np.full(int(ends[-1]), separator, dtype=np.uint32)
        is_text = np.ones(len(ids), dtype=bool)
        is_text[ends - 1] = False
        ids[is_text] = np.concatenate(waiting)
        assert int(ids.max()) < vocabulary, f"token id {int(ids.max())} in a vocabulary of {vocabulary}"
        tokens.append(ids)
        documents.append(written + ends - lengths)
        written += len(ids)
        waiting.clear()
        held = 0
        if progress is not None:
            progress(account.bytes_in)

    for ids in DocumentEncoder(tokenizer).encode(corpus.documents(account)):
        waiting.append(ids)
        held += len(ids) + 1
        if held >= _FLUSH_TOKENS:
            flush()
    if waiting:
        flush()
    documents.append(np.array([written]))
    assert documents.bytes == 8 * (account.documents + 1), "the encoder lost or added a document"
    return account
