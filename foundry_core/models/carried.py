"""The state that is carried from row to row in contiguous batching (truncated backpropagation through time)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

from foundry_core.errors import CheckpointError, PluginError

Batch: TypeAlias = dict[str, torch.Tensor]
Layout: TypeAlias = Any
"""Nested lists and mappings as JSON has them, in which a tensor is its name and a tuple is `{"tuple": [...]}`."""


class CarriedState:
    """The state after the rows of the last batch, without gradients; None before the first row of an epoch."""

    def __init__(self) -> None:
        self.state: Any = None

    def reset(self) -> None:
        """Begin without a state."""
        self.state = None

    def given(self, batch: Batch, lengths_B: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of a model that continues from the state.

        A row begins with the last token of the row before, which that one has not read: the last token of each row is a
        label only.

        lengths_B: The number of tokens of each row, without padding.
        """
        read: Batch = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask") if name in batch}
        mask, width = batch.get("attention_mask"), read["input_ids"].shape[1]
        padded_BT = torch.arange(width + 1) >= lengths_B[:, None]
        if mask is not None and not bool(mask[padded_BT.to(mask.device)].any()):  # on the right, if at all
            last_B1 = lengths_B.to(mask.device)[:, None] - 1
            read["attention_mask"] = read["attention_mask"] * (torch.arange(width, device=mask.device) < last_B1)
        return {**batch, **read, "state": self.state, "use_cache": True}

    def advance(self, state: Any) -> None:
        """Go on to the state after a batch. Raises PluginError if there is none, or it cannot be saved."""
        if state is None:
            raise PluginError("the model returned no state in training, though it is declared stateful")
        self.state = _mapped(state, torch.Tensor.detach)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the state by name."""
        return dict(_named(self.state))

    def layout(self) -> Layout:
        """Return how the tensors make up the state; None without a state."""
        names = iter(name for name, _ in _named(self.state))
        return _described(self.state, names)

    def load(self, layout: Layout, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take up a state that was saved. Raises CheckpointError if its tensors are not those of its layout."""
        names = set(_names_in(layout))
        if names != tensors.keys():
            raise CheckpointError(f"its carried state is damaged: {min(names ^ tensors.keys())}")
        self.state = _built(layout, {name: tensor.to(device) for name, tensor in tensors.items()})


def _mapped(state: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(state, torch.Tensor):
        return function(state)
    if type(state) in (tuple, list):
        return type(state)(_mapped(each, function) for each in state)
    if type(state) is dict and all(isinstance(name, str) for name in state):
        return {name: _mapped(each, function) for name, each in state.items()}
    if state is None:
        return None
    raise PluginError(
        f"the model's state has a {type(state).__name__}: one that is carried in training consists of tensors in "
        "tuples, lists and dicts"
    )


def _named(state: Any, place: str = "state") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield place, state
    elif state is not None:
        for name, each in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _named(each, f"{place}.{name}")


def _described(state: Any, names: Iterator[str]) -> Layout:
    if isinstance(state, torch.Tensor):
        return next(names)
    if isinstance(state, dict):
        return {"dict": {name: _described(each, names) for name, each in state.items()}}
    if isinstance(state, tuple | list):
        parts = [_described(each, names) for each in state]
        return {"tuple": parts} if isinstance(state, tuple) else parts
    return None


def _names_in(layout: Layout) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    elif layout is not None:
        parts = layout if isinstance(layout, list) else next(iter(layout.values()))
        for each in parts.values() if isinstance(parts, dict) else parts:
            yield from _names_in(each)


def _built(layout: Layout, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(layout, str):
        return tensors[layout]
    if isinstance(layout, list):
        return [_built(each, tensors) for each in layout]
    if layout is None:
        return None
    if "tuple" in layout:
        return tuple(_built(each, tensors) for each in layout["tuple"])
    return {name: _built(each, tensors) for name, each in layout["dict"].items()}
