"""Readers of tables: a prefix and two forms (Gulordava et al. 2018), and pairs or sets with a line of column names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from foundry_core.corpus.files import refuse, shown
from foundry_core.corpus.reader import placed_lines
from foundry_core.errors import did_you_mean
from foundry_core.evaluation.suites.formulas import check_formula, parse_formula
from foundry_core.evaluation.suites.items import Formula, Operation, Region, Score, SuiteItem
from foundry_core.evaluation.suites.pairs_files import refuse_nothing, stem

_TAB = ("pattern", "constr_id", "sent_id", "form", "class", "prefix")
_DESCRIPTION = ("item", "paradigm", "phenomenon", "prefix")
"""Columns of a table that are not sentences."""
_PREDICTION = "#prediction:"


def _prefix_and_forms(
    prefix: str, good: str, bad: str, name: str, paradigm: str, place: Path, phenomenon: str = ""
) -> SuiteItem:
    """Return an item that predicts of two forms after a prefix which one is less surprising there."""
    better = Operation("<", Score(2, "good"), Score(2, "bad"))
    sentences = {"good": (prefix, good), "bad": (prefix, bad)}
    return SuiteItem(name, paradigm, sentences, (better,), shown(place), phenomenon)


def read_gulordava(path: Path) -> Iterator[SuiteItem]:
    """Yield the items of Gulordava et al. (2018) and of Linzen et al. (2016) as they gave them: a prefix and two forms.

    A .tab file has a row for each form. A .gold file has the place of the form and both forms, and the sentences are
    the lines of the .text file beside it.

    Raises:
        DataError: A row is not such a row, or has no partner; names file and line.
    """
    lines = list(placed_lines(path))
    refuse_nothing(path, lines)
    return _gold_items(path, lines) if ".gold" in path.suffixes else _tab_items(path, lines)


def _tab_items(path: Path, lines: list[tuple[Path, str]]) -> Iterator[SuiteItem]:
    """Yield items of a .tab file; a paradigm is a pattern, of original or of generated (nonce) sentences."""
    rows = csv.reader((f"{text}\n" for _, text in lines), delimiter="\t", strict=True)  # quoted where it has quotes
    waiting: dict[tuple[str, ...], tuple[Path, dict[str, str]]] = {}
    header: list[str] = []
    try:
        for cells in rows:
            place = lines[rows.line_num - 1][0]
            if not header:
                header = cells
                for column in (column for column in _TAB if column not in header):
                    refuse(place, f"has no column {column}: {', '.join(_TAB)} are needed.{did_you_mean(column, cells)}")
                continue
            _refuse_unequal(place, cells, header)
            row = dict(zip(header, cells, strict=True))
            for column in _TAB:
                if not row[column].strip():
                    refuse(place, f"its {column} is empty.")
            if row["class"] not in ("correct", "wrong"):
                refuse(place, f"its class is {row['class'][:20]!a}, not correct or wrong.")
            kind = row.get("type", "")
            key = (f"{kind}-{row['pattern']}".lstrip("-"), row["constr_id"], row["sent_id"])
            if key not in waiting:
                waiting[key] = place, row
                continue
            first_place, first = waiting.pop(key)
            if first["class"] == row["class"] or first["prefix"] != row["prefix"]:
                what = f"is {row['class']}, too" if first["class"] == row["class"] else "has another prefix"
                refuse(place, f"{what}: {first_place.name} is of the same item, which has a correct and a wrong form.")
            good, bad = (first, row) if row["class"] == "wrong" else (row, first)
            name = f"{row['constr_id']}-{row['sent_id']}"
            yield _prefix_and_forms(row["prefix"], good["form"], bad["form"], name, key[0], first_place, kind)
    except csv.Error as error:
        refuse(lines[min(rows.line_num, len(lines)) - 1][0], f"not a row of a table: {error}.", error)
    for place, row in waiting.values():
        refuse(place, f"has no partner: the item needs a {'wrong' if row['class'] == 'correct' else 'correct'} form.")


def _gold_items(path: Path, lines: list[tuple[Path, str]]) -> Iterator[SuiteItem]:
    """Yield items of a .gold file: index, correct form, wrong form, attractors; or the 12 columns of generated.gold."""
    beside = path.with_name(path.name.replace(".gold", ".text"))
    texts = list(placed_lines(beside))
    if len(texts) != len(lines):
        refuse(beside, f"has {len(texts):,} lines, {path.name} has {len(lines):,}: each is of one sentence.")
    for number, ((place, line), (text_place, text)) in enumerate(zip(lines, texts, strict=True), 1):
        cells = line.split("\t")
        if len(cells) not in (4, 12):
            refuse(
                place, f"has {len(cells)} columns, not 4 (index, correct, wrong, attractors) or the 12 of Gulordava."
            )
        index, good, bad = (cells[0], cells[1], cells[2]) if len(cells) == 4 else (cells[3], cells[6], cells[7])
        words = text.split(" ")
        if not index.isdecimal() or not 0 < int(index) < len(words):
            refuse(place, f"its index is {index[:20]!a}, not one of a word of {text_place.name} after the first.")
        if not good.strip() or not bad.strip():
            refuse(place, "a form is empty.")
        if len(cells) == 4:
            name, paradigm, kind = str(number), f"{stem(path)}, {cells[3]} attractors", ""
        else:  # as the .tab file has it
            kind = "generated" if cells[2] != "0" else "original"
            name, paradigm = f"{cells[1]}-{cells[2]}", f"{kind}-{cells[0].partition('!Number')[0].replace('!', '__')}"
        yield _prefix_and_forms(" ".join(words[: int(index)]), good, bad, name, paradigm, place, kind)


def _refuse_unequal(place: Path, cells: Sequence[str], header: Sequence[str]) -> None:
    if len(cells) != len(header):
        refuse(place, f"has {len(cells)} columns, the line of column names has {len(header)}.")


def read_tsv(path: Path) -> Iterator[SuiteItem]:
    """Yield the items of a table: columns `good` and `bad` for pairs, more of them for sets, or named conditions.

    Lines before the column names that begin with `#prediction:` state what is predicted, as SyntaxGym does. Without
    one, `good` is to be less surprising than `bad` and every other column whose name begins with bad; such cells may be
    empty, but one. Other columns may be item, paradigm, phenomenon, and prefix, which precedes each sentence: then the
    regions are 1 for the prefix and 2 for what follows it, which is compared.

    Raises:
        DataError: A line does not fit its column names, or a prediction is not a formula of them; names file and line.
    """
    lines = list(placed_lines(path))
    refuse_nothing(path, lines)
    stated: list[tuple[Path, Formula]] = []
    at = 0
    while at < len(lines) and lines[at][1].startswith("#"):
        place, line = lines[at]
        if line.startswith(_PREDICTION):
            stated.append((place, _parsed(place, line.removeprefix(_PREDICTION))))
        at += 1
    if at == len(lines):
        refuse(lines[-1][0], "is the last line: the column names are missing.")
    head, line = lines[at]
    columns = [cell.strip() for cell in line.split("\t")]
    conditions = _conditions(head, columns, stated=bool(stated))
    if at + 1 == len(lines):
        refuse(head, "is the last line: there are column names, but no items.")
    prefixed = "prefix" in columns
    for place, formula in stated:
        _checked(place, formula, dict.fromkeys(conditions, ("",) * (1 + prefixed)))
    for number, (place, line) in enumerate(lines[at + 1 :], 1):
        cells = line.split("\t")
        _refuse_unequal(place, cells, columns)
        row = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
        for column, cell in row.items():
            if not cell and (stated or column not in conditions or column == "good"):
                refuse(place, f"its {column} is empty.")
        given = {name: row[name] for name in conditions if row[name]}
        if len(given) == 1:
            refuse(place, "has a good sentence, but no bad one.")
        sentences = {name: (row["prefix"], text) if prefixed else (text,) for name, text in given.items()}
        predictions = tuple(formula for _, formula in stated) or tuple(_better(given, prefixed))
        name, paradigm = row.get("item", str(number)), row.get("paradigm", stem(path))
        yield SuiteItem(name, paradigm, sentences, predictions, shown(place), row.get("phenomenon", ""))


def _better(given: Mapping[str, str], prefixed: bool) -> Iterator[Formula]:
    """Yield for each bad sentence that the good one is less surprising."""
    region: Region = 2 if prefixed else "*"
    for bad in given:
        if bad != "good":
            yield Operation("<", Score(region, "good"), Score(region, bad))


def _conditions(place: Path, columns: Sequence[str], *, stated: bool) -> list[str]:
    """Return the columns that are sentences; `stated`: predictions say what is expected of them."""
    twice = [column for column, times in Counter(columns).items() if times > 1]
    if twice or "" in columns:
        refuse(place, f"{f'names the column {twice[0]!a} twice' if twice else 'has a column without a name'}.")
    found = [column for column in columns if column not in _DESCRIPTION]
    odd = next((column for column in found if column != "good" and not column.startswith("bad")), None)
    if not stated and (odd is not None or "good" not in found or len(found) < 2):
        near = did_you_mean(odd, ("good", "bad", *_DESCRIPTION)) if odd is not None else ""
        problem = f"the column {odd!a} is not known{near}" if odd is not None else "columns good and bad are needed"
        refuse(
            place,
            f"{problem}: name the columns good, bad, bad2, ... and perhaps {', '.join(_DESCRIPTION)}, or state before "
            f"this line what is expected, as {_PREDICTION} (*;%one%) < (*;%other%)",
        )
    return found


def _parsed(place: Path, text: str) -> Formula:
    try:
        return parse_formula(text)
    except ValueError as error:
        refuse(place, f"{error}.", error)


def _checked(place: Path, formula: Formula, sentences: Mapping[str, Sequence[str]]) -> None:
    try:
        check_formula(formula, sentences)
    except ValueError as error:
        refuse(place, f"its formula: {error}.", error)
