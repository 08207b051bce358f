"""Reading a tree of prefixes with a causal model: each prefix once where its architecture allows that.

Shapes: B batch, T tokens, N prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from foundry_core.evaluation.inference import to_device
from foundry_core.evaluation.prefix_tree import Numbers, PrefixTree
from foundry_core.evaluation.token_losses import TokenLosses
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.wrapped import WrappedLanguageModel

TOKENS_PER_BATCH = 4096  # with padding
_BRANCHED = 64  # tokens of a row with branches: in longer ones more is shared, and attention costs more
_WIDE = 16  # prefixes of one length from which on a step for all of them costs less than rows of their own


def read_tree(model: BaseLanguageModel, tree: PrefixTree, losses: TokenLosses) -> None:
    """Give the hidden states after every prefix of the tree to `losses`."""
    if isinstance(model, WrappedLanguageModel) and model.branches:
        _read_branched_rows(model, tree, losses)
        return
    levels = tree.levels()
    wide = [depth for depth, level in enumerate(levels) if len(level) >= _WIDE]
    batched = _batch_dimensions(model, tree.ids[0]) if wide and model.config.capabilities.stateful else None
    if batched is None:
        _read_rows(model, tree, losses, tree.ends())
    else:
        _read_steps(model, tree, losses, levels, batched)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of rows, the shortest first, in batches of a bounded size with padding.

    A batch of some size ends where rows become longer: without padding there is no mask, and nothing is computed in
    vain.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[number]
        longer = batch and length > lengths[batch[-1]] and len(batch) * length > TOKENS_PER_BATCH // 4
        if batch and (longer or (len(batch) + 1) * length > TOKENS_PER_BATCH):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], filler: int = 0) -> Numbers:
    """Return rows as a matrix, filled up on the right."""
    matrix = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    return matrix


def tensors(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return rows of ids as what a model reads."""
    mask = padded([[1] * len(row) for row in rows])
    return {"input_ids": torch.from_numpy(padded(rows)), "attention_mask": torch.from_numpy(mask)}


class _Unread:
    """Finds the places of prefixes that have not been read before."""

    def __init__(self, tree: PrefixTree):
        self._done = np.zeros(len(tree.ids), dtype=bool)

    def among(self, prefixes_BT: Numbers) -> tuple[Numbers, Numbers]:
        """Return the new ones among these, -1 for padding, and their places in (B T)."""
        prefixes, at = np.unique(prefixes_BT.ravel(), return_index=True)
        new = (prefixes >= 0) & ~self._done[prefixes]
        self._done[prefixes[new]] = True
        order = np.argsort(at[new])
        return prefixes[new][order], at[new][order]


def _read_rows(
    model: BaseLanguageModel,
    tree: PrefixTree,
    losses: TokenLosses,
    ends: Sequence[int],
) -> None:
    """Read the way to each end as a row, in a model of any architecture."""
    unread, device = _Unread(tree), next(model.parameters()).device
    rows = [tree.path(end) for end in ends]
    for batch in batches([len(row) for row in rows]):
        chosen = [rows[number] for number in batch]
        inputs = to_device(tensors([[tree.ids[prefix] for prefix in row] for row in chosen]), device)
        model(**inputs, read=losses.reading(*unread.among(padded(chosen, -1))))


def _read_branched_rows(model: BaseLanguageModel, tree: PrefixTree, losses: TokenLosses) -> None:
    """Read rows that contain several texts, in which a token attends to the prefix that it continues alone."""
    unread, device = _Unread(tree), next(model.parameters()).device
    rows = list(_branched_rows(tree, min(_BRANCHED, model.context.max_sequence_length)))
    ids, depths, parents = map(np.asarray, (tree.ids, tree.depths, tree.parents))
    for batch in batches([len(row) for row in rows]):
        chosen = padded([rows[number] for number in batch], -1)
        inputs = {"input_ids": np.where(chosen < 0, 0, ids[chosen])}
        inputs["position_ids"] = np.where(chosen < 0, 0, depths[chosen])
        inputs["attention_mask"] = _ancestors(chosen, np.where(chosen < 0, -1, parents[chosen]))[:, None]
        on_device = {name: torch.from_numpy(each).to(device) for name, each in inputs.items()}
        model(**on_device, read=losses.reading(*unread.among(chosen)))


def _branched_rows(tree: PrefixTree, size: int) -> Iterator[list[int]]:
    """Yield rows of prefixes, each with all that it continues before it; neighbours share a row as long as they fit."""
    row: dict[int, None] = {}
    for end in tree.ends():
        path = tree.path(end)
        if row and len(row.keys() | path) > size:
            yield list(row)
            row = {}
        row |= dict.fromkeys(path)
    if row:
        yield list(row)


def _ancestors(prefixes_BT: Numbers, parents_BT: Numbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each place of a row which places belong to the way to it, itself included, (B, T, T)."""
    rows, length = prefixes_BT.shape
    found = np.zeros((rows, length + 1, length), dtype=bool)  # what nothing comes before continues the last, empty row
    for place in range(length):
        is_parent_BT = (prefixes_BT == parents_BT[:, place, None]) & (parents_BT[:, place, None] >= 0)
        parent_B = np.where(is_parent_BT.any(axis=1), is_parent_BT.argmax(axis=1), length)
        found[:, place] = found[np.arange(rows), parent_B]
        found[:, place, place] = True
    return found[:, :length]


def _read_steps(
    model: BaseLanguageModel,
    tree: PrefixTree,
    losses: TokenLosses,
    levels: Sequence[Numbers],
    batched: Sequence[int],
) -> None:
    """Read all prefixes of one length in a step, each from the state after the one that it continues."""
    device, ids, parents = next(model.parameters()).device, np.asarray(tree.ids), np.asarray(tree.parents)
    state, before = None, np.zeros(0, dtype=np.int64)
    for level in levels:
        if state is not None:
            state = _selected(state, batched, torch.from_numpy(np.searchsorted(before, parents[level])).to(device))
        inputs = torch.from_numpy(ids[level][:, None]).to(device)
        reading = losses.reading(level, np.arange(len(level)))
        state, before = model(inputs, state=state, use_cache=True, read=reading).state, level


def _selected(state: Any, batched: Sequence[int], rows: torch.Tensor) -> Any:
    parts, form = tree_flatten(state)
    return tree_unflatten([each.index_select(at, rows) for each, at in zip(parts, batched, strict=True)], form)


def _batch_dimensions(model: BaseLanguageModel, token: int) -> list[int] | None:
    """Return which dimension of each tensor of a state is that of the batch; None if the state is not made of tensors.

    None, too, for a state that grows with the text, such as keys and values: it costs more to copy than to compute.
    """
    device = next(model.parameters()).device
    shapes = []
    for rows, length in ((1, 1), (2, 1), (1, 2)):
        ids = torch.full((rows, length), token, device=device)
        parts, _ = tree_flatten(model(ids, use_cache=True, read=lambda *_: None).state)
        if not parts or not all(isinstance(each, torch.Tensor) for each in parts):
            return None
        shapes.append([tuple(each.shape) for each in parts])
    one, two, longer = shapes
    different = [
        [at for at, (a, b) in enumerate(zip(*both, strict=False)) if (a, b) == (1, 2)]
        for both in zip(one, two, strict=False)
    ]
    if one != longer or len(one) != len(two) or any(len(each) != 1 for each in different):
        return None
    return [each[0] for each in different]
