"""Weights, gradients and optimizer states in parts, one in each process: torch's FSDP2 behind `Reduction`.

The weights of a block are put together for as long as it computes. Each pass is a collective operation, so that all
processes make equally many: one that has fewer micro-batches in a short last step takes part with one that predicts
nothing, and in an evaluation with one that it has read already.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from foundry_core.devices import return_freed_memory
from foundry_core.errors import TrainingError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED, training_loss
from foundry_core.models.shards import is_divided
from foundry_core.processes import World


class ShardedReduction:
    """Divides a model between processes, and adds up gradients as FSDP2 does.

    Gradients are added up after each micro-batch, so that no process ever holds all of them: at the end of a step alone
    it would save a third of the traffic, and cost what sharding is for.

    Args:
        model: The model, with its initial weights, the same in each process.
        world: The processes of the run.
        micro_batches: Those of a whole step.
        device: Where it computes. Weights go there one block at a time.
    """

    def __init__(self, model: BaseLanguageModel, world: World, micro_batches: int, device: torch.device):
        self._model, self._world, self._device = model, world, device
        self._own = micro_batches // world.size
        self._passes = self._expected = 0
        world.seconds = math.nan
        # A copy in bf16 of each weight, kept until the end of a pass, would be all weights.
        torch.set_autocast_cache_enabled(False)
        if device.type == "cpu":
            return_freed_memory()
        mesh = init_device_mesh(device.type, (world.size,))
        try:
            for block in _apart(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        except (ValueError, NotImplementedError) as error:
            raise TrainingError(
                f"training.reduction: sharded cannot divide this {model.model_type}: {' '.join(str(error).split())}"
            ) from error
        divided: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in divided:
            # A sum, and not the mean of NCCL, which gloo does not have.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        if hasattr(FSDPModule, "set_reduce_scatter_unused_params"):  # since torch 2.13
            model.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
        self._names = [name for name, each in model.named_parameters() if each.requires_grad]
        self._used = set[str]()
        self._not_followed = {
            module: module.register_forward_pre_hook(partial(self._follow, name))
            for name, module in model.named_modules()
            if module in divided
        }
        model.register_forward_hook(_divide_again)

    def _follow(self, place: str, module: nn.Module, *_: Any) -> None:
        """Record from now on which of the weights that have been put together for the first time get a gradient."""
        self._not_followed.pop(module).remove()
        for name, parameter in module.named_parameters(place):
            if parameter.requires_grad and not is_divided(parameter):
                note = partial(self._note, name)
                parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, name: str, parameter: torch.Tensor) -> None:
        self._used.add(name)

    def begin(self, micro_batches: int) -> None:
        self._passes, self._expected = 0, min(self._own, micro_batches)
        self._used.clear()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        self._passes += 1
        return nullcontext()

    def finish(self) -> None:
        used = [name in self._used for name in self._names]
        for _ in range(self._expected - self._passes):
            ids = torch.zeros(1, 2, dtype=torch.int64, device=self._device)
            nothing = torch.full_like(ids, IGNORED)
            output = self._model(input_ids=ids, labels=nothing, reduction="sum", return_logits=False)
            torch.autograd.backward(training_loss(self._model, output) * 0)
        # A parameter that no micro-batch of the step has used is not updated; FSDP2 gives it a gradient of 0.
        parameters = dict(self._model.named_parameters())
        for name, somewhere in zip(self._names, self._world.any(used), strict=True):
            if not somewhere:
                parameters[name].grad = None


def _apart(model: BaseLanguageModel) -> list[nn.Module]:
    """Return the blocks of a model that do not share a parameter with what is outside them."""
    owners = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    apart = []
    for block in model.blocks_to_shard():
        own = Counter(id(each) for _, each in block.named_parameters(remove_duplicate=False))
        if own and all(owners[key] == count for key, count in own.items()):
            apart.append(block)
    return apart


def _divide_again(model: nn.Module, *_: Any) -> None:
    """Leave a model in parts after a forward pass that no backward pass follows, which would do so."""
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()
