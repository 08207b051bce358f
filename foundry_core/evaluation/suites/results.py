"""Results of suites: averages with their confidence intervals, and the files beside a run that keep them.

<output_dir>/scores/<checkpoint>/<suite>.json holds the averages, with the digests of the checkpoint and of the suite,
the .tsv beside it the items one by one, and the .regions.tsv the surprisals that formulas compare. With another
measure than `sum` their names begin with <suite>.<measure>.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.errors import one_line, warn
from foundry_core.evaluation.score_table import tsv
from foundry_core.evaluation.suites.kept import (
    COLUMNS,
    DIGESTS,
    Suffix,
    identity,
    read_whole,
    result_path,
    stored,
)
from foundry_core.evaluation.suites.reading import LoadedSuite
from foundry_core.evaluation.suites.scoring import ItemResult, Measure, SuiteScorer, SuiteScores
from foundry_core.models.base import BaseLanguageModel
from foundry_core.run_folder import CHECKPOINT, MANIFEST
from foundry_core.storage.files import StorageError, remove_tree, write_file
from foundry_core.storage.manifest import sealed

Opened: TypeAlias = tuple[BaseLanguageModel, PreTrainedTokenizerFast]

_DRAWS = 2000
_INTERVAL = (2.5, 97.5)
_SEED = 14


def averages(scores: SuiteScores) -> dict[str, Any]:
    """Return the averages of the results of a suite, as they are stored.

    accuracy: over items. macro: mean over the paradigms' accuracies. phenomena: each the mean over its paradigms, and
    phenomena_macro the mean over those. Intervals are percentiles (95 %) of a bootstrap over items: in each draw, as
    many items of each paradigm are drawn from it with replacement. The number of right ones among them is binomial.
    """
    paradigms: dict[str, list[ItemResult]] = {}
    phenomenon_of: dict[str, str] = {}
    left_out = [item for item, _ in scores.left_out]
    for item in [*(result.item for result in scores.results), *left_out]:
        paradigms.setdefault(item.paradigm, [])
        phenomenon_of.setdefault(item.paradigm, item.phenomenon)
    for result in scores.results:
        paradigms[result.item.paradigm].append(result)
    names = [name for name, results in paradigms.items() if results]
    counts_P = np.array([len(paradigms[name]) for name in names])
    means_P = np.array([sum(each.right for each in paradigms[name]) for name in names]) / counts_P
    draws_DP = np.random.default_rng(_SEED).binomial(counts_P, means_P, size=(_DRAWS, len(names))) / counts_P
    found: dict[str, Any] = {
        "items": int(counts_P.sum()),
        "left_out": len(left_out),
        "ties": sum(result.tie for result in scores.results),
        "unknown_share": scores.unknown_share,
        "accuracy": float(means_P @ counts_P / counts_P.sum()),
        "interval": _interval(draws_DP @ counts_P / counts_P.sum()),
        "macro": float(means_P.mean()),
        "macro_interval": _interval(draws_DP.mean(axis=1)),
    }
    found["paradigms"] = {
        name: {"phenomenon": phenomenon_of[name], "accuracy": None, "items": 0, "ties": 0, "interval": None}
        for name in paradigms
    }
    for place, name in enumerate(names):
        found["paradigms"][name] |= {
            "accuracy": float(means_P[place]),
            "items": int(counts_P[place]),
            "ties": sum(result.tie for result in paradigms[name]),
            "interval": _interval(draws_DP[:, place]),
        }
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(phenomenon_of[name], []).append(place)
    groups.pop("", None)
    found["phenomena"] = {
        name: {
            "accuracy": float(means_P[places].mean()),
            "items": int(counts_P[places].sum()),
            "interval": _interval(draws_DP[:, places].mean(axis=1)),
        }
        for name, places in groups.items()
    }
    accuracies = [each["accuracy"] for each in found["phenomena"].values()]
    found["phenomena_macro"] = sum(accuracies) / len(accuracies) if accuracies else None
    return found


def _interval(draws: NDArray[np.float64]) -> list[float]:
    return [float(edge) for edge in np.percentile(draws, _INTERVAL)]


def items_table(results: Sequence[ItemResult]) -> bytes:
    """Return the table of items: tab-separated, a header, a line for each item that was scored."""
    rows: list[Sequence[Any]] = [COLUMNS[".tsv"]]
    for result in results:
        item = result.item
        paradigm, phenomenon, name, place = map(one_line, (item.paradigm, item.phenomenon, item.name, item.place))
        rows.append((paradigm, phenomenon, name, int(result.right), result.margin, place))
    return tsv(rows).encode()


def regions_table(results: Sequence[ItemResult]) -> bytes | None:
    """Return the table of regions, with a line for each score of each item; None if there are none."""
    rows: list[Sequence[Any]] = [COLUMNS[".regions.tsv"]]
    for result in results:
        paradigm, name = one_line(result.item.paradigm), one_line(result.item.name)
        for score, bits in result.scores.items():
            rows.append((paradigm, name, one_line(score.condition), score.region, bits))
    return tsv(rows).encode() if len(rows) > 1 else None


def is_checkpoint_of_a_run(folder: Path) -> bool:
    """Check whether results can be kept for a folder: a checkpoint under the name that its run gave it."""
    return CHECKPOINT.match(folder.name) is not None and (folder / MANIFEST).is_file()


def results_of(
    folder: Path,
    scorer: SuiteScorer,
    opened: Callable[[], Opened],
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Return the results of a suite on a checkpoint or a model folder, and whether they were there already.

    Those of a checkpoint of a run are kept. A folder that this user may not write to is a warning.

    Args:
        folder: The checkpoint.
        scorer: Scores the suite.
        opened: Returns its model and its tokenizer; called only where the results are not there.
        progress: Called with the share of the suite that has been scored.
    """
    suite, measure = scorer.suite, scorer.measure
    if is_checkpoint_of_a_run(folder) and (kept := stored(folder, suite, measure)) is not None:
        return kept, True
    scores = scorer.scores(*opened(), progress)
    if is_checkpoint_of_a_run(folder):
        content = {**described(folder, read_state(folder), suite, measure), **averages(scores)}
        try:
            keep(folder, content, scores)
        except StorageError as error:
            warn(f"the results are not kept: {error}")
        return content, False
    about = {"suite": suite.name, "kind": suite.kind, "checkpoint": folder.name, "measure": measure}
    return {**about, **averages(scores)}, False


