"""Texts as a tree of their prefixes: what several begin with is one path, whose hidden states are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = tuple[int, ...]
Numbers: TypeAlias = NDArray[np.int64]

PREFIXES = 1 << 14
"""Prefixes that a tree of texts has; more would be shared in a larger one, which takes more memory."""


@dataclass
class PrefixTree:
    """The prefixes after which a token is to be predicted, parents first, and the tokens predicted there.

    ids, parents, depths: of each prefix its last token, the prefix without it, and its length less one. places,
    targets: of each distinct pair of a prefix and the token after it. texts: the pairs that each text consists of.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)

    def ends(self) -> list[int]:
        """Return the prefixes that are not the beginning of another one."""
        return sorted({*range(len(self.ids))}.difference(self.parents))

    def path(self, prefix: int, above: int = -1) -> list[int]:
        """Return the prefixes from the first one below `above` to this one."""
        found = []
        while prefix != above:
            found.append(prefix)
            prefix = self.parents[prefix]
        return found[::-1]

    def levels(self) -> list[Numbers]:
        """Return the prefixes of each length, the shortest first."""
        order = np.argsort(self.depths, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.depths))[:-1])


def prefix_trees(texts: Sequence[Ids], start: int, size: int) -> Iterator[PrefixTree]:
    """Yield trees over distinct texts, sorted, each text after `start`; none has many more than `size` prefixes."""
    tree = PrefixTree()
    previous: Ids = ()
    prefixes: list[int] = [-1]
    pairs: list[int] = []
    for text in texts:
        if len(tree.ids) >= size:
            yield tree
            tree, previous, prefixes, pairs = PrefixTree(), (), [-1], []
        common = common_start(previous, text)
        del pairs[common:], prefixes[common + 2 :]
        for depth in range(len(prefixes) - 1, len(text)):
            tree.ids.append(text[depth - 1] if depth else start)
            tree.parents.append(prefixes[-1])
            tree.depths.append(depth)
            prefixes.append(len(tree.ids) - 1)
        for depth in range(common, len(text)):
            tree.places.append(prefixes[depth + 1])
            tree.targets.append(text[depth])
            pairs.append(len(tree.places) - 1)
        tree.texts.append(list(pairs))
        previous = text
    if tree.texts:
        yield tree


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many numbers two sequences begin alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
