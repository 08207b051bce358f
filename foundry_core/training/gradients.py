"""The gradient of an optimizer step: the sum over its micro-batches, which the processes of the run divide.

`exact` adds them up in an order that depends on their number only, so that any number of processes computes the same
bits: a tree over the micro-batches of the step, in which each process has one subtree. `fast` communicates while the
backward pass computes, in an order that depends on the processes: equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol, TypeAlias

import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.devices import in_whole_lines
from foundry_core.errors import TrainingError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.processes import World
from foundry_core.training.division import consecutive

Gradients: TypeAlias = list[torch.Tensor | None]
"""One for each parameter; None for one that the loss did not depend on."""

NEUTRAL = -0.0
"""What added to any number leaves it as it is: 0.0 would turn -0.0 into 0.0."""


class Reduction(Protocol):
    """Sums the gradients of a step over micro-batches and processes."""

    def begin(self, micro_batches: int) -> None:
        """Begin a step of so many micro-batches in all processes."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one micro-batch's forward and backward pass; last: the last one of this process."""

    def finish(self) -> None:
        """Leave the gradient of the step in the parameters of each process."""


def reduction_of(config: ExperimentConfig, model: BaseLanguageModel, world: World, device: torch.device) -> Reduction:
    """Put a model on its device and return what `training.reduction` asks for."""
    kind, micro_batches = config.training.reduction, config.training.gradient_accumulation_steps
    if kind == "sharded" and world.size > 1:
        from foundry_core.training.sharding import ShardedReduction  # takes 1 s to import

        return ShardedReduction(model, world, micro_batches, device)
    model.to(device)
    return (ExactReduction if kind == "exact" else FastReduction)(model, world, micro_batches)


