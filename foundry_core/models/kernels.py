"""Attention, dropout, GELU and the loss over a vocabulary, formulated to cost less than those of others.

They compute the same as torch's and transformers', up to the rounding of fp32; `training.kernels: reference` chooses
those.

Shapes: B batch, T tokens, H heads, N predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

LOGITS_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 27}
"""By the type of the device. On a CPU 16 MiB: with 4 a step of a small GPT-2 takes 1.09 of its time, with 64 0.99."""


LEAST_ROWS = 256
"""Rows of logits at a time that a product needs: with the 83 rows that 50,000 words would have, a step of a GPT-2 of
124M parameters takes 1.08 of its time."""

WORTH_SAVING = 1 << 18
"""Numbers in a tensor from which memory is saved at the cost of a pass over it: 1 MiB. It takes 0.006 of a step of a
small GPT-2, and would take 0.03 of one of a tiny one."""


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of N tokens; the gradients are computed while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
    ) -> torch.Tensor:
        of_hidden, of_weight, of_bias = (
            torch.empty_like(each) if each is not None and wanted else None
            for each, wanted in zip((hidden_ND, weight_VD, bias_V), ctx.needs_input_grad, strict=False)
        )
        logits = LOGITS_AT_A_TIME.get(hidden_ND.device.type, LOGITS_AT_A_TIME["cuda"])
        rows = max(LEAST_ROWS, logits // len(weight_VD))
        chunks = [slice(first, first + rows) for first in range(0, len(hidden_ND), rows)]
        losses = []
        for chunk in chunks or [slice(0, 0)]:
            targets, hidden = targets_N[chunk], hidden_ND[chunk]
            chunk_losses, errors_NV = _cross_entropies(hidden, weight_VD, bias_V, targets)
            losses.append(chunk_losses.sum())
            errors_NV[torch.arange(len(targets), device=targets.device), targets] -= 1
            earlier = 1 if chunk.start else 0
            if of_hidden is not None:
                torch.mm(errors_NV, weight_VD, out=of_hidden[chunk])
            if of_weight is not None:
                of_weight.addmm_(errors_NV.t(), hidden, beta=earlier)
            if of_bias is not None:
                torch.sum(errors_NV, dim=0, out=of_bias) if not earlier else of_bias.add_(errors_NV.sum(dim=0))
            del errors_NV  # before those of the next chunk
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: the saved gradients belong to nobody else, and a step has one backward pass.
        return *(None if each is None else each.mul_(gradient) for each in ctx.saved_tensors), None


def _cross_entropies(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy of each token and the probabilities (N, V)."""
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
    # Into its own input, softmax would copy that first: 10 % of the whole at 10,000 words.
    probabilities_NV = torch.softmax(logits_NV, dim=1)
    # The largest probability is at least 1 / V, so that its logarithm is exact where the target's would underflow.
    largest_N, of_target_N = logits_NV.amax(dim=1), logits_NV.gather(1, targets_N[:, None])[:, 0]
    return largest_N - probabilities_NV.amax(dim=1).log() - of_target_N, probabilities_NV


