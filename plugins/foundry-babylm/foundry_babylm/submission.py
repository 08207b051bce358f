"""The file that is submitted, from the predictions of the official pipeline; nothing is written while any is missing.

Where predictions are, how many there must be, and the layout of the file are read from
strict/evaluation_pipeline/collate_preds.py of github.com/babylm-org/babylm-eval at 45fe2c1, the same as that of 2025.
That script passes over a task that lacks whole parts; here all of them have to be there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foundry_babylm.fast_scores import SCORES
from foundry_babylm.sizes import AOA, FAST, FULL, GLUE
from foundry_babylm.tracks import Track
from foundry_core import FoundryError, did_you_mean, write_answer

_MAIN = "main"
_SHOWN = 3
"""How many parts of a file are named that lack something."""


class _File(NamedTuple):
    """A file of predictions, and how many predictions each of its parts must have, by names in lower case."""

    path: Path
    sizes: Mapping[str, int]


class Results:
    """The pipeline's folder for a model, `results/NAME`, with `main/` and a folder for each checkpoint."""

    def __init__(self, folder: str, track: Track, backend: str | None, last: str | None):
        """Find the folder of the backend.

        Raises:
            FoundryError: There are no results of the backend, those of several, or no such last checkpoint.
        """
        self.folder, self.problems = Path(folder), list[str]()
        names = list(track.checkpoints)
        if last is not None and last not in names:
            raise FoundryError(
                f"--last {last}: the track {track.name} has no such checkpoint.{did_you_mean(last, names)}"
            )
        self.checkpoints = names if last is None else names[: names.index(last) + 1]
        zero_shot = self.folder / _MAIN / "zero_shot"
        found = sorted(path.name for path in zero_shot.iterdir() if path.is_dir()) if zero_shot.is_dir() else []
        if backend is None and len(found) != 1:
            raise FoundryError(
                f"{zero_shot} has results of several backends, {', '.join(found)}: choose one with --backend"
                if found
                else f"{zero_shot}: there is no such folder with results; name results/NAME of the pipeline"
            )
        self.backend = backend or found[0]
        if self.backend not in found:
            there = f"{zero_shot} has results of {', '.join(found)}" if found else "name results/NAME of the pipeline"
            raise FoundryError(f"{zero_shot / self.backend}: there is no such folder with results; {there}")

    def write(self, output: str, fast_data: str | None) -> None:
        """Write the submission; fast_data: the folder that the pipeline scored the checkpoints on.

        Raises:
            FoundryError: Predictions are missing or wrong, a line for each file; fast_data is another folder; or the
                output exists.
        """
        if fast_data is not None and not any(Path(fast_data, each.data).exists() for each in FAST.values()):
            raise FoundryError(f"--fast-data {fast_data}: it is not evaluation_data/fast_eval of the pipeline")
        submission: dict[str, Any] = {}
        for task, (place, sizes) in FULL.items():
            submission[task] = self._predictions(_File(self._zero_shot(_MAIN) / place, sizes))
        submission["aoa"] = self._aoa(self._zero_shot(_MAIN) / "AoA_word" / "surprisal.json")
        submission["glue"] = {}
        for task, size in GLUE.items():
            path = self.folder / _MAIN / "finetune" / task / "predictions.json"
            submission["glue"] |= self._predictions(_File(path, {task: size})) or {}
        if fast_data is not None:
            submission["fast_eval_results"] = self._fast(Path(fast_data))
        if self.problems:
            raise FoundryError("\n".join([*self.problems, f"{output} is not written"]))
        write_answer(json.dumps(submission), output)
        print(f"{output}: the predictions of {self.folder} ({self.backend})")
        if fast_data is None:
            print("It has no scores of the checkpoints, which the challenge asks for: name --fast-data.")

    def _zero_shot(self, checkpoint: str) -> Path:
        return self.folder / checkpoint / "zero_shot" / self.backend

    def _fast(self, data: Path) -> dict[str, list[Any]]:
        """Return the scores of each checkpoint, by task."""
        scores: dict[str, list[Any]] = {task: [] for task in FAST}
        read: dict[str, str] = {}
        for checkpoint in self.checkpoints:
            for task, fast in FAST.items():
                texts = data / fast.data
                names = [path.stem.lower() for path in texts.glob("*.jsonl")] if fast.size is not None else []
                sizes = fast.sizes or dict.fromkeys(names, fast.size or 0)
                if not texts.exists() or not sizes:
                    self._problem(texts, "there is no such part of the data: name evaluation_data/fast_eval")
                    continue
                found = self._predictions(_File(self._zero_shot(checkpoint) / fast.place, sizes))
                if found is None:
                    continue
                try:
                    scores[task].append(SCORES[fast.score](found, texts))
                except (KeyError, ValueError, OSError) as error:
                    self._problem(texts, f"these are not the texts of the predictions: {error}")
                if task == "reading":
                    same = read.setdefault(json.dumps(found), checkpoint)
                    if same != checkpoint:
                        self._problem(self._zero_shot(checkpoint) / fast.place, _same_model(same))
        return scores

    def _predictions(self, file: _File) -> Any:
        """Return the content of a file of predictions; None, and a problem, unless it is complete."""
        content = self._json(file.path)
        if content is None:
            return None
        wrong = list(_wrong_parts(content, file.sizes))
        if wrong:
            more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            return self._problem(file.path, "; ".join(wrong[:_SHOWN]) + more)
        return content

    def _aoa(self, path: Path) -> Any:
        """Return the surprisals of words at each checkpoint; None, and a problem, unless they are complete."""
        content = self._json(path)
        if content is None:
            return None
        rows = content.get("results")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return self._problem(path, "it has no list of results")
        found: dict[Any, list[Any]] = {}
        for row in rows:
            found.setdefault(row.get("step"), []).append(row.get("surprisal"))
        seen: dict[str, str] = {}
        for name in self.checkpoints:
            values = found.get(name, [])
            if len(values) != AOA:
                return self._problem(path, f"{name} has {len(values):,} surprisals, not {AOA:,}")
            if not any(map(_is_number, values)):
                return self._problem(path, f"all surprisals of {name} are NaN: its tokenizer has no bos token")
            same = seen.setdefault(json.dumps(values), name)
            if same != name:
                return self._problem(path, f"{name} has {_same_model(same)}")
        further = sorted(str(name) for name in found.keys() - {*self.checkpoints})
        return self._problem(path, f"it also has {', '.join(further[:_SHOWN])}") if further else content

    def _json(self, path: Path) -> Any:
        if not path.is_file():
            return self._problem(path, "is missing")
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            return self._problem(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return content if isinstance(content, dict) else self._problem(path, "is not an object of JSON")

    def _problem(self, path: Path, what: str) -> None:
        line = f"{path}: {what}"
        if line not in self.problems:
            self.problems.append(line)


def _wrong_parts(content: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield what is wrong with each part of a file of predictions."""
    parts = {str(name).lower(): part for name, part in content.items()}
    yield from (f"{name} is missing" for name in sizes if name not in parts)
    for name, part in parts.items():
        found = part.get("predictions") if isinstance(part, dict) else None
        if name not in sizes:
            yield f"{name} does not belong there"
        elif not isinstance(found, list):
            yield f"{name} has no predictions"
        elif len(found) != sizes[name]:
            yield f"{name} has {len(found):,} predictions, not {sizes[name]:,}"
        elif wrong := sum(not _is_prediction(each) for each in found):
            yield f"{name} has {wrong:,} that are empty or NaN"


def _is_prediction(given: Any) -> bool:
    """Check for a text or a number; the surprisal of a previous word, `prev_pred`, may be NaN where there is none."""
    values = [given.get("pred"), given.get("prob", 0)] if isinstance(given, dict) else [None]
    return all(isinstance(value, str) or _is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _same_model(name: str) -> str:
    return f"the results of {name}: the pipeline ignores a revision of a local folder, so both are of one model"
