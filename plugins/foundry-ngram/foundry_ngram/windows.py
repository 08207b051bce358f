"""Counted windows: each token that was predicted and the tokens before it, each distinct window once with its count.

A window has as many ids as the order; where the context is shorter, `NOTHING` fills it up on its left. Windows are
sorted by their context read backwards, then by the predicted token: contexts that end alike stand together. So a table
depends on what has been counted alone, not on the order or the groups in which it was.

Shapes: N windows of the table, M windows that are added, n order.
"""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Ints = NDArray[np.int64]

NOTHING = -1


def merged(windows_Nn: Ids, counts_N: Ints, added_Mn: Ids) -> tuple[Ids, Ints]:
    """Return windows and counts of a table with each of the added windows counted once more."""
    if not len(added_Mn):
        return windows_Nn, counts_N
    new, times = _distinct(added_Mn)
    if not len(windows_Nn):
        return new, times
    keys, new_keys = _keys(windows_Nn), _keys(new)
    place = np.searchsorted(keys, new_keys)
    known = place < len(keys)
    known[known] = keys[place[known]] == new_keys[known]
    counts_N = counts_N.copy()
    counts_N[place[known]] += times[known]
    between = place[~known]
    return np.insert(windows_Nn, between, new[~known], axis=0), np.insert(counts_N, between, times[~known])


def fault(windows_Nn: Ids, counts_N: Ints, vocabulary: int) -> str | None:
    """Return what is wrong with a table that was read from a file; None if nothing is."""
    if len(windows_Nn) != len(counts_N):
        return f"{len(windows_Nn):,} n-grams have {len(counts_N):,} counts"
    if not len(windows_Nn):
        return None
    if windows_Nn.min() < NOTHING or windows_Nn.max() >= vocabulary or windows_Nn[:, -1].min() < 0:
        return "it has ids that are not in the vocabulary"
    if ((windows_Nn[:, :-1] != NOTHING) & (windows_Nn[:, 1:] == NOTHING)).any():
        return "it has an n-gram with a gap"
    if counts_N.min() < 1:
        return "it has a count below 1"
    keys = _keys(windows_Nn)
    return None if (keys[:-1] < keys[1:]).all() else "its n-grams are not in their order"


def _columns(order: int) -> list[int]:
    """Return the columns of a window from the one that sorts first to the one that sorts last."""
    return [*reversed(range(order - 1)), order - 1]


def _distinct(windows_Mn: Ids) -> tuple[Ids, Ints]:
    """Return the distinct windows in their order, and how often each is there."""
    order = np.lexsort([windows_Mn[:, column] for column in reversed(_columns(windows_Mn.shape[1]))])
    ordered = windows_Mn[order]
    first = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def _keys(windows_Nn: Ids) -> NDArray[np.bytes_]:
    """Return a text of bytes for each window; these sort as the windows do."""
    order = windows_Nn.shape[1]
    shifted = np.ascontiguousarray((windows_Nn[:, _columns(order)] + 1).astype(">u4"))
    return shifted.view(f"S{4 * order}").ravel()
