"""Rows: the token stream cut into what a model reads at once; nothing is dropped.

Rows            as many tokens in each, whatever documents they belong to
LaneRows        the same in parallel lanes, each read from its beginning to its end
DocumentRows    one document in each; a longer one is cut
CropRows        a row for each place where one can begin
MixedRows       those of several corpora, one after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from foundry_core.data.holes import Holes
from foundry_core.data.order import Ints
from foundry_core.errors import DataError

Layout = Literal["overlap", "framed"]


class Rows:
    """A token stream cut into rows; `row` is where one is cut.

    In both layouts row i consumes tokens 1 + i * tokens_per_row to (i + 1) * tokens_per_row of the stream, the last row
    what is left: models of every objective see the same text in the same rows. `length` is the longest row, in tokens.

    * "overlap", for predicting the next token: each row begins with the last token of the row before, so that every
      token but the first of the stream is predicted in exactly one row.
    * "framed", for masked models: `start_id`, the tokens that the row consumes, `end_id`. The stream's leading
      separator is left out, because a row starts with `start_id` anyway.

    Raises:
        DataError: The stream is too short for one row.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        layout: Layout,
        tokens_per_row: int,
        *,
        start_id: int | None = None,
        end_id: int | None = None,
        holes: Holes | None = None,
    ):
        assert tokens_per_row >= 1, tokens_per_row
        self._frame: tuple[int, int] | None = None
        if layout == "framed":
            assert start_id is not None, "framed rows need both ids"
            assert end_id is not None, "framed rows need both ids"
            self._frame = (start_id, end_id)
        self._new = tokens_per_row
        self._tokens = np.asarray(tokens)  # slicing a np.memmap itself costs several times as much
        self._stream = len(tokens) - 1
        self._holes = holes or Holes()
        self.total_tokens = self._stream - self._holes.total
        if self._stream < 1:
            raise DataError(f"the corpus has {len(tokens)} tokens, too few for one row; add text.")
        self.length = min(tokens_per_row, self._stream) + (2 if self._frame else 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tokens of a token file: a worker that is spawned maps it again."""
        mapped = self._tokens.base
        if not isinstance(mapped, np.memmap):
            return self.__dict__
        place = (self._tokens.ctypes.data - mapped.ctypes.data) // mapped.itemsize
        return self.__dict__ | {"_tokens": (mapped.filename, mapped.dtype, slice(place, place + len(self._tokens)))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._tokens, tuple):
            path, dtype, part = self._tokens
            self._tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r"))[part]

    @property
    def tokens_per_row(self) -> int:
        """Number of tokens of the text that a row consumes at most, holes included."""
        return min(self._new, self._stream)

    @property
    def per_epoch(self) -> int:
        """Number of rows in an epoch."""
        return len(self)

    def __len__(self) -> int:
        return -(-self._stream // self._new)

    def _span(self, index: Any) -> tuple[Any, Any]:
        """Return how many tokens of the stream lie before rows, and how many up to their ends; both without its first.

        index: a row, or an array of rows.
        """
        start = index * self._new
        return start, np.minimum(start + self._new, self._stream)

    def row(self, index: int) -> Ints:
        """Return the token ids of one row: int64, a copy; HOLE in the place of each token in a hole."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, stop = map(int, self._span(index))
        chunk = self._read(start, stop)
        return chunk if self._frame is None else self._framed(chunk, stop)

    def _read(self, start: int, stop: int) -> Ints:
        chunk = self._tokens[start : stop + 1].astype(np.int64)
        self._holes.cut_out(chunk, start)
        return chunk

    def _framed(self, chunk: Ints, stop: int) -> Ints:
        assert self._frame is not None
        ids = np.empty(len(chunk) + 1, dtype=np.int64)
        ids[0], ids[1:-1], ids[-1] = self._frame[0], chunk[1:], self._frame[1]
        return ids

    def documents(self, index: int) -> Ints | None:
        """Return the number of the document that each token of a row belongs to; None if they are not kept apart."""
        return None

    def stream_tokens(self, index: int | Ints) -> Ints:
        """Return how many tokens of the text a row consumes, without holes; over an epoch this is `total_tokens`."""
        start, stop = self._span(np.asarray(index))
        return self.consumed(index) - self._holes.between(start + 1, stop + 1)

    def tokens_by_corpus(self, index: Ints) -> dict[str, int]:
        """Return how many tokens rows consume of each of several corpora; nothing of a single one."""
        return {}

    def consumed(self, index: int | Ints) -> Ints:
        """Return how many tokens of the stream a row consumes, holes included."""
        start, stop = self._span(np.asarray(index))
        tokens: Ints = stop - start
        return tokens


class LaneRows(Rows):
    """The stream in parallel lanes of equal length, give or take a token, each cut into the same number of rows.

    Row i is row i % steps of lane i // steps. Where lanes differ in length a last row would be empty in some: then the
    row before it is a token shorter.

    Raises:
        DataError: The stream has fewer tokens than lanes.
    """

    def __init__(self, tokens: NDArray[Any], layout: Layout, tokens_per_row: int, *, lanes: int, **ids: Any):
        super().__init__(tokens, layout, tokens_per_row, **ids)
        self.lanes = lanes
        longest = -(-self._stream // lanes)
        self.steps = -(-longest // tokens_per_row)
        if self._stream < lanes * self.steps:
            raise DataError(
                f"the corpus has {self._stream:,} tokens, too few for {lanes} lanes in rows of {tokens_per_row}; "
                "add text, or lower data.batch_size."
            )
        self.length = min(tokens_per_row, longest) + (2 if self._frame else 1)

    @property
    def tokens_per_row(self) -> int:
        return min(self._new, -(-self._stream // self.lanes))

    def __len__(self) -> int:
        return self.lanes * self.steps

    def _span(self, index: Any) -> tuple[Any, Any]:
        lane, step = np.divmod(index, self.steps)
        first, end = lane * self._stream // self.lanes, (lane + 1) * self._stream // self.lanes

        def edge(step: Any) -> Any:
            return first + np.minimum(step * self._new, end - first - (self.steps - step))

        return edge(step), edge(step + 1)


class _CutRows(Rows):
    """Rows that begin at given places: `starts` has the tokens before each, and at the end those of the stream."""

    def __init__(self, tokens: NDArray[Any], layout: Layout, tokens_per_row: int, starts: Ints, **ids: Any):
        super().__init__(tokens, layout, tokens_per_row, **ids)
        self._starts = starts
        self.length = int(np.diff(starts).max()) + (1 if self._frame is None else 2)

    @property
    def tokens_per_row(self) -> int:
        return self._new

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _span(self, index: Any) -> tuple[Any, Any]:
        return self._starts[index], self._starts[np.asarray(index) + 1]


def document_pieces(documents: Ints, most: int) -> Ints:
    """Return where the pieces of documents begin that have at most `most` tokens each, with the separator after it.

    Args:
        documents: Of a token file: where each document starts in its tokens, and their number.
        most: Tokens of a piece, without the separator that follows a document.

    Returns:
        Tokens of the stream before each piece, and at the end all of them; none counts the first separator.
    """
    starts, lengths = documents[:-1] - 1, np.diff(documents) - 1
    pieces = np.maximum(-(-lengths // most), 1)
    within = np.arange(int(pieces.sum())) - np.repeat(pieces.cumsum() - pieces, pieces)
    found: Ints = np.append(np.repeat(starts, pieces) + within * most, documents[-1] - 1)
    return found


class DocumentRows(_CutRows):
    """One document in each row, up to the separator after it; a longer one is cut into rows of `tokens_per_row`.

    A framed row ends with `end_id` in the place of that separator.
    """

    def __init__(self, tokens: NDArray[Any], layout: Layout, tokens_per_row: int, *, documents: Ints, **ids: Any):
        self._ends = documents[1:] - 1
        super().__init__(tokens, layout, tokens_per_row, document_pieces(documents, tokens_per_row), **ids)
        if self._frame is not None:
            self.length = int(self.row_lengths.max())

    @cached_property
    def row_lengths(self) -> Ints:
        """The number of tokens of each row as a model reads it."""
        consumed = np.diff(self._starts)
        if self._frame is None:
            return consumed + 1
        lengths: Ints = consumed + 2 - np.isin(self._starts[1:], self._ends)
        return lengths

    def _framed(self, chunk: Ints, stop: int) -> Ints:
        at = np.searchsorted(self._ends, stop)
        return super()._framed(chunk[:-1] if self._ends[at] == stop else chunk, stop)


class CropRows(Rows):
    """A row for each place of the stream where one of full length can begin, as nanoGPT draws them.

    An epoch has as many of them as consume the tokens of the stream.
    """

    def __init__(self, tokens: NDArray[Any], layout: Layout, tokens_per_row: int, **ids: Any):
        super().__init__(tokens, layout, min(tokens_per_row, max(len(tokens) - 1, 1)), **ids)

    @property
    def per_epoch(self) -> int:
        return -(-self._stream // self._new)

    def __len__(self) -> int:
        return self._stream - self._new + 1

    def _span(self, index: Any) -> tuple[Any, Any]:
        return index, index + self._new


class MixedRows:
    """The rows of several corpora, numbered one after the other.

    Args:
        parts: The rows of each corpus.
        names: Their names.
    """

    def __init__(self, parts: Sequence[Rows], names: Sequence[str]):
        self.parts, self.names = tuple(parts), tuple(names)
        self._ends = np.cumsum([len(part) for part in parts])
        self.total_tokens = sum(part.total_tokens for part in parts)
        self.length = max(part.length for part in parts)

    @property
    def tokens_per_row(self) -> int:
        """Number of tokens of the text that a row consumes at most."""
        return max(part.tokens_per_row for part in self.parts)

    @property
    def per_epoch(self) -> int:
        """Number of rows of all corpora together: so many are an epoch, whatever the shares."""
        return len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = int(self.sources(index))
        return self.parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def sources(self, index: int | Ints) -> Ints:
        """Return the number of the corpus of each row."""
        found: Ints = np.searchsorted(self._ends, index, side="right")
        return found

    def row(self, index: int) -> Ints:
        """Return the token ids of one row: int64, a copy."""
        rows, within = self._place(index)
        return rows.row(within)

    def documents(self, index: int) -> Ints | None:
        """Return what `Rows.documents` of its corpus does."""
        rows, within = self._place(index)
        return rows.documents(within)

    def stream_tokens(self, index: int | Ints) -> Ints:
        """Return how many tokens of its corpus a row consumes."""
        index = np.asarray(index)
        sources, tokens = self.sources(index), np.empty(index.shape, dtype=np.int64)
        for source in np.unique(sources).tolist():
            chosen = sources == source
            first = int(self._ends[source - 1]) if source else 0
            tokens[chosen] = self.parts[source].stream_tokens(index[chosen] - first)
        return tokens

    def tokens_by_corpus(self, index: Ints) -> dict[str, int]:
        """Return how many tokens rows consume of each corpus, by name."""
        sources, tokens = self.sources(index), self.stream_tokens(index)
        return {name: int(tokens[sources == number].sum()) for number, name in enumerate(self.names)}


AnyRows: TypeAlias = Rows | MixedRows