def summed_cross_entropy(hidden_ND: torch.Tensor, head: nn.Linear, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies of a projection onto the vocabulary, without ever holding all logits.

    Loss and gradients are those of `F.cross_entropy(head(hidden), targets, reduction="sum")`. For fp32 and more: in
    half precision, gradients summed over parts would be rounded with each, and those in fp16 would not be scaled.
    """
    return cast("torch.Tensor", _SummedCrossEntropy.apply(hidden_ND, head.weight, head.bias, targets_N))  # type: ignore[no-untyped-call]


class _TiedRows(torch.autograd.Function):
    """Rows of a table, and the table itself for the output layer, so that both gradients meet in one place."""

    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(ids)
        ctx.set_materialize_grads(False)
        ctx.size = table.shape
        return F.embedding(ids, table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_rows: torch.Tensor | None, of_table: torch.Tensor | None
    ) -> tuple[None, torch.Tensor | None]:
        if of_rows is None:
            return None, of_table
        if of_table is None:
            of_table = of_rows.new_zeros(ctx.size)
        # In place: a gradient of the table's size, made by the output layer, is nobody else's.
        return None, of_table.index_add_(0, ctx.saved_tensors[0].flatten(), of_rows.flatten(0, -2))


def tied_rows(ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `F.embedding(ids, table)`, and the table as the weight of an output layer that shares it.

    The gradient of the rows is added to that of the output layer, where it would be a second one of the table's size.
    """
    return cast("tuple[torch.Tensor, torch.Tensor]", _TiedRows.apply(ids, table))  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    """Dropout from 16 random bits for each element: a fifth of the time of torch's on a CPU, and half the memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, share: float) -> torch.Tensor:
        dropped = round(share * 65536)
        ctx.threshold, ctx.scale = dropped - 32768, 65536 / (65536 - dropped)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        ctx.save_for_backward(bits)
        return _kept(x, bits, ctx.threshold, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _kept(gradient, ctx.saved_tensors[0], ctx.threshold, ctx.scale), None


def _kept(x: torch.Tensor, bits: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
    kept = torch.empty(x.shape, dtype=x.dtype)
    return torch.ge(bits, threshold, out=kept).mul_(scale).mul_(x)


def dropout(x: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """Drop a share of the elements at random and scale the others up, as `F.dropout` does, from the same generator.

    On a CPU the share is rounded to a multiple of 1/65536, and the scale follows the rounded one.
    """
    if not training or not 0 < share < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, share, training)
    return cast("torch.Tensor", _Dropout.apply(x, share))  # type: ignore[no-untyped-call]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool,
    mask: torch.Tensor | None,
    share: float,
) -> torch.Tensor:
    """Return what each query attends to, (B, H, T, D).

    Args:
        query: With keys and values, (B, H, T, D).
        causal: Nothing after its own position is attended to; only without a mask.
        mask: True where a query may attend to a key, (B, 1, T or 1, T); None: to all of them.
        share: Dropout on the attention, already 0 outside training.
    """
    if share == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=share, is_causal=causal and mask is None
        )
    # torch has no kernel with dropout for a CPU: it would do the same with its slow dropout and more copies.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1))
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.matmul(dropout(torch.softmax(scores, dim=-1), share, True), value)


def attention_mask(real_BT: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Return which keys each query may attend to, (B, 1, T, T): real tokens, and itself, so that none has nothing.

    A mask of that shape is returned as it is.
    """
    if real_BT.ndim == 4:
        return real_BT
    length = real_BT.shape[1]
    reachable = torch.ones(length, length, dtype=torch.bool, device=real_BT.device)
    allowed_BTT = real_BT[:, None, :] & (reachable.tril() if causal else reachable)
    return (allowed_BTT | torch.eye(length, dtype=torch.bool, device=real_BT.device))[:, None]


Norm: TypeAlias = tuple[torch.Tensor, torch.Tensor, float]
"""Scale, shift and epsilon of a layer norm."""


class _Projected(torch.autograd.Function):
    """(x @ weight + bias) of normalised x. The backward pass normalises x again, rather than keeping both.

    With `gelu` of GELU with tanh, and in the same pass its derivative, by parts that caches hold. 0.5 x (1 + tanh w) is
    x sigmoid(2 w), and torch's sigmoid takes a quarter of the time of its GELU with tanh. The product is overwritten:
    memory that is not in a cache costs as much as the arithmetic. A step of a tiny GPT-2 takes 0.97, of a small one
    0.98 of its time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
        epsilon: float,
        gelu: bool,
    ) -> torch.Tensor:
        mean = deviation = derivative = None
        normed, ctx.epsilon = x, epsilon
        if scale is not None:
            normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], scale, shift, epsilon)
        if gelu:
            # One block: freed together, it has room for a gradient of the weights.
            derivative, result = x.new_empty(2, len(x), weight.shape[1]).unbind()
            torch.mm(normed, weight, out=derivative)
            _gelu_and_derivative(derivative, bias, result)
        else:
            result = torch.addmm(bias, normed, weight)
        ctx.save_for_backward(x, weight, scale, shift, mean, deviation, derivative)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale, shift, mean, deviation, derivative = ctx.saved_tensors
        of_product = gradient if derivative is None else derivative.mul_(gradient)
        of_x, of_bias = of_product @ weight.t(), of_product.sum(dim=0)
        if scale is None:
            return of_x, x.t() @ of_product, of_bias, None, None, None, None
        width, of_norm = x.shape[-1:], [True] * 3
        normed = torch.native_layer_norm(x, width, scale, shift, ctx.epsilon)[0]
        of_weight = normed.t() @ of_product
        of_x, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            of_x, x, width, mean, deviation, scale, shift, of_norm
        )
        return of_x, of_weight, of_bias, of_scale, of_shift, None, None


def _gelu_and_derivative(rows: torch.Tensor, bias: torch.Tensor, result: torch.Tensor) -> None:
    """Write GELU with tanh of rows + bias, (N, D), to result, and put its derivative in the place of the rows."""
    height = max(1, _GELU_PART // rows.shape[-1])
    square, gate = rows.new_empty(2, min(height, len(rows)), rows.shape[-1])
    slope, cubic = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
    constant = rows.new_tensor(slope)
    for source, target in zip(*(torch.split(each, height) for each in (rows, result)), strict=True):
        source.add_(bias)
        w, s = square[: len(source)], gate[: len(source)]
        torch.mul(source, source, out=w)
        torch.sub(constant, w, alpha=-cubic, out=s).mul_(source).sigmoid_()
        torch.mul(source, s, out=target)
        torch.sub(constant, w, alpha=-3 * cubic, out=w).mul_(target)
        torch.addcmul(w, w, s, value=-1, out=source).add_(s)


_GELU_PART = 1 << 16


def projected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
    """Return `torch.addmm(bias, x, weight)`, of x (N, D) normalised if a norm is given."""
    if norm is None or x.numel() < WORTH_SAVING or not _in_full(x):
        return torch.addmm(bias, _normed(x, norm), weight)
    return cast("torch.Tensor", _Projected.apply(x, weight, bias, *norm, False))  # type: ignore[no-untyped-call]


def projected_tanh_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm: Norm | None = None
) -> torch.Tensor:
    """Return `F.gelu(projected(x, weight, bias, norm), approximate="tanh")`."""
    if not _in_full(x):
        return F.gelu(torch.addmm(bias, _normed(x, norm), weight), approximate="tanh")
    if norm is not None and x.numel() < WORTH_SAVING:
        x, norm = _normed(x, norm), None
    scale, shift, epsilon = norm or (None, None, 0.0)
    return cast("torch.Tensor", _Projected.apply(x, weight, bias, scale, shift, epsilon, True))  # type: ignore[no-untyped-call]


def _normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return x if norm is None else F.layer_norm(x, x.shape[-1:], *norm)


def _in_full(x: torch.Tensor) -> bool:
    """Check whether gradients are wanted in full precision on a CPU, outside torch.compile."""
    full = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return full and torch.is_grad_enabled() and not torch.compiler.is_compiling()
