"""The reader of SyntaxGym's test suites: JSON with items, their conditions in regions, and formulas of predictions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from foundry_core.corpus.files import refuse, shown
from foundry_core.corpus.json_texts import plain_text
from foundry_core.corpus.reader import placed_lines
from foundry_core.evaluation.suites.formulas import check_formula, parse_formula
from foundry_core.evaluation.suites.items import Formula, SuiteItem
from foundry_core.evaluation.suites.pairs_files import object_with_unique_keys, stem

_BRACES = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\n]')
_CIRCUITS = {
    "number": "agreement",
    "npi": "licensing",
    "reflexive": "licensing",
    "mvrr": "garden_path_effects",
    "npz": "garden_path_effects",
    "subordination": "gross_syntactic_state",
    "center": "center_embedding",
    "cleft": "long_distance_dependencies",
    "fgd": "long_distance_dependencies",
}
"""What Hu et al. (2020) average their test suites to, by the beginning of a suite's name."""


class _Object(dict[str, Any]):
    """A JSON object, with the line on which it begins."""

    line: int


def read_syntaxgym(path: Path) -> Iterator[SuiteItem]:
    """Yield the items of a test suite. Regions are read without white space at their ends and joined by spaces.

    Raises:
        DataError: The file is not a test suite; names the line on which the object begins that is not what it should
            be, and the item.
    """
    suite = _parsed(path)
    meta = suite.get("meta", {})
    if not isinstance(meta, dict):
        _refuse(path, suite, '"meta" is not an object')
    if meta.get("metric", "sum") not in ("sum", ""):
        _refuse(path, meta, f"its metric is {meta['metric']!r}: only sums over the tokens of a region are read")
    name = meta.get("name") or stem(path)
    if not isinstance(name, str):
        _refuse(path, meta, f'the "name" of the suite is {type(name).__name__}, not a string')
    formulas = [_formula(path, each) for each in _objects(path, suite, "predictions")]
    phenomenon = _CIRCUITS.get(re.split("[_-]", name)[0], "")
    for each in _objects(path, suite, "items"):
        number = each.get("item_number")
        if type(number) is not int and (not isinstance(number, str) or not number):
            _refuse(path, each, 'an item needs an "item_number"')
        item = f"item {number}: "
        sentences = dict(_sentences(path, each, item))
        for formula in formulas:
            try:
                check_formula(formula, sentences)
            except ValueError as error:
                _refuse(path, each, f"{item}{error}")
        yield SuiteItem(str(number), name, sentences, tuple(formulas), shown(_place(path, each)), phenomenon)


def _sentences(path: Path, item: _Object, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each condition of an item and the regions of its sentence."""
    seen = set()
    for condition in _objects(path, item, "conditions", where):
        name = _text(path, condition, "condition_name", where)
        if name in seen or not name:
            _refuse(path, condition, f"{where}{f'the condition {name!a} is there twice' if name else 'has no name'}")
        seen.add(name)
        regions = []
        for number, region in enumerate(_objects(path, condition, "regions", f"{where}{name}: "), 1):
            found = region.get("region_number", number)
            if found != number or type(found) is not int:
                _refuse(path, region, f"{where}{name}: region_number is {found!r}, not {number}: they count from 1")
            regions.append(_text(path, region, "content", f"{where}{name}: region {number}: ").strip())
        if not any(regions):
            _refuse(path, condition, f"{where}the sentence of {name} is empty")
        yield name, tuple(regions)


def _formula(path: Path, prediction: _Object) -> Formula:
    if prediction.get("type", "formula") != "formula":
        _refuse(path, prediction, f"a prediction has the type {prediction['type']!r}: only 'formula' is read")
    text = _text(path, prediction, "formula", "a prediction: ")
    try:
        return parse_formula(text)
    except ValueError as error:
        _refuse(path, prediction, f"a prediction: {error}", error)


def _parsed(path: Path) -> _Object:
    """Return the object of a file; each object in it has its line."""
    text = "\n".join(line for _, line in placed_lines(path))
    if not text.strip():
        refuse(path, "is empty.")
    lines = iter(_closing_order(text))

    def made(pairs: list[tuple[str, Any]]) -> _Object:
        found = _Object(pairs)
        found.line = next(lines)
        try:
            object_with_unique_keys(pairs)
        except ValueError as error:
            _refuse(path, found, str(error), error)
        return found

    try:
        found = json.loads(text, object_pairs_hook=made)
    except json.JSONDecodeError as error:
        refuse(Path(f"{path}:{error.lineno}"), f"not JSON: {error.msg} at column {error.colno}.", error)
    except RecursionError as error:
        refuse(path, "not a test suite: nested too deeply.", error)
    if not isinstance(found, _Object):
        refuse(Path(f"{path}:1"), "not a test suite of SyntaxGym: an object with predictions and items is needed.")
    return found


def _closing_order(text: str) -> list[int]:
    """Return the line on which each object of a JSON text begins, in the order in which they end."""
    line, begun, ended = 1, list[int](), list[int]()
    for match in _BRACES.finditer(text):
        if match[0] == "\n":
            line += 1
        elif match[0] == "{":
            begun.append(line)
        elif match[0] == "}" and begun:
            ended.append(begun.pop())
    return ended


def _objects(path: Path, parent: _Object, key: str, where: str = "") -> list[_Object]:
    """Return the objects of an array, which is not empty."""
    found = parent.get(key)
    if not isinstance(found, list) or not found:
        problem = "is missing" if key not in parent else "is empty" if found == [] else "is not an array"
        _refuse(path, parent, f'{where}"{key}" {problem}')
    for each in found:
        if not isinstance(each, _Object):
            _refuse(path, parent, f'{where}"{key}" has a {type(each).__name__} where an object is needed')
    return found


def _text(path: Path, parent: _Object, key: str, where: str) -> str:
    try:
        return plain_text(parent, key)
    except ValueError as error:
        _refuse(path, parent, f"{where}{error}", error)


def _place(path: Path, found: Mapping[str, Any]) -> Path:
    return Path(f"{path}:{getattr(found, 'line', 1)}")


def _refuse(path: Path, found: Mapping[str, Any], problem: str, cause: BaseException | None = None) -> NoReturn:
    refuse(_place(path, found), f"{problem}.", cause)
