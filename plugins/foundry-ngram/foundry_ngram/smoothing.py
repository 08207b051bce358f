"""Interpolated Kneser-Ney smoothing: probabilities from counted windows.

With a(g) for the amount of an n-gram g, and h for a context of k tokens, of which h' is without the first:

    P(w | h) = (a(hw) - D(a(hw))) / A(h) + G(h) P(w | h')
    A(h) = sum of a(hw) over all w,  G(h) = sum of D(a(hw)) over all w / A(h),  P(w | no context at all) = 1 / V

The amount of an n-gram of the highest order is its count. That of a shorter one is the number of different tokens that
came before it (Kneser and Ney 1995); nothing, where a row begins, counts as one of these. Before an n-gram that begins
with the separator of documents nothing is looked at: its amount is its count, as that of n-grams with <s> in other
toolkits. A context that was not seen leaves the prediction to the shorter one.

D is 0 for 0 and, for each order, estimated from the numbers t1 to t4 of its n-grams with an amount of 1 to 4. With
Y = t1 / (t1 + 2 t2) it is Y for all amounts, or i - (i + 1) Y t(i+1) / ti for i = 1, 2 and 3 or more (Chen and Goodman
1998). Where a text is too small or too regular for that, it is 0.5, or 0.5, 1 and 1.5.

Contexts are numbered for each length, in the order of (number of the shorter context, token further to the left). Keys
are number * V + token, which fit into 64 bits whatever the order.

Shapes: N predictions, c context (order - 1), V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundry_ngram.windows import Ids, Ints

Floats = NDArray[np.float64]
Discounts = Literal["three", "one"]

FALLBACK = {"one": (0.5, 0.5, 0.5), "three": (0.5, 1.0, 1.5)}
"""Discounts where they cannot be estimated; the three are those of KenLM."""


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one order: keys (number of the context * V + token), ascending, with amounts.

    discounts: of amounts of 0, 1, 2, and 3 or more. first: the first n-gram of each context, and the end of the last
    one. total: A of each context. left: G of each context.
    """

    keys: Ints
    amounts: Ints
    discounts: Floats
    first: Ints
    total: Floats
    left: Floats

    @classmethod
    def of(cls, keys: Ints, amounts: Ints, contexts: int, vocabulary: int, discounts: Discounts) -> "_Grams":
        estimated = estimated_discounts(np.bincount(np.minimum(amounts, 5), minlength=6)[1:5], discounts)
        context = keys // vocabulary
        many = np.bincount(context, minlength=contexts)
        total = np.bincount(context, weights=amounts, minlength=contexts).astype(np.float64)
        left = np.bincount(context, weights=estimated[np.minimum(amounts, 3)], minlength=contexts) / total
        return cls(keys, amounts, estimated, np.append(0, np.cumsum(many)), total, left)

    def shares(self, context: Ints, amounts: Ints) -> Floats:
        """Return what n-grams of these amounts, in these contexts, have of their own."""
        kept: Floats = (amounts - self.discounts[np.minimum(amounts, 3)]) / self.total[context]
        return kept


def estimated_discounts(numbers: Ints, discounts: Discounts) -> Floats:
    """Return the discounts of amounts of 0, 1, 2, and 3 or more. numbers: of n-grams with amounts of 1, 2, 3 and 4."""
    t1, t2, t3, t4 = numbers.tolist()
    found = FALLBACK[discounts]
    if discounts == "one" and t1:
        found = (t1 / (t1 + 2 * t2),) * 3
    elif discounts == "three" and t1 and t2 and t3:
        y = t1 / (t1 + 2 * t2)
        three = (1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3)
        # One of 0 would leave nothing for what was not seen.
        found = three if min(three) > 0 else found
    return np.array([0.0, *found])


