"""Numerical checks: other precisions, initial loss and gradients, evaluation, seeds, memory.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import gc
import math
import random
from copy import deepcopy
from typing import Any, Self
from weakref import WeakSet

import numpy as np
import torch

from foundry_core.models.base import BaseLanguageModel
from foundry_core.random_streams import seed_generators
from foundry_core.testing.kit.case import DEFAULTS, ODD_SIZES, RECIPE, Case
from foundry_core.testing.kit.check import (
    check,
    differentiated,
    listed,
    named_gradients,
    not_looked_at,
    require,
    require_close,
    require_equal,
    unless_counting,
)
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.objective import cross_entropy


@check(
    "numerics",
    "bf16",
    fix="Compute sums, norms and softmaxes of long rows in fp32 (`x.float()`). Take the large negative number of a "
    "mask from `torch.finfo(x.dtype).min` of the dtype it is added to. Convert a buffer to the dtype of the "
    "tensor it is combined with.",
)
def bf16(case: Case) -> None:
    """Under bf16 autocast, logits, loss and gradients of padded batches are finite, the relative error of the logits is
    below 0.03, and the loss equals the cross-entropy of the logits.
    """
    model = case.stirred()
    rows = [case.ids(length, seed=length) for length in (case.length // 2, case.length - 1, 1)]
    for side in case.capabilities.padding_sides:
        ids, mask = padded(rows, side, int(case.ordinary[0]))
        given = {"input_ids": ids, "attention_mask": mask, "labels": case.labels(ids, mask)}
        exact = model(**given).logits.detach()[mask == 1].double()
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**given)
        rough = output.logits.detach()[mask == 1].double()
        require(bool(rough.isfinite().all()), "logits under bf16 autocast are not finite")
        require(bool(output.loss.isfinite()), "the loss under bf16 autocast is not finite")
        own = cross_entropy(output.logits, given["labels"], mask=mask, causal=case.causal).mean()
        require_close(output.loss.double(), own, "the loss under bf16 autocast and that of its logits", rtol=1e-3)
        error = float((rough - exact).norm() / exact.norm())
        require(error < 0.03, f"relative error of the logits under bf16 autocast is {error:.3f}, allowed is 0.03")
        differentiated(case, output.loss)
        _require_finite_gradients(model, "under bf16 autocast")


@check(
    "numerics",
    "float64",
    realistic=True,
    fix="Create tensors in `forward` with the device and dtype of their input (`x.new_zeros`, `dtype=x.dtype`). If "
    "only the values differ, rounding errors add up: avoid differences of large numbers.",
)
def float64(case: Case) -> None:
    """In float64 the model runs and returns the same logits as in fp32, to 1e-5 of the largest one."""
    model, ids = case.stirred(), case.ids(3, case.length)
    single = model(ids).logits.detach()
    double = model.double()(ids).logits.detach()
    require(double.dtype == torch.float64, f"a float64 model returned {double.dtype} logits")
    scale = max(1.0, float(double.abs().max()))
    require_close(single, double, "logits in fp32 and float64", atol=1e-5 * scale)


@check(
    "numerics",
    "initial-loss",
    realistic=True,
    fix="The output weights are too large: draw them with a standard deviation of about 0.02, and start biases at "
    "0. Tied embeddings are output weights too.",
)
def initial_loss(case: Case) -> None:
    """For each of 20 seeds, of 3 with realistic sizes, the first loss is finite and within 0.5 of ln V, the loss of
    guessing.
    """
    expected = math.log(case.vocabulary)
    for seed in range(3 if case.example in (RECIPE, DEFAULTS) else 20):
        ids = case.ids(8, min(16, case.length), seed=seed)
        with torch.no_grad():
            loss = case.model(seed=seed)(ids, labels=ids).loss.item()
        require(abs(loss - expected) < 0.5, f"the first loss with seed {seed} is {loss:.3f}, ln V is {expected:.3f}")


@check(
    "numerics",
    "gradient-reach",
    needs=unless_counting(),
    fix="A parameter that the loss does not depend on is not trained: use it or remove it, and look for `detach` "
    "and `no_grad`. If a row of the embeddings receives no gradient, remove `padding_idx`; masks exclude "
    "padding already.",
)
def gradient_reach(case: Case) -> None:
    """Within three batches, every trainable parameter, most rows of every matrix and every row of the input embeddings
    receive a nonzero gradient, and all gradients are finite.
    """
    model = case.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unreached = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows_reached: dict[str, torch.Tensor] = {}
    for step in range(3):
        ids = case.ids(8, case.length, seed=step)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        _require_finite_gradients(model, f"in batch {step + 1}")
        for name, gradient in named_gradients(model).items():
            if bool(gradient.any()):
                unreached.discard(name)
            if gradient.ndim > 1:
                reached = gradient.flatten(1).any(dim=1)
                rows_reached[name] = rows_reached.get(name, torch.zeros_like(reached)) | reached
        optimizer.step()
    require(not unreached, f"no gradient reaches {listed(sorted(unreached))}")
    # In tables of positions and types, only the rows that occur are trained; a row of a matrix may be a dead neuron.
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    for name, reached in rows_reached.items():
        table = name in tables or len(reached) == case.capabilities.longest_sequence
        occur = min(len(reached), case.length) if table else len(reached)
        share = int(reached.sum()) / occur
        require(share >= (0.25 if table else 0.75), f"a gradient reaches only {share:.0%} of {occur} rows of {name}")
    embeddings = model.eval().get_input_embeddings()
    every_id = torch.arange(case.vocabulary)
    vectors = embeddings(every_id)
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (vectors * weights).sum().backward()
    rows = [p.grad for p in embeddings.parameters() if p.grad is not None and p.shape[:1] == (case.vocabulary,)]
    if not rows:
        not_looked_at(f"{case}: gradients of single embeddings, as get_input_embeddings() has no table of all tokens")
    frozen = [number for number in every_id.tolist() if any(not bool(row[number].any()) for row in rows)]
    require(not frozen, f"the embedding of {listed([f'id {number}' for number in frozen])} receives no gradient")


@check(
    "numerics",
    "pure-evaluation",
    realistic=True,
    fix="Evaluation must not store anything: no state, cache or statistic on the module, no in-place operation on "
    "an input, and no dropout that ignores `self.training` (F.dropout needs `training=self.training`).",
)
def pure_evaluation(case: Case) -> None:
    """In evaluation, two calls return the same bits, whatever was read in between; inputs, parameters and buffers stay
    unchanged, and no random number is drawn.
    """
    model = case.model(dropout=0.2)
    ids = case.ids(3, case.length)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    inputs, tensors, chance = deepcopy(given), all_tensors(model), _random_states()
    with torch.no_grad():
        first = model(**given)
        model(case.ids(3, case.length, seed=1))
        second = model(**given)
    require_equal(second.logits, first.logits, "logits of a second call")
    require_equal(second.loss, first.loss, "loss of a second call")
    for name, tensor in inputs.items():
        require_equal(given[name], tensor, f"{name} after the call")
    for name, tensor in all_tensors(model).items():
        require(name in tensors, f"evaluation adds {name}")
        require_equal(tensor, tensors[name], f"{name} after the call")
    require(_random_states() == chance, "evaluation draws random numbers")
    require(not any(module.training for module in model.modules()), "evaluation switches a module to training")


@check(
    "numerics",
    "seed",
    needs=unless_counting("nothing is drawn"),
    fix="Draw only from torch's global generator, and never seed it: the trainer does so before every micro-batch. "
    "If dropout is set, apply it.",
)
def seed(case: Case) -> None:
    """Initial weights and training depend on the seed: the same seed gives the same bits, another seed gives different
    ones, and the model does not seed anything itself.
    """
    weights = [all_tensors(case.model(seed=number)) for number in (1, 1, 2)]
    for name, tensor in weights[0].items():
        require_equal(weights[1][name], tensor, f"initial {name} with the same seed")
    require(any_differ(weights[0], weights[2]), "another seed gives the same initial weights")
    runs = [_three_steps(case, number) for number in (1, 1, 2)]
    for name, tensor in runs[0][0].items():
        require_equal(runs[1][0][name], tensor, f"{name} after three steps with the same seed")
    states = [state for _, state in runs]
    require(states[0] != states[2], "the forward pass seeds the random generator")
    if case.has_dropout and case.example != ODD_SIZES:  # dropout between layers needs more than one
        require(any_differ(runs[0][0], runs[2][0]), "dropout is set, but training does not depend on the seed")


@check(
    "numerics",
    "memory",
    scope="objective",
    needs=unless_counting("counts grow with the text"),
    fix="Something grows with every step: a list of losses or states on the module, a cache that is extended, or a "
    "sum of tensors that keeps its graph. Store `loss.item()` or `tensor.detach()`, or nothing.",
)
def memory(case: Case) -> None:
    """Over 15 steps of training and evaluation, the number and the total size of live tensors do not keep growing."""
    model = case.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    with _LiveTensors() as live:
        for step in range(15):
            ids = case.ids(2, 8, seed=step)
            with live.watched():
                optimizer.zero_grad()
                model.train()(ids, labels=ids, return_logits=False).loss.backward()
                optimizer.step()
                model.eval()(ids)
            if step % 5 == 4:
                seen.append(live.count())
    # Something that is created once, and late, is not a leak.
    for what, first, second, third in zip(
        ("live tensors", "bytes of live tensors", "tensors saved for backward"), *seen, strict=True
    ):
        require(not first < second < third, f"{what} after 5, 10 and 15 steps: {first:,}, {second:,}, {third:,}")


class _Saved:
    """A tensor saved for the backward pass."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


