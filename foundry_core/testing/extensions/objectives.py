"""Checks of objectives: their collator is a function of seed, epoch and row, and its labels can be trained on.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundry_core.data.batches import Batches, Collator
from foundry_core.data.collators import CheckedCollator, get_data_collator
from foundry_core.data.order import SampleOrder
from foundry_core.data.workers import Batch
from foundry_core.models.base import create_model
from foundry_core.models.loss import IGNORED
from foundry_core.registry.loading import import_string
from foundry_core.registry.objective import Objective
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import LENGTH, SPECIAL_TOKENS, experiment, letters, ordinary_ids
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NonconformanceError, NotApplicableError, require
from foundry_core.training.losses import objective_loss, summed_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]
Content = tuple[list[int], list[int]]
"""The ids and the labels of a row, without its padding."""


@dataclass(frozen=True, eq=False)
class ObjectiveBench:
    """An objective, and rows for its collator."""

    subject: Subject

    @property
    def objective(self) -> Objective:
        return self.subject.descriptor  # type: ignore[no-any-return]

    def collator(self, tokenizer: PreTrainedTokenizerFast | None = None, *, seed: int = 0) -> Collator:
        """Return a new collator, without core's checks of what it returns."""
        config, tokenizer = experiment(self.subject, seed=seed), tokenizer or letters()
        if self.objective.collator is None:
            return get_data_collator(config, tokenizer)
        made: Collator = import_string(self.objective.collator)(config, tokenizer)
        return made

    def rows(
        self, lengths: Sequence[int], *, epoch: int = 0, tokenizer: PreTrainedTokenizerFast | None = None
    ) -> list[Row]:
        """Return rows as training cuts them: random tokens, an end of a document in the middle, a frame if declared."""
        tokenizer = tokenizer or letters()
        rows: list[Row] = []
        for number, length in enumerate(lengths):
            ids = np.random.default_rng(number).choice(ordinary_ids(tokenizer), length).astype(np.int64)
            if length > 8:
                ids[length // 2] = tokenizer.eos_token_id
            if self.objective.layout == "framed":
                ids[[0, -1]] = tokenizer.cls_token_id, tokenizer.sep_token_id
            rows.append({"input_ids": ids, "epoch": epoch, "row": number})
        return rows

    @cached_property
    def mixed(self) -> list[Row]:
        """Rows of all lengths, the shortest among them."""
        return self.rows([LENGTH, 3 if self.objective.layout == "framed" else 2, 7, LENGTH, 12, LENGTH, 5, LENGTH])


def content(batch: Batch) -> list[Content]:
    """Return each row of a batch without its padding."""
    real = batch["attention_mask"] == 1
    return [
        (ids[kept].tolist(), labels[kept].tolist())
        for ids, labels, kept in zip(batch["input_ids"], batch["labels"], real, strict=True)
    ]


def collated(collator: Collator, rows: Sequence[Row]) -> list[Content]:
    """Return the content of rows; the collator gets copies."""
    return content(collator(deepcopy(list(rows))))


@bench("objective")
def objective_bench(subject: Subject) -> ObjectiveBench:
    made = ObjectiveBench(subject)
    made.collator()(deepcopy(made.mixed))
    return made


@check(
    "objective",
    "runs",
    fix="The named line raises an exception. `f(config, tokenizer)` returns a function from rows, "
    '{"input_ids": int64 array, "epoch": int, "row": int}, to a batch. Rows have 2 tokens or more, 3 in a frame.',
)
def runs(bench: ObjectiveBench) -> None:
    """The collator accepts rows of all lengths, alone and together, padded on either side."""
    for side in ("right", "left"):
        tokenizer = deepcopy(letters())
        tokenizer.padding_side = side
        collator = bench.collator(tokenizer)
        collator(deepcopy(bench.mixed))
        for row in bench.mixed:
            collator([deepcopy(row)])


@check(
    "objective",
    "batch",
    fix="Pad with `CausalLMDataCollator`, whose batch has this form, and change its input_ids and labels. Draw what a "
    'row needs from numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]]).',
)
def batch(bench: ObjectiveBench) -> None:
    """Every batch has input_ids, attention_mask and labels and nothing else, each int64 of shape (B, T), tokens that
    exist and a mask of 0 and 1; making it leaves the global generators of random numbers alone.
    """
    collator, size = bench.collator(), len(letters())
    for rows in (bench.mixed, bench.mixed[:1], bench.mixed[3:], bench.mixed[1:2]):
        made = CheckedCollator("the collator", collator, size)(deepcopy(rows))
        mask = made["attention_mask"]
        require(mask.dtype == torch.int64, f"attention_mask is {mask.dtype}, not torch.int64")
        require(bool(((mask == 0) | (mask == 1)).all()), "attention_mask contains other numbers than 0 and 1")
        require(bool(mask.any(dim=1).all()), "attention_mask hides a whole row")


@check(
    "objective",
    "padding",
    fix="Set the labels of padding to -100, where attention_mask is 0: otherwise the model learns to predict padding.",
)
def padding(bench: ObjectiveBench) -> None:
    """No label is at padding, on either side."""
    for side in ("right", "left"):
        tokenizer = deepcopy(letters())
        tokenizer.padding_side = side
        made = bench.collator(tokenizer)(deepcopy(bench.mixed))
        labelled = made["labels"][made["attention_mask"] == 0] != IGNORED
        require(not bool(labelled.any()), f"{int(labelled.sum())} labels are at padding on the {side}")


@check(
    "objective",
    "predictions",
    fix="Label t is the token that stands at place t of the undisturbed row; core's loss shifts the labels of a causal "
    "objective. An objective that is not causal hides the tokens that it predicts, most of the time.",
)
def predictions(bench: ObjectiveBench) -> str:
    """Something is predicted in every whole row, labels are not shifted, and under an objective that is not causal some
    predicted tokens are hidden from the model.
    """
    causal, rows = bench.objective.causal, bench.rows([LENGTH] * 64)
    made = bench.collator()(deepcopy(rows))
    labels, shown = made["labels"], made["input_ids"]
    chosen = labels != IGNORED
    chosen[:, 0] &= not causal  # nothing comes before it
    empty = int((~chosen.any(dim=1)).sum())
    require(not empty, f"nothing is predicted in {empty} of {len(rows)} whole rows")
    seen = float((shown == labels)[chosen].double().mean())
    require(causal or seen < 1, "every predicted token is shown to the model at its own place")
    if shown.shape[1] == LENGTH:
        row = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
        ahead = torch.cat([row[:, 1:], torch.full_like(row[:, :1], IGNORED)], dim=1)
        shifted = float((labels == ahead)[chosen].double().mean())
        require(shifted < 0.5, f"{shifted:.0%} of the labels are the token after their place")
    share = chosen.sum() / (made["attention_mask"].sum() - (len(rows) if causal else 0))
    return f"predicts {share:.1%} of the tokens of a whole row"


@check(
    "objective",
    "place",
    fix="What is drawn for a row must be a function of the seed, its epoch and its number, not of the batch, its "
    "place there, the padding, or what the collator did before: make a new generator for each row, and keep nothing.",
)
def place(bench: ObjectiveBench) -> None:
    """A row becomes the same input and labels however rows are split into batches, in any order, on a second call, and
    in a second collator.
    """
    collator, rows = bench.collator(), bench.mixed
    whole = collated(collator, rows)
    changes = {
        "a second time": collated(collator, rows),
        "by a second collator": collated(bench.collator(), rows),
        "one by one": [each for row in rows for each in collated(bench.collator(), [row])],
        "in threes": [each for at in (0, 3, 6) for each in collated(bench.collator(), rows[at : at + 3])],
        "backwards": collated(bench.collator(), rows[::-1])[::-1],
    }
    for what, found in changes.items():
        differing = [number for number, pair in enumerate(zip(found, whole, strict=True)) if pair[0] != pair[1]]
        require(not differing, f"collated {what}, rows {differing} of {len(rows)} differ")


class _Rows:
    """Rows in the form in which `Batches` reads them."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def per_epoch(self) -> int:
        return len(self)

    def row(self, index: int) -> Any:
        return self._rows[index]["input_ids"].copy()

    def documents(self, index: int) -> None:
        return None


@check(
    "objective",
    "workers",
    fix="The collator depends on the process that it runs in: its id, torch.utils.data.get_worker_info(), a file or a "
    "global variable. Use only the rows and what `f(config, tokenizer)` was given.",
)
def workers(bench: ObjectiveBench) -> None:
    """Batches that two worker processes make are those that one process makes."""
    rows: Any = _Rows(bench.mixed)
    found = []
    for number in (0, 2):
        order = SampleOrder(len(rows), 1)
        batches = Batches(rows, order, bench.collator(), 2, 0, 2 * len(rows), number)
        found.append([each for made in _finished(iter(batches)) for each in content(made)])
    differing = sum(one != other for one, other in zip(*found, strict=True))
    require(not differing, f"{differing} of {len(found[0])} rows differ with two workers")


def _finished(batches: Iterator[Batch]) -> list[Batch]:
    return [{key: value.clone() for key, value in each.items()} for each in batches]


@check(
    "objective",
    "draws",
    fix='Include all three: numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]]). Without the '
    "epoch, every epoch hides the same tokens; without the row, equal texts hide the same; without the seed, all runs.",
)
def draws(bench: ObjectiveBench) -> str:
    """Random choices differ from seed to seed, from epoch to epoch and from row to row."""
    rows = bench.rows([LENGTH] * 16)
    first = collated(bench.collator(), rows)
    elsewhere = [row | {"row": row["row"] + 1000} for row in rows]
    changed = {
        "seed": collated(bench.collator(seed=1), rows) != first,
        "epoch": collated(bench.collator(), bench.rows([LENGTH] * 16, epoch=1)) != first,
        "row": collated(bench.collator(), elsewhere) != first,
    }
    if not (changed["seed"] or changed["epoch"]):
        return "draws nothing at random"  # it may still treat rows differently by their number
    same = [name for name, differs in changed.items() if not differs]
    require(not same, f"another {' or '.join(same)} changes nothing, another {_true(changed)} does")
    return "draws at random for each seed, epoch and row"


def _true(changed: dict[str, bool]) -> str:
    return " or ".join(name for name, differs in changed.items() if differs)


@check(
    "objective",
    "tokens",
    fix="Name each special token that the collator uses in `required_tokens`: a YAML whose tokenizer lacks one is then "
    "refused when it is read.",
)
def tokens(bench: ObjectiveBench) -> None:
    """The collator needs only those special tokens that `required_tokens` names, besides the padding token and the end
    of a text; a framed row needs a cls_token and a sep_token.
    """
    required, framed = bench.objective.required_tokens, bench.objective.layout == "framed"
    lacking = [role for role in ("cls_token", "sep_token") if role not in required]
    require(not (framed and lacking), f"rows are framed, but required_tokens lacks {' and '.join(lacking)}")
    kept = {"unk_token", "eos_token", "pad_token", *required}
    left_out = sorted(SPECIAL_TOKENS.keys() - kept)
    if not left_out:
        raise NotApplicableError("every special token is required")
    tokenizer = letters(*left_out)
    rows = bench.rows([LENGTH] * 4, tokenizer=tokenizer)
    try:
        bench.collator(tokenizer)(rows)
    except Exception as error:
        raise NonconformanceError(f"without {', '.join(left_out)}: {type(error).__name__}: {error}") from error


@check(
    "objective",
    "loss",
    fix="Return the loss of each predicted token, (N,), computed from its own logits and label: core adds them up over "
    "micro-batches and divides by their number. Do not average or detach.",
)
def loss(bench: ObjectiveBench) -> str:
    """A loss of the objective's own can be minimised: it is finite, 0 where nothing is predicted, a sum over rows
    however they are split, and 30 steps lower it.
    """
    if bench.objective.loss is None:
        raise NotApplicableError("uses core's cross-entropy")
    config, rows = experiment(bench.subject), bench.rows([LENGTH] * 8)
    own, model = objective_loss(config), create_model(config, letters()).train()
    whole = bench.collator()(deepcopy(rows))
    parts = [{name: tensor[at : at + 2] for name, tensor in whole.items()} for at in (0, 2, 4, 6)]
    first, before = summed_losses(model, model, whole, own)
    require(bool(first.isfinite()), f"the loss of a new model is {first.item()}")
    apart = sum(float(summed_losses(model, model, part, own)[0]) for part in parts)
    close = abs(apart - float(first)) <= 1e-4 * abs(float(first))
    require(close, f"the loss of {len(rows)} rows is {float(first):.4f}, and {apart:.4f} if they come in pairs")
    nothing = {**whole, "labels": torch.full_like(whole["labels"], IGNORED)}
    empty = float(summed_losses(model, model, nothing, own)[0])
    require(empty == 0, f"the loss is {empty} where nothing is predicted")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(30):
        optimizer.zero_grad()
        summed_losses(model, model, whole, own)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last, after = summed_losses(model, model, whole, own)
    require(float(last) < float(first), f"30 steps move the loss from {float(first):.4f} to {float(last):.4f}")
    fell = f"{float(before['loss']):.0f} to {float(after['loss']):.0f}"
    return f"30 steps lower it from {float(first):.0f} to {float(last):.0f}, and the cross-entropy goes from {fell}"
