"""Checks of rows that continue from a carried state, and of documents that are kept apart inside a row.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.carried import CarriedState
from foundry_core.models.loss import language_loss
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import check, declared, every, require, require_close
from foundry_core.testing.kit.state import tensors_in


def _causal(case: Case) -> str | None:
    return None if case.causal else f"{case.objective.name} is not causal"


@check(
    "state",
    "carried-rows",
    needs=every(declared("stateful"), declared("unbounded_length"), _causal),
    after=("carried-state",),
    fix="In training, too, return the state after the last token that is read, with use_cache=True and whatever "
    "return_logits is. Labels may have one column more than input_ids: pass them to `self.lm_output` as they are.",
)
def carried_rows(case: Case) -> None:
    """In training, two rows with the state carried from one to the other have the loss of the text in one piece, within
    1e-5, where each row reads all tokens but its last and predicts all but its first.
    """
    model, half = case.stirred(dropout=0.0).train(), case.length // 2
    ids = case.ids(3, 2 * half + 1)
    whole = model(ids[:, :-1], labels=ids, reduction="sum", return_logits=False)
    carried, losses = CarriedState(), []
    for row in (ids[:, : half + 1], ids[:, half:]):
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
        lengths = torch.full((3,), row.shape[1])
        output = model(**carried.given(batch, lengths), reduction="sum", return_logits=False)
        require(output.state is not None, "in training no state is returned")
        carried.advance(output.state)
        losses.append(language_loss(output))
        require(int(output.count) == 3 * half, f"{int(output.count)} predictions of {3 * half}")
    require(int(whole.count) == 6 * half, f"{int(whole.count)} predictions of {6 * half}")
    total = torch.stack(losses).sum()
    require_close(total, language_loss(whole), "loss of two rows with a carried state", rtol=1e-5)
    require(bool(tensors_in(carried.state)), "the state has no tensor")


@check(
    "masking",
    "isolation",
    needs=declared("isolates_documents"),
    after=("right-padding",),
    fix="Take `document_ids` (B, T) in `forward`. Attend only to tokens with the same number, count positions from the "
    "first token of a document, and restart a recurrence there. Or remove the capability `isolates_documents`.",
)
def isolation(case: Case) -> None:
    """With `document_ids`, the logits of a document and its losses are those of the document alone, within 1e-5, beside
    whatever others and padding, in training as in evaluation and with either kernels.
    """
    model = case.stirred(dropout=0.0)
    rows = [_documents(case, seed, sizes) for seed, sizes in enumerate(((4, 1, 5), (2, 6, 1)))]
    width = max(sum(map(len, row)) for row in rows) + 1
    ids, mask, numbers = (torch.full((2, width), value) for value in (int(case.ordinary[0]), 0, -1))
    labels = torch.full_like(ids, -100)
    for index, documents in enumerate(rows):
        place = 0
        for number, document in enumerate(documents):
            inside = slice(place, place + len(document))
            ids[index, inside], mask[index, inside], numbers[index, inside] = document, 1, number
            # The first token of a document is predicted by nothing of it.
            labels[index, place + case.causal : inside.stop] = document[int(case.causal) :]
            place = inside.stop
    given = {"attention_mask": mask, "document_ids": numbers, "labels": labels, "reduction": "sum"}
    for training, kernels in ((False, "fast"), (False, "reference"), (True, "fast")):
        model.train(training)
        model.kernels = kernels
        together = model(ids, **given)
        what = f"with {kernels} kernels{', in training' if training else ''}"
        for index, documents in enumerate(rows):
            for number, expected in enumerate(_alone(model, documents)):
                logits = together.logits[index][numbers[index] == number]
                require_close(logits, expected, f"logits of document {number} of a row, {what}", atol=1e-5)
        alone = [model(each[None], labels=each[None], reduction="sum") for row in rows for each in row]
        loss, found = torch.stack([language_loss(each) for each in alone]).sum(), language_loss(together)
        require_close(found, loss, f"loss of all documents, {what}", rtol=1e-5)
        lean = language_loss(model(ids, **given, return_logits=False))
        require_close(lean, found, f"loss without logits, {what}", rtol=1e-5)


def _documents(case: Case, seed: int, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return list(torch.split(case.ids(sum(sizes), seed=seed), list(sizes)))


def _alone(model: BaseLanguageModel, documents: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    for document in documents:
        yield model(document[None]).logits[0]
