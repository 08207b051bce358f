"""The scores of a checkpoint on the fast tasks, from its predictions and the texts that it was scored on.

As in strict/evaluation_pipeline/collate_preds.py of github.com/babylm-org/babylm-eval at 45fe2c1, with numpy alone.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

Predictions: TypeAlias = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""The content of a file of predictions: part, `predictions`, and for each item its id and `pred`."""
Scores: TypeAlias = dict[str, float]

_FIXATIONS = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
_WORD = ("Subtlex_log10", "length", "context_length")


def _accuracy(found: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> float:
    right = sum(str(each["pred"]).strip() == str(target).strip() for each, target in zip(found, targets, strict=True))
    return right / len(targets)


def _of_pairs(key: str) -> Callable[[Predictions, Path], Scores]:
    """Return the score of pairs whose better text stands under a key."""

    def score(predictions: Predictions, folder: Path) -> Scores:
        return {
            part: _accuracy(found["predictions"], [row[key] for row in _rows(folder, part)])
            for part, found in predictions.items()
        }

    return score


def _of_tracking(predictions: Predictions, folder: Path) -> Scores:
    targets: dict[str, list[Any]] = {}
    for row in _rows(folder, "regular"):
        targets.setdefault(f"regular_{row['numops']}_ops", []).append(row["options"][0])
    return {part: _accuracy(found["predictions"], targets[part]) for part, found in predictions.items()}


def _of_wugs(predictions: Predictions, folder: Path) -> Scores:
    """Return the rank correlation of the probability of the first form with the share of people who chose it."""
    import numpy as np

    def ranks(values: Sequence[float]) -> Any:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[inverse]

    human = [row["ratio"] for row in _rows(folder, folder.name)]
    return {
        part: float(np.corrcoef(ranks([each["prob"] for each in found["predictions"]]), ranks(human))[0, 1])
        for part, found in predictions.items()
    }


def _of_reading(predictions: Predictions, folder: Path) -> Scores:
    """Return the share of the variance of reading times that surprisal explains beyond what is known of the words."""
    with (folder / "reading_data.csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row, found in zip(rows, predictions["reading"]["predictions"], strict=True):
        row |= {name: found[name] for name in ("pred", "prev_pred")}
    eye = [_gain(rows, measure, _WORD) for measure in _FIXATIONS]
    spoken = _gain(rows, "self_paced_reading_time", (*_WORD, "prev_length", "prev_pred"))
    return {"spr": spoken, "rt": sum(eye) / len(eye)}


def _gain(rows: Sequence[Mapping[str, Any]], measure: str, known: Sequence[str]) -> float:
    """Return by how much `pred` improves the regression of a measure, as a share of what is left to explain."""
    without = _explained(rows, measure, known)
    return (_explained(rows, measure, known, "pred") - without) / (1 - without)


def _explained(rows: Sequence[Mapping[str, Any]], measure: str, known: Sequence[str], *added: str) -> float:
    """Return R^2 of the least-squares fit with the products of every two known columns; rows with NaN are left out."""
    import numpy as np

    table = np.array([[_number(row[name]) for name in (measure, *known, *added)] for row in rows])
    times, *columns = table[~np.isnan(table).any(axis=1)].T
    products = [first * second for first, second in combinations(columns[: len(known)], 2)]
    design = np.column_stack([np.ones_like(times), *columns, *products])
    rest = times - design @ np.linalg.lstsq(design, times, rcond=None)[0]
    return float(1 - (rest @ rest) / ((times - times.mean()) @ (times - times.mean())))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):  # an empty cell, or NA
        return math.nan


def _rows(folder: Path, part: str) -> list[dict[str, Any]]:
    lines = (folder / f"{part}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


SCORES: dict[str, Callable[[Predictions, Path], Scores]] = {
    "good": _of_pairs("sentence_good"),
    "ewok": _of_pairs("Target1"),
    "tracking": _of_tracking,
    "wug": _of_wugs,
    "reading": _of_reading,
}
