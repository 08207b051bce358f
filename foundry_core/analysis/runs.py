"""A run that has been trained, read from its folder: configuration, metrics, checkpoints, scores. Imports no torch.

`open_run` is for notebooks, and its tables are pandas data frames. The same rows as plain lists are `steps`,
`evaluated`, `saved` and `scored`, for which pandas is not needed.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from foundry_core.checkpoints.names import named_checkpoints
from foundry_core.config.settings import SEEDS, covered, flat
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import CheckpointError, UsageError, warn
from foundry_core.evaluation.suites.kept import VERSION, Suffix, read_averages, rows_of
from foundry_core.run_folder import CHECKPOINT, CONFIG, METRICS, RECORD, SCORES, TRAINER_STATE
from foundry_core.storage.files import read_appended
from foundry_core.storage.manifest import parse_json, read_plain_file

if TYPE_CHECKING:
    from pandas import DataFrame

Facts: TypeAlias = dict[str, Any]
"""A row of a table: values by the names of their columns."""

UNITS = ("tokens", "words", "bytes")
_OF_A_SCORE = ("step", "tokens_seen", "words_seen", "suite", "suite_digest", "measure")
_OF_A_PART = ("accuracy", "items", "macro", "phenomena_macro", "left_out")
_LEVELS = {"suite": 0, "phenomenon": 1, "paradigm": 2}


def open_run(folder: str | Path) -> Run:
    """Open the folder of a run, that is its `training.output_dir`.

    Raises:
        CheckpointError: It is not the folder of a run, or what it holds is damaged.
    """
    return Run(folder)


def is_run(folder: Path) -> bool:
    """Check whether a folder holds what every run writes at its start."""
    return (folder / CONFIG).is_file() and (folder / RECORD).is_file()


class Run:
    """What a run has left in its folder; each file is read when it is first asked for.

    Attributes:
        folder: The folder.
        config: The resolved configuration as plain data, every default written out.
        record: The content of run.json: versions, device, corpora, plan.
        cell: In a study, the name of its value on each axis but that of the seeds; empty outside of one.
    """

    def __init__(self, folder: str | Path, cell: Mapping[str, str] | None = None):
        self.cell = dict(cell or {})
        self.folder = Path(os.path.expanduser(folder))  # noqa: PTH111 - leaves ~nobody as it is
        if not is_run(self.folder):
            what = f"it has no {CONFIG} with a {RECORD}" if self.folder.is_dir() else "there is no such folder"
            raise CheckpointError(f"{self.folder} is not a run: {what}")
        self.config: Mapping[str, Any] = _mapping(self.folder / CONFIG, YamlSource.read(self.folder / CONFIG).data)
        record = self.folder / RECORD
        self.record: Mapping[str, Any] = _mapping(record, parse_json(record, read_plain_file(record)))
        for section in ("data", "model", "training"):
            _mapping(self.folder / CONFIG, self.config.get(section))

    def __repr__(self) -> str:
        return f"open_run({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """`experiment_name`."""
        return str(self.config.get("experiment_name", self.folder.name))

    @property
    def architecture(self) -> str:
        """`model.architecture`."""
        return str(self.config["model"].get("architecture"))

    @property
    def objective(self) -> str:
        """`training.objective`."""
        return str(self.config["training"].get("objective"))

    @property
    def seed(self) -> int | None:
        """`random_seed`."""
        seed = self.config.get("random_seed")
        return seed if isinstance(seed, int) else None

    @property
    def seeds(self) -> dict[str, Any]:
        """`random_seed`, and the seeds under `seeds:` that are others, by their keys."""
        given = {key: value for key, value in flat(self.config).items() if covered(key, SEEDS) and value is not None}
        return {key: value for key, value in given.items() if key == "random_seed" or value != self.seed}

    @property
    def seed_label(self) -> int | str | None:
        """`random_seed`, with the seeds that are others as text."""
        return self.seed if len(self.seeds) < 2 else ", ".join(f"{key} {value}" for key, value in self.seeds.items())

    @property
    def parameters(self) -> int | None:
        """Number of parameters, embeddings included."""
        return self.record.get("parameters")

    @property
    def step(self) -> int:
        """The last step of which there is a report; 0 before the first one."""
        return max((row["step"] for row in (*self.steps[-1:], *self.evaluated[-1:])), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of the training text seen so far."""
        return self._seen("tokens")

    @property
    def words(self) -> int:
        """Words of the training text seen so far."""
        return self._seen("words")

    @property
    def flops(self) -> float | None:
        """Floating-point operations of the training so far; None for a run of a version that did not record them."""
        return self._flops(self.tokens)

    @property
    def seconds(self) -> float | None:
        """Seconds of training so far, without evaluations and saving; None before the first report."""
        return self.steps[-1]["seconds"] if self.steps else None

    @property
    def finished(self) -> bool:
        """Whether the last step of the plan has been taken; early stopping ends a run before it."""
        plan = self.record.get("plan")
        return isinstance(plan, dict) and self.step >= plan.get("total_steps", 0)

    @property
    def state(self) -> Facts:
        """Position and digests of the newest checkpoint, as it stores them; empty without a checkpoint."""
        return self.saved[-1]["state"] if self.saved else {}

    def metrics(self) -> DataFrame:
        """Return a row for each logged step, with the seconds and the FLOPs until then."""
        return _frame(self.steps)

    def evaluations(self) -> DataFrame:
        """Return a row for each evaluation; `corpus` is validation or test."""
        return _frame(self.evaluated)

    def checkpoints(self) -> DataFrame:
        """Return a row for each checkpoint: step, what had been seen, folder, and the name of its milestone."""
        return _frame([{name: value for name, value in row.items() if name != "state"} for row in self.saved])

    def scores(self) -> DataFrame:
        """Return a row for each result: of a suite, of each phenomenon and each paradigm, at each step that was scored.

        `level` is suite, phenomenon or paradigm; low and high are the interval over items. `checkpoint` is None where
        a suite was scored during training and the step has no checkpoint: paradigms and items are not kept then.
        """
        return _frame([{name: value for name, value in row.items() if name != "file"} for row in self.scored])

    def items(self, suite: str, checkpoint: str | None = None) -> DataFrame:
        """Return a row for each item of a suite.

        Args:
            suite: The name of the suite.
            checkpoint: The folder of a checkpoint, such as "checkpoint-1000"; the last one that was scored by default.

        Raises:
            UsageError: There are no results of it.
        """
        return _frame(self.item_rows(suite, checkpoint))

    def regions(self, suite: str, checkpoint: str | None = None) -> DataFrame:
        """Return a row for each region of the sentences that a suite compares, with its surprisal in bits.

        `condition` names the sentence of the item. `region` is text: "1" for the first, "*" for the whole sentence.

        Args:
            suite: The name of the suite.
            checkpoint: As for `items`.

        Raises:
            UsageError: There are no results of it, or it has minimal pairs, of which only differences are computed.
        """
        return _frame(self.region_rows(suite, checkpoint))

    @cached_property
    def steps(self) -> list[Facts]:
        """The reports of logged steps, in order; of an auxiliary term, `auxiliary.<name>`."""
        rows, seconds, before = [], 0.0, 0
        for line in self._reports:
            if line["kind"] != "train":
                continue
            # Speeds are measured between two reports, evaluations and saving taken out. They survive an interruption,
            # which the time on the clock does not.
            speed = line.get("tokens_per_second") or 0.0
            seconds += (line["tokens_seen"] - before) / speed if speed > 0 else 0.0
            before = line["tokens_seen"]
            named = {f"auxiliary.{name}": value for name, value in (line.get("auxiliary") or {}).items()}
            plain = {name: value for name, value in line.items() if not isinstance(value, dict) and name != "kind"}
            rows.append({**plain, **named, "seconds": seconds, "flops": self._flops(before)})
        return rows

    @cached_property
    def evaluated(self) -> list[Facts]:
        """The evaluations, in order."""
        rows, at = [], {row["step"]: row for row in self.steps}
        for line in self._reports:
            if line["kind"] == "eval":
                trained = at.get(line["step"], {})
                # Runs of the first version recorded neither the corpus nor what had been seen.
                seen = {f"{unit}_seen": trained.get(f"{unit}_seen") for unit in UNITS}
                row = {"corpus": "test", **seen, **line}
                del row["kind"]
                rows.append(row | self._cost(row["step"], row["tokens_seen"]))
        return rows

    @cached_property
    def saved(self) -> list[Facts]:
        """The checkpoints by step, with the state that each stores."""
        matches = ((path, CHECKPOINT.match(path.name)) for path in self.folder.iterdir())
        paths = {int(match.group(1)): path for path, match in matches if match is not None}
        names = {target: link.name for link, target in named_checkpoints(self.folder).items()}
        rows = []
        for step, path in sorted(paths.items()):
            file = path / TRAINER_STATE
            state = _mapping(file, _mapping(file, parse_json(file, read_plain_file(file))).get("foundry"))
            seen = {name: state.get(name) for name in ("tokens_seen", "words_seen", "epoch")}
            place = {"folder": str(path), "name": names.get(path.name), "state": state}
            rows.append({"step": step, **seen, **self._cost(step, seen["tokens_seen"]), **place})
        return rows

    @cached_property
    def scored(self) -> list[Facts]:
        """The results of suites by suite and step: those beside the checkpoints, and those reported during training."""
        paths = sorted((self.folder / SCORES).glob("*/*.json"))
        results = ((path, _result(path)) for path in paths)
        found = [row for path, result in results if result is not None for row in _results_of(result, path)]
        kept = {(row["suite"], row["step"]) for row in found}
        reported = {(each["suite"], each["step"]): each for each in self._reports if each["kind"] == "suite"}
        found += [row for at, each in reported.items() if at not in kept for row in _results_of(each, None)]
        rows = [row | self._cost(row["step"], row["tokens_seen"]) for row in found]
        return sorted(rows, key=lambda row: (row["suite"], row["step"], _LEVELS[row["level"]]))

    def item_rows(self, suite: str, checkpoint: str | None = None) -> list[Facts]:
        """Return the rows of `items` as plain data."""
        return [
            row | {"right": row["right"] == "1", "margin": float(row["margin"]) if row["margin"] else None}
            for row in self._rows(".tsv", suite, checkpoint)
        ]

    def region_rows(self, suite: str, checkpoint: str | None = None) -> list[Facts]:
        """Return the rows of `regions` as plain data."""
        rows = self._rows(".regions.tsv", suite, checkpoint)
        return [row | {"surprisal": float(row["surprisal"])} for row in rows]

    def _rows(self, suffix: Suffix, suite: str, checkpoint: str | None) -> Iterator[Facts]:
        """Yield the rows of a table of a suite, values as text, with the step."""
        whole = [row for row in self.scored if row["level"] == "suite" and row["file"]]
        found = [row for row in whole if row["suite"] == suite and checkpoint in (None, row["checkpoint"])]
        if not found:
            where = f" at {checkpoint}" if checkpoint is not None else ""
            known = ", ".join(dict.fromkeys(row["suite"] for row in whole)) or "none"
            raise UsageError(f"{self.folder} has no results of a suite {suite!r}{where}; it has: {known}")
        path = Path(found[-1]["file"])
        if suffix == ".regions.tsv" and not path.with_suffix(suffix).exists():
            raise UsageError(
                f"{path}: {suite!r} has no surprisals of regions; formulas have them, minimal pairs do not"
            )
        yield from ({"step": found[-1]["step"]} | row for row in rows_of(path, suffix))

    @cached_property
    def _reports(self) -> list[Facts]:
        path = self.folder / METRICS
        if not os.path.lexists(path):
            return []
        lines = read_appended(path).split(b"\n")[:-1]  # what follows the last line end was torn by a crash
        return [_report(path, number, line) for number, line in enumerate(lines, start=1)]

    def _seen(self, unit: str) -> int:
        last = (*self.steps[-1:], *self.evaluated[-1:])
        return max((row.get(f"{unit}_seen") or 0 for row in last), default=0)

    def _flops(self, tokens: int | None) -> float | None:
        """Return the operations that so many tokens have taken: every token takes as many as any other."""
        whole, budget = self.record.get("training_flops"), _budget(self.record).get("tokens")
        return whole * (tokens or 0) / budget if whole is not None and budget else None

    def _cost(self, step: int, tokens: int | None) -> Facts:
        """Return the time until the last report up to a step, and the operations that so many tokens have taken."""
        before = bisect_right(self._logged, step)
        return {"seconds": self.steps[before - 1]["seconds"] if before else 0.0, "flops": self._flops(tokens)}

    @cached_property
    def _logged(self) -> list[int]:
        return [row["step"] for row in self.steps]


