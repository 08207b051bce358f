"""The state of a recurrence: a tensor (layers, B, H), a tuple of them (LSTM), or one of each for several modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foundry_rnn.scan import State


def by_module(state: Any, modules: int, *, lstm: bool) -> list[State | None]:
    """Return the part of a state that belongs to each module: with several, hidden states come first, then cells."""
    if state is None or modules == 1:
        return [state] * modules
    return [state[at::modules] if lstm else state[at] for at in range(modules)]


def flat_state(states: Sequence[State]) -> tuple[torch.Tensor, ...]:
    """Return one flat state of those of several modules."""
    parts = [each if isinstance(each, tuple) else (each,) for each in states]
    return tuple(each for group in zip(*parts, strict=True) for each in group)


def of_first_rows(state: Any, rows: int) -> Any:
    """Return the part of a state that belongs to the first rows."""
    if isinstance(state, tuple):
        return tuple(of_first_rows(each, rows) for each in state)
    return state[:, :rows].contiguous()


def where_read(read_B: torch.Tensor, after: Any, before: Any) -> Any:
    """Return the states of each row: those after it where it has real tokens, elsewhere those before, by default 0."""
    if isinstance(after, tuple):  # hidden and cell of an LSTM, or those of several modules
        return tuple(where_read(read_B, *pair) for pair in zip(after, before or (None,) * len(after), strict=True))
    return torch.where(read_B[:, None], after, torch.zeros_like(after) if before is None else before)
