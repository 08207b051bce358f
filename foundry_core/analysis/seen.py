"""What a run has seen: the rows of any step, and how often text had occurred in all rows up to a checkpoint.

Both are computed from the order of the rows, in which whole epochs are counted by multiplication: nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundry_core.analysis.occurrences import Occurrences
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.checkpoints.compatibility import changed_settings
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.checkpoints.trained_data import TrainedData, trained_data
from foundry_core.config.settings import covered
from foundry_core.data.batching import rows_with, token_changes
from foundry_core.data.holes import HOLE
from foundry_core.data.order import Ints
from foundry_core.data.preparation import TOKENIZER_DATA, TRAINING_DATA
from foundry_core.data.rows import MixedRows
from foundry_core.errors import CheckpointError
from foundry_core.models.building import read_description
from foundry_core.run_folder import no_checkpoints

_DECIDING = (
    *("data.batching", "data.order", "data.order_settings", "data.isolate_documents", "data.max_sequence_length"),
    *("data.tokens_per_row", "data.training_corpus", "training.objective", "seeds.data_order", "random_seed"),
)
"""Settings that decide which row is trained at which position."""
_HOLE = "[...]"


@dataclass(frozen=True)
class SeenRow:
    """A row of a step.

    Attributes:
        position: Its place among all samples since the start of training.
        epoch: The epoch, in a mixture the pass over its corpus; counted from 0, as in the data ledger.
        row: The number of the row, counted from 0.
        corpus: The name of its corpus, in a mixture.
        text: What the model reads, special tokens included.
    """

    position: int
    epoch: int
    row: int
    corpus: str | None
    text: str


@dataclass(frozen=True)
class Exposure:
    """How much a run had seen up to a step. counts: occurrences of each pattern by its name."""

    checkpoint: str | None
    step: int
    samples: int
    epochs: float
    tokens_seen: int
    words_seen: int
    counts: dict[str, int]


class SeenRun:
    """A run with checkpoints, whose rows are derived.

    Raises:
        CheckpointError: There are no checkpoints, they are damaged, or text or order changed between them.
        DataError: The token file is gone.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir)
        folders = checkpoints(self.folder)
        if not folders:
            raise CheckpointError(no_checkpoints(self.folder))
        self._states = [read_state(folder) for folder in folders]
        self._names = [folder.name for folder in folders]
        descriptions = [read_description(folder) for folder in folders]
        for name, state, description in zip(self._names, self._states, descriptions, strict=True):
            changed = _changed(state, description, self._states[-1], descriptions[-1])
            if changed:
                raise CheckpointError(
                    f"{self.folder}: {changed} between {name} and {self._names[-1]}: what was seen cannot be derived"
                )
        self._per_step = [_rows_per_step(folder, each) for folder, each in zip(folders, descriptions, strict=True)]
        self.data: TrainedData = trained_data(folders[-1], self._states[-1], descriptions[-1])

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint."""
        return self._states[-1].step

    @property
    def started_from(self) -> str | None:
        """The checkpoint of another run whose weights this one started from."""
        started = self._states[-1].started_from
        return None if started is None else str(started.get("checkpoint"))

    def samples_after(self, step: int) -> int:
        """Return how many rows have been trained after a step; beyond the newest checkpoint, as if training went on.

        Raises:
            CheckpointError: The batch size changed at a checkpoint that is gone, near this step.
        """
        before = TrainState()
        for name, state, per_step in zip(self._names, self._states, self._per_step, strict=True):
            steps, rows = state.step - before.step, state.samples - before.samples
            if step <= state.step:
                if not max(0, (steps - 1) * per_step + 1) <= rows <= steps * per_step:
                    raise CheckpointError(
                        f"{self.folder}: the batch size changed between step {before.step} and {name}"
                    )
                return min(before.samples + (step - before.step) * per_step, state.samples)
            before = state
        return before.samples + (step - before.step) * self._per_step[-1]

    def rows_of(self, step: int) -> list[SeenRow]:
        """Return the rows of an optimizer step, in the order in which they were trained."""
        positions = np.arange(self.samples_after(step - 1), self.samples_after(step))
        epochs, rows = self.data.order.at(positions)
        mixed = self.data.rows if isinstance(self.data.rows, MixedRows) else None
        names = [None] * len(rows) if mixed is None else [mixed.names[source] for source in mixed.sources(rows)]
        return [
            SeenRow(int(position), int(epoch), int(row), name, self._text(int(row)))
            for position, epoch, row, name in zip(positions, epochs, rows, names, strict=True)
        ]

    def _text(self, row: int) -> str:
        ids = self.data.rows.row(row)
        parts = np.split(ids, np.flatnonzero(np.diff(ids == HOLE)) + 1)
        decode: Any = self.data.tokenizer.decode
        texts = [
            _HOLE if part[0] == HOLE else decode(part.tolist(), clean_up_tokenization_spaces=False) for part in parts
        ]
        return " ".join(texts) if len(texts) > 1 else texts[0]

    def exposures(self, found: Occurrences, steps: Sequence[int] = ()) -> list[Exposure]:
        """Return how often patterns had been seen up to each checkpoint, and up to other steps.

        An occurrence counts in the row that consumes the token in which it ends, so that an epoch of all rows has each
        once, also those that reach over the edge of a row; of crops, in each that consumes that token.

        Raises:
            CheckpointError: A checkpoint does not record the tokens that its rows come to.
        """
        places = {state.step: (name, state) for name, state in zip(self._names, self._states, strict=True)}
        first, last = rows_with(self.data.rows, found.places)
        return list(self._exposures(found, first, last, places, sorted({*places, *steps})))

    def _exposures(
        self,
        found: Occurrences,
        first: Ints,
        last: Ints,
        places: dict[int, tuple[str, TrainState]],
        steps: list[int],
    ) -> Iterator[Exposure]:
        rows, order, before = self.data.rows, self.data.order, 0
        # Groups of neighbouring rows that are alike in what is counted; all rows of each are counted together.
        # np.unique takes 25 times as long as a sort.
        edges = np.sort(np.concatenate([[0], first, last, token_changes(rows)]))
        starts = edges[(np.diff(edges, prepend=-1) > 0) & (edges < len(rows))]
        first, last = np.searchsorted(starts, first), np.searchsorted(starts, last)
        row_tokens = rows.stream_tokens(starts)
        counts, tokens = np.zeros(len(found.patterns), dtype=np.int64), 0
        sizes = self._states[-1].stream
        assert sizes is not None, "read_state refuses a state without"
        for step in steps:
            name, state = places.get(step, (None, None))
            samples = state.samples if state is not None else self.samples_after(step)
            times = order.times_taken(before, samples, starts)
            tokens, before = tokens + int(times @ row_tokens), samples
            if state is not None and state.tokens_seen != tokens:
                raise CheckpointError(
                    f"{self.folder / str(name)}: its tokens_seen is {state.tokens_seen}, its rows come to {tokens}: "
                    f"look into it with foundry verify {self.folder}"
                )
            up_to = np.concatenate([[0], times.cumsum()])
            # Sums below 2**53 are exact in the float64 that bincount adds up.
            counts += np.bincount(found.which, up_to[last] - up_to[first], len(found.patterns)).astype(np.int64)
            yield Exposure(
                name,
                step,
                samples,
                samples / order.size,
                tokens,
                sizes.words_after(tokens),
                dict(zip(found.patterns, counts.tolist(), strict=True)),
            )

    def with_any(self, rows: Sequence[SeenRow], found: Occurrences) -> list[SeenRow]:
        """Return those of some rows in which an occurrence ends."""
        first, last = map(np.sort, rows_with(self.data.rows, found.places))
        numbers = np.array([row.row for row in rows])
        inside = np.searchsorted(first, numbers, side="right") > np.searchsorted(last, numbers, side="right")
        return [row for row, holds in zip(rows, inside, strict=True) if holds]


def _changed(state: TrainState, description: dict[str, Any], now: TrainState, newest: dict[str, Any]) -> str | None:
    """Return a phrase for what decides the rows and differs between two checkpoints."""
    for name in (TRAINING_DATA, TOKENIZER_DATA):
        if state.data.get(name) != now.data.get(name):
            return f"{name} changed"
    differences = changed_settings(description["experiment"], newest["experiment"])
    phrases = [
        phrase
        for key, phrase in differences.items()
        # The path of a text that is the same is not important.
        if covered(key, _DECIDING) and key != "data.training_corpus" and not key.endswith(".path")
    ]
    return phrases[0] if phrases else None


def _rows_per_step(folder: Path, description: dict[str, Any]) -> int:
    settings = description["experiment"]
    try:
        size = settings["data"]["batch_size"] * settings["training"]["gradient_accumulation_steps"]
        if type(size) is not int or size < 1:
            raise ValueError(f"{size!r} rows in a step")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its configuration is damaged: {error}") from error
    return size