def _budget(record: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = record.get("plan")
    budget = plan.get("budget") if isinstance(plan, dict) else None
    return budget if isinstance(budget, dict) else {}


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is not what a run writes")
    return content


def _report(path: Path, number: int, line: bytes) -> Facts:
    """Return a line of metrics.jsonl; Python's JSON reads the infinities that a perplexity can reach."""
    try:
        report: Facts = json.loads(line)
        if type(report["step"]) is not int:
            raise ValueError("its step is not a number")
        needed = {"train": ("loss", "tokens_seen"), "eval": ("loss",), "suite": ("accuracy", "tokens_seen")}
        names = needed.get(report["kind"], ())
        if not all(isinstance(report[name], int | float) for name in names):
            raise ValueError(f"it lacks one of: {', '.join(names)}")
        if report["kind"] == "suite":
            phenomena = {name: {"accuracy": float(value)} for name, value in report["phenomena"].items()}
            return report | {"suite": str(report["suite"]), "phenomena": phenomena, "paradigms": {}}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}:{number}: not a report of training: {type(error).__name__}: {error}") from error
    return dict(report)


def _result(path: Path) -> Facts | None:
    """Return the result of a suite on a checkpoint; None, with a warning, for one of another version."""
    result = read_averages(path)
    if result.get("version") != VERSION:
        warn(f"{path} is left out: another version of foundry computed it; score again with foundry evaluate --suite")
        return None
    return result


