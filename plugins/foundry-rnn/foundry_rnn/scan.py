"""Recurrent layers on a CPU: those of a GRU and of a plain RNN with the gradients of all time steps in one product.

torch adds a gradient of the size of the recurrent weights at each step. At 650 units a GRU takes 0.65 of its time, a
plain RNN 0.72. For an LSTM torch has a kernel without that (oneDNN), and so has a GPU.

Shapes: T tokens, B batch, E width of the input, H width of the state, G = 3 H of a GRU or H: its gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from foundry_core import dropout


class _Layer(torch.autograd.Function):
    """One layer in one direction: states (T, B, H) after each step, given input products (T, B, G) and a state."""

    @staticmethod
    def forward(
        ctx: Any, products_TBG: torch.Tensor, before_BH: torch.Tensor, weight_GH: torch.Tensor, bias_G: torch.Tensor
    ) -> torch.Tensor:
        length, batch, gates = products_TBG.shape
        width = weight_GH.shape[1]
        ctx.gru = gates == 3 * width
        states = products_TBG.new_empty(length + 1, batch, width)
        states[0] = before_BH
        # Of a GRU: reset and update gate and candidate, and the state's share of the candidate before the reset.
        open_TBG = torch.empty_like(products_TBG) if ctx.gru else None
        share_TBH = products_TBG.new_empty(length, batch, width) if ctx.gru else None
        product_BG = products_TBG.new_empty(batch, gates)
        transposed = weight_GH.t()
        for t in range(length):
            torch.addmm(bias_G, states[t], transposed, out=product_BG)
            if open_TBG is None or share_TBH is None:
                torch.tanh(product_BG.add_(products_TBG[t]), out=states[t + 1])
                continue
            both, candidate = open_TBG[t, :, : 2 * width], open_TBG[t, :, 2 * width :]
            torch.add(products_TBG[t, :, : 2 * width], product_BG[:, : 2 * width], out=both).sigmoid_()
            share_TBH[t] = product_BG[:, 2 * width :]
            torch.addcmul(products_TBG[t, :, 2 * width :], both[:, :width], share_TBH[t], out=candidate).tanh_()
            torch.lerp(candidate, states[t], both[:, width:], out=states[t + 1])
        ctx.save_for_backward(states, weight_GH, open_TBG, share_TBH)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients_TBH: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states, weight_GH, open_TBG, share_TBH = ctx.saved_tensors
        length, batch, width = gradients_TBH.shape
        of_input_TBG = states.new_empty(length, batch, len(weight_GH))
        of_state_TBG = torch.empty_like(of_input_TBG) if ctx.gru else of_input_TBG
        carried = torch.zeros_like(states[0])
        for t in reversed(range(length)):
            carried += gradients_TBH[t]
            if not ctx.gru:
                torch.ops.aten.tanh_backward(carried, states[t + 1], grad_input=of_input_TBG[t])
                torch.mm(of_input_TBG[t], weight_GH, out=carried)
                continue
            reset, update, candidate = open_TBG[t].split(width, dim=1)
            of_reset, of_update, of_candidate = of_input_TBG[t].split(width, dim=1)
            through_update = carried * update
            torch.mul(carried - through_update, 1 - candidate * candidate, out=of_candidate)
            torch.mul(through_update, (states[t] - candidate).mul_(1 - update), out=of_update)
            through_reset = of_candidate * reset
            torch.mul(through_reset * share_TBH[t], 1 - reset, out=of_reset)
            of_state_TBG[t, :, : 2 * width] = of_input_TBG[t, :, : 2 * width]
            of_state_TBG[t, :, 2 * width :] = through_reset
            carried = torch.addmm(through_update, of_state_TBG[t], weight_GH)
        flat = of_state_TBG.flatten(0, 1)
        return of_input_TBG, carried, flat.t() @ states[:-1].flatten(0, 1), flat.sum(dim=0)


def recurrent_states(
    layers: nn.RNNBase, x_TBE: torch.Tensor, before: Any, share: float
) -> tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, ...]]:
    """Return the states of the last of several layers, (T, B, H), and the states of each after the last token.

    Args:
        layers: One direction, with biases. Its weights are used.
        before: What torch's own layers take and return as their state.
        share: Dropout between layers, already 0 outside training.
    """
    width, lstm = layers.hidden_size, isinstance(layers, nn.LSTM)
    if before is None:
        zeros = x_TBE.new_zeros(layers.num_layers, x_TBE.shape[1], width)
        before = (zeros, zeros) if lstm else zeros
    after: list[Any] = []
    for layer in range(layers.num_layers):
        weights = [getattr(layers, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        x_TBE = dropout(x_TBE, share, True) if layer else x_TBE
        if lstm:
            # oneDNN: 1.1 times the speed of a loop like _Layer's at 650 units, 1.5 times at 200.
            state = tuple(each[layer : layer + 1] for each in before)
            x_TBE, *states = torch.lstm(x_TBE, state, weights, True, 1, 0.0, layers.training, False, False)
            after.append(states)
        else:
            products_TBG = nn.functional.linear(x_TBE, weights[0], weights[2])
            x_TBE = _Layer.apply(products_TBG, before[layer], weights[1], weights[3])  # type: ignore[no-untyped-call]
            after.append(x_TBE[-1:])
    return x_TBE, tuple(map(torch.cat, zip(*after, strict=True))) if lstm else torch.cat(after)
