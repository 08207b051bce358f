"""`foundry verify`: check that every checkpoint of a run is whole, and that each follows from the one before.

Reads only the run's folder; needs neither the corpus nor the plugin. From seed, sizes and position it derives the data
ledger, the tokens and the words that training must have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foundry_core.checkpoints.checkpoint import check_whole, checkpoints
from foundry_core.checkpoints.compatibility import FREE, changed_settings, covered
from foundry_core.checkpoints.lineage import Lineage, Position, unchecked_manifest
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.config.sections import MOST_ROWS
from foundry_core.data.order import SampleOrder, extended_ledger
from foundry_core.errors import CheckpointError
from foundry_core.models.building import read_description
from foundry_core.random_streams import derive

_MOST_STEPS, _MOST_DERIVED = 1 << 26, 1 << 31
"""Steps and rows from one checkpoint to the next that are derived: some minutes of work."""


@dataclass(frozen=True)
class Verified:
    """A whole checkpoint. since: the origin that its position was derived from, or the reason why it was not derived.
    changed: a phrase for each setting that differs from the checkpoint before.
    """

    folder: Path
    state: TrainState
    manifest: dict[str, Any]
    experiment: dict[str, Any]
    lineage: Lineage
    since: str = ""
    changed: tuple[str, ...] = ()


def verify_run(output_dir: str | Path) -> tuple[list[Verified], list[str]]:
    """Return the checkpoints that are whole, and a line for each problem.

    A checkpoint whose parent was retired is derived from the newest earlier one of its course; if there is none, from
    the beginning that it records for its course. One that does not record it is whole, and not derived.
    """
    whole: list[Verified] = []
    problems: list[str] = []
    folders = checkpoints(output_dir)
    if not folders:
        raise CheckpointError(f"{output_dir} does not contain checkpoints")
    for folder in folders:
        try:
            manifest, experiment = check_whole(folder), read_description(folder)["experiment"]
            one = Verified(folder, read_state(folder), manifest, experiment, Lineage.read(folder, manifest))
            base, since = _base(one, whole)
            since = since if base is None else _check(one, base, since)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        changed = changed_settings(whole[-1].experiment, experiment) if whole else {}
        phrases = tuple(phrase for key, phrase in changed.items() if not covered(key, FREE))
        whole.append(replace(one, since=since, changed=phrases))
    return whole, problems


def _base(one: Verified, earlier: list[Verified]) -> tuple[Position | None, str]:
    """Return the position to derive another one's from, and its name; None if there is none."""
    parent, course = one.lineage.parent, one.lineage.course
    if parent is None:
        return Position(), "the beginning"
    for each in earlier:
        if each.folder.name == parent.checkpoint:
            if parent.sha256 not in (None, unchecked_manifest(each.folder)["sha256"]):
                raise CheckpointError(
                    f"{one.folder} does not follow from the {parent.checkpoint} next to it, but from another one of "
                    "that name: one of the two belongs to another run"
                )
            return each.state.position, parent.checkpoint
    if course is None:
        return None, f"not derivable: {parent.checkpoint} is gone"
    for each in reversed(earlier):
        known = each.lineage.course
        if known is not None and (known.settings, known.since) == (course.settings, course.since):
            return each.state.position, each.folder.name
    step = course.since.step
    return course.since, f"the position it records for step {step}" if step else "the beginning"


def _check(one: Verified, start: Position, since: str) -> str:
    """Compare the position of a checkpoint with the derived one; return its origin, or why it was not derived.

    Raises:
        CheckpointError: They differ.
    """
    state, sizes = one.state, one.state.stream
    assert sizes is not None
    seed, per_step = _order(one)
    steps, rows = state.step - start.step, state.samples - start.samples
    # Only the last step of a budget may have fewer rows.
    if steps < 0 or not max(0, (steps - 1) * per_step + 1) <= rows <= steps * per_step:
        raise CheckpointError(
            f"{one.folder}: its samples are {state.samples:,}: {rows:,} rows in {steps:,} steps of {per_step:,} since "
            f"{since} cannot be"
        )
    if steps > _MOST_STEPS or rows > _MOST_DERIVED:
        return f"not derived: {rows:,} rows since {since}"
    order = SampleOrder(sizes.rows, seed)
    ledger, tokens = start.ledger, start.tokens_seen
    # The order of one step costs nearly as much as that of many small ones.
    group = per_step * max(1, (1 << 16) // per_step)
    for first in range(start.samples, state.samples, group):
        epochs, taken = order.at(np.arange(first, min(first + group, state.samples)))
        tokens += int(np.minimum(sizes.tokens_per_row, sizes.tokens_per_epoch - taken * sizes.tokens_per_row).sum())
        for at in range(0, len(taken), per_step):
            ledger = extended_ledger(ledger, epochs[at : at + per_step], taken[at : at + per_step])
    words = round(tokens * sizes.words_per_epoch / sizes.tokens_per_epoch)
    stored = {"data ledger": state.ledger, "tokens seen": state.tokens_seen, "words seen": state.words_seen}
    for (name, value), derived in zip(stored.items(), (ledger, tokens, words), strict=True):
        if value != derived:
            raise CheckpointError(f"{one.folder}: its {name} is {value}, derived from {since} it is {derived}")
    return since


def _order(one: Verified) -> tuple[int, int]:
    """Return the seed of the data order, and the rows in a step."""
    settings = one.experiment
    try:
        seed = settings["seeds"]["data_order"]
        seed = settings["random_seed"] if seed is None else seed
        rows, accumulated = settings["data"]["batch_size"], settings["training"]["gradient_accumulation_steps"]
        are_integers = all(type(number) is int for number in (seed, rows, accumulated))
        if not (are_integers and 0 <= seed < 2**63 and 1 <= rows * accumulated <= MOST_ROWS):
            raise ValueError(f"seed {seed!r}, {rows!r} times {accumulated!r} rows in a step")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{one.folder}: its configuration is damaged: {error}") from error
    return derive(seed, "data_order"), rows * accumulated
