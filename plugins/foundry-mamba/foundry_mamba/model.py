"""Mamba: gated blocks of a short causal convolution and a selective state-space recurrence (Gu and Dao 2023).

Shapes: B batch, T tokens, W width, D channels (expand x W), N state values per channel, K convolution kernel.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundry_core import BaseLanguageModel, BuildContext, ExperimentConfig, ModelOutput, register_auto_classes
from foundry_mamba import MambaModelConfig, MambaSection

_CHUNK = 16
"""Tokens whose states are in memory at a time. 8 to 32 are equally fast; with fewer, the calls dominate."""


_State = tuple[torch.Tensor, torch.Tensor]
"""The state of a block: the last K - 1 inputs of its convolution, (B, K - 1, D), and its recurrence, (B, D, N)."""


class _SelectiveScan(torch.autograd.Function):
    """h[t] = exp(step[t] A) h[t-1] + step[t] B[t] x[t] and y[t] = C[t] h[t]; returns y and the last h.

    It processes a chunk of tokens at a time, so that tensors N times as large as the input stay in the processor's
    cache. Only the state before each chunk is stored for the backward pass, which computes the others again. Forward
    and backward of 16 x 128 tokens with 384 channels of 16 values took 148 ms and stored 10 MB on one core; with all
    states at once, 420 ms and 111 MB. Tokens of a chunk are processed in sequence: a parallel scan does twice the work
    and took twice the time. The result is exact: decays are multiplied, never divided by.
    """

    @staticmethod
    def _states(
        step_BtD: torch.Tensor, A_DN: torch.Tensor, x_BtD: torch.Tensor, B_BtN: torch.Tensor, h_BDN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decays and the states of one chunk, (B, t, D, N), given the state before it."""
        decay_BtDN = torch.exp(step_BtD.unsqueeze(-1) * A_DN)
        h_BtDN = (step_BtD * x_BtD).unsqueeze(-1) * B_BtN.unsqueeze(2)
        for t in range(h_BtDN.shape[1]):
            h_BDN = h_BtDN[:, t].addcmul_(decay_BtDN[:, t], h_BDN)
        return decay_BtDN, h_BtDN

    @staticmethod
    def forward(
        ctx: Any,
        step_BTD: torch.Tensor,
        A_DN: torch.Tensor,
        x_BTD: torch.Tensor,
        B_BTN: torch.Tensor,
        C_BTN: torch.Tensor,
        h_BDN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y_BTD, starts = torch.empty_like(x_BTD), []
        for start in range(0, x_BTD.shape[1], _CHUNK):
            at = slice(start, start + _CHUNK)
            starts.append(h_BDN)
            _, h_BtDN = _SelectiveScan._states(step_BTD[:, at], A_DN, x_BTD[:, at], B_BTN[:, at], h_BDN)
            y_BTD[:, at] = (h_BtDN @ C_BTN[:, at].unsqueeze(-1)).squeeze(-1)
            h_BDN = h_BtDN[:, -1].clone()
        ctx.save_for_backward(step_BTD, A_DN, x_BTD, B_BTN, C_BTN, *starts)
        return y_BTD, h_BDN

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y_grad, h_grad = gradients
        step, A, x, B, C, *starts = ctx.saved_tensors
        step_grad, x_grad, B_grad, C_grad = map(torch.empty_like, (step, x, B, C))
        A_grad = torch.zeros_like(A)
        for index in reversed(range(len(starts))):
            at = slice(index * _CHUNK, (index + 1) * _CHUNK)
            decay, h = _SelectiveScan._states(step[:, at], A, x[:, at], B[:, at], starts[index])
            C_grad[:, at] = (y_grad[:, at].unsqueeze(2) @ h).squeeze(2)
            grad = y_grad[:, at].unsqueeze(-1) * C[:, at].unsqueeze(2)
            for t in reversed(range(grad.shape[1])):  # gradients of the states, including the effect on later ones
                h_grad = decay[:, t] * grad[:, t].add_(h_grad)
            input_grad = (grad @ B[:, at].unsqueeze(-1)).squeeze(-1)
            B_grad[:, at] = ((step[:, at] * x[:, at]).unsqueeze(2) @ grad).squeeze(2)
            grad.mul_(decay)
            grad[:, 1:].mul_(h[:, :-1])
            grad[:, 0].mul_(starts[index])
            A_grad += torch.einsum("btdn,btd->dn", grad, step[:, at])
            step_grad[:, at] = (grad * A).sum(-1) + input_grad * x[:, at]
            x_grad[:, at] = input_grad * step[:, at]
        return step_grad, A_grad, x_grad, B_grad, C_grad, h_grad


class _Block(nn.Module):
    """Norm, convolution, recurrence and gate. Returns what is added to the residual stream."""

    def __init__(self, settings: MambaSection):
        super().__init__()
        width, self.state_size = settings.hidden_size, settings.state_size
        channels, rank = settings.expand * width, settings.time_step_rank or math.ceil(width / 16)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv1d(channels, channels, settings.conv_kernel, groups=channels)
        self.x_proj = nn.Linear(channels, rank + 2 * settings.state_size, bias=False)
        self.step_proj = nn.Linear(rank, channels)
        # Flat, (D x N): weight decay, which would make channels forget more slowly, applies to matrices only.
        self.log_decay = nn.Parameter(torch.arange(1.0, settings.state_size + 1).log().repeat(channels))
        self.skip = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)
        self._initialise(settings, rank)

    def _initialise(self, settings: MambaSection, rank: int) -> None:
        """Initialise as in the paper: log-uniform steps, and output weights divided by the root of the depth."""
        nn.init.uniform_(self.step_proj.weight, -(rank**-0.5), rank**-0.5)
        least, most = math.log(settings.time_step_min), math.log(settings.time_step_max)
        step_D = torch.empty_like(self.step_proj.bias).uniform_(least, most).exp()
        with torch.no_grad():
            self.step_proj.bias.copy_(step_D + torch.log(-torch.expm1(-step_D)))  # the inverse of softplus
            self.out_proj.weight.div_(math.sqrt(settings.num_layers))

    def forward(
        self, stream_BTW: torch.Tensor, real_BT: torch.Tensor | None, state: _State | None
    ) -> tuple[torch.Tensor, _State]:
        """Return the output and the next state. real_BT: real tokens, all at the front of a row; None if all are."""
        inner_BTD, gate_BTD = self.in_proj(self.norm(stream_BTW)).chunk(2, dim=-1)
        batch, _, channels = inner_BTD.shape
        before = self.conv.kernel_size[0] - 1
        if state is None:
            state = inner_BTD.new_zeros(batch, before, channels), inner_BTD.new_zeros(batch, channels, self.state_size)
        window_BkD, h_BDN = state
        seen = torch.cat([window_BkD.to(inner_BTD.dtype), inner_BTD], dim=1)
        x_BTD = F.silu(self.conv(seen.transpose(1, 2)).transpose(1, 2))
        sizes = [self.step_proj.in_features, self.state_size, self.state_size]
        step_BTR, B_BTN, C_BTN = self.x_proj(x_BTD).split(sizes, dim=-1)
        step_BTD = F.softplus(self.step_proj(step_BTR))
        window_BkD = seen[:, -before:]
        if real_BT is not None:
            step_BTD = step_BTD * real_BT.unsqueeze(-1)  # a step of 0 neither forgets nor adds anything
            last_Bk = real_BT.sum(dim=1, keepdim=True) + torch.arange(before, device=seen.device)
            window_BkD = seen.gather(1, last_Bk.unsqueeze(-1).expand(-1, -1, channels))
        A_DN = -torch.exp(self.log_decay.view(channels, self.state_size))
        # Many small steps add up: never compute them in half precision, even under autocast.
        exact = torch.promote_types(x_BTD.dtype, torch.float32)
        with torch.autocast(x_BTD.device.type, enabled=False):
            inputs = [each.to(exact) for each in (step_BTD, A_DN, x_BTD, B_BTN, C_BTN, h_BDN)]
            y_BTD, h_BDN = _SelectiveScan.apply(*inputs)  # type: ignore[no-untyped-call]
        y_BTD = (y_BTD.to(x_BTD.dtype) + x_BTD * self.skip) * F.silu(gate_BTD)
        return self.out_proj(y_BTD), (window_BkD, h_BDN)


