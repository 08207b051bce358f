"""Timing passes of a model, and a trial of the compiler in a process of its own, which leaves no memory behind.

In the process of the run, what the compiler imports and keeps would stay: 0.3 GB, also where training goes on without.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.workers import Batch
from foundry_core.devices import Precision, keep_freed_memory, wait_for
from foundry_core.errors import one_line
from foundry_core.evaluation.inference import to_device
from foundry_core.models.base import BaseLanguageModel, create_model
from foundry_core.random_streams import kept_generators
from foundry_core.registry.loading import load_plugin_file, plugin_files
from foundry_core.training.losses import objective_loss, summed_losses

FIRST = 3
"""Passes that compile: the second and third may do so again, for sizes that differ from one batch to the next."""
ROUNDS = 5
_MOST_SECONDS = 10.0


class Trial(NamedTuple):
    """Seconds of compiling, and of a pass without and with it."""

    cost: float
    eager: float
    compiled: float


@dataclass(frozen=True)
class Passes:
    """Passes of a run, forward and backward. kernels: A value of `training.kernels`."""

    config: ExperimentConfig
    device: torch.device
    precision: str
    kernels: str

    @contextmanager
    def ready(self, model: BaseLanguageModel) -> Iterator[None]:
        """Set a model up as for training; its values, its mode and the random generators are afterwards as before."""
        model.kernels, training = self.kernels, model.training
        if self.config.training.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.to(self.device).train()
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            with kept_generators():
                yield
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def seconds(self, model: BaseLanguageModel, batch: Batch, forward: Callable[..., Any] | None = None) -> float:
        """Return the seconds of a pass by a model that is ready. forward: Computes its outputs; default: the model."""
        start = time.perf_counter()
        with Precision(self.precision, self.device).autocast():
            placed = to_device(batch, self.device)
            optimised, _ = summed_losses(
                model, model if forward is None else forward, placed, objective_loss(self.config)
            )
        torch.autograd.backward(optimised)
        model.zero_grad(set_to_none=True)
        wait_for(self.device)
        return time.perf_counter() - start


def compiled_forward(model: BaseLanguageModel, precision: Precision) -> Callable[..., Any]:
    """Compile the forward pass of a model; in fp32 without the loss, which then never needs all logits."""
    layers = model.with_compiled_layers() if precision.name == "fp32" else None
    return layers or torch.compile(model)


def try_compiler(passes: Passes, tokenizer: PreTrainedTokenizerFast, batches: Sequence[Batch]) -> Trial | str:
    """Compile the model of a run in another process and compare.

    Args:
        batches: `FIRST` to compile with, and further ones to compare with.

    Returns:
        The seconds, or why it could not be tried.
    """
    # A pickle, as of a spawned worker: it goes from this process to the one that it starts, and is never on a disk. In
    # two parts, because the files of the first may define what the second is made of.
    modules = passes.config.chosen.plugins.modules
    files = [module.__file__ for module in modules if module.__name__ in plugin_files]
    asked = pickle.dumps(files) + pickle.dumps((passes, tokenizer, list(batches), torch.get_num_threads()))
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, input=asked, capture_output=True, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        return f"a trial failed: {one_line(said[-1])[:200]}"
    found = json.loads(lines[-1])
    return found if isinstance(found, str) else Trial(*found)


def _compared(passes: Passes, model: BaseLanguageModel, batches: Sequence[Batch]) -> Trial | str:
    """Compile a model and compare, in this process."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        if passes.device.type == "cpu":
            get_cpp_compiler()
        with passes.ready(model):
            forward = compiled_forward(model, Precision(passes.precision, passes.device))
            first = sum(passes.seconds(model, batch, forward) for batch in batches[:FIRST])
            eager, compiled, begun = [], [], time.perf_counter()
            for batch in batches[FIRST:]:
                eager.append(passes.seconds(model, batch))
                compiled.append(passes.seconds(model, batch, forward))
                if len(eager) >= 3 and time.perf_counter() - begun > _MOST_SECONDS:
                    break
    except InvalidCxxCompiler:
        return "there is no C++ compiler: install g++"
    return Trial(max(first - FIRST * median(compiled), 0.0), median(eager), median(compiled))


def main() -> None:
    """Read from stdin what `try_compiler` asks, and print the answer as the last line."""
    for path in pickle.load(sys.stdin.buffer):
        load_plugin_file(path)
    passes, tokenizer, batches, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    if passes.device.type == "cpu":
        keep_freed_memory()
    sys.stdout.write(f"{json.dumps(_compared(passes, create_model(passes.config, tokenizer), batches))}\n")


if __name__ == "__main__":
    main()
