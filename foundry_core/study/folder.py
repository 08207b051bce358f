"""The folder of a study: what its cells share, what it records of them, and how far each of them is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import CheckpointError, ConfigError, TokenizerError, warn, warned_once
from foundry_core.run_folder import (
    CELL_CONFIGS,
    CELL_LOGS,
    CELLS,
    CHECKPOINT,
    CONFIG,
    METRICS,
    RECORD,
    STUDY,
    TRAINER_STATE,
    checkpoint_name,
)
from foundry_core.storage.files import write_file
from foundry_core.storage.lock import RunLock
from foundry_core.storage.manifest import parse_json, read_plain_file
from foundry_core.study.definition import Cell, Study
from foundry_core.study.suites import check_suites

CELLS_FORMAT = 1


@dataclass(frozen=True)
class Standing:
    """How far the run of a cell is. total: None as long as it has no plan."""

    state: Literal["new", "begun", "done"]
    step: int = 0
    total: int | None = None


def standing(cell: Cell) -> Standing:
    """Return how far a cell is. It is done if it has come to its end with the settings that it has now."""
    found = [match for path in cell.folder.glob("checkpoint-*") if (match := CHECKPOINT.match(path.name))]
    if not found:
        return Standing("new")
    step = max(int(match.group(1)) for match in found)
    try:
        total = int(parse_json(cell.folder / RECORD, read_plain_file(cell.folder / RECORD))["plan"]["total_steps"])
        same = YamlSource.read(cell.folder / CONFIG).data == cell.config.resolved()
        done = same and (step >= total or _ended_early(cell, step))
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError):
        return Standing("begun", step)
    return Standing("done" if done else "begun", step, total)


def _ended_early(cell: Cell, step: int) -> bool:
    if cell.config.training.early_stopping_patience is None:
        return False
    from foundry_core.training.evaluations import ended_early

    path = cell.folder / checkpoint_name(step) / TRAINER_STATE
    return ended_early(cell.config, parse_json(path, read_plain_file(path))["log_history"])


def share_done(cell: Cell) -> float:
    """Return the share of a run that its newest log line has reached; 0 where there is none."""
    try:
        total = json.loads((cell.folder / RECORD).read_bytes())["plan"]["total_steps"]
        with (cell.folder / METRICS).open("rb") as file:
            file.seek(max(0, (cell.folder / METRICS).stat().st_size - 4096))
            return min(float(json.loads(file.read().splitlines()[-1])["step"] / total), 1.0)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):  # it has not begun, or a line is half there
        return 0.0


def cell_yaml(study: Study, cell: Cell) -> Path:
    """Return the path of a cell's YAML."""
    return study.folder / CELL_CONFIGS / f"{cell.name}.yaml"


def cell_log(study: Study, cell: Cell) -> Path:
    """Return the path of what the processes of a cell print."""
    return study.folder / CELL_LOGS / f"{cell.name}.log"


def prepare(study: Study) -> Study:
    """Make what has to be there before the first cell: tokenizers, widths, and the files that describe the cells.

    What is there is kept as long as the study is the same. Of several processes the others wait for the first.

    Returns:
        The study, its cells with the widths that were found.

    Raises:
        ConfigError: A suite is not there, or not what it should be; or there is no width for a cell.
    """
    check_suites(study)
    with RunLock(study.folder, waiting=lambda owner: warn(f"waiting for the study in {study.folder}: {owner}")):
        stored = _stored_cells(study)
        kept = stored is not None and _still_fit(study, stored)
        study = replace(study, cells=tuple(stored if stored is not None and kept else _matched(study)))
        _write(study.folder / STUDY, _yaml({**study.source.data, "base": study.base}))
        for cell in study.cells:
            head = f"# A cell of the study in {study.folder}; change the study, which writes this file again.\n"
            _write(cell_yaml(study, cell), head + _yaml(cell.source.data))
        _write(study.folder / CELLS, json.dumps(_described(study), indent=1) + "\n")
    return study


def with_known_widths(study: Study) -> Study:
    """Return the study with the widths that were found for its cells, if that was done."""
    return replace(study, cells=tuple(_stored_cells(study) or study.cells))