def described(checkpoint: Path, state: TrainState, suite: LoadedSuite, measure: Measure) -> dict[str, Any]:
    """Return what results are of, as their file states it besides the averages."""
    seen = {"step": state.step, "words_seen": state.words_seen, "tokens_seen": state.tokens_seen}
    return {**identity(checkpoint, suite, measure), "checkpoint": checkpoint.name, **seen}


def keep(checkpoint: Path, content: Mapping[str, Any], scores: SuiteScores) -> None:
    """Write results beside the run of a checkpoint; warn if they replace those of another suite of that name.

    Args:
        checkpoint: Its folder.
        content: Those of `described` and `averages`.
        scores: The items for the tables.
    """
    path = result_path(checkpoint, content["suite"], content["measure"])
    before = read_whole(path)
    if before is not None and before["suite_digest"] != content["suite_digest"]:
        warn(
            f"{path.parents[1]}: results of another suite called {content['suite']} ({before['items']:,} items) are "
            f"replaced; to keep both, name one of them: NAME={content['kind']}=PATH"
        )
    tables: dict[Suffix, bytes | None]
    tables = {".tsv": items_table(scores.results), ".regions.tsv": regions_table(scores.results)}
    digests = {}
    for suffix, table in tables.items():
        if table is not None:
            write_file(path.with_suffix(suffix), table)
            digests[DIGESTS[suffix]] = hashlib.sha256(table).hexdigest()
        else:  # there may be one of a suite of formulas that had the same name
            remove_tree(path.with_suffix(suffix))
    # The averages come last: where they are, the tables that they name are whole.
    write_file(path, sealed({**content, **digests}))
