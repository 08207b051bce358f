"""`foundry evaluate --suite`: score suites on one checkpoint or on all of a run, keep the results, and show them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foundry_core.cli.common import (
    checkpoint_folder,
    large_imports,
    listing,
    load_plugins,
    open_folder,
    table,
    whole_checkpoints,
)
from foundry_core.errors import UsageError, warned_once
from foundry_core.run_folder import SCORES

if TYPE_CHECKING:
    from foundry_core.evaluation.suites.scoring import SuiteScorer

_COLUMNS = 6
"""Checkpoints that a table by phenomenon shows; they are spread over the run."""


class _Result(NamedTuple):
    """The results of a suite on a checkpoint, as they are stored. reused: They were there."""

    content: Mapping[str, Any]
    reused: bool


def evaluate_suites(options: argparse.Namespace) -> None:
    """Score the suites that the command line names, and print the results."""
    with large_imports():
        from foundry_core.evaluation.suites.reading import read_suite
        from foundry_core.evaluation.suites.results import is_checkpoint_of_a_run
        from foundry_core.evaluation.suites.scoring import MEASURES, SuiteScorer
        from foundry_core.models.building import described, read_description
        from foundry_core.training.suites import check_names

    files = load_plugins(options)
    folders = whole_checkpoints(options.checkpoint) if options.all else [checkpoint_folder(options.checkpoint)]
    config, _ = described(read_description(folders[0]))
    plugins = dict.fromkeys([*config.chosen.plugins.modules, *files])
    suites = [read_suite(spec, list(plugins), installed=True) for spec in options.suites]
    check_names(suites)
    counted = options.measure in ("pmi", "slor")
    unigrams = cache(partial(_unigrams, folders[0], options.device)) if counted else None
    scorers = [SuiteScorer(suite, options.measure, unigrams) for suite in suites]
    results = _results(folders, scorers, options.device)
    if options.json:
        found = [[{**result.content, "reused": result.reused} for result in of] for of in results]
        print(json.dumps({"suites": found}, indent=1))
        return
    facts = {"measure": MEASURES[scorers[0].measure]}
    if not options.all:
        facts = {"checkpoint": str(folders[0])} | facts
    if is_checkpoint_of_a_run(folders[0]):
        facts["kept in"] = str(folders[0].parent / SCORES)
        reused = sum(result.reused for of in results for result in of)
        if reused:
            facts["reused"] = f"{reused} of {sum(map(len, results))} results, kept of the same checkpoints and suites"
    print(listing(facts.items()))
    for of in results:
        print(f"\n{_shown(of, by_checkpoint=options.all)}")


def _unigrams(folder: Path, device: str) -> Any:
    from foundry_core.evaluation.suites.unigrams import unigram_scores

    return unigram_scores(folder, *open_folder(folder, device))


def _results(folders: Sequence[Path], scorers: Sequence[SuiteScorer], device: str) -> list[list[_Result]]:
    """Return the results of each suite, one for each checkpoint; a model is opened only where something is missing."""
    from foundry_core.evaluation.suites.results import results_of
    from foundry_core.training.progress import working

    found: list[list[_Result]] = [[] for _ in scorers]
    with working("scoring", len(folders) * len(scorers)) as show, warned_once():
        for place, folder in enumerate(folders):
            opened = cache(partial(open_folder, folder, device))
            for number, (scorer, results) in enumerate(zip(scorers, found, strict=True), place * len(scorers)):
                line = f"{folder.name}, {scorer.suite.name}"

                def progress(share: float, before: int = number, line: str = line) -> None:
                    show(before + share, line)

                progress(0.0)
                results.append(_Result(*results_of(folder, scorer, opened, progress)))
    return found


def _shown(results: Sequence[_Result], *, by_checkpoint: bool) -> str:
    """Return the results of a suite as text: those of a run by checkpoint, and by phenomenon, or else by paradigm."""
    newest = results[-1].content
    groups = newest["phenomena"] or newest["paradigms"]
    header = f"{newest['suite']} ({newest['kind']})", "accuracy", "95 %", "macro", "items"
    rows = [
        (
            result.content["checkpoint"],
            f"{result.content['accuracy']:.3f}",
            _interval(result.content["interval"]),
            f"{result.content['macro']:.3f}",
            str(result.content["items"]),
            *(_optional(result.content[key], key) for key in _OPTIONAL),
        )
        for result in results
    ]
    shown = _without_zeros((*header, *_OPTIONAL.values()), rows)
    what = "phenomenon" if newest["phenomena"] else "paradigm"
    if not by_checkpoint:
        parts = [
            (name, _accuracy(part["accuracy"]), _interval(part["interval"]), str(part["items"]))
            for name, part in groups.items()
        ]
        return f"{shown}\n\n{table((what, 'accuracy', '95 %', 'items'), parts)}"
    chosen = [results[place].content for place in _spread(len(results))]
    kind = "phenomena" if newest["phenomena"] else "paradigms"
    parts = [(name, *(_accuracy(content[kind].get(name, {}).get("accuracy")) for content in chosen)) for name in groups]
    return f"{shown}\n\n{table((f'{what}, by step', *(str(each['step']) for each in chosen)), parts)}"


_OPTIONAL = {"ties": "ties", "left_out": "left out", "unknown_share": "unknown"}
"""Figures that are shown only if one is not zero, and their headers."""


def _optional(value: float, key: str) -> str:
    from foundry_core.training.console import share

    return share(value) if key == "unknown_share" else str(value)


def _without_zeros(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    zero = {"0", "0.00%"}
    kept = [
        place
        for place, name in enumerate(header)
        if name not in _OPTIONAL.values() or any(row[place] not in zero for row in rows)
    ]
    return table([header[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.3f} to {value[1]:.3f}"


def _spread(count: int) -> list[int]:
    """Return the places of a few checkpoints of a run, the first and the last among them."""
    if count <= _COLUMNS:
        return list(range(count))
    return [round(place * (count - 1) / (_COLUMNS - 1)) for place in range(_COLUMNS)]


def check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for options that mean nothing together."""
    if options.suites and (options.corpus is not None or options.pairs):
        raise UsageError("--suite is for itself: score a corpus or --pairs with another call")
    for name, given in (("--all", options.all), ("--measure", options.measure != "sum")):
        if given and not options.suites:
            raise UsageError(f"{name} is for suites: add --suite NAME_OR_PATH")
