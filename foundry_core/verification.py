"""`foundry verify`: is every checkpoint of a run whole, and does each follow from the one before?

Reads only what the run's folder holds; needs neither the corpus nor the plugin. From seed, sizes and position it
recomputes what training must have seen: the data ledger, the tokens and the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundry_core.checkpoint import TrainState, check_whole, checkpoints, read_state
from foundry_core.dataset import SampleOrder, extended_ledger
from foundry_core.errors import CheckpointError
from foundry_core.export import read_description
from foundry_core.streams import derive


@dataclass(frozen=True)
class Verified:
    """A whole checkpoint. since: the one whose position its own was derived from, None for the beginning."""

    folder: Path
    state: TrainState
    manifest: dict[str, Any]
    experiment: dict[str, Any]
    since: str | None = None


def verify_run(output_dir: str | Path) -> tuple[list[Verified], list[str]]:
    """The checkpoints that are whole, and a line for everything that is wrong.

    A checkpoint whose parent was retired is derived from the newest earlier one with the same settings and data; where
    there is none, and for a parent that was trained on other data, from that parent's word.
    """
    whole: list[Verified] = []
    problems: list[str] = []
    folders = checkpoints(output_dir)
    if not folders:
        raise CheckpointError(f"{output_dir} holds no checkpoint")
    for folder in folders:
        try:
            one = _opened(folder)
            base = _base(one, whole)
            _check(one, base)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            whole.append(
                Verified(one.folder, one.state, one.manifest, one.experiment, base.folder.name if base else None)
            )
    return whole, problems


def _opened(folder: Path) -> Verified:
    manifest = check_whole(folder)
    return Verified(folder, read_state(folder), manifest, read_description(folder)["experiment"])


def _base(one: Verified, earlier: list[Verified]) -> Verified | None:
    """The checkpoint to derive another one's position from."""
    parent = one.manifest.get("parent")
    if parent is None and one.state.step == 0:
        return None
    named = [each for each in earlier if each.folder.name == parent]
    alike = [each for each in earlier if _seen_alike(each, one)]
    return next(iter([*named, *reversed(alike)]), None)


def _seen_alike(a: Verified, b: Verified) -> bool:
    return a.state.data == b.state.data and a.state.stream == b.state.stream and _order(a) == _order(b)


def _order(one: Verified) -> tuple[int, int]:
    """Seed of the data order, and samples in a step."""
    experiment = one.experiment
    try:
        seed = experiment["seeds"]["data_order"]
        seed = experiment["random_seed"] if seed is None else seed
        per_step = experiment["data"]["batch_size"] * experiment["training"]["gradient_accumulation_steps"]
        return derive(int(seed), "data_order"), int(per_step)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{one.folder}: its configuration is damaged: {error}") from error


def _check(one: Verified, base: Verified | None) -> None:
    start = base.state if base is not None else TrainState()
    state, sizes = one.state, one.state.stream
    assert sizes is not None
    seed, per_step = _order(one)
    order = SampleOrder(sizes.rows, seed)
    ledger, tokens, samples = start.ledger, start.tokens_seen, start.samples
    for _ in range(state.step - start.step):
        stop = min(samples + per_step, state.samples)
        if stop == samples:
            raise CheckpointError(f"{one.folder} has {state.samples:,} samples, too few for its {state.step:,} steps")
        epochs, rows = order.at(np.arange(samples, stop))
        ledger = extended_ledger(ledger, epochs, rows)
        tokens += int(np.minimum(sizes.tokens_per_row, sizes.tokens_per_epoch - rows * sizes.tokens_per_row).sum())
        samples = stop
    words = round(tokens * sizes.words_per_epoch / sizes.tokens_per_epoch)
    for name, stored, derived in (
        ("samples", state.samples, samples),
        ("data ledger", state.ledger, ledger),
        ("tokens seen", state.tokens_seen, tokens),
        ("words seen", state.words_seen, words),
    ):
        if stored != derived:
            since = base.folder.name if base is not None else "the beginning"
            raise CheckpointError(f"{one.folder}: its {name} is {stored}, but from {since} on it comes to {derived}")