def added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add tensors up as the tree of the exact sum does: halves while their number is even, then one after the other."""
    half, odd = divmod(len(parts), 2)
    if half and not odd:
        return added(parts[:half]) + added(parts[half:])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def add_over(world: World, flat: torch.Tensor, room: torch.Tensor) -> None:
    """Add a flat tensor up over the processes, in place, as their tree does.

    Args:
        flat: Of a multiple of as many values as there are processes.
        room: Of the same size, for what the others send.
    """
    if world.size == 2 and flat.device.type == "cpu":
        # Two have one sum, a + b is b + a, and gloo's all-reduce takes a fifth of the time (64 MB: 82 ms of 510). What
        # NCCL adds up inside a switch may treat subnormal numbers otherwise.
        world.sum(flat)
    else:
        world.collected(flat, added(world.exchanged(flat, room)))


class ExactReduction:
    """Adds gradients up in an order that is a function of the number of micro-batches in a step.

    Args:
        model: The model, on its device.
        world: The processes of the run.
        micro_batches: Those of a whole step.
    """

    def __init__(self, model: BaseLanguageModel, world: World, micro_batches: int):
        self._parameters, self._world = [p for p in model.parameters() if p.requires_grad], world
        others = {str(p.dtype) for p in self._parameters if p.dtype != torch.float32}
        if others and world.size > 1:
            raise TrainingError(f"several processes add up gradients of float32, and this model has {min(others)}")
        # Micro-batches that stand one after the other in the tree are added up by autograd in `grad`.
        self._run = consecutive(micro_batches // world.size)
        self._sums: list[tuple[int, Gradients]] = []
        self._in_grad = 0
        self._flat: torch.Tensor | None = None

    def begin(self, micro_batches: int) -> None:
        self._sums.clear()
        self._in_grad = 0

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        if self._in_grad == self._run:
            self._set_aside()
        yield
        self._in_grad += 1

    def _set_aside(self) -> None:
        """Move the sum in `grad` to those of finished subtrees, and join those of one height, as a counter carries."""
        height, sums = 0, self._taken()
        while self._sums and self._sums[-1][0] == height:
            height, sums = height + 1, _joined(self._sums.pop()[1], sums)
        self._sums.append((height, sums))
        self._in_grad = 0

    def _taken(self) -> Gradients:
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    def finish(self) -> None:
        sums = self._taken()
        while self._sums:
            sums = _joined(self._sums.pop()[1], sums)
        if self._world.size > 1:
            sums = self._over_processes(sums)
        for parameter, gradient in zip(self._parameters, sums, strict=True):
            parameter.grad = gradient

    def _over_processes(self, sums: Gradients) -> Gradients:
        """Add up the gradients of the processes: each adds one share of the values, and all collect the shares."""
        sizes = [in_whole_lines(parameter.numel()) for parameter in self._parameters]
        count = sum(sizes) + len(sizes)
        padded = -(-count // self._world.size) * self._world.size
        if self._flat is None:
            self._flat = torch.zeros(2, padded, device=self._parameters[0].device)
        flat, room = self._flat
        views = flat.split([*sizes, len(sizes), padded - count])
        # The values at the end count the processes in which a parameter has a gradient: in none, it is not updated.
        views[-2].copy_(torch.tensor([NEUTRAL if each is None else 1.0 for each in sums]))
        views[-1].fill_(NEUTRAL)
        for view, parameter, gradient in zip(views, self._parameters, sums, strict=False):
            part = view[: parameter.numel()].view_as(parameter)
            part.copy_(gradient) if gradient is not None else part.fill_(NEUTRAL)
        add_over(self._world, flat, room)
        there = views[-2].tolist()
        return [
            view[: parameter.numel()].view_as(parameter) if count else None
            for view, parameter, count in zip(views, self._parameters, there, strict=False)
        ]


def _joined(earlier: Gradients, later: Gradients) -> Gradients:
    """Add the gradients of later micro-batches to those of earlier ones, in place."""
    both = [(a, b) for a, b in zip(earlier, later, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [b if a is None else a for a, b in zip(earlier, later, strict=True)]


class FastReduction:
    """Adds gradients up in buckets, each as soon as the last micro-batch of the process has computed its gradients.

    As torch's DistributedDataParallel does: the backward pass goes on meanwhile. Unlike there, a parameter may have no
    gradient, in one process or in all, and a process no micro-batch in a short last step: then it adds nothing.
    Arguments as of `ExactReduction`.
    """

    def __init__(self, model: BaseLanguageModel, world: World, micro_batches: int):
        self._world = world
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # The backward pass comes to the last ones first.
        self._buckets = _in_buckets(parameters[::-1]) if world.size > 1 else []
        self._missing = [0] * len(self._buckets)
        self._sent: list[tuple[torch.Tensor, Callable[[], None]]] = []
        self._sends = False
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                computed = partial(self._computed, number)
                parameter.register_post_accumulate_grad_hook(computed)  # type: ignore[no-untyped-call]

    def begin(self, micro_batches: int) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self._sends = last
        yield
        self._sends = False

    def _computed(self, number: int, parameter: torch.Tensor) -> None:
        """Send what is complete when a parameter of a bucket has its gradient, in the same order in all processes."""
        if self._sends:
            self._missing[number] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        flat = torch.zeros(sum(each.numel() + 1 for each in bucket), device=bucket[0].device)
        # The values at the end count the processes in which a parameter has a gradient: in none, it is not updated.
        there = flat[-len(bucket) :]
        for number, (view, parameter) in enumerate(zip(_parts(flat, bucket), bucket, strict=True)):
            if parameter.grad is not None:
                view.copy_(parameter.grad)
                there[number] = 1.0
                parameter.grad = None
        self._sent.append((flat, self._world.adding(flat)))

    def finish(self) -> None:
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket, (flat, wait) in zip(self._buckets, self._sent, strict=True):
            wait()
            there = flat[-len(bucket) :].tolist()
            for view, parameter, count in zip(_parts(flat, bucket), bucket, there, strict=True):
                parameter.grad = view if count else None
        self._sent.clear()  # from now on the gradients alone hold them


_BUCKET_VALUES = 25 * 2**18
"""25 MiB of fp32, as DistributedDataParallel has them."""


def _in_buckets(parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Divide parameters, in their order, into buckets that are about equally large."""
    buckets, room = list[list[torch.Tensor]](), 0
    for parameter in parameters:
        if room < parameter.numel():
            buckets.append([])
            room = _BUCKET_VALUES
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return buckets


def _parts(flat: torch.Tensor, bucket: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the part of a bucket's values that belongs to each of its parameters."""
    start = 0
    for parameter in bucket:
        yield flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