class MambaLanguageModel(BaseLanguageModel[MambaModelConfig]):
    """Embedding, blocks, norm, output layer. Its state is that of each block after a row's last real token."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        settings = self.settings.mamba
        self.embedding = nn.Embedding(context.vocab_size, settings.hidden_size)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.hidden_size, eps=1e-5)
        self.output_layer = nn.Linear(settings.hidden_size, context.vocab_size, bias=False)
        for layer in (self.embedding, self.output_layer):
            nn.init.normal_(layer.weight, std=0.02)
        if settings.tie_embeddings:
            self.output_layer.weight = self.embedding.weight
        self._checkpointing = False

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = True,
        output_hidden_states: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute the output. The state costs nothing, so it is returned unless `use_cache` is False.

        Hidden states are the residual stream before each block, and after the last one normalised.

        The recurrence runs over the real tokens of each row: a stable sort moves them to its front, so that padding on
        either side, or a masked token in between, affects neither their outputs nor the state.
        """
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        real_BT, order = self.real_tokens(given, attention_mask), None
        if real_BT is not None:
            real_BT, order = real_BT.long().sort(dim=1, descending=True, stable=True)
            given = given.gather(1, order if inputs_embeds is None else order.unsqueeze(-1).expand_as(given))
        stream_BTW = self.dropout(self.embedding(given) if inputs_embeds is None else given)
        hidden_states: list[torch.Tensor] = []
        states: list[_State] = []
        for index, block in enumerate(self.blocks):
            if output_hidden_states:
                hidden_states.append(stream_BTW)
            given = (stream_BTW, real_BT, None if state is None else state[index])
            if self._checkpointing and self.training:
                added_BTW, after = checkpoint(block, *given, use_reentrant=False)
            else:
                added_BTW, after = block(*given)
            stream_BTW = stream_BTW + self.dropout(added_BTW)
            states.append(after)
        hidden_states.append(self.norm(stream_BTW))
        if order is not None:
            back = order.argsort(dim=1).unsqueeze(-1).expand_as(stream_BTW)
            hidden_states = [hidden_BTW.gather(1, back) for hidden_BTW in hidden_states]
        return self.lm_output(
            hidden_states[-1],
            self.output_layer,
            labels,
            attention_mask=attention_mask,
            state=tuple(states) if use_cache else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            **kwargs,
        )

    def attention_flops(self, batch: int, length: int) -> int:
        """Count the products of the states with C: 2 D N for each token and block."""
        settings = self.settings.mamba
        return 2 * batch * length * settings.expand * settings.hidden_size * settings.state_size * settings.num_layers

    def gradient_checkpointing_enable(self) -> None:
        self._checkpointing = True

    def blocks_to_shard(self) -> list[nn.Module]:
        return list(self.blocks)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        tied = self.output_layer.weight is self.embedding.weight
        for layer in (self.embedding, self.output_layer):
            old = layer.weight
            layer.weight = nn.Parameter(old.new_empty(new_num_tokens, old.shape[1]).normal_(std=0.02))
            kept = min(len(old), new_num_tokens)
            with torch.no_grad():
                layer.weight[:kept] = old[:kept]
        if tied:
            self.output_layer.weight = self.embedding.weight
        self.embedding.num_embeddings = self.output_layer.out_features = new_num_tokens
        self.set_vocabulary_size(new_num_tokens)


register_auto_classes("mamba")
