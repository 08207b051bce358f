"""Rows: the token stream cut into what a model reads at once; nothing is dropped."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foundry_core.data.holes import Holes
from foundry_core.data.order import Ints
from foundry_core.errors import DataError


class Rows:
    """A token stream cut into rows; `row` is where one is cut.

    In both layouts row i consumes tokens 1 + i * tokens_per_row to (i + 1) * tokens_per_row of the stream, the last row
    what is left: models of every objective see the same text in the same rows. `length` is the longest row, in tokens,
    `tokens_per_row` what a row consumes, holes included.

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
        layout: Literal["overlap", "framed"],
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
        self.tokens_per_row = min(tokens_per_row, self._stream)
        self.length = self.tokens_per_row + (2 if self._frame else 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tokens of a token file: a worker that is spawned maps it again."""
        mapped = self._tokens.base
        if not isinstance(mapped, np.memmap) or len(mapped) != len(self._tokens):
            return self.__dict__
        return self.__dict__ | {"_tokens": (mapped.filename, mapped.dtype)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._tokens, tuple):
            path, dtype = self._tokens
            self._tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    def __len__(self) -> int:
        return -(-self._stream // self._new)

    def row(self, index: int) -> Ints:
        """Return the token ids of one row: int64, a copy; HOLE in the place of each token in a hole."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * self._new
        chunk = self._tokens[start : start + self._new + 1].astype(np.int64)
        self._holes.cut_out(chunk, start)
        if self._frame is None:
            return chunk
        ids = np.empty(len(chunk) + 1, dtype=np.int64)
        ids[0], ids[1:-1], ids[-1] = self._frame[0], chunk[1:], self._frame[1]
        return ids

    def stream_tokens(self, index: int | Ints) -> Ints:
        """Return how many tokens of the text a row consumes, without holes; over all rows this is `total_tokens`."""
        start = np.asarray(index) * self._new
        size: Ints = np.minimum(self._new, self._stream - start)
        return size - self._holes.between(start + 1, start + size + 1)
