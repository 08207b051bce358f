"""The predictions of a suite in the notation of SyntaxGym. A text is parsed into a `Formula`, never run as code.

disjunction = conjunction {"|" conjunction}
conjunction = comparison {"&" comparison}
comparison  = sum [("<" | ">" | "=") sum]
sum         = product {("+" | "-") product}
product     = atom {("*" | "/") atom}
atom        = score | number | "-" atom | "(" disjunction ")" | "[" disjunction "]"
score       = "(" (region number | "*") ";" "%" condition "%" ")"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from foundry_core.errors import did_you_mean
from foundry_core.evaluation.suites.items import Formula, Operation, Score

_TOKEN = re.compile(
    r"\s*(?:(?P<score>\(\s*(?P<region>\d+|\*)\s*;\s*%(?P<condition>[^%]+)%\s*\))"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<sign>[-+*/<>=&|()\[\]])|(?P<end>$))"
)
_CLOSING = {"(": ")", "[": "]"}
_OF_TRUTH = "<>=&|"
"""Signs of operations that hold or do not, and are not numbers."""


class _Token(NamedTuple):
    """A part of a formula. sign: empty for a number or a score, which is `value`, and at the end."""

    start: int
    sign: str
    value: Score | float | None = None


def parse_formula(text: str) -> Formula:
    """Return the prediction that a text states.

    Raises:
        ValueError: The text is not a comparison of numbers, or comparisons joined by & and |; names the character.
    """
    try:
        return _Parser(text).formula()
    except RecursionError:
        raise ValueError("the parentheses of its formula are nested too deeply") from None


def check_formula(formula: Formula, sentences: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless a formula is about regions that the sentences, by condition, have."""
    scores = list(scores_of(formula))
    if not scores:
        raise ValueError("a prediction compares numbers, but no score")
    for region, condition in ((score.region, score.condition) for score in scores):
        written = f"({region};%{condition}%)"
        if condition not in sentences:
            known = f" Known: {', '.join(map(repr, sentences))}."
            raise ValueError(f"{written} has an unknown condition.{did_you_mean(condition, sentences) or known}")
        if region != "*" and not 1 <= region <= len(sentences[condition]):
            raise ValueError(
                f"{written} has an unknown region: the sentence has regions 1 to {len(sentences[condition])}"
            )


def scores_of(formula: Formula) -> Iterator[Score]:
    """Yield the scores in a formula from left to right."""
    if isinstance(formula, Score):
        yield formula
    elif isinstance(formula, Operation):
        yield from scores_of(formula.left)
        yield from scores_of(formula.right)


class _Parser:
    """Reads a formula from left to right; each method reads what its name says and returns it."""

    def __init__(self, text: str):
        self.tokens = list(_tokens(text))
        self.at = 0

    def formula(self) -> Formula:
        found = self.disjunction()
        if self.at < len(self.tokens) - 1:
            raise self.error("is not expected here", self.next)
        if not _is_truth(found):
            raise ValueError("a formula must compare two numbers, with <, > or =")
        return found

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def disjunction(self) -> Formula:
        return self.joined("|", self.conjunction, truth=True)

    def conjunction(self) -> Formula:
        return self.joined("&", self.comparison, truth=True)

    def comparison(self) -> Formula:
        found = self.joined("<>=", self.sum, truth=False, once=True)
        if self.next.sign in tuple("<>="):
            raise self.error("compares a comparison: join two by &", self.next)
        return found

    def sum(self) -> Formula:
        return self.joined("+-", self.product, truth=False)

    def product(self) -> Formula:
        return self.joined("*/", self.atom, truth=False)

    def joined(self, signs: str, operand: Callable[[], Formula], *, truth: bool, once: bool = False) -> Formula:
        """Read operands with these signs between them; `truth`: each operand is a comparison, not a number."""
        found = operand()
        while self.next.sign in tuple(signs):
            token = self.take()
            right = operand()
            for side in (found, right):
                if _is_truth(side) != truth:
                    raise self.error(f"joins {'comparisons' if truth else 'numbers'} only", token)
            found = Operation(token.sign, found, right)
            if once:
                break
        return found

    def atom(self) -> Formula:
        token = self.take()
        if token.value is not None:
            return token.value
        if token.sign in _CLOSING:
            inside = self.disjunction()
            if self.take().sign != _CLOSING[token.sign]:
                raise self.error("is not closed", token)
            return inside
        if token.sign == "-":
            negative = self.atom()
            if _is_truth(negative):
                raise self.error("stands before a comparison", token)
            return -negative if isinstance(negative, float) else Operation("-", 0.0, negative)
        self.at -= 1
        raise self.error("is not a number, a score such as (5;%condition%) or a parenthesis", token)

    def error(self, problem: str, token: _Token) -> ValueError:
        what = f"what begins at character {token.start + 1}" if token.value is not None else "the end"
        what = f"'{token.sign}' at character {token.start + 1}" if token.sign else what
        return ValueError(f"its formula: {what} {problem}")


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            start = len(text) - len(rest)
            word = re.match(r"\w+\(?|.", rest, re.DOTALL)
            shown = word[0] if word is not None else rest
            what = f"{shown!r} at character {start + 1} is not part of a formula"
            raise ValueError(f"its formula: {what}: numbers, scores such as (5;%condition%), + - * / < > = & | ( ) [ ]")
        kind = match.lastgroup
        start = match.end() - len(match[0].lstrip())
        at = match.end()
        if match["score"] is not None:
            region = match["region"]
            yield _Token(start, "", Score("*" if region == "*" else int(region), match["condition"]))
        elif match["number"] is not None:
            yield _Token(start, "", float(match["number"]))
        elif kind == "sign":
            yield _Token(start, match["sign"])
        else:
            yield _Token(start, "")
            return


def _is_truth(formula: Formula) -> bool:
    return isinstance(formula, Operation) and formula.sign in _OF_TRUTH