class KneserNey:
    """The probabilities that follow from a table of counted windows.

    Args:
        windows: (N, n), sorted as `windows` describes.
        counts: (N,).
        vocabulary: The number of token ids.
        separator: The token before which no context reaches back, if there is one.
        discounts: Three for each order, or one.
    """

    def __init__(
        self, windows: Ids, counts: Ints, vocabulary: int, separator: int | None, discounts: Discounts = "three"
    ):
        self.vocabulary, self._discounts = vocabulary, discounts
        self._contexts: list[Ints] = []
        """The keys of the contexts of each length from 1 on."""
        self._grams: list[_Grams] = []
        """The n-grams by the length of their context, from 1 on."""
        self._single_V: Floats = np.full(vocabulary, 1 / vocabulary)
        """The probabilities without any context."""
        if len(windows):
            self._count_back(windows, counts, -2 if separator is None else separator)

    def _count_back(self, windows: Ids, counts: Ints, separator: int) -> None:
        """Number the contexts, from the shortest to the longest, and find the amounts, from the longest n-grams on."""
        order, words = windows.shape[1], windows[:, -1].astype(np.int64)
        number, changed = np.zeros(len(windows), dtype=np.int64), np.zeros(len(windows), dtype=bool)
        changed[0] = True
        short: list[tuple[Ints, Ints]] = []  # for each length of a context, the n-grams before which nothing is known
        for back in range(1, order):
            tokens = windows[:, order - 1 - back]
            changed[1:] |= tokens[1:] != tokens[:-1]
            here = tokens >= 0
            ends = (number >= 0) & ~here
            begins = (windows[ends, order - back] == separator) & (back > 1)
            short.append((number[ends] * self.vocabulary + words[ends], np.where(begins, counts[ends], 1)))
            first = changed & here
            self._contexts.append(number[first] * self.vocabulary + tokens[first])
            number = np.where(here, np.cumsum(first) - 1, -1)
        whole = number >= 0
        keys, amounts = number[whole] * self.vocabulary + words[whole], counts[whole]
        for length in reversed(range(order)):
            if length < order - 1:
                longer, token = np.divmod(keys, self.vocabulary)
                keys, amounts = np.unique(
                    self._contexts[length][longer] // self.vocabulary * self.vocabulary + token, return_counts=True
                )
                keys, amounts = _together(keys, amounts, *short[length])
            contexts = len(self._contexts[length - 1]) if length else 1
            grams = _Grams.of(keys, amounts, contexts, self.vocabulary, self._discounts)
            if length:
                self._grams.insert(0, grams)
            else:
                self._single_V *= grams.left[0]
                self._single_V[keys] += grams.shares(np.zeros_like(keys), amounts)

    def of_all(self, contexts_Nc: Ints) -> Floats:
        """Return the probability of each token after each context, (N, V). Contexts are filled up with -1."""
        chances_NV = np.tile(self._single_V, (len(contexts_Nc), 1))
        for grams, rows, at in self._known(contexts_Nc):
            chances_NV[rows] *= grams.left[at, None]
            many = grams.first[at + 1] - grams.first[at]
            found = np.arange(many.sum()) + np.repeat(grams.first[at] - (np.cumsum(many) - many), many)
            shares = grams.shares(np.repeat(at, many), grams.amounts[found])
            chances_NV[np.repeat(rows, many), grams.keys[found] % self.vocabulary] += shares
        return chances_NV

    def of(self, contexts_Nc: Ints, tokens_N: Ints) -> Floats:
        """Return the probability of one token after each context, (N,)."""
        chances_N: Floats = self._single_V[tokens_N]
        for grams, rows, at in self._known(contexts_Nc):
            place, there = _found(grams.keys, at * self.vocabulary + tokens_N[rows])
            shares = grams.shares(at, np.where(there, grams.amounts[place], 0))
            chances_N[rows] = shares + grams.left[at] * chances_N[rows]
        return chances_N

    def _known(self, contexts_Nc: Ints) -> Iterator[tuple[_Grams, Ints, Ints]]:
        """Yield the n-grams of each order from 2 on, the rows whose context was seen there, and its number in each."""
        number = np.zeros(len(contexts_Nc), dtype=np.int64)
        for length, grams in enumerate(self._grams, start=1):
            tokens = contexts_Nc[:, -length]
            place, there = _found(self._contexts[length - 1], number * self.vocabulary + tokens)
            number = np.where(there & (number >= 0) & (tokens >= 0), place, -1)
            rows = np.flatnonzero(number >= 0)
            yield grams, rows, number[rows]


def _found(keys: Ints, asked: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return a place for each key asked for, and whether the key is there."""
    if not len(keys):
        return np.zeros_like(asked), np.zeros(len(asked), dtype=bool)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return place, keys[place] == asked


def _together(keys: Ints, amounts: Ints, others: Ints, other_amounts: Ints) -> tuple[Ints, Ints]:
    """Return the distinct keys of two lists, in their order, with the sums of their amounts."""
    if not len(others):
        return keys, amounts
    both = np.concatenate([keys, others])
    order = np.argsort(both, kind="stable")
    both = both[order]
    first = np.flatnonzero(np.append(True, both[1:] != both[:-1]))
    return both[first], np.add.reduceat(np.concatenate([amounts, other_amounts])[order], first)
