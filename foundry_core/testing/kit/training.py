"""Checks of training against evaluation, and of gradients against the loss.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED, language_loss
from foundry_core.random_streams import seed_generators
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import (
    NonconformanceError,
    NotLookedAtError,
    check,
    require,
    require_close,
    unless_counting,
)
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.objective import norms


@check(
    "numerics",
    "train-mode",
    after=("rows-independent", "reference-loss"),
    realistic=True,
    fix="`self.training` may control dropout and nothing else: use the same loss, mask, temperature and kernel in "
    "training and in evaluation.",
)
def train_mode(case: Case) -> None:
    """Without dropout, training and evaluation mode give the same logits and losses to 1e-5, on padded batches too,
    whether or not gradients are recorded.
    """
    model = case.stirred(dropout=0.0)
    rows = [case.ids(length, seed=length) for length in (case.length // 2, case.length - 1, 1)]
    for side in case.capabilities.padding_sides:
        ids, mask = padded(rows, side, int(case.ordinary[0]))
        labels, chance = case.labels(ids, mask), torch.random.get_rng_state()
        trained = model.train()(ids, attention_mask=mask, labels=labels)
        lean = model(ids, attention_mask=mask, labels=labels, reduction="sum", return_logits=False)
        if not torch.equal(torch.random.get_rng_state(), chance):
            raise NotLookedAtError("there is dropout that no key of the type Dropout turns off")
        scale = max(1.0, float(trained.logits.detach().abs().max()))
        with torch.no_grad():
            evaluated = model.eval()(ids, attention_mask=mask, labels=labels)
            total = model(ids, attention_mask=mask, labels=labels, reduction="sum", return_logits=False)
        real = mask == 1
        mean, lean_sum = language_loss(trained), language_loss(lean)
        what = f"logits of training and evaluation{norms(model)}"
        require_close(evaluated.logits[real], trained.logits[real], what, atol=1e-5 * scale)
        require_close(evaluated.loss, mean, "loss of training and evaluation", rtol=1e-5)
        require_close(total.loss, lean_sum, "summed loss of training and evaluation", rtol=1e-5)
        require_close(total.loss / total.count, mean, "summed loss over its count and the mean", rtol=1e-5)


@check(
    "numerics",
    "dropout",
    scope="objective",
    fix="`nn.Dropout(p)` takes the probability of dropping a value, not of keeping it. Apply it to embeddings and "
    "inside layers, not to logits. Pass `p` from the settings and `training=self.training` to `F.dropout`.",
)
def dropout(case: Case) -> None:
    """In training, dropout of 0.5 changes the logits more than dropout of 0.05, and does not set logits to 0. The keys
    of dropout are those of the type `Dropout`.
    """
    if not case.has_dropout:
        raise NotLookedAtError("no key has the type Dropout of foundry_core")
    ids = case.ids(4, min(16, case.length))
    distances = []
    for probability in (0.05, 0.5):
        model = case.stirred(dropout=probability)
        with torch.no_grad():
            evaluated, trained = model(ids).logits, model.train()(ids).logits
        left_out = float(((trained == 0) & (evaluated != 0)).double().mean())
        require(left_out < 0.2, f"{left_out:.0%} of the logits in training are 0 with dropout of {probability:g}")
        distances.append(float((trained - evaluated).abs().mean()))
    low, high = distances
    if high == low == 0:
        raise NotLookedAtError(f"{case}: dropout changes nothing: with one layer, there may be none")
    found = f"dropout of 0.5 changes the logits by {high:.3g} on average"
    require(high > low, f"{found}, dropout of 0.05 by {low:.3g}")


@check(
    "numerics",
    "derivative",
    scope="objective",
    needs=unless_counting(),
    fix="Part of the gradient is lost or scaled: look for `detach` or `no_grad` in a recurrence, in attention "
    "weights or around a gate, for hooks, and for operations without a gradient such as rounding.",
)
def derivative(case: Case) -> None:
    """In a random direction, the gradient of every parameter equals the difference quotient of the loss, within 5 %."""
    model = case.stirred(dropout=0.0).double().train()
    ids, labels = case.ragged(seed=3)
    torch.autograd.backward(exact_loss(model, ids, labels))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        gradient = float((parameter.grad * direction).sum()) if parameter.grad is not None else 0.0
        # If part of the model computes in fp32, a small step is lost in rounding; a large step crosses kinks.
        found: list[str] = []
        for step in (1e-2, 1e-4):
            quotient = _quotient(model, parameter, step * direction, ids, labels) / step
            found.append(f"{quotient:.4g}")
            if abs(quotient - gradient) < 0.05 * max(abs(quotient), abs(gradient), 0.02):
                break
        else:
            what = f"the gradient of {name} in a random direction is {gradient:.4g}"
            raise NonconformanceError(f"{what}, the loss changes {' or '.join(found)}")


def exact_loss(model: BaseLanguageModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in float64; core's fp32 loss is not precise enough."""
    seed_generators(0)
    logits = model(ids).logits.double()
    if model.context.objective.causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def _quotient(
    model: BaseLanguageModel,
    parameter: torch.nn.Parameter,
    step: torch.Tensor,
    ids: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """Return half the difference of the losses at one step in each direction."""
    kept = parameter.clone()
    losses = []
    for sign in (1, -1):
        parameter.copy_(kept + sign * step)
        losses.append(float(exact_loss(model, ids, labels)))
    parameter.copy_(kept)
    return (losses[0] - losses[1]) / 2
