"""Checks of training against evaluation, of gradients against the loss, and of long rows.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED, language_loss
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import check, require, require_close, require_equal
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.objective import cross_entropy

_LONG = 200
"""Tokens in a long row: more than the chunks in which scans and losses are usually computed."""

_CHUNKS = (16, 32, 48, 50, 64, 80, 96, 100, 112, 128)
"""Usual sizes of such chunks."""


@check(
    "numerics",
    "train-mode",
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
            return  # there is dropout that no setting turns off
        scale = max(1.0, float(trained.logits.detach().abs().max()))
        with torch.no_grad():
            evaluated = model.eval()(ids, attention_mask=mask, labels=labels)
            total = model(ids, attention_mask=mask, labels=labels, reduction="sum", return_logits=False)
        real = mask == 1
        require_close(
            evaluated.logits[real], trained.logits[real], "logits of training and evaluation", atol=1e-5 * scale
        )
        mean, lean_sum = language_loss(trained), language_loss(lean)
        require_close(evaluated.loss, mean, "loss of training and evaluation", rtol=1e-5)
        require_close(total.loss, lean_sum, "summed loss of training and evaluation", rtol=1e-5)
        require_close(total.loss / total.count, mean, "summed loss over its count and the mean", rtol=1e-5)


@check(
    "numerics",
    "dropout",
    scope="objective",
    fix="`nn.Dropout(p)` takes the probability of dropping a value, not of keeping it. Apply it to embeddings and "
    "inside layers, not to logits. Pass `p` from the settings and `training=self.training` to `F.dropout`.",
    needs=lambda case: None if case.has_dropout else "no setting is a probability of dropout",
)
def dropout(case: Case) -> None:
    """In training, dropout of 0.5 changes the logits more than dropout of 0.05, and does not set logits to 0."""
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
    if high > 0 or low > 0:  # dropout between layers needs more than one
        found = f"dropout of 0.5 changes the logits by {high:.3g} on average"
        require(high > low, f"{found}, dropout of 0.05 by {low:.3g}")


@check(
    "numerics",
    "derivative",
    scope="objective",
    fix="Part of the gradient is lost or scaled: look for `detach` or `no_grad` in a recurrence, in attention "
    "weights or around a gate, for hooks, and for operations without a gradient such as rounding.",
)
def derivative(case: Case) -> None:
    """In a random direction, the gradient of every parameter equals the difference quotient of the loss, within 5 %."""
    model = case.stirred(dropout=0.0).double().train()
    ids, labels = case.ragged(seed=3)
    torch.autograd.backward(_loss(model, ids, labels))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        gradient = float((parameter.grad * direction).sum()) if parameter.grad is not None else 0.0
        # If part of the model computes in fp32, a small step is lost in rounding; a large step crosses kinks.
        quotients = [_quotient(model, parameter, step * direction, ids, labels) / step for step in (1e-2, 1e-4)]
        off = min(abs(each - gradient) / max(abs(each), abs(gradient), 0.02) for each in quotients)
        found = " or ".join(f"{each:.4g}" for each in quotients)
        require(off < 0.05, f"the gradient of {name} in a random direction is {gradient:.4g}, the loss changes {found}")


def _loss(model: BaseLanguageModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in float64; core's fp32 loss is not precise enough."""
    torch.manual_seed(0)
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
        losses.append(float(_loss(model, ids, labels)))
    parameter.copy_(kept)
    return (losses[0] - losses[1]) / 2


