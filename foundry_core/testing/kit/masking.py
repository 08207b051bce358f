"""Is a model blind to what is not there: padding, masked tokens, the other rows of the batch?

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
from foundry_core.testing.kit.check import NonconformanceError, check, require, require_close

Side = Literal["left", "right"]


def padded(rows: list[torch.Tensor], side: Side, content: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length with a token as padding, one column of it more than the longest needs, and their mask."""
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
            what = f"logits of a row of {len(rows[index])} tokens with {shown} on its {side}"
            require_close(output.logits[index][mask[index] == 1], expected.logits[0], what, atol=1e-5)
        require(int(output.count) == count, f"{int(output.count)} predictions with padding, {count} without")
        require_close(output.loss, loss, f"loss with padding on the {side}", rtol=1e-5)


@check(
    "masking",
    "right-padding",
    mend="Hand `attention_mask` to whatever looks across tokens, and on to `self.lm_output`. A second direction of a "
    "recurrent model must start at the last real token: pack the rows.",
    needs=lambda case: None if "right" in case.capabilities.padding_sides else "padding on the right is not declared",
)
def right_padding(case: Case) -> None:
    """Padding on the right, and what token it is, changes neither real logits nor the loss by more than 1e-5."""
    require_padding_invisible(case, "right")


@check(
    "masking",
    "left-padding",
    mend="Count positions by real tokens, start a recurrence at the first of them, and give a query that sees nothing "
    "a finite result; hand `attention_mask` on to `self.lm_output`; or leave 'left' out of the capability "
    "`padding_sides`.",
)
def left_padding(case: Case) -> None:
    """Padding on the left, where declared, changes neither real logits nor the loss by more than 1e-5; where it is not
    declared, core refuses it in one line.
    """
    if "left" in case.capabilities.padding_sides:
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
        require("\n" not in str(error), f"{what}: the refusal is more than one line")
    else:
        raise NonconformanceError(f"{what}: not refused, and not declared as a capability")


@check(
    "masking",
    "attention-mask",
    mend="A token whose mask is 0 must not be read at all, wherever it stands: mask attention by `attention_mask` and "
    "not by lengths; pass it over in a recurrence or a convolution; hand `attention_mask` on to `self.lm_output`.",
)
def attention_mask(case: Case) -> None:
    """A masked token between others is invisible: what it is changes no other logit and no loss by more than 1e-5; a
    mask of ones is as good as none.
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
    what = f"logits of the other tokens when the masked token {place} is another one"
    require_close(new.logits[:, kept], old.logits[:, kept], what, atol=1e-5)
    require_close(new.loss, old.loss, f"loss when the masked token {place} is another one", rtol=1e-5)


@check(
    "masking",
    "rows-independent",
    mend="Something mixes the batch: batch normalisation, attention over the wrong axis, a reshape that swaps batch "
    "and time, one maximum or mean for all rows.",
)
def rows_independent(case: Case) -> None:
    """Other rows, their order and the size of the batch change no logit by more than 1e-6, in evaluation and, without
    dropout, in training.
    """
    model, ids = case.stirred(dropout=0.0), case.ids(5, case.length)
    others = case.ids(5, case.length, seed=1)
    others[2] = ids[2]
    for training in (False, True):
        model.train(training)
        chance = torch.random.get_rng_state()
        together = model(ids).logits
        if not torch.equal(torch.random.get_rng_state(), chance):
            return  # dropout that no setting turns off: rows differ by chance
        answers = {
            "in another order": model(ids.roll(1, dims=0)).logits.roll(-1, dims=0),
            "alone in its batch": model(ids[2:3]).logits,
            "among other rows": model(others).logits[2:3],
        }
        limit = 1e-6 * max(1.0, float(together.detach().abs().max()))
        for how, logits in answers.items():
            what = f"logits of a row {how}{', in training' if training else ''}"
            require_close(logits, together if len(logits) == 5 else together[2:3], what, atol=limit)


@check(
    "masking",
    "lengths",
    mend="Refuse more tokens than `context.max_sequence_length` with a FoundryError of one line, or declare "
    "`unbounded_length`.",
)
def lengths(case: Case) -> None:
    """One row of one token and of the longest length has its logits and a finite loss; one token more, in the row or
    behind a state, is refused in one line, or read where `unbounded_length` is declared.
    """
    model = case.stirred()
    for length in (1, case.length):
        _require_read(case, model, length)
    if case.capabilities.unbounded_length:
        _require_read(case, model, case.length + 1)
        return
    require_refused(lambda: model(case.ids(1, case.length + 1)), f"{case.length + 1} tokens, one more than the longest")
    if case.capabilities.stateful:
        full = model(case.ids(1, case.length), use_cache=True).state
        what = f"one token behind a state of {case.length}, the longest"
        require_refused(lambda: model(case.ids(1, 1), state=full, use_cache=True), what)


def _require_read(case: Case, model: BaseLanguageModel, length: int) -> None:
    ids = case.ids(1, length)
    output = model(ids, labels=ids)
    require(
        output.logits.shape[:2] == (1, length), f"a row of {length} tokens gives {tuple(output.logits.shape)} logits"
    )
    finite = bool(output.logits.isfinite().all()) and bool(output.loss.isfinite())
    require(finite, f"a row of {length} tokens gives logits or a loss that are not finite")
