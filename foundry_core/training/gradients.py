"""The gradient of an optimizer step: the sum over its micro-batches, which the processes of the run divide.

`exact` adds them up in an order that depends on their number only, so that any number of processes computes the same
bits: a tree over the micro-batches of the step, in which each process has one subtree. `fast` leaves the order to
torch's DistributedDataParallel, which communicates while the backward pass computes: equal up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.models.base import BaseLanguageModel
from foundry_core.processes import World
from foundry_core.training.division import consecutive

Gradients: TypeAlias = list[torch.Tensor | None]
"""One for each parameter; None for one that the loss did not depend on."""

NEUTRAL = -0.0
"""What added to any number leaves it as it is: 0.0 would turn -0.0 into 0.0."""


_FORWARD_SYNC = "forward_sync_buffers"  # since torch 2.13, and "broadcast_buffers" before
_SINCE_2_13 = _FORWARD_SYNC in inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {_FORWARD_SYNC if _SINCE_2_13 else "broadcast_buffers": False}


class Reduction(Protocol):
    """Sums the gradients of a step over micro-batches and processes."""

    factor: int
    """What to multiply the loss by before the backward pass."""

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return what computes the outputs of the model in training."""

    def begin(self, micro_batches: int) -> None:
        """Begin a step of so many micro-batches in all processes."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one micro-batch's forward and backward pass; last: the last one of this process."""

    def finish(self) -> None:
        """Leave the gradient of the step in the parameters of each process."""


def reduction_of(config: ExperimentConfig, model: BaseLanguageModel, world: World) -> Reduction:
    """Return what `training.reduction` asks for."""
    if config.training.reduction == "exact":
        return ExactReduction(model, world, config.training.gradient_accumulation_steps)
    return FastReduction(model, world, config.training.gradient_accumulation_steps)


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

    factor = 1

    def __init__(self, model: BaseLanguageModel, world: World, micro_batches: int):
        self._parameters, self._world = [p for p in model.parameters() if p.requires_grad], world
        # Micro-batches that stand one after the other in the tree are added up by autograd in `grad`.
        self._run = consecutive(micro_batches // world.size)
        self._sums: list[tuple[int, Gradients]] = []
        self._in_grad = 0
        self._flat: torch.Tensor | None = None

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return forward

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
        sizes = [parameter.numel() for parameter in self._parameters]
        count = sum(sizes) + len(sizes)
        padded = -(-count // self._world.size) * self._world.size
        if self._flat is None:
            self._flat = torch.empty(2, padded, device=self._parameters[0].device)
        flat, room = self._flat
        views = flat.split([*sizes, len(sizes), padded - count])
        # The values at the end count the processes in which a parameter has a gradient: in none, it is not updated.
        views[-2].copy_(torch.tensor([NEUTRAL if each is None else 1.0 for each in sums]))
        views[-1].fill_(NEUTRAL)
        for view, parameter, gradient in zip(views, self._parameters, sums, strict=False):
            view.view_as(parameter).copy_(gradient) if gradient is not None else view.fill_(NEUTRAL)
        add_over(self._world, flat, room)
        there = views[-2].tolist()
        return [
            view.view_as(parameter) if count else None
            for view, parameter, count in zip(views, self._parameters, there, strict=False)
        ]


def _joined(earlier: Gradients, later: Gradients) -> Gradients:
    """Add the gradients of later micro-batches to those of earlier ones, in place."""
    both = [(a, b) for a, b in zip(earlier, later, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [b if a is None else a for a, b in zip(earlier, later, strict=True)]


class _Forward(nn.Module):
    """A model whose outputs something else computes, such as what torch has compiled it to."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]):
        super().__init__()
        self.model = model
        self._computed = (forward,)  # in a tuple, so that it is not registered a second time

    def forward(self, **batch: Any) -> Any:
        return self._computed[0](**batch)


class FastReduction:
    """Adds gradients up as autograd and DistributedDataParallel do; arguments as of `ExactReduction`."""

    def __init__(self, model: BaseLanguageModel, world: World, micro_batches: int):
        self._model, self._world, self._own = model, world, micro_batches // world.size
        self._parallel: DistributedDataParallel | None = None
        self._one_is_idle = False
        self.factor = world.size  # DistributedDataParallel takes the mean over the processes

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        if self._world.size == 1:
            return forward
        device = next(self._model.parameters()).device
        self._parallel = DistributedDataParallel(
            _Forward(self._model, forward),
            device_ids=[device.index or torch.cuda.current_device()] if device.type == "cuda" else None,
            **_NO_BUFFERS,
            gradient_as_bucket_view=True,
        )
        return self._parallel

    def begin(self, micro_batches: int) -> None:
        # In a last step that is short, a process may have no micro-batch, and without a backward pass no gradient.
        self._one_is_idle = micro_batches <= (self._world.size - 1) * self._own

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        if self._parallel is None or (last and not self._one_is_idle):
            return nullcontext()
        return self._parallel.no_sync()

    def finish(self) -> None:
        if self._parallel is None or not self._one_is_idle:
            return
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._world.sum(gradient).div_(self._world.size)
