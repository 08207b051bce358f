"""Checks of the task: what a prediction sees, how the loss is computed, and whether the model learns.

Shapes: B batch, T tokens, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from foundry_core.models.loss import IGNORED, ModelOutput
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import (
    NonconformanceError,
    NotLookedAtError,
    check,
    differentiated,
    named_gradients,
    not_looked_at,
    require,
    require_close,
    require_equal,
    require_same_gradients,
    unless_counting,
)

REDUCTIONS = ("mean", "sum", "none")


@check(
    "objective",
    "runs",
    scope="architecture",
    fix="The named line, or a function that it calls, raises an exception; --debug prints the whole traceback. If a "
    "keyword is unexpected, let `forward` take `**kwargs` and pass them to `self.lm_output`. Until this is "
    "fixed, every check of the model fails with the same error.",
)
def runs(suite: Suite) -> None:
    """Every example, the recipe and the defaults of the schema can be built and accept a batch with a mask and labels,
    called with logits and, as the trainer does, without.
    """
    require(suite.fault is None, "the model does not run")
    if suite.without_one_layer is not None:
        not_looked_at(f"a model with one layer: {suite.without_one_layer}")
    for left_out in suite.too_large:
        not_looked_at(left_out)


@check(
    "objective",
    "causal-leak",
    realistic=True,
    fix="An attention mask, the padding of a convolution, a second direction, or a norm whose mean and variance run "
    "over time lets a prediction see its own target. If the changed token has too little effect, the mask is too "
    "narrow or a capability is wrong: `bidirectional`, or `receptive_field`, which declares how far convolutions and "
    "windows see.",
)
def causal_leak(case: Case) -> None:
    """Changing a token leaves all logits before it bit-identical and changes the logits from it on, as far as
    `receptive_field` reaches; in a bidirectional model it changes the logits on both sides.
    """
    model, before = case.stirred(), case.ids(3, case.length)
    old = model(before).logits
    for place in (1, case.length // 2, case.length - 2):
        after = before.clone()
        after[:, place] = case.changed(before[:, place])
        new = model(after).logits
        if not case.sees_right:
            require_equal(new[:, :place], old[:, :place], f"logits before the changed token {place}{norms(model)}")
        _require_seen(case, old, new, place)


def norms(model: torch.nn.Module) -> str:
    """Name the first layer, such as a BatchNorm1d, whose statistics may run over rows or time; '' if there is none."""
    kinds = (torch.nn.modules.batchnorm._NormBase, torch.nn.GroupNorm)
    found = (f"{name}, a {type(each).__name__}" for name, each in model.named_modules() if isinstance(each, kinds))
    first = next(found, None)
    return "" if first is None else f" ({first}, takes its statistics from several tokens)"


def _require_seen(case: Case, old: torch.Tensor, new: torch.Tensor, place: int) -> None:
    """Require logits to change where a changed token must be seen, and nowhere else."""
    reach = case.capabilities.receptive_field or case.length
    distance = torch.arange(case.length) - place
    seen = (distance.abs() < reach) & ((distance >= 0) | case.sees_right)
    blind = distance[seen & ~(old != new).any(dim=-1).all(dim=0)].tolist()
    if blind:
        raise NonconformanceError(f"a changed token does not change the logits {_away(blind)} it")
    touched = distance[(distance.abs() >= reach) & (old != new).any(dim=-1).any(dim=0)].tolist()
    if touched:
        raise NonconformanceError(
            f"receptive_field is {reach}, but a changed token changes the logits {_away(touched)} it"
        )


def _away(distances: list[int]) -> str:
    """Describe the position of the nearest of these places relative to a token."""
    nearest = min(distances, key=abs)
    if nearest == 0:
        return "at"
    return f"{abs(nearest)} {'place' if abs(nearest) == 1 else 'places'} {'after' if nearest > 0 else 'before'}"


@check(
    "objective",
    "word-order",
    fix="Positions do not reach the layer that mixes tokens. Typical causes are rotary angles along the axis of the "
    "heads instead of time, distances clamped at 0 on one side, identical positions, or no positions at all. A "
    "sum over tokens does not depend on their order.",
    needs=lambda case: None if case.sees_right else "no prediction sees tokens on both sides",
)
def word_order(case: Case) -> None:
    """Swapping two tokens changes the logits of a token next to them, in float64 by more than 1e-9, on either side, as
    far as `receptive_field` reaches.
    """
    # A causal model may be a sum or a mean on purpose, and causal attention encodes order by its mask alone.
    near, far = 1, min(3, (case.length - 1) // 2, (case.capabilities.receptive_field or case.length) - 1)
    if far <= near:
        raise NotLookedAtError("a prediction cannot see two tokens on one side")
    model, ids = case.stirred().double(), case.ids(1, 2 * far + 1)
    ids[0, far] = int(case.tokenizer.mask_token_id)
    for side, sign in (("left", -1), ("right", 1)):
        places = [far + sign * near, far + sign * far]
        ids[0, places] = case.ordinary[[0, -1]]
        swapped = ids.clone()
        swapped[0, places] = case.ordinary[[-1, 0]]
        with torch.no_grad():
            before, after = (model(each).logits[0, far] for each in (ids, swapped))
        moved = float((after - before).abs().max())
        pair = f"two tokens {near} and {far} places to the {side}"
        require(moved > 1e-9, f"swapping {pair} changes no logit by more than {moved:.1g}")


@check(
    "objective",
    "reference-loss",
    fix="The model shifts the labels itself, or divides by something other than the number of predictions. End "
    "`forward` with `return self.lm_output(hidden, head, labels, attention_mask=attention_mask, **kwargs)`, and "
    "pass the labels and all keywords unchanged; `reduction` is one of them.",
)
def reference_loss(case: Case) -> None:
    """The mean loss, the summed loss and the losses of single tokens equal, to 1e-5, a float64 cross-entropy of the
    logits over the labels that are not -100, shifted by one if the objective is causal; the output counts the
    predictions.
    """
    model = case.stirred()
    ids, labels = case.ragged()
    logits = model(ids).logits
    each_BT = torch.zeros(ids.shape, dtype=torch.float64)
    chosen = labels != IGNORED
    if case.causal:
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, 1:]], dim=1)
    each_BT[chosen] = cross_entropy(logits, labels, causal=case.causal)
    for return_logits in (True, False):
        output = model(ids, labels=labels, reduction="none", return_logits=return_logits)
        require("token_losses" in output, "with reduction='none' the output has no token_losses")
        require_close(output.token_losses.double(), each_BT, "losses of the tokens", atol=1e-5, rtol=1e-5)
        for reduction in ("mean", "sum"):
            count = model(ids, labels=labels, reduction=reduction, return_logits=return_logits).get("count")
            counted = count is not None and int(count) == int(chosen.sum())
            require(counted, f"the output counts {count} predictions, there are {int(chosen.sum())}")
    for reduction in ("mean", "sum"):
        output = model(ids, labels=labels, reduction=reduction)
        losses_N = cross_entropy(output.logits, labels, causal=case.causal)
        # If every label had the same loss, a wrong label would go unnoticed.
        require(float(losses_N.std()) > 0.01, "the logits hardly differ from token to token")
        expected = losses_N.mean() if reduction == "mean" else losses_N.sum()
        loss = loss_of(output)
        require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, but must be a scalar")
        require_close(loss.double(), expected, f"{reduction} of the losses", rtol=1e-5)


@check(
    "objective",
    "special-tokens",
    after=("reference-loss",),
    fix="The mask decides what is padding, not the token id: the end of a text is a token to learn, and the padding "
    "token may occur in a text. Mask by `attention_mask`, and ignore only labels of -100.",
)
def special_tokens(case: Case) -> None:
    """Special tokens in a text are predicted, counted and seen like any other token."""
    special = torch.tensor(sorted(set(case.tokenizer.all_special_ids)))
    model, ids = case.stirred(), case.ids(6, case.length)
    ids[:, ::3] = special.repeat(ids.numel())[: ids[:, ::3].numel()].view_as(ids[:, ::3])
    output = model(ids, attention_mask=torch.ones_like(ids), labels=ids, reduction="sum")
    expected = cross_entropy(output.logits, ids, causal=case.causal)
    require_close(loss_of(output).double(), expected.sum(), "loss of a text with special tokens", rtol=1e-5)
    counts = {int(output.count), int(model.targets(ids)[1].sum()), len(expected)}
    require(
        len(counts) == 1, f"with special tokens there are {len(expected)} predictions, but {sorted(counts)} are counted"
    )
    plain, mask, place = case.ids(2, case.length), torch.ones_like(ids[:2]), 2
    before = model(plain, attention_mask=mask).logits
    behind = slice(place + 1, place + min(8, case.capabilities.receptive_field or 8))
    for number in special.tolist():
        changed = plain.clone()
        changed[:, place] = number
        differs = (model(changed, attention_mask=mask).logits != before).any(dim=-1)
        require(bool(differs[:, behind].all()), f"the special token {number} is not seen by those that follow it")


@check(
    "objective",
    "no-labels",
    after=("reference-loss",),
    fix="A mean over no predictions is 0/0; core's loss divides by at least 1. Do not add anything else to the loss.",
)
def no_labels(case: Case) -> None:
    """If every label is -100, the loss and all gradients are 0."""
    model, ids = case.stirred(), case.ids(4, case.length)
    labels = torch.full_like(ids, IGNORED)
    for reduction in REDUCTIONS:
        for return_logits in (True, False):
            loss = loss_of(model(ids, labels=labels, reduction=reduction, return_logits=return_logits))
            require(loss.item() == 0, f"the loss ({reduction}) is {loss.item()} although nothing is predicted")
            differentiated(case, loss)
    for name, gradient in named_gradients(model).items():
        require(bool((gradient == 0).all()), f"{name} receives a gradient although nothing is predicted")


@check(
    "objective",
    "accumulation",
    after=("reference-loss",),
    needs=unless_counting(),
    fix="The trainer divides the summed loss of a step by the number of predictions, which `targets` counts. Either "
    "the loss is not a sum over predictions, or it depends on the other rows, or it counts other predictions "
    "than `targets`.",
)
def accumulation(case: Case) -> None:
    """The gradients of micro-batches, weighted by their numbers of predicted tokens, add up to those of the whole
    batch, to 1e-5.
    """
    model = case.stirred()
    ids, labels = case.ragged()
    mask = torch.ones_like(ids)
    loss_of(model(ids, attention_mask=mask, labels=labels)).backward()
    whole = named_gradients(model)
    model.zero_grad()
    count = int(model.targets(labels, mask)[1].sum())
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        output = model(ids[part], attention_mask=mask[part], labels=labels[part], reduction="sum", return_logits=False)
        (loss_of(output) / count).backward()
    require_same_gradients(named_gradients(model), whole, "micro-batches and the whole batch")


@check(
    "objective",
    "loss-without-logits",
    after=("reference-loss",),
    fix="Pass `return_logits` to `self.lm_output`, and let the head accept any number of positions: it receives (B, "
    "T, D) or, without logits, only the predicted positions as (N, D).",
)
def loss_without_logits(case: Case) -> None:
    """With return_logits=False, the model returns no logits, and the same loss and gradients, to 1e-5."""
    model = case.stirred()
    ids, labels = case.ragged()
    full = model(ids, labels=labels)
    differentiated(case, loss_of(full))
    expected = named_gradients(model)
    model.zero_grad()
    lean = model(ids, labels=labels, return_logits=False)
    require("logits" not in lean, "logits are returned although return_logits is False")
    require_close(loss_of(lean), loss_of(full), "loss without logits", rtol=1e-5)
    differentiated(case, loss_of(lean))
    require_same_gradients(named_gradients(model), expected, "with and without logits")


@check(
    "objective",
    "raw-logits",
    fix="Return the output of the last layer unchanged: the loss, sampling and scoring normalise it themselves. The "
    "logarithm of probabilities is a valid output too, such as that of a mixture of softmaxes.",
)
def raw_logits(case: Case) -> None:
    """Logits are fp32 of shape (batch, time, vocabulary), and are not probabilities, nor made from them by another
    softmax: with large weights, those of a position differ by more than 1.
    """
    model, ids = case.stirred(), case.ids(3, case.length)
    for _ in range(3):
        logits = model(ids).logits
        require(logits is not None, "the output has no logits")
        expected = (*ids.shape, case.vocabulary)
        what = f"logits have shape {tuple(logits.shape)}, expected {expected}{of_the_yaml(case, logits.shape[-1])}"
        require(tuple(logits.shape) == expected, what)
        require(logits.dtype == torch.float32, f"logits are {logits.dtype}")
        widest = float((logits.amax(dim=-1) - logits.amin(dim=-1)).max().detach())
        if widest > 1:
            return
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10)
    raise NonconformanceError(
        f"with weights 100 times as large, no two logits of a position differ by more than {widest:.3g}"
    )


def of_the_yaml(case: Case, size: int) -> str:
    """Return a hint if a size comes from the YAML instead of the tokenizer, or ''."""
    if size == case.vocabulary or size != case.config.tokenizer.vocab_size:
        return ""
    return f": {size} is tokenizer.vocab_size of the YAML; sizes come from self.context"


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, causal: bool, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the float64 loss of each label that is not -100, (N,).

    A causal label is predicted by the logits one position before; it is left out if that position is padding.
    """
    logits = logits.detach().double()
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    chosen = labels != IGNORED
    if causal and mask is not None:
        chosen &= mask[:, :-1] == 1
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="none")


def loss_of(output: ModelOutput) -> Any:
    require(output.loss is not None, "the model returned no loss although it was given labels")
    return output.loss
