"""Recurrent layers one by one; on a CPU those of a GRU and of a plain RNN with all gradients in one product.

torch adds a gradient of the size of the recurrent weights at each step. At 650 units a GRU takes 0.65 of its time, a
plain RNN 0.72. For an LSTM torch has a kernel without that (oneDNN), and so has a GPU.

Shapes: T tokens, B batch, E width of the input, H width of the state, G = 3 H of a GRU or H: its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def _views(*sequences_TB: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return for each step the views (B, ...) of all sequences (T, B, ...)."""
    return list(zip(*(each.unbind() for each in sequences_TB), strict=True))


class _Layer(torch.autograd.Function):
    """One layer in one direction: states (T, B, H) after each step, given input products (T, B, G) and a state."""

    @staticmethod
    def forward(
        ctx: Any,
        products_TBG: torch.Tensor,
        before_BH: torch.Tensor,
        weight_GH: torch.Tensor,
        bias_G: torch.Tensor,
        relu: bool,
    ) -> torch.Tensor:
        length, batch, gates = products_TBG.shape
        width = weight_GH.shape[1]
        ctx.gru, ctx.relu = gates == 3 * width, relu
        states = products_TBG.new_empty(length + 1, batch, width)
        states[0] = before_BH
        # Of a GRU: reset and update gate and candidate, and the state's share of the candidate before the reset.
        open_TBG = torch.empty_like(products_TBG) if ctx.gru else None
        share_TBH = products_TBG.new_empty(length, batch, width) if ctx.gru else None
        product_BG = products_TBG.new_empty(batch, gates)
        transposed, steps = weight_GH.t(), states.unbind()
        # Views of all steps are taken at once: to index a tensor takes as long as to compute with a few rows.
        if open_TBG is None or share_TBH is None:
            for given_BG, before, after in zip(products_TBG.unbind(), steps[:-1], steps[1:], strict=True):
                torch.addmm(bias_G, before, transposed, out=product_BG).add_(given_BG)
                torch.clamp(product_BG, min=0, out=after) if relu else torch.tanh(product_BG, out=after)
        else:
            both_BG, candidate_BH = torch.split(product_BG, [2 * width, width], dim=1)
            given = (*torch.split(products_TBG, [2 * width, width], dim=2), open_TBG[..., : 2 * width])
            views = _views(*given, *torch.split(open_TBG, width, dim=2), share_TBH)
            for (of_both, of_candidate, both, reset, update, candidate, share), before, after in zip(
                views, steps[:-1], steps[1:], strict=True
            ):
                torch.addmm(bias_G, before, transposed, out=product_BG)
                torch.add(of_both, both_BG, out=both).sigmoid_()
                share.copy_(candidate_BH)
                torch.addcmul(of_candidate, reset, share, out=candidate).tanh_()
                torch.lerp(candidate, before, update, out=after)
        ctx.save_for_backward(states, weight_GH, open_TBG, share_TBH)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients_TBH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight_GH, open_TBG, share_TBH = ctx.saved_tensors
        length, batch, width = gradients_TBH.shape
        of_input_TBG = states.new_empty(length, batch, len(weight_GH))
        of_state_TBG = torch.empty_like(of_input_TBG) if ctx.gru else of_input_TBG
        carried = torch.zeros_like(states[0])
        if not ctx.gru:
            for gradient, after, of_input in reversed(_views(gradients_TBH, states[1:], of_input_TBG)):
                carried += gradient
                if ctx.relu:
                    torch.mul(carried, after > 0, out=of_input)
                else:
                    torch.ops.aten.tanh_backward(carried, after, grad_input=of_input)
                torch.mm(of_input, weight_GH, out=carried)
        else:
            reset, update, candidate = open_TBG.split(width, dim=2)
            # What needs no gradient is computed for all steps at once.
            slope, way = 1 - candidate * candidate, (states[:-1] - candidate).mul_(1 - update)
            known = _views(gradients_TBH, reset, 1 - reset, update, slope, way, share_TBH)
            of_gates = _views(*of_input_TBG.split(width, dim=2), of_input_TBG[..., : 2 * width])
            of_products = _views(of_state_TBG[..., : 2 * width], of_state_TBG[..., 2 * width :], of_state_TBG)
            for t in reversed(range(length)):
                gradient, reset, shut, update, slope, way, share = known[t]
                of_reset, of_update, of_candidate, of_both = of_gates[t]
                both, through_reset, of_state = of_products[t]
                carried += gradient
                through_update = carried * update
                torch.mul(carried - through_update, slope, out=of_candidate)
                torch.mul(through_update, way, out=of_update)
                torch.mul(of_candidate, reset, out=through_reset)
                torch.mul(through_reset * share, shut, out=of_reset)
                both.copy_(of_both)
                carried = torch.addmm(through_update, of_state, weight_GH)
        flat = of_state_TBG.flatten(0, 1)
        return of_input_TBG, carried, flat.t() @ states[:-1].flatten(0, 1), flat.sum(dim=0), None


