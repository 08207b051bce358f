"""The token file, the rows cut from it, their order, and the batches: stages 4 and 6 of the walk of the data.

    token file   separator d d d separator d d separator ...     flat uint16 or uint32 on disk, memory-mapped
    Rows         that stream cut into rows of at most max_sequence_length tokens; nothing is dropped
    SampleOrder  sample number since the start of training -> (epoch, row); any position costs the same
    Batches      rows in that order, collated, by this process or by workers: the same batches bit for bit

The order is a function of seed and sample number alone, so that resuming is one integer and no replay, and no model,
batch size or number of workers can change what is trained in which order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from foundry_core.corpus.reader import ByteAccount, Corpus
from foundry_core.data.workers import Batch, batches_from_workers
from foundry_core.errors import CheckpointError, DataError
from foundry_core.random_streams import derive, mix64
from foundry_core.storage import files as storage
from foundry_core.storage import manifest

Ints: TypeAlias = NDArray[np.int64]
Positive: TypeAlias = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Collate: TypeAlias = Callable[[list[dict[str, Any]]], Batch]

_FORMAT = 2
_FLUSH_TOKENS = 1 << 20


# The token file


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
    from foundry_core.tokenization.tokenizer import separator_id, tokenizer_digest

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
        raise DataError(f"{error.filename or stem}: cannot be read: {error.strerror}; remove it or mend it.") from error
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
    from foundry_core.tokenization.tokenizer import DocumentEncoder, separator_id

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


# Rows


class Rows:
    """A token stream cut into rows of at most `length` tokens, all of the stream used.

    * "overlap", for predicting the next token: each row begins with the last token of the row before, so that every
      token but the first of the stream is predicted in exactly one row. The last row is shorter, at least 2 tokens.
    * "framed", for masked models: `start_id`, `length - 2` tokens of the stream, `end_id`. The stream's leading
      separator is left out, because a row starts with `start_id` anyway. The last row is shorter, at least 3 tokens.

    Raises:
        DataError: a length or a stream too short for one row.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        layout: Literal["overlap", "framed"],
        length: int,
        *,
        start_id: int | None = None,
        end_id: int | None = None,
    ):
        assert layout in ("overlap", "framed"), layout
        assert layout == "overlap" or (start_id is not None and end_id is not None), "framed rows need both ids"
        self.layout, self.length = layout, length
        self._frame = None if start_id is None or end_id is None or layout == "overlap" else (start_id, end_id)
        self._new = length - 1 if self._frame is None else length - 2
        self._tokens = np.asarray(tokens)  # slicing a np.memmap itself costs several times as much
        if self._new < 1:
            raise DataError(
                f"max_sequence_length {length} is too small: a {layout} row needs at least {length - self._new + 1}."
            )
        # In both layouts the first token of the stream is never predicted and all others are consumed once.
        self.total_tokens = len(tokens) - 1
        if self.total_tokens < 1:
            raise DataError(f"the corpus has {len(tokens)} tokens, too few for one row; add text.")

    def __len__(self) -> int:
        return -(-self.total_tokens // self._new)

    def row(self, index: int) -> Ints:
        """The token ids of one row: int64, a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self._new
        chunk = self._tokens[start : start + self._new + 1]
        ids: Ints = chunk.astype(np.int64)
        if self._frame is None:
            return ids
        framed = np.empty(len(ids) + 1, dtype=np.int64)
        framed[0], framed[-1] = self._frame
        framed[1:-1] = ids[1:]
        return framed

    @overload
    def stream_tokens(self, index: int) -> int: ...
    @overload
    def stream_tokens(self, index: Ints) -> Ints: ...
    def stream_tokens(self, index: int | Ints) -> int | Ints:
        """How many tokens of the stream a row consumes; summed over all rows this is `total_tokens`."""
        if isinstance(index, np.ndarray):
            return np.minimum(self._new, self.total_tokens - index * self._new)
        return min(self._new, self.total_tokens - index * self._new)


# The order


class Permutation:
    """A shuffle of range(size) that is computed, not stored: any position is a few microseconds away.

    A Feistel network on the grid of ceil(sqrt(size)) by ceil(size / that): each round moves one coordinate by a hash of
    the other, which can be undone, so the whole is one to one. The grid has at most sqrt(size) cells too many; what
    lands there is sent through the network again until it lands inside.
    """

    ROUNDS = 8

    def __init__(self, size: int, key: int):
        assert size >= 1, size
        self.size = size
        height = math.isqrt(size - 1) + 1
        self._height, self._width = np.uint64(height), np.uint64(-(-size // height))
        self._keys = mix64(np.arange(1, self.ROUNDS + 1, dtype=np.uint64) + np.uint64(key))

    def __call__(self, positions: Ints) -> Ints:
        """Rows (int64) at these positions; both in range(size), any shape."""
        positions = np.asarray(positions)
        if positions.size and not (positions.min() >= 0 and positions.max() < self.size):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {self.size}")
        rows = self._network(positions.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(rows >= self.size)
        while outside.size:
            rows[outside] = self._network(rows[outside])
            outside = outside[rows[outside] >= self.size]
        return rows.astype(np.int64).reshape(positions.shape)

    def _network(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        y, x = np.divmod(cells, self._width)
        # 32 bits of the hash, so that the sum cannot wrap around 2**64, which would not be one to one.
        for key in range(0, self.ROUNDS, 2):
            y = (y + (mix64(x ^ self._keys[key]) >> np.uint64(32))) % self._height
            x = (x + (mix64(y ^ self._keys[key + 1]) >> np.uint64(32))) % self._width
        return y * self._width + x


def permutation(size: int, seed: int, epoch: int) -> Permutation:
    """The order of `size` rows in one epoch, a function of the arguments alone."""
    return Permutation(size, derive(seed, "data order", epoch))


@dataclass(frozen=True)
class SampleOrder:
    """Which row is trained at each position, counted in samples since the start of training.

    Epoch e is the positions from `e * size` to `(e + 1) * size - 1`, each with its own order.
    """

    size: int
    seed: int
    shuffle: bool = True

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """(epochs, rows) at these positions: int64, shaped like `positions`."""
        epochs, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        if self.shuffle:
            for epoch in np.unique(epochs):
                inside = epochs == epoch
                rows[inside] = permutation(self.size, self.seed, int(epoch))(rows[inside])
        return epochs, rows


def extended_ledger(ledger: str, epochs: Ints, rows: Ints) -> str:
    """The running hash (hex) over all samples trained so far, one step longer: the proof that none was lost or doubled.

    A chain of sha256, from an empty string before the first step, over the step's epochs and rows.
    """
    seen = np.stack([epochs, rows]).astype("<i8").tobytes()
    return hashlib.sha256(bytes.fromhex(ledger) + seen).hexdigest()


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a token stream cut into rows: with seed and batch size they say what has been seen at any position."""

    rows: Positive
    tokens_per_row: Positive
    tokens_per_epoch: Positive
    words_per_epoch: Positive


# Batches


class Batches:
    """Collated batches of the samples from position `start` to `stop`, `batch_size` each, the last one perhaps fewer.

    `collate` gets a list of `{"input_ids": int64 array, "epoch": int, "row": int}` and must not draw from a global
    random generator: what it draws has to be a function of epoch and row, or workers would change it.

    With `num_workers` > 0 that many processes prepare batches ahead (`workers`), for as long as one iteration lasts.

    Raises (while iterating):
        DataError: a worker died or failed; says which and why.
    """

    GROUP = 64

    def __init__(
        self,
        rows: Rows,
        order: SampleOrder,
        collate: Collate,
        batch_size: int,
        start: int,
        stop: int,
        num_workers: int = 0,
    ):
        assert order.size == len(rows), (order.size, len(rows))
        assert batch_size >= 1, batch_size
        assert 0 <= start <= stop, (start, stop)
        self.rows, self.order, self.collate = rows, order, collate
        self.batch_size, self.start, self.stop, self.num_workers = batch_size, start, stop, num_workers
        self._group, self._epochs, self._rows = -1, list[int](), list[int]()

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            return map(self._load, range(len(self)))
        return batches_from_workers(self._load, len(self), self.num_workers)

    def _load(self, index: int) -> Batch:
        group, within = divmod(index, self.GROUP)
        if group != self._group:
            # The order of one batch costs nearly as much as that of 64: it is the calls to numpy that count.
            first = self.start + group * self.GROUP * self.batch_size
            positions = np.arange(first, min(first + self.GROUP * self.batch_size, self.stop))
            epochs, rows = self.order.at(positions)
            self._group, self._epochs, self._rows = group, epochs.tolist(), rows.tolist()
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        return self.collate(
            [
                {"input_ids": self.rows.row(row), "epoch": epoch, "row": row}
                for epoch, row in zip(self._epochs[part], self._rows[part], strict=True)
            ]
        )
