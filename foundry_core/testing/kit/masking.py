"""Checks that padding, masked tokens and other rows do not affect a row, and that length limits hold.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import torch

from foundry_core.data.collators import get_data_collator
from foundry_core.errors import FoundryError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import (
    NonconformanceError,
    check,
    differentiated,
    listed,
    named_gradients,
    not_looked_at,
    require,
    require_close,
    require_same_gradients,
)
from foundry_core.testing.kit.objective import norms

Side = Literal["left", "right"]


def padded(rows: list[torch.Tensor], side: Side, content: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of unequal length padded with a token, to one column more than the longest needs, and their mask."""
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), content)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def require_padding_invisible(case: Case, side: Side) -> None:
    model, longest = case.stirred(), case.length - 1
    rows = [case.ids(length, seed=length) for length in (longest // 2, longest, 1, longest - 3)]
    alone = [model(row[None], labels=row[None], reduction="sum") for row in rows]
    loss, count = sum(output.loss for output in alone), sum(int(output.count) for output in alone)
    pad = model.context.pad_token_id
    assert pad is not None
    for content, shown in ((pad, "the padding token"), (int(case.ordinary[3]), "another token")):
        ids, mask = padded(rows, side, content)
        output = model(ids, attention_mask=mask, labels=case.labels(ids, mask), reduction="sum")
        for index, expected in enumerate(alone):
            what = f"logits of a row of {len(rows[index])} tokens with {shown} on its {side}{norms(model)}"
            require_close(output.logits[index][mask[index] == 1], expected.logits[0], what, atol=1e-5)
        require(int(output.count) == count, f"{int(output.count)} predictions with padding, {count} without")
        require_close(output.loss, loss, f"loss with padding on the {side}", rtol=1e-5)


@check(
    "masking",
    "right-padding",
    after=("reference-loss",),
    realistic=True,
    fix="Pass `attention_mask` to every layer that mixes tokens, and to `self.lm_output`. The backward direction of "
    "a recurrent model must start at the last real token: pack the rows. Norms over time count padding: normalise "
    "over the width.",
)
def right_padding(case: Case) -> None:
    """Padding on the right changes neither the logits of real tokens nor the loss by more than 1e-5, whichever token is
    used as padding.
    """
    require_padding_invisible(case, "right")


@check(
    "masking",
    "left-padding",
    after=("right-padding",),
    realistic=True,
    fix="Count positions over real tokens only, start a recurrence at the first real token, and return a finite "
    "result for a query that sees nothing. Pass `attention_mask` to `self.lm_output`. Or remove the capability "
    "`left_padding`.",
)
def left_padding(case: Case) -> None:
    """Padding on the left, if declared, changes neither the logits of real tokens nor the loss by more than 1e-5; if it
    is not declared, core refuses it with a one-line error.
    """
    if case.capabilities.left_padding:
        require_padding_invisible(case, "left")
        return
    tokenizer = deepcopy(case.tokenizer)
    tokenizer.padding_side = "left"
    require_refused(lambda: get_data_collator(case.config, tokenizer), "batches padded on the left")
    model = case.model()
    if model.supports_generation:
        ids, mask = padded([case.ids(3), case.ids(5)], "left", int(case.ordinary[0]))
        require_refused(
            lambda: model.generate(ids, attention_mask=mask, max_new_tokens=1), "prompts padded on the left"
        )


def require_refused(action: Callable[[], object], what: str) -> None:
    try:
        action()
    except FoundryError as error:
        require("\n" not in str(error), f"{what}: the refusal has more than one line")
    else:
        raise NonconformanceError(f"{what}: not refused, and not declared as a capability")


@check(
    "masking",
    "attention-mask",
    after=("right-padding",),
    fix="A token whose mask is 0 must not be read at all, wherever it is. Mask attention by `attention_mask` "
    "instead of by lengths, skip the token in a recurrence or convolution, and pass `attention_mask` to "
    "`self.lm_output`.",
)
def attention_mask(case: Case) -> None:
    """Changing a masked token in the middle of a row changes the other logits and the losses by at most 1e-5, and a
    mask of ones has the same effect as no mask.
    """
    model, place = case.stirred(), case.length // 2
    ids = case.ids(3, case.length)
    changed = ids.clone()
    changed[:, place] = case.changed(ids[:, place])
    mask = torch.ones_like(ids)
    plain = model(ids)
    require_close(model(ids, attention_mask=mask).logits, plain.logits, "logits with a mask of ones", atol=1e-5)
    mask[:, place] = 0
    old, new = (
        model(each, attention_mask=mask, labels=case.labels(each, mask), reduction="sum") for each in (ids, changed)
    )
    kept = mask[0] == 1
    what = f"logits of the other tokens when the masked token {place} is changed"
    require_close(new.logits[:, kept], old.logits[:, kept], what, atol=1e-5)
    require_close(new.loss, old.loss, f"loss when the masked token {place} is changed", rtol=1e-5)


@check(
    "masking",
    "empty-row",
    after=("right-padding", "left-padding", "no-labels"),
    fix="A softmax over nothing is 0/0, and so is a mean over no tokens: take the large negative number of a mask from "
    "`torch.finfo`, not infinity, divide by at least 1, and pack at least one token of each row. A NaN that is "
    "masked afterwards still reaches the gradients.",
)
def empty_row(case: Case) -> None:
    """A row that consists of padding alone gets finite logits and no loss, and changes neither logits and loss of the
    other rows nor the gradients, by more than 1e-5, also if it is the only row.
    """
    model, side = case.stirred(dropout=0.0), min(case.capabilities.padding_sides)
    rows = [case.ids(length, seed=length) for length in (5, 1, min(9, case.length - 1))]
    ids, mask = padded(rows, side, int(case.ordinary[0]))
    mask[1] = 0
    found: list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]] = []
    for chosen in ([0, 2], [0, 1, 2], [1]):
        model.zero_grad()
        given = {"attention_mask": mask[chosen], "labels": case.labels(ids, mask)[chosen]}
        output = model(ids[chosen], **given, reduction="sum")
        differentiated(case, output.loss)
        finite = bool(output.logits.isfinite().all()) and bool(output.loss.isfinite())
        require(finite, "logits or loss are not finite with a row that is padding alone")
        found.append((output.logits, output.loss, named_gradients(model)))
    (alone, loss, gradients), (together, same_loss, same_gradients), (_, nothing, zeros) = found
    what = "with a row that is padding alone"
    require_close(together[[0, 2]], alone, f"logits of the other rows, {what}", atol=1e-5)
    require_close(same_loss, loss, f"loss {what}", rtol=1e-5)
    require_same_gradients(same_gradients, gradients, what)
    require(float(nothing.detach()) == 0, f"the loss of a row that is padding alone is {float(nothing.detach()):.3g}")
    trained = [name for name, gradient in zeros.items() if not bool((gradient == 0).all())]
    require(not trained, f"{listed(trained)} receives a gradient from a row that is padding alone")