@check(
    "numerics",
    "long-rows",
    scope="objective",
    fix="What holds for a few tokens must hold for hundreds: carry the state from chunk to chunk with its gradient "
    "(no `detach`), accumulate sums in fp32, and average over all predictions instead of over chunks.",
)
def long_rows(case: Case) -> None:
    """A row of 200 tokens behaves like a short one: logits are finite and agree with float64 to 1e-4, nothing leaks at
    any position, a change to one token affects the logits of later tokens, padding has no effect, the state can be
    carried over, the loss equals the cross-entropy of the logits, and the gradient is complete.
    """
    long = replace(case, length=min(_LONG, case.capabilities.longest_sequence or _LONG))
    model, ids = long.stirred(dropout=0.0), long.ids(2, long.length)
    with torch.no_grad():
        logits = model(ids).logits
        require(bool(logits.isfinite().all()), f"logits of {long.length} tokens are not finite")
        scale = max(1.0, float(logits.abs().max()))
        for place in sorted({long.length // 100, long.length // 3 - 3, long.length * 2 // 3 - 5, long.length - 1}):
            _require_seen(long, model, ids, logits, place)
        if "right" in case.capabilities.padding_sides:
            rows = [long.ids(length, seed=length) for length in (long.length * 3 // 4, long.length // 3)]
            batch, mask = padded(rows, "right", int(case.ordinary[0]))
            found = model(batch, attention_mask=mask).logits
            for row, logits_TV in zip(rows, found, strict=True):
                what = f"logits of {len(row)} tokens, padded on the right"
                require_close(logits_TV[: len(row)], model(row[None]).logits[0], what, atol=1e-4 * scale)
        if case.capabilities.stateful:
            half = long.length // 2 + 1
            first = model(ids[:, :half], use_cache=True)
            require(first.state is not None, "stateful is declared, but with use_cache=True no state is returned")
            second = model(ids[:, half:], state=first.state)
            what = f"logits after a carried state of {half} tokens"
            require_close(second.logits, logits[:, half:], what, atol=1e-4 * scale)
        batch = long.ids(12, long.length, seed=1)
        whole, lean = model(batch, labels=batch), model(batch, labels=batch, return_logits=False)
        expected = cross_entropy(whole.logits, batch, causal=case.causal).mean()
        for output, how in ((whole, "with"), (lean, "without")):
            require_close(output.loss.double(), expected, f"loss of {batch.numel():,} tokens, {how} logits", rtol=1e-5)
        exact = model.double()(ids).logits
        require_close(logits, exact, f"logits of {long.length} tokens in fp32 and float64", atol=1e-4 * scale)
    _require_whole_gradient(long, model.train())


def _require_seen(case: Case, model: BaseLanguageModel, ids: torch.Tensor, before: torch.Tensor, place: int) -> None:
    """Require a changed token to be seen by the next few and, unless the model is bidirectional, by none before it."""
    other = ids.clone()
    other[:, place] = case.changed(ids[:, place])
    after = model(other).logits
    if not case.sees_right:
        require_equal(after[:, :place], before[:, :place], f"logits before the changed token {place} of {case.length}")
    near = slice(place, place + min(8, case.capabilities.receptive_field or 8))
    seen = (after != before)[:, near].any(dim=-1).all()
    require(bool(seen), f"a changed token {place} of {case.length} is not seen by those that follow")


def _require_whole_gradient(case: Case, model: BaseLanguageModel) -> None:
    """Compare gradients across possible ends of chunks with difference quotients, within 5 %.

    The gradient goes from the first few tokens of a chunk to the vector of the token before it; in a bidirectional
    model also from the last few tokens of a chunk to the vector of the token after it.
    """
    near = min(8, (case.capabilities.receptive_field or case.length) - 1)
    length = min(_CHUNKS[-1] + near, case.length)
    ends = [end for end in _CHUNKS if end + near <= length]
    if near < 1 or not ends:
        return
    rows = [(end - 1, slice(end, end + near)) for end in ends]
    if case.sees_right:
        rows += [(length - end, slice(length - end - near, length - end)) for end in ends]
    ids, generator = case.ids(len(rows), length, seed=2), torch.Generator().manual_seed(0)
    readout = torch.randn(case.vocabulary, generator=generator, dtype=torch.float64)
    embeddings = model.get_input_embeddings()
    direction = torch.randn(embeddings(ids[:1, :1]).shape[-1], generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    places = torch.tensor([place for place, _ in rows])
    moved = torch.zeros(len(rows), length, len(direction), dtype=torch.float64, requires_grad=True)

    def read(distance: float) -> torch.Tensor:
        """Return a number for each row, computed from the tokens that see the moved vector."""
        with torch.no_grad():
            moved[torch.arange(len(rows)), places] = distance * direction
        torch.manual_seed(0)
        logits = model(ids).logits.double()
        return torch.stack([(logits[row, seeing] @ readout).sum() for row, (_, seeing) in enumerate(rows)])

    def off(step: float) -> torch.Tensor:
        """Return the relative error of the gradient for each row."""
        with torch.no_grad():
            quotients = (read(step) - read(-step)) / (2 * step)
        return (quotients - gradients).abs() / torch.maximum(quotients.abs(), gradients.abs()).clamp(min=0.1)

    hook = embeddings.register_forward_hook(lambda module, given, vectors: vectors + moved.to(vectors.dtype))
    try:
        torch.autograd.backward(read(0.0).sum())
        if moved.grad is None:
            return  # the model looks up its vectors in another way
        gradients = moved.grad[torch.arange(len(rows)), places] @ direction
        worst = off(1e-2)
        if bool((worst >= 0.05).any()):  # a large step may cross a kink
            worst = torch.minimum(worst, off(1e-4))
    finally:
        hook.remove()
    for (place, seeing), share in zip(rows, worst.tolist(), strict=True):
        sent = f"from tokens {seeing.start} to {seeing.stop - 1} to token {place} of {length}"
        require(share < 0.05, f"the gradient {sent} is {share:.0%} off the difference quotient")
