"""Checks of a model that is trained by counting: what is counted, and that nothing else decides what is learnt.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from foundry_core.models.carried import CarriedState
from foundry_core.models.loss import IGNORED
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import check, declared, require, require_equal
from foundry_core.testing.kit.masking import padded


@check(
    "objective",
    "counts-add-up",
    needs=declared("trained_by_counting"),
    fix="A count is lost or doubled where a batch begins or ends, or reaches from one row into the next: find all that "
    "is counted of a row in that row. Store counts in an order that does not depend on when each was first seen.",
)
def counts_add_up(case: Case) -> None:
    """What is learnt depends neither on the order of rows nor on how they are divided into batches, and reading between
    them changes nothing: all tensors are equal, bit for bit. Once rows are counted, their loss is lower.
    """
    ids, labels = case.ragged()
    whole = _counted(case, [{"input_ids": ids, "labels": labels}])
    model = case.model()
    before = float(model(ids, labels=labels).loss)
    model.count(ids, labels=labels)
    after = float(model(ids, labels=labels).loss)
    require(after < before, f"the loss of rows is {after:.3f} once they are counted, before it is {before:.3f}")
    groupings = {
        "row by row": [[row] for row in range(6)],
        "in two batches": [[0, 1, 2, 3], [4, 5]],
        "in another order": [[5, 1], [0, 4, 3, 2]],
    }
    for how, groups in groupings.items():
        parts = [{"input_ids": ids[rows], "labels": labels[rows]} for rows in groups]
        _require_same(_counted(case, parts, reading=True), whole, f"counted {how}")


@check(
    "objective",
    "counted-tokens",
    needs=declared("trained_by_counting"),
    after=("counts-add-up",),
    fix="Count what is predicted: the targets of `self.targets(labels, attention_mask)`, each with the tokens that "
    "`forward` predicts it from. Padding is neither counted nor read.",
)
def counted_tokens(case: Case) -> None:
    """Exactly the predictions are counted: rows with padding, whichever token is used for it, give the tensors of the
    same rows without, labels of -100 count nothing, and rows that continue from a state that of the text in one piece,
    bit for bit.
    """
    rows = [case.ids(length, seed=length) for length in (case.length - 1, case.length // 2, 2)]
    alone = _counted(case, [{"input_ids": row[None], "labels": row[None]} for row in rows])
    for side in case.capabilities.padding_sides:
        for content in case.ordinary[[0, 3]].tolist():
            ids, mask = padded(rows, side, content)
            found = _counted(case, [{"input_ids": ids, "attention_mask": mask, "labels": case.labels(ids, mask)}])
            _require_same(found, alone, f"with padding on the {side}")
    ids, labels = case.ragged()
    kept = (labels != IGNORED).any(dim=1)
    found = _counted(case, [{"input_ids": ids, "labels": labels}])
    _require_same(found, _counted(case, [{"input_ids": ids[kept], "labels": labels[kept]}]), "with rows of -100")
    nothing = _counted(case, [{"input_ids": ids, "labels": torch.full_like(ids, IGNORED)}])
    _require_same(nothing, case.model().state_dict(), "with labels of -100 alone")
    if case.capabilities.stateful and case.capabilities.unbounded_length:
        _require_counted_on(case)


def _require_counted_on(case: Case) -> None:
    """Check rows that continue from a state."""
    model, half = case.model(), case.length // 2
    ids, carried = case.ids(3, 2 * half + 1), CarriedState()
    for row in (ids[:, : half + 1], ids[:, half:]):
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
        given = carried.given(batch, torch.full((3,), row.shape[1]))
        carried.advance(model(**given, reduction="sum", return_logits=False).state)
        model.count(**given)
    _require_same(model.state_dict(), _counted(case, [{"input_ids": ids, "labels": ids}]), "with a carried state")


def _counted(
    case: Case, batches: Iterable[dict[str, torch.Tensor]], *, reading: bool = False
) -> dict[str, torch.Tensor]:
    """Return the tensors of a new model that has counted batches. reading: it reads each of them before and after."""
    model: Any = case.model().train()
    for batch in batches:
        if reading:
            model(**batch)
        model.count(**batch)
        if reading:
            model(**batch, return_logits=False)
    tensors: dict[str, torch.Tensor] = model.state_dict()
    return tensors


def _require_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    for name, tensor in expected.items():
        require_equal(actual[name], tensor, f"{name} {what}")
