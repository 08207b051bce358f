"""`foundry verify`: is every checkpoint of a run whole, and does each follow from the one before?

Reads only what the run's folder holds; needs neither the corpus nor the plugin. From seed, sizes and position it
recomputes what training must have seen: the data ledger, the tokens and the words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foundry_core.checkpoints.checkpoint import check_whole, checkpoints
from foundry_core.checkpoints.compatibility import FREE, changed_settings, covered
from foundry_core.checkpoints.lineage import Lineage, Position, identity
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.config.sections import MOST_ROWS
from foundry_core.data.order import Ints, SampleOrder, extended_ledger
from foundry_core.errors import CheckpointError
from foundry_core.models.description import read_description
from foundry_core.random_streams import derive

_MOST_STEPS, _MOST_DERIVED = 1 << 26, 1 << 31
"""Steps and rows from one checkpoint to the next that are derived: some minutes of work."""


@dataclass(frozen=True)
class Verified:
    """A whole checkpoint. since: what its position was derived from, or why it was not. changed: a phrase for each
    setting that is another one than in the checkpoint before.
    """

    folder: Path
    state: TrainState
    manifest: dict[str, Any]
    experiment: dict[str, Any]
    lineage: Lineage
    since: str = ""
    changed: tuple[str, ...] = ()


def verify_run(output_dir: str | Path) -> tuple[list[Verified], list[str]]:
    """The checkpoints that are whole, and a line for everything that is wrong.

    A checkpoint whose parent was retired is derived from the newest earlier one of its course; where there is none,
    from where it says that its course began. One that does not say is whole, and not derived.
    """
    whole: list[Verified] = []
    problems: list[str] = []
    folders = checkpoints(output_dir)
    if not folders:
        raise CheckpointError(f"{output_dir} holds no checkpoint")
    for folder in folders:
        try:
            one = _opened(folder)
            base, since = _base(one, whole)
            since = since if base is None else _check(one, base, since)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            changed = _changed(whole[-1].experiment, one.experiment) if whole else ()
            whole.append(replace(one, since=since, changed=changed))
    return whole, problems


def _opened(folder: Path) -> Verified:
    manifest = check_whole(folder)
    experiment = read_description(folder)["experiment"]
    return Verified(folder, read_state(folder), manifest, experiment, Lineage.read(folder, manifest))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    return tuple(line for key, line in changed_settings(before, after).items() if not covered(key, FREE))


def _base(one: Verified, earlier: list[Verified]) -> tuple[Position | None, str]:
    """Where to derive another one's position from, and what to call that; None where nothing says it."""
    parent, course = one.lineage.parent, one.lineage.course
    if parent is None:
        return Position(), "the beginning"
    for each in earlier:
        if each.folder.name == parent.checkpoint:
            if parent.sha256 not in (None, identity(each.folder)):
                raise CheckpointError(
                    f"{one.folder} does not follow from the {parent.checkpoint} beside it, but from another one of "
                    "that name: one of the two belongs to another run"
                )
            return each.state.position, parent.checkpoint
    if course is None:
        return None, f"not derivable: {parent.checkpoint} is gone"
    for each in reversed(earlier):
        known = each.lineage.course
        if known is not None and (known.settings, known.since) == (course.settings, course.since):
            return each.state.position, each.folder.name
    return course.since, f"its word of step {course.since.step}" if course.since.step else "the beginning"


def _order(one: Verified) -> tuple[int, int]:
    """Seed of the data order, and samples in a step."""
    experiment = one.experiment
    try:
        seed = experiment["seeds"]["data_order"]
        seed = experiment["random_seed"] if seed is None else seed
        numbers = (seed, experiment["data"]["batch_size"], experiment["training"]["gradient_accumulation_steps"])
        if not all(type(number) is int for number in numbers):
            raise TypeError(f"{numbers!r} are not integers")
        per_step = numbers[1] * numbers[2]
        if not (0 <= seed < 2**63 and 1 <= per_step <= MOST_ROWS):
            raise ValueError(f"seed {seed}, {per_step} rows in a step")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{one.folder}: its configuration is damaged: {error}") from error
    return derive(seed, "data_order"), per_step


def _check(one: Verified, start: Position, since: str) -> str:
    """Derives the position of a checkpoint; returns what to say of it."""
    state, sizes = one.state, one.state.stream
    assert sizes is not None
    seed, per_step = _order(one)
    steps, rows = state.step - start.step, state.samples - start.samples
    if steps < 0 or rows > steps * per_step:
        raise _wrong(one, since, "samples", state.samples, start.samples + max(steps, 0) * per_step)
    if rows < 0 or (steps and rows <= (steps - 1) * per_step):
        raise CheckpointError(f"{one.folder} has {state.samples:,} samples, too few for its {state.step:,} steps")
    if steps > _MOST_STEPS or rows > _MOST_DERIVED:
        return f"not derived: {rows:,} rows since {since}"
    order = SampleOrder(sizes.rows, seed)
    ledger, tokens = start.ledger, start.tokens_seen
    for epochs, taken in _steps(order, start.samples, state.samples, per_step):
        ledger = extended_ledger(ledger, epochs, taken)
        tokens += int(np.minimum(sizes.tokens_per_row, sizes.tokens_per_epoch - taken * sizes.tokens_per_row).sum())
    words = round(tokens * sizes.words_per_epoch / sizes.tokens_per_epoch)
    for name, stored, derived in (
        ("data ledger", state.ledger, ledger),
        ("tokens seen", state.tokens_seen, tokens),
        ("words seen", state.words_seen, words),
    ):
        if stored != derived:
            raise _wrong(one, since, name, stored, derived)
    return since


def _wrong(one: Verified, since: str, name: str, stored: Any, derived: Any) -> CheckpointError:
    return CheckpointError(f"{one.folder}: its {name} is {stored}, but from {since} on it comes to {derived}")


def _steps(order: SampleOrder, start: int, stop: int, per_step: int) -> Iterator[tuple[Ints, Ints]]:
    """Epochs and rows of each step; the order of one step costs nearly as much as that of many small ones."""
    group = per_step * max(1, (1 << 16) // per_step)
    for first in range(start, stop, group):
        epochs, rows = order.at(np.arange(first, min(first + group, stop)))
        for at in range(0, len(rows), per_step):
            yield epochs[at : at + per_step], rows[at : at + per_step]
