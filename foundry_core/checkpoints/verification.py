"""`foundry verify`: check that every checkpoint of a run is whole, and that each follows from the one before.

Reads only the run's folder. From seed, sizes and position it derives the data ledger, the tokens and the words that
training must have seen; where rows depend on the documents, or several corpora are mixed, also from the token file, and
for an order of a package with that package. Neither the corpus nor the model is needed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from foundry_core.checkpoints.checkpoint import StateNotKeptError, check_resumable, check_whole, checkpoints
from foundry_core.checkpoints.compatibility import differing, refused_differences
from foundry_core.checkpoints.names import named_checkpoints
from foundry_core.checkpoints.state import TrainState, parent_entry, read_state
from foundry_core.checkpoints.trained_data import FindTokens, trained_data
from foundry_core.config.sections import MOST_ROWS
from foundry_core.data.order import CropOrder, LaneOrder, Order, SampleOrder, extended_ledger
from foundry_core.data.preparation import TEST_DATA, VALIDATION_DATA
from foundry_core.data.rows import AnyRows, CropRows, LaneRows, Rows
from foundry_core.data.token_file import stored_tokens
from foundry_core.errors import CheckpointError, FoundryError
from foundry_core.models.building import read_description
from foundry_core.random_streams import derive
from foundry_core.run_folder import CHECKPOINT, MANIFEST, milestone_words, no_checkpoints

_MOST_STEPS, _MOST_DERIVED = 1 << 26, 1 << 31
"""Steps and rows from one checkpoint to the next that are derived: some minutes of work."""


@dataclass(frozen=True)
class Verified:
    """A whole checkpoint. since: the origin that its position was derived from, or the reason why it was not derived.
    changed: a phrase for each setting, plugin and corpus that differs from the checkpoint before. resumable: the
    optimizer's state was kept.
    """

    folder: Path
    state: TrainState
    manifest: dict[str, Any]
    description: dict[str, Any]
    since: str
    changed: list[str]
    resumable: bool

    @property
    def text_seen(self) -> str:
        """A digest of what was trained on, in its order: equal for two runs that have seen the same tokens so far."""
        state, held_out = self.state, (TEST_DATA, VALIDATION_DATA)
        trained_on = {name: digest for name, digest in state.data.items() if name not in held_out}
        cut = state.stream and state.stream.tokens_per_row
        return hashlib.sha256(json.dumps([state.ledger, trained_on, cut], sort_keys=True).encode()).hexdigest()[:12]


def verify_run(output_dir: str | Path) -> tuple[list[Verified], list[str]]:
    """Return the checkpoints that are whole, and a line for each problem."""
    whole: list[Verified] = []
    problems: list[str] = []
    find = lru_cache(maxsize=1)(stored_tokens)  # whose checksum is computed once for all checkpoints
    folders = checkpoints(output_dir)
    if not folders:
        raise CheckpointError(no_checkpoints(Path(output_dir)))
    for folder in folders:
        try:
            whole.append(_verified(folder, whole, find))
        except CheckpointError as error:
            problems.append(str(error))
    return whole, problems + _wrong_names(Path(output_dir), whole)


def _wrong_names(output_dir: Path, whole: list[Verified]) -> list[str]:
    """Return a line for each name of a milestone whose checkpoint is gone, or has seen more words than it promises."""
    seen, problems = {each.folder.name: each.state.words_seen for each in whole}, []
    for link, target in named_checkpoints(output_dir).items():
        if not (CHECKPOINT.match(target) and (output_dir / target / MANIFEST).is_file()):
            problems.append(f"{link} leads to {target}, which is not a checkpoint of this run")
        elif seen.get(target, 0) > (milestone_words(link.name) or 0):
            problems.append(f"{link} leads to {target}, which has seen {seen[target]:,} words")
    return problems


def _verified(folder: Path, earlier: list[Verified], find: FindTokens) -> Verified:
    """Check one checkpoint. Raises CheckpointError if it is damaged, or does not follow from its parent.

    One whose parent was retired is derived from the newest earlier one. If that fails, because settings were changed
    in between, it is whole and not derived: nobody is accused.
    """
    manifest, state, description = check_whole(folder), read_state(folder), read_description(folder)
    parent: Any = manifest.get("parent")
    try:
        name = None if parent is None else str(parent["checkpoint"])
        there = next((each for each in earlier if each.folder.name == name), None)
        if there is not None and parent["sha256"] is not None and parent != parent_entry(folder.parent, name):
            raise CheckpointError(
                f"{folder} does not follow from the {name} next to it, but from another one of that name: one of the "
                "two belongs to another run"
            )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: its parent is damaged: {parent!r}") from error
    start, since = TrainState(), "the beginning"
    if parent is None and state.started_from is not None:
        since = f"{state.started_from.get('checkpoint')}"
    if parent is not None and earlier:
        base = there or earlier[-1]
        start, since = base.state, base.folder.name
    derived = _derived(state, start, *_order(folder, state, description, find))
    wrong = [key for key, value in (derived or {}).items() if getattr(state, key) != value]
    if derived is None:
        since = f"not derived: {state.samples - start.samples:,} rows since {since}"
    elif wrong and parent is not None and there is None:
        since = f"not derivable: {name} is gone"
    elif wrong:
        stored, expected = getattr(state, wrong[0]), derived[wrong[0]]
        raise CheckpointError(f"{folder}: its {wrong[0]} is {stored}, derived from {since} it is {expected}")
    changes = differing(earlier[-1].description, earlier[-1].state, description, state) if earlier else {}
    try:
        check_resumable(folder, manifest)
        resumable = True
    except StateNotKeptError:
        resumable = False
    return Verified(folder, state, manifest, description, since, refused_differences(changes, ()), resumable)


def _derived(
    state: TrainState, start: TrainState, rows: AnyRows | None, order: Order | None, per_step: int
) -> dict[str, Any] | None:
    """Return the values that a state must have when training has come to it from `start`.

    None if that takes long, or the order is not known here.
    """
    sizes, steps, taken_rows = state.stream, state.step - start.step, state.samples - start.samples
    assert sizes is not None
    # Only the last step of a budget may have fewer rows.
    if not max(0, (steps - 1) * per_step + 1) <= taken_rows <= steps * per_step:
        return {"samples": start.samples + steps * per_step}
    ledger, tokens = start.ledger, start.tokens_seen
    if not taken_rows:
        return {"ledger": ledger, "tokens_seen": tokens, "words_seen": start.words_seen}
    if steps > _MOST_STEPS or taken_rows > _MOST_DERIVED or rows is None or order is None:
        return None
    # The order of one step costs nearly as much as that of many small ones.
    group = per_step * max(1, (1 << 16) // per_step)
    for first in range(start.samples, state.samples, group):
        epochs, taken = order.at(np.arange(first, min(first + group, state.samples)))
        tokens += int(rows.stream_tokens(taken).sum())
        for at in range(0, len(taken), per_step):
            ledger = extended_ledger(ledger, epochs[at : at + per_step], taken[at : at + per_step])
    words = round(tokens * sizes.words_per_epoch / sizes.tokens_per_epoch)
    return {"ledger": ledger, "tokens_seen": tokens, "words_seen": words}


def _order(
    folder: Path, state: TrainState, description: dict[str, Any], find: FindTokens
) -> tuple[AnyRows | None, Order | None, int]:
    """Return the rows and their order, None where they cannot be derived here, and the number of rows in a step."""
    sizes, settings = state.stream, description["experiment"]
    assert sizes is not None
    try:
        seed = settings["seeds"]["data_order"]
        seed = settings["random_seed"] if seed is None else seed
        rows, accumulated = settings["data"]["batch_size"], settings["training"]["gradient_accumulation_steps"]
        are_integers = all(type(number) is int for number in (seed, rows, accumulated))
        if not (are_integers and 0 <= seed < 2**63 and 1 <= rows * accumulated <= MOST_ROWS):
            raise ValueError(f"seed {seed!r}, {rows!r} times {accumulated!r} rows in a step")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its configuration is damaged: {error}") from error
    data, seed = settings["data"], derive(seed, "data_order")
    batching, order = data.get("batching", "shuffled"), data.get("order", "shuffled")
    if not _sizes_decide(data):
        try:
            trained = trained_data(folder, state, description, find)
        except FoundryError:
            return None, None, rows * accumulated
        return trained.rows, trained.order, rows * accumulated
    tokens = np.broadcast_to(np.uint8(0), sizes.tokens_per_epoch + 1)
    if batching == "contiguous":
        lanes = LaneRows(tokens, "overlap", sizes.tokens_per_row, lanes=rows * accumulated)
        return lanes, LaneOrder(sizes.rows, lanes.lanes), lanes.lanes
    if batching == "crops":
        crops = CropRows(tokens, "overlap", sizes.tokens_per_row)
        return crops, CropOrder(sizes.rows, len(crops), seed), rows * accumulated
    shuffled = SampleOrder(sizes.rows, seed, shuffle=order == "shuffled")
    return Rows(tokens, "overlap", sizes.tokens_per_row), shuffled, rows * accumulated


def _sizes_decide(data: dict[str, Any]) -> bool:
    """Check whether rows and their order depend on nothing but the sizes of the stream, the batch and the seed."""
    steps = [step for step in data.get("steps") or () if isinstance(step, dict)]
    if any(isinstance(values, dict) and values.get("in_place") for step in steps for values in step.values()):
        return False  # the sizes do not count the tokens in holes
    whole = data.get("isolate_documents") or data.get("batching") == "documents"
    given = data.get("order", "shuffled") not in ("shuffled", "sequential")
    return not (whole or given or isinstance(data["training_corpus"], dict))