class _LiveTensors:
    """Counts the live tensors created since it was entered, including those held only by a graph."""

    def __init__(self) -> None:
        self._saved: WeakSet[_Saved] = WeakSet()

    def __enter__(self) -> Self:
        gc.collect()
        self._frozen = gc.get_freeze_count() > 0
        gc.freeze()  # otherwise each count would visit every object of every imported module
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._frozen:  # the command line freezes until the process ends
            gc.unfreeze()

    def watched(self) -> Any:
        """Return a context in which tensors saved for a backward pass are counted."""

        def pack(tensor: torch.Tensor) -> _Saved:
            saved = _Saved(tensor.detach())  # an operation that saves its own result would keep itself alive
            self._saved.add(saved)
            return saved

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor)

    def count(self) -> tuple[int, int, int]:
        """Return the numbers of tensors, of bytes in their storages, and of tensors saved for a backward pass."""
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return len(tensors), sum(storages.values()), len(self._saved)


def _three_steps(case: Case, number: int) -> tuple[dict[str, torch.Tensor], bytes]:
    """Train a new model for three steps with dropout; return its tensors and the state of the generator."""
    model = case.model(dropout=0.2).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seed_generators(number)
    for step in range(3):
        ids = case.ids(4, case.length, seed=step)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return all_tensors(model), torch.random.get_rng_state().numpy().tobytes()


def all_tensors(model: BaseLanguageModel) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter and buffer, including buffers that are not saved."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def any_differ(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(tensor, others[name]) for name, tensor in some.items())


def _random_states() -> tuple[bytes, bytes, object]:
    """Return the random states of torch, numpy and Python."""
    numpy_state = np.random.get_state(legacy=False)
    return torch.random.get_rng_state().numpy().tobytes(), repr(numpy_state).encode(), random.getstate()


def _require_finite_gradients(model: BaseLanguageModel, when: str) -> None:
    bad = [name for name, gradient in named_gradients(model).items() if not bool(gradient.isfinite().all())]
    require(not bad, f"gradients {when} are not finite: {listed(bad)}")
