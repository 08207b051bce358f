"""Parameter matching: the width at which a cell's model comes closest to a number of parameters.

Which widths the experiment refuses (heads must divide them) is found out by trying: those that it accepts are taken to
lie at multiples of the smallest step from the given one to another one that it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from foundry_core.config.yaml_source import KeyPath
from foundry_core.errors import ConfigError, PluginError
from foundry_core.models.cost import parameter_count
from foundry_core.schema import WIDEST
from foundry_core.study.definition import Cell, Study

TOLERANCE = 0.01
"""How far from the number of parameters a match may be, as a share of it."""


def matched(study: Study, tokenizer_of: Callable[[Cell], PreTrainedTokenizerBase]) -> list[Cell]:
    """Return the cells of a study with the widths at which they have its number of parameters.

    Args:
        study: The study.
        tokenizer_of: Returns the tokenizer of a cell, whose vocabulary is a part of its model.

    Raises:
        ConfigError: There is no width within 1 % for a cell; names the closest.
    """
    assert study.settings.match is not None
    found: dict[str, Cell] = {}
    cells = []
    for cell in study.cells:
        if not cell.by:
            cells.append(cell)
            continue
        key = cell.but_for_the_seed
        if key not in found:
            found[key] = _fitted(study, cell, study.settings.match.parameters, tokenizer_of(cell))
        fit = found[key]
        assert fit.matched is not None
        cells.append(replace(cell.changed(fit.matched), matched=fit.matched, parameters=fit.parameters))
    return cells


class _Widths:
    """The widths that a cell can have, and the parameters that each comes to."""

    def __init__(self, study: Study, cell: Cell, tokenizer: PreTrainedTokenizerBase):
        self.study, self.cell, self.tokenizer = study, cell, tokenizer
        self.refusal = ""
        self.first = _value(study, cell, cell.by[0])
        self.ratios = {key: Fraction(_value(study, cell, key), self.first) for key in cell.by}
        if self.at(2 * self.first) is None:
            self._widen_equal_keys()

    def values(self, width: int) -> dict[str, int]:
        return {key: round(ratio * width) for key, ratio in self.ratios.items()}

    def at(self, width: int) -> int | None:
        """Return the parameters at a width; None if it is refused."""
        return self.of(self.values(width))

    def of(self, values: Mapping[str, int]) -> int | None:
        """Return the parameters with these values of keys; None if the experiment or the model refuses them."""
        try:
            cell = self.cell.changed(values)
            return parameter_count(cell.config, self.tokenizer)
        except ConfigError as error:
            self.refusal = error.problems[0].message
        except (PluginError, ValueError, RuntimeError) as error:  # of the model that is built
            self.refusal = str(error).partition("\n")[0]
        return None

    def of_one(self, values: Mapping[str, int], key: str, width: int) -> int | None:
        """Return the parameters with another value of one key."""
        return self.of({**values, key: width})

    def _widen_equal_keys(self) -> None:
        """Let the other keys of the section that are as large follow, as the embeddings of a transformer must."""
        *section, last = self.cell.by[0].split(".")
        around: Any = self.cell.config.resolved()
        for part in section:
            around = around[part]
        equal = {".".join([*section, key]) for key, value in around.items() if value == self.first and key != last}
        before, refusal = self.ratios, self.refusal
        self.ratios = {**dict.fromkeys(sorted(equal), Fraction(1)), **before}
        if self.at(2 * self.first) is None:
            self.ratios, self.refusal = before, refusal


def _fitted(study: Study, cell: Cell, target: int, tokenizer: PreTrainedTokenizerBase) -> Cell:
    """Return a cell with what was found for its widths."""
    widths = _Widths(study, cell, tokenizer)
    tried = {width: (widths.values(width), count) for width, count in _around(widths.at, widths.first, target).items()}
    if not tried:
        raise _problem(study, cell, f"no other {cell.by[0]} than {widths.first} is valid: {widths.refusal}")

    def off(found: tuple[dict[str, int], int]) -> float:
        return abs(found[1] / target - 1)

    best, last = min(tried.values(), key=off), cell.by[-1]
    if off(best) > TOLERANCE and len(cell.by) > 1:
        # The steps of the first width are too large: the last one makes up the difference, at its two closest values.
        for values, _ in sorted(tried.values(), key=off)[:2]:
            counts = _around(partial(widths.of_one, values, last), values[last], target)
            best = min([best, *(({**values, last: width}, count) for width, count in counts.items())], key=off)
    if off(best) > TOLERANCE:
        values, count = best
        sizes = ", ".join(f"{key.rpartition('.')[2]} {values[key]:,}" for key in cell.by)
        more = "more" if count > target else "fewer"
        closest = f"the closest is {sizes}, with {count:,} ({off(best):.1%} {more})"
        advice = "change match.parameters, or list another width after it under match.by, to make up the difference"
        found = f"no {cell.by[0]} is within {TOLERANCE:.0%} of {target:,} parameters: {closest}; {advice}"
        raise _problem(study, cell, found)
    return replace(cell, matched=best[0], parameters=best[1])


def _around(at: Callable[[int], int | None], first: int, target: int) -> dict[int, int]:
    """Return the parameters at the widths that were tried to find those just below and just above a target.

    Args:
        at: Returns the parameters at a width, which grow with it; None if it is refused.
        first: A width that is not refused.
        target: The parameters that are wanted.
    """
    counts: dict[int, int] = {}

    def below(width: int) -> bool:
        """Note the parameters at a width; whether they are fewer than wanted."""
        count = at(width)
        if count is not None:
            counts[width] = count
        return count is not None and count < target

    step = next((step for step in range(1, max(first, 64) + 1) if at(first + step) is not None), None)
    if step is None:
        return {}
    least, steps = first % step or step, 1
    while below(least + steps * step) and least + 2 * steps * step <= WIDEST:
        steps *= 2
    low, high = -1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(least + middle * step) else (low, middle)
    return counts


def _value(study: Study, cell: Cell, key: str) -> int:
    """Return a whole number that the experiment of a cell has. Raises ConfigError for anything else."""
    value: Any = cell.config.resolved()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if type(value) is not int or value < 1:
        what = f"{key} is {value!r}, not a width" if value is not None else f"there is no key {key}, or it is null"
        raise _problem(study, cell, f"{what}: name a whole number of the experiment, with a value to start from")
    return value


def _problem(study: Study, cell: Cell, message: str) -> ConfigError:
    by, place = study.settings.match and study.settings.match.by, ("match", "by")
    names = (*cell.values.values(), cell.config.model.architecture)
    named: Sequence[str] = [name for name in names if isinstance(by, dict) and name in by]
    inside: KeyPath = (*place, named[0]) if named else place
    return study.problem(inside, f"{message} (cell {cell.name})")