def _still_fit(study: Study, cells: Iterable[Cell]) -> bool:
    """Check whether widths that were found before still come to the parameters that they came to then.

    Another text has another vocabulary, which is a part of the model.
    """
    of_a_kind = {cell.but_for_the_seed: cell for cell in cells if cell.matched}
    if not of_a_kind:
        return True
    from foundry_core.models.cost import parameter_count
    from foundry_core.tokenization.tokenizer_folder import load_tokenizer

    folders = {str(cell.config.tokenizer.output_dir) for cell in of_a_kind.values()}
    try:
        tokenizers = {folder: load_tokenizer(Path(folder)) for folder in folders}
    except TokenizerError:  # removed: it is trained again, perhaps on another text
        return False
    for cell in of_a_kind.values():
        count = parameter_count(cell.config, tokenizers[str(cell.config.tokenizer.output_dir)])
        if count != cell.parameters:
            has = f"{cell.name} has {count:,} parameters with its tokenizer as it is now, and had {cell.parameters:,}"
            warn(f"{study.folder}: {has}: widths are found again")
            return False
    return True


def _matched(study: Study) -> Iterable[Cell]:
    if study.settings.match is None:
        return study.cells
    from foundry_core.data.preparation import experiment_tokenizer, training_text
    from foundry_core.study.matching import matched

    tokenizers: dict[Any, Any] = {}

    def tokenizer_of(cell: Cell) -> Any:
        folder = cell.config.tokenizer.output_dir
        if folder not in tokenizers:
            tokenizers[folder] = experiment_tokenizer(cell.config, training_text(cell.config))
        return tokenizers[folder]

    with warned_once():
        return matched(study, tokenizer_of)


def prepare_texts(cells: Iterable[Cell]) -> None:
    """Train the tokenizers of cells and encode their corpora, each once; what is there and unchanged is kept."""
    from foundry_core.data.preparation import experiment_corpora, experiment_tokenizer, experiment_tokens
    from foundry_core.training.progress import reading

    texts = {}
    for cell in cells:
        data = cell.config.resolved()["data"]
        texts[json.dumps([cell.config.tokenizer.output_dir, data], sort_keys=True)] = cell.config
    with warned_once():
        for config in texts.values():
            corpora = experiment_corpora(config)
            tokenizer = experiment_tokenizer(config, corpora.train)
            with reading("encoding", corpora.train.bytes) as progress:
                experiment_tokens(config, tokenizer, corpora, progress=progress)


def _described(study: Study) -> dict[str, Any]:
    """Return the content of cells.json, whose format is in `run_folder`."""
    axes = [
        {"name": axis.name, "keys": axis.keys, "values": [choice.name for choice in axis.choices]}
        for axis in study.axes
    ]
    cells = [
        {
            "name": cell.name,
            "folder": cell.folder.name,
            "values": dict(cell.values),
            "parameters": cell.parameters,
            "matched": dict(cell.matched or {}),
        }
        for cell in study.cells
    ]
    return {"format": CELLS_FORMAT, "study": study.digest, "axes": axes, "cells": cells}


def _stored_cells(study: Study) -> list[Cell] | None:
    """Return the cells with the widths that were found before for the same study; None if there are none."""
    path = study.folder / CELLS
    try:
        stored = parse_json(path, read_plain_file(path))
        if (stored["format"], stored["study"]) != (CELLS_FORMAT, study.digest):
            return None
        entries = {entry["name"]: entry for entry in stored["cells"]}
        return [
            replace(
                cell.changed(entries[cell.name]["matched"]),
                matched=entries[cell.name]["matched"] or None,
                parameters=entries[cell.name]["parameters"],
            )
            for cell in study.cells
        ]
    except (CheckpointError, KeyError, TypeError):  # missing or damaged: it is written again
        return None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that could be read as a number: `1e-4` is one for `YamlSource`, and not for PyYAML."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text[:1] in "0123456789.+-" else None)


_Dumper.add_representer(str, _quoted)


def _yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _write(path: Path, text: str) -> None:
    """Write a file unless it has this content."""
    if not (path.is_file() and path.read_bytes() == text.encode()):
        write_file(path, text.encode())
