"""The check of long rows: what holds for a few tokens holds for hundreds, in values and in gradients.

Shapes: B batch, T tokens, V vocabulary, R rows of one measurement.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED, language_loss
from foundry_core.random_streams import seed_generators
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import (
    NonconformanceError,
    check,
    differentiated,
    named_gradients,
    not_looked_at,
    require,
    require_close,
    require_equal,
    require_same_gradients,
)
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.training import exact_loss

_LONG = 200
"""Tokens in a long row: more than the chunks in which scans and losses are usually computed."""

_LONGER = 300, 600
"""Tokens in rows of models that read any number of them: more than usual sizes of buffers."""

_CHUNKS = (8, 10, 12, 16, 20, 24, 25, 30, 32, 40, 48, 50, 60, 64, 75, 80, 96, 100, 112, 120, 128, 144, 150, 160, 192)
_LARGE_CHUNKS = (200, 250, 256, 300, 320, 384, 400, 500, 512)
"""Usual sizes of such chunks."""


@check(
    "numerics",
    "long-rows",
    scope="objective",
    after=("causal-leak", "reference-loss", "right-padding", "float64", "carried-state", "derivative"),
    fix="What holds for a few tokens must hold for hundreds: carry the state from chunk to chunk with its gradient "
    "(no `detach`), accumulate sums in fp32, average over all predictions instead of over chunks, and size no buffer "
    "by a row.",
)
def long_rows(case: Case) -> None:
    """A row of 200 tokens behaves like a short one, and so do rows of 300 and 600 where `unbounded_length` is declared:
    logits are finite and agree with float64 to 1e-4, nothing leaks at any position, a change to one token affects the
    logits of later tokens, padding has no effect, the state can be carried over, the loss of 2,000 predictions and its
    gradients equal those of the cross-entropy of the logits, and gradients cross the ends of chunks.
    """
    longest = case.capabilities.longest_sequence
    long = replace(case, length=min(_LONG, longest or _LONG))
    model = long.stirred(dropout=0.0)
    _require_sound(long, model, long.length)
    _require_whole_loss(long, model.float().train())
    if not case.counts:
        _require_whole_gradient(long, model, _CHUNKS)
    if case.capabilities.unbounded_length and longest is None:
        # Built for short rows: no buffer may be as long as those.
        model = case.stirred(dropout=0.0)
        for length in _LONGER:
            _require_sound(case, model.float().train(False), length)
        if not case.counts:
            _require_whole_gradient(replace(case, length=_LONGER[-1]), model.train(), _LARGE_CHUNKS)


def _require_sound(case: Case, model: BaseLanguageModel, length: int) -> None:
    """Check the logits of rows of a length, in evaluation."""
    ids = case.ids(2, length)
    with torch.no_grad():
        logits = model(ids).logits
        require(bool(logits.isfinite().all()), f"logits of {length} tokens are not finite")
        scale = max(1.0, float(logits.abs().max()))
        places = (length // 100, length // 3 - 3, length * 2 // 3 - 5, length - 1)
        for place in sorted(
            set(places if length <= _LONG else places[2:])
        ):  # near the start, long rows are like others
            _require_seen(case, model, ids, logits, place)
        if "right" in case.capabilities.padding_sides:
            rows = [case.ids(part, seed=part) for part in (length * 3 // 4, length // 3)]
            batch, mask = padded(rows, "right", int(case.ordinary[0]))
            found = model(batch, attention_mask=mask).logits
            for row, logits_TV in zip(rows, found, strict=True):
                what = f"logits of {len(row)} tokens, padded on the right"
                require_close(logits_TV[: len(row)], model(row[None]).logits[0], what, atol=1e-4 * scale)
        if case.capabilities.stateful:
            half = length // 2 + 1
            first = model(ids[:, :half], use_cache=True)
            require(first.state is not None, "stateful is declared, but with use_cache=True no state is returned")
            second = model(ids[:, half:], state=first.state)
            what = f"logits after a carried state of {half} tokens"
            require_close(second.logits, logits[:, half:], what, atol=1e-4 * scale)
        exact = model.double()(ids).logits
        require_close(logits, exact, f"logits of {length} tokens in fp32 and float64", atol=1e-4 * scale)


def _require_seen(case: Case, model: BaseLanguageModel, ids: torch.Tensor, before: torch.Tensor, place: int) -> None:
    """Require a changed token to be seen by the next few and, unless the model is bidirectional, by none before it."""
    other, length = ids.clone(), ids.shape[1]
    other[:, place] = case.changed(ids[:, place])
    after = model(other).logits
    if not case.sees_right:
        require_equal(after[:, :place], before[:, :place], f"logits before the changed token {place} of {length}")
    near = slice(place, place + min(8, case.capabilities.receptive_field or 8))
    seen = (after != before)[:, near].any(dim=-1).all()
    require(bool(seen), f"a changed token {place} of {length} is not seen by those that follow")


def _require_whole_loss(case: Case, model: BaseLanguageModel) -> None:
    """Compare the loss of many predictions and its gradients with those of the logits, in training."""
    batch = case.ids(14, case.length, seed=1)
    labels = batch.clone()
    labels[:3] = IGNORED  # more positions than a chunk of 512 has
    expected = exact_loss(model, batch, labels)
    model.zero_grad()
    differentiated(case, expected)
    gradients, number = named_gradients(model), int(model.targets(labels)[1].sum())
    for return_logits, how in ((True, "with"), (False, "without")):
        model.zero_grad()
        loss = language_loss(model(batch, labels=labels, return_logits=return_logits))
        what = f"loss of {number:,} predictions, {how} logits"
        require_close(loss.double(), expected, what, rtol=1e-5)
        differentiated(case, loss)
        require_same_gradients(named_gradients(model), gradients, what, relative=1e-4)


def _require_whole_gradient(case: Case, model: BaseLanguageModel, chunks: tuple[int, ...]) -> None:
    """Compare gradients across possible ends of chunks with difference quotients, within 5 %.

    For each size of chunks, gradients go from the first few tokens of all chunks to the vectors of the tokens before
    them; in a bidirectional model also from the last few tokens to the vectors after them, with chunks counted from
    either side.
    """
    near = min(8, (case.capabilities.receptive_field or case.length) - 1)
    sizes = [size for size in chunks if size + near <= case.length]
    if near < 1 or not sizes:
        return
    length = sizes[-1] + near
    moving, reading = torch.zeros(2, len(sizes), length, dtype=torch.float64)
    for row, size in enumerate(sizes):
        for end in range(size, length, size):
            moving[row, end - 1] = 1
            reading[row, end : end + min(near, size - 1)] = 1
    if case.sees_right:
        from_left = [each.roll(shift, 1) for each, shift in ((moving, 1), (reading, -near))]
        moving, reading = (
            torch.cat([each, left, each.flip(1)]) for each, left in zip((moving, reading), from_left, strict=True)
        )
    ids = case.ids(len(moving), length, seed=2)
    # In fp32 most models are faster. A small step, for models with kinks, needs float64.
    off: torch.Tensor | None = None
    for dtype, steps in ((torch.float32, (1e-2,)), (torch.float64, (1e-2, 1e-4))):
        off = _errors(case, model.to(dtype), ids, moving, reading, steps)
        if off is None:
            not_looked_at("gradients across chunks: the model does not call get_input_embeddings()")
            return
        if bool((off < 0.05).all()):
            return
    assert off is not None
    row, share = int(off.argmax()), float(off.max())
    size, side = sizes[row % len(sizes)], ("next", "previous", "previous")[row // len(sizes)]
    sent = f"from tokens to the {side} chunk, of {size} tokens in rows of {length}"
    raise NonconformanceError(f"the gradient {sent}, is {share:.0%} off the difference quotient")


def _errors(
    case: Case,
    model: BaseLanguageModel,
    ids: torch.Tensor,
    moving: torch.Tensor,
    reading: torch.Tensor,
    steps: tuple[float, ...],
) -> torch.Tensor | None:
    """Return the relative error of the gradient of each row (R,) with the best of these steps, or None.

    Args:
        moving: 1 for the vectors that move, in a common direction, (R, T).
        reading: 1 for the tokens whose logits are read, (R, T).
    """
    generator, embeddings = torch.Generator().manual_seed(0), model.get_input_embeddings()
    readout = torch.randn(case.vocabulary, generator=generator, dtype=torch.float64)
    direction = torch.randn(embeddings(ids[:1, :1]).shape[-1], generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    moved = torch.zeros(*moving.shape, len(direction), dtype=torch.float64, requires_grad=True)

    def read(distance: float) -> torch.Tensor:
        """Return a number for each row, computed from the tokens that see the moved vectors."""
        with torch.no_grad():
            moved.copy_(distance * moving[..., None] * direction)
        seed_generators(0)
        logits: torch.Tensor = model(ids).logits
        return ((logits.double() @ readout) * reading).sum(dim=1)

    hook = embeddings.register_forward_hook(lambda module, given, vectors: vectors + moved.to(vectors.dtype))
    try:
        torch.autograd.backward(read(0.0).sum())
        if moved.grad is None:
            return None
        gradients = (moved.grad @ direction * moving).sum(dim=1)
        errors = []
        for step in steps:
            with torch.no_grad():
                quotients = (read(step) - read(-step)) / (2 * step)
            size = torch.maximum(quotients.abs(), gradients.abs()).clamp(min=0.1)
            errors.append((quotients - gradients).abs() / size)
        return torch.stack(errors).amin(dim=0)
    finally:
        hook.remove()