_COMPUTED: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}

State: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
"""As torch's layers take and return it: hidden, and of an LSTM hidden and cell, each (layers, B, H)."""


@dataclass(frozen=True)
class Between:
    """What happens between the layers, already settled for training or evaluation.

    Attributes:
        drop: Applied to the input of every layer but the first.
        share: The share of the recurrent weights that is dropped (DropConnect).
        input_weights: The input weights of the first layer in each direction, if the module does not have them.
        fast: Whether layers that torch computes slowly are computed here.
    """

    drop: Callable[[torch.Tensor], torch.Tensor]
    share: float = 0.0
    input_weights: Sequence[torch.Tensor] = ()
    fast: bool = True


def recurrent_states(
    modules: Sequence[nn.RNNBase],
    x_TBE: torch.Tensor,
    before: Sequence[State | None],
    between: Between,
    lengths_B: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], list[State]]:
    """Run layer after layer. Return the states (T, B, H) of each, and for each module the state after the last token.

    Args:
        modules: Layers on top of each other. Their weights are used.
        before: For each module the state to start from; None for zeros.
        lengths_B: The number of real tokens of each row, which come first; None if all are real.
    """
    states: list[torch.Tensor] = []
    after: list[State] = []
    for module, given in zip(modules, before, strict=True):
        ways = 2 if module.bidirectional else 1
        if given is None:
            zeros = x_TBE.new_zeros(ways * module.num_layers, x_TBE.shape[1], module.hidden_size)
            given = (zeros, zeros) if module.mode == "LSTM" else zeros
        parts = given if isinstance(given, tuple) else (given,)
        ends: list[tuple[torch.Tensor, ...]] = []
        for layer in range(module.num_layers):
            x_TBE = between.drop(x_TBE) if states else x_TBE
            weights = _weights(module, layer, between, first=not states)
            start = tuple(each[layer * ways : (layer + 1) * ways] for each in parts)
            x_TBE, *end = _layer(module, weights, x_TBE, start, lengths_B, between.fast)
            states.append(x_TBE)
            ends.append(tuple(end))
        joined = tuple(map(torch.cat, zip(*ends, strict=True)))
        after.append(joined if module.mode == "LSTM" else joined[0])
    return states, after


def _weights(module: nn.RNNBase, layer: int, between: Between, *, first: bool) -> list[torch.Tensor]:
    """Return the weights of one layer in torch's order, those of the recurrence with a share dropped."""
    found = []
    for number, way in enumerate(("", "_reverse") if module.bidirectional else ("",)):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]:
            if name == "weight_ih" and first and between.input_weights:
                weight = between.input_weights[number]
            else:
                weight = getattr(module, f"{name}_l{layer}{way}")
            drops = name == "weight_hh" and between.share > 0
            found.append(nn.functional.dropout(weight, between.share) if drops else weight)
    return found


def _layer(
    module: nn.RNNBase,
    weights: list[torch.Tensor],
    x_TBE: torch.Tensor,
    before: tuple[torch.Tensor, ...],
    lengths_B: torch.Tensor | None,
    fast: bool,
) -> Any:
    """Return the states (T, B, H) of one layer, and the state after the last token: hidden, and of an LSTM cell."""
    lstm, both = module.mode == "LSTM", module.bidirectional
    settings = (weights, module.bias, 1, 0.0, module.training, both)
    if lengths_B is not None:
        # A row without any token still needs a length; what is computed for it is not used.
        packed = pack_padded_sequence(x_TBE, lengths_B.clamp(min=1).cpu(), enforce_sorted=False)
        order, back = packed.sorted_indices, packed.unsorted_indices
        assert order is not None, "rows of any length were sorted"
        assert back is not None, "rows of any length were sorted"
        start = tuple(each.index_select(1, order) for each in before)
        data, *after = _COMPUTED[module.mode](packed.data, packed.batch_sizes, start if lstm else start[0], *settings)
        states, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes, order, back), total_length=len(x_TBE))
        return states, *(each.index_select(1, back) for each in after)
    if lstm or both or not fast:
        # An LSTM by oneDNN: 1.1 times the speed of a loop like _Layer's at 650 units, 1.5 times at 200.
        return _COMPUTED[module.mode](x_TBE, before if lstm else before[0], *settings, False)
    of_input, of_state, *biases = weights
    products_TBG = nn.functional.linear(x_TBE, of_input, biases[0] if biases else None)
    bias_G = biases[1] if biases else of_state.new_zeros(len(of_state))
    states = _Layer.apply(products_TBG, before[0][0], of_state, bias_G, module.mode == "RNN_RELU")  # type: ignore[no-untyped-call]
    return states, states[-1:]
