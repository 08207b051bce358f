"""Checks of the estimates of computation and memory."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foundry_core.models.cost import activation_bytes, plain_rows, saved_bytes
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import check, require


@check(
    "cost",
    "flops",
    realistic=True,
    fix="`flops` of BaseLanguageModel counts every matrix once per token. Override `attention_flops` for products "
    "between activations, as in attention, and `flops` if a matrix is used more or less often.",
)
def flops(case: Case) -> None:
    """The estimate for a forward pass is within 5 % of the floating-point operations that torch counts."""
    model = case.model()
    # Operations inside a fused kernel cannot be counted. Gradients stay enabled: without them the counter fails on a
    # module that receives a parameter as input.
    for length in (case.length, case.length // 2):
        unfused = torch.backends.mkldnn.flags(enabled=False)
        with sdpa_kernel(SDPBackend.MATH), unfused, FlopCounterMode(display=False) as counter:
            model(case.ids(3, length))
        counted, estimate = counter.get_total_flops(), model.flops(3, length)
        off = abs(estimate - counted) / max(counted, 1)
        figures = f"the estimate for {length} tokens is {estimate:,}, torch counts {counted:,}"
        require(off <= 0.05, f"{figures}: {off:.1%} off, allowed is 5 %")


@check(
    "cost",
    "memory-estimate",
    fix="The memory that the backward pass needs must grow by the same amount with every row: keep no cache between "
    "calls, and store nothing for pairs of rows.",
)
def memory_estimate(case: Case) -> None:
    """The activation memory that is estimated from a few rows is within 15 % of what autograd stores for many."""
    model, rows = case.model(), 12
    labelled = 1.0 if case.causal else case.config.training.masked_shares[1]
    kept = saved_bytes(model, plain_rows(model, rows, case.length, labelled))
    estimate = activation_bytes(model, rows, case.length, labelled=labelled)
    off = abs(estimate - kept) / max(kept, 1)
    require(
        off <= 0.15, f"the estimate is {estimate:,} bytes, autograd stores {kept:,}: {off:.1%} off, allowed is 15 %"
    )