@check(
    "masking",
    "rows-independent",
    fix="Something mixes the rows of a batch: batch normalisation, attention over the wrong axis, a reshape that "
    "swaps batch and time, or one maximum or mean over all rows.",
)
def rows_independent(case: Case) -> None:
    """The logits of a row do not depend on the other rows, their order or the batch size, to 1e-6, in evaluation and,
    without dropout, in training.
    """
    model, ids = case.stirred(dropout=0.0), case.ids(5, case.length)
    others = case.ids(5, case.length, seed=1)
    others[2] = ids[2]
    for training in (False, True):
        model.train(training)
        chance = torch.random.get_rng_state()
        together = model(ids).logits
        if not torch.equal(torch.random.get_rng_state(), chance):
            not_looked_at("training: dropout that no key of the type Dropout turns off")
            return
        answers = {
            "in another order": model(ids.roll(1, dims=0)).logits.roll(-1, dims=0),
            "alone in its batch": model(ids[2:3]).logits,
            "among other rows": model(others).logits[2:3],
        }
        limit = 1e-6 * max(1.0, float(together.detach().abs().max()))
        for how, logits in answers.items():
            what = f"logits of a row {how}{', in training' if training else ''}{norms(model)}"
            require_close(logits, together if len(logits) == 5 else together[2:3], what, atol=limit)
    return


@check(
    "masking",
    "lengths",
    fix="Refuse more than `context.max_sequence_length` tokens with a one-line FoundryError, or more than the model's "
    "`max_positions` where it has that, or declare `unbounded_length`.",
)
def lengths(case: Case) -> None:
    """Rows of one token and of the maximum length get logits for every token and a finite loss; one more token, in the
    row or after a state, is refused with a one-line error, or accepted if `unbounded_length` is declared.
    """
    model = case.stirred()
    for length in (1, case.length):
        _require_read(case, model, length)
    if case.capabilities.unbounded_length:
        _require_read(case, model, case.length + 1)
        return
    longest = getattr(model, "max_positions", case.length)
    _require_read(case, model, longest)
    what = f"{longest + 1} tokens, one more than the longest row"
    require_refused(lambda: model(case.ids(1, longest + 1)), what)
    if case.capabilities.stateful:
        full = model(case.ids(1, longest), use_cache=True).state
        what = f"one token after a state of {longest}, the longest"
        require_refused(lambda: model(case.ids(1, 1), state=full, use_cache=True), what)


def _require_read(case: Case, model: BaseLanguageModel, length: int) -> None:
    ids = case.ids(1, length)
    output = model(ids, labels=ids)
    require(output.logits.shape[:2] == (1, length), f"logits of a row of {length} tokens: {tuple(output.logits.shape)}")
    finite = bool(output.logits.isfinite().all()) and bool(output.loss.isfinite())
    require(finite, f"logits or loss of a row of {length} tokens are not finite")
