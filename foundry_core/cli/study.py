"""Train every cell of a study: a base experiment and a grid of settings, with
parameter matching, shared tokenizers and checked conditions.

  output_dir: studies/sizes
  base: configs/gpt2.yaml          # or the experiment itself
  grid:                            # lists of values, or names and values
    model:
      gpt2: {architecture: gpt2, transformer: {...}}
      lstm: {architecture: lstm, rnn: {...}}
    training.learning_rate: [1e-3, 3e-3]
  seeds: [1, 2]
  match: {parameters: 2M, by: {gpt2: model.transformer.hidden_size,
          lstm: model.rnn.hidden_size}}
  suites: [blimp/data]             # scored on all checkpoints; as in --suite

A cell is an ordinary run in <output_dir>/<cell>. Cells that are done are
skipped, those begun go on, so the same command continues after any
interruption. SIGTERM or Ctrl-C lets each cell save, and ends with code 75.
Every cell and every suite is checked before the first cell begins. foundry plan
STUDY.yaml estimates all of them, foundry compare <output_dir> compares them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foundry_core.cli.common import (
    add_plugin_argument,
    hanging,
    large_imports,
    load_plugins,
    number,
    path_argument,
    report,
    table,
    text_argument,
)
from foundry_core.errors import FoundryError, UsageError, tell, warn

if TYPE_CHECKING:
    from foundry_core.analysis.conditions import Condition
    from foundry_core.study.definition import Cell, Study

EXAMPLE = """\
examples:
  foundry study study.yaml
  foundry study study.yaml --jobs 4
  foundry study study.yaml --list
  foundry study study.yaml --cell $SLURM_ARRAY_TASK_ID   # sbatch --array=1-8
  foundry study studies/sizes --check"""


def configure(parser: argparse.ArgumentParser) -> None:
    what = "the YAML of the study, or the folder of one that has begun"
    parser.add_argument("study", metavar="STUDY", type=path_argument, help=what)
    what = "train N cells at a time, each in a process of its own (default 1)"
    parser.add_argument("--jobs", type=number(int, 1, 1024), metavar="N", help=what)
    what = "train only this cell: its number in --list, or its name"
    parser.add_argument("--cell", type=text_argument, metavar="K", help=what)
    parser.add_argument("--list", action="store_true", help="list the cells and how far each is")
    what = "compare the conditions of the cells that have checkpoints; code 1 if any differs that should not"
    parser.add_argument("--check", action="store_true", help=what)
    parser.add_argument("--json", action="store_true", help="print the answer of --list or --check as JSON")
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.study.definition import read_study

    _check_options(options)
    load_plugins(options)
    study = read_study(options.study)
    if options.list:
        _print_cells(study, as_json=options.json)
    elif options.check:
        _check(study, as_json=options.json)
    else:
        _train(study, options)


def _check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for options that mean nothing together."""
    if options.list and options.check:
        raise UsageError("--list and --check are two questions: ask one at a time")
    question = "--list" if options.list else "--check" if options.check else None
    if question is None and options.json:
        raise UsageError("--json is for an answer: add --list or --check")
    for name, given in (("--cell", options.cell), ("--jobs", options.jobs)):
        if question is not None and given is not None:
            raise UsageError(f"{name} is for training, and {question} trains nothing: leave one of them out")


def _print_cells(study: Study, *, as_json: bool) -> None:
    from foundry_core.study.folder import standing, with_known_widths

    rows = [(number, cell, standing(cell)) for number, cell in enumerate(with_known_widths(study).cells, 1)]
    if as_json:
        facts = [
            {"number": number, "name": cell.name, "folder": str(cell.folder), "values": dict(cell.values)} | vars(now)
            for number, cell, now in rows
        ]
        print(json.dumps(facts, indent=1))
        return
    print(
        table(
            ("cell", "name", "state", "step", "folder"),
            [
                (
                    str(at),
                    cell.name,
                    now.state,
                    f"{now.step:,} of {now.total:,}" if now.total else "-",
                    str(cell.folder),
                )
                for at, cell, now in rows
            ],
        )
    )


def _train(study: Study, options: argparse.Namespace) -> None:
    with large_imports():
        from foundry_core.study.folder import prepare, prepare_texts, standing
        from foundry_core.study.running import train_cells
        from foundry_core.training.signals import StopRequest

    _chosen(study, options.cell)  # a name that does not exist is refused before anything is prepared
    with StopRequest() as stop:
        with stop.at_once():
            study = prepare(study)
            cells = _chosen(study, options.cell)
            prepare_texts(cell for cell in cells if standing(cell).state != "done")
        train_cells(
            study,
            cells,
            foundry=(sys.executable, "-P", "-m", __name__.rpartition(".")[0]),
            stop=stop,
            jobs=options.jobs or 1,
            plugin_files=options.plugin,
            report=lambda line: tell(f"{line}\n"),
        )
    report(f"trained {cells[0].name if len(cells) == 1 else f'{len(cells)} cells'}: {study.folder}")
    if len(cells) > 1:
        from foundry_core.analysis.conditions import check_conditions

        problems = _unintended(check_conditions(study.folder))
        for line in problems:
            warn(line)
        if not problems:
            report("conditions are equal but for what the study varies (--check lists them)")
        report(f"Next: foundry compare {study.folder}")


def _chosen(study: Study, asked: str | None) -> Sequence[Cell]:
    """Return all cells, or the one that --cell asks for."""
    if asked is None:
        return study.cells
    for at, cell in enumerate(study.cells, 1):
        if asked in (str(at), cell.name):
            return [cell]
    count = len(study.cells)
    raise UsageError(f"--cell {asked}: there is no such cell, give a number from 1 to {count:,} or a name of --list")


def _check(study: Study, *, as_json: bool) -> None:
    with large_imports():
        from foundry_core.analysis.conditions import check_conditions

    conditions = check_conditions(study.folder)
    if as_json:
        print(json.dumps([vars(each) for each in conditions], indent=1))
    else:
        varied = [each.name for each in conditions if each.setting and each.intended]
        rows = [(each.name, _verdict(each), _shown(each)) for each in conditions if each.name not in varied]
        print(table(("condition", "", "values"), rows))
        if varied:
            print("\n" + hanging("", f"Settings that differ as intended: {_sections(varied)}"))
    problems = _unintended(conditions)
    if problems:
        raise FoundryError("\n".join(problems))


def _sections(keys: Sequence[str]) -> str:
    """Return keys in words, those of `model` as their number."""
    model = [key for key in keys if key.startswith("model.")]
    others = [key for key in keys if key not in model]
    return ", ".join([f"{len(model)} of model"] * bool(model) + others)


def _verdict(condition: Condition) -> str:
    if condition.equal:
        return "equal"
    return "differs as intended" if condition.intended else "DIFFERS"


def _shown(condition: Condition) -> str:
    """Return the values of a condition, each with the runs that have it."""
    groups = condition.by_value()
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value}: {' '.join(runs)}" for value, runs in groups.items())


def _unintended(conditions: Sequence[Condition]) -> list[str]:
    """Return a line for each condition that differs and should not."""
    return [
        f"{each.name} differs, and the study does not vary it: {_shown(each)}" for each in conditions if each.unintended
    ]