def _suite(result: Facts) -> str:
    """Return the name of a suite; with another measure than the sum of log-probabilities, that too."""
    measure = result.get("measure", "sum")
    return str(result["suite"]) if measure == "sum" else f"{result['suite']} ({measure})"


def _results_of(result: Facts, path: Path | None) -> Iterator[Facts]:
    """Yield the rows of a result: whole suite, phenomena, paradigms. path: Its file; None of a line of the metrics."""
    shared: Facts = {name: result.get(name) for name in _OF_A_SCORE} | {"suite": _suite(result)}
    shared |= {"checkpoint": path.parent.name, "file": str(path)} if path else {"checkpoint": None, "file": None}
    parts = [("suite", shared["suite"], result)]
    parts += [("phenomenon", name, each) for name, each in result["phenomena"].items()]
    parts += [("paradigm", name, each) for name, each in result["paradigms"].items()]
    for level, name, part in parts:
        low, high = part.get("interval") or (None, None)
        macro_low, macro_high = part.get("macro_interval") or (None, None)
        phenomenon = name if level == "phenomenon" else part.get("phenomenon")
        found = {"level": level, "name": name, "phenomenon": phenomenon, "low": low, "high": high}
        found |= {"macro_low": macro_low, "macro_high": macro_high}
        yield shared | {key: part.get(key) for key in _OF_A_PART} | found


def _frame(rows: Iterable[Facts]) -> DataFrame:
    try:
        import pandas
    except ImportError:
        raise UsageError("data frames need a package: pip install model-foundry[analysis]") from None
    return pandas.DataFrame(list(rows))
