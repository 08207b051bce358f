"""The choices that a run makes once, before its first step: precision, compiling and kernels, with the reason for each.

A setting that is `auto` is decided here: for a new run by what this machine measures, for one that is resumed by what
its checkpoint records, whatever the machine would choose now.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Batches
from foundry_core.data.collators import get_data_collator
from foundry_core.data.preparation import ExperimentData
from foundry_core.data.workers import Batch
from foundry_core.devices import (
    Precision,
    bf16_gain,
    choose_device,
    computes_in_bf16,
    keep_freed_memory,
    memory_of,
    return_freed_memory,
)
from foundry_core.errors import one_line, tell, warn
from foundry_core.evaluation.inference import to_device
from foundry_core.models.base import BaseLanguageModel, create_model
from foundry_core.models.cost import training_flops
from foundry_core.random_streams import kept_generators
from foundry_core.training.losses import TokenLoss, objective_loss, summed_losses
from foundry_core.training.plan import RunPlan

LONG = 30 * 60.0
"""Seconds of training from which compiling is tried: the trial takes about a minute, and the gain is some percent."""
ENOUGH = 1.3
"""How many times as fast as fp32 bf16 has to be before a CPU takes it by itself."""

KEYS = ("precision", "compile", "kernels")
"""The choices, by the names of their settings in `training:`."""

_ROUNDS = 5
_MOST_SECONDS = 10.0
_MOST_TOKENS = {"cpu": 2**13, "cuda": 2**15}
Made: TypeAlias = tuple[Any, str]
"""A value, and the reason for it in words."""


@dataclass(frozen=True)
class Choices:
    """What a run computes with; `reasons` has one in words for each of the others."""

    precision: str
    compile: bool
    kernels: str
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, state: TrainState) -> Choices:
        """Return those that a checkpoint records."""
        return cls(state.precision, state.compile, state.kernels)

    @property
    def values(self) -> dict[str, Any]:
        """The choices by name, as they are recorded."""
        return {name: getattr(self, name) for name in KEYS}


class Trial(NamedTuple):
    """Seconds of compiling, and of a pass without and with it."""

    cost: float
    eager: float
    compiled: float


def choose(
    config: ExperimentConfig,
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    data: ExperimentData,
    *,
    begun: Choices | None = None,
    trial: bool = True,
    quiet: bool = True,
) -> Choices:
    """Make the choices of a run; the model and the random generators stay as they are.

    Args:
        begun: Those of the run that is resumed.
        trial: Measure whether compiling pays where that decides it; without it, compiling is off then.
        quiet: Print no line before a trial, which takes about a minute.
    """
    settings, device = config.training, choose_device(config.training.device)
    if device.type == "cpu":
        keep_freed_memory()
    proven = config.architecture.proven_precisions
    gain = partial(bf16_gain, *_product(model, config.data.batch_size * data.train_rows.length))
    made = {name: (getattr(settings, name), "as configured") for name in KEYS}
    if begun is not None:
        made |= {name: (getattr(begun, name), "as the run began") for name in KEYS if made[name][0] == "auto"}
    if made["precision"][0] == "auto":
        made["precision"] = precision_of(device, proven, gain)
    elif made["precision"][0] == "bf16" and device.type == "cpu" and (times := gain()) < 1:
        warn(
            f"training.precision: bf16 slows this processor down: its matrix products run at {times:.2f} times the "
            "speed of fp32. precision: auto avoids that in a new run"
        )
    if made["kernels"][0] == "auto":
        made["kernels"] = ("fast", "the default: reference differs from it by rounding")
    if made["compile"][0] == "auto":
        runs = _Passes(config, tokenizer, data, device, made["precision"][0], made["kernels"][0], quiet)
        able = (runs.obstacle(model), runs.count, runs.rough_seconds(model))
        made["compile"] = compile_of(*able, *((runs.seconds, runs.trial) if trial else ()))
        runs.discard()
    reasons = {name: reason for name, (_, reason) in made.items()}
    return Choices(**{name: value for name, (value, _) in made.items()}, reasons=reasons)


def precision_of(device: torch.device, proven: tuple[str, ...], gain: Callable[[], float]) -> Made:
    """Choose the precision of a new run.

    Args:
        proven: Precisions in which the architecture is known to learn as in fp32.
        gain: Measures how many times as fast as fp32 bf16 is on this CPU.
    """
    what = "GPU" if device.type == "cuda" else "processor"
    if not computes_in_bf16(device):
        return "fp32", f"this {what} does not compute in bf16"
    if device.type == "cuda":
        return "bf16", f"this {what} computes in it"
    if "bf16" not in proven:
        return "fp32", "the architecture is not proven to learn as well in bf16"
    times = gain()
    reason = f"bf16 is {times:.2f} times as fast here, and has to be {ENOUGH} times"
    return ("bf16" if times >= ENOUGH else "fp32"), reason


def compile_of(
    obstacle: str,
    passes: int,
    rough: float,
    seconds: Callable[[], float] | None = None,
    trial: Callable[[], Trial | str] | None = None,
) -> Made:
    """Choose whether a new run compiles its model; each measurement is made only if those before leave it open.

    Args:
        obstacle: Why it cannot be tried, or nothing.
        passes: Passes of the run, forward and backward.
        rough: Seconds of the run, estimated generously.
        seconds: Measures the seconds of a pass.
        trial: Compiles a copy; its reason if it cannot.
    """
    if obstacle:
        return False, obstacle
    short = f"compiling seldom repays its cost within {LONG / 60:.0f} min"
    if rough < LONG:
        return False, short
    if seconds is None or trial is None:
        return False, f"not tried here: if the run takes more than {LONG / 60:.0f} min, it decides by a trial"
    whole = passes * seconds()
    if whole < LONG:
        return False, f"the run takes about {whole / 60:.0f} min, and {short}" if whole else "a trial step failed"
    found = trial()
    if isinstance(found, str):
        return False, found
    saved = passes * (found.eager - found.compiled)
    # A noisy machine shows gains of some percent that are none; the cost is paid for certain.
    on = saved > 2 * found.cost and found.compiled < 0.95 * found.eager
    return on, (
        f"in a trial a pass took {found.compiled:.3g} s compiled and {found.eager:.3g} s otherwise, compiling "
        f"{found.cost:.0f} s: {f'{saved / 60:,.1f} min' if saved > 0 else 'nothing'} saved over the run"
    )


def _product(model: BaseLanguageModel, tokens: int) -> tuple[int, int, int]:
    """Return tokens, inputs and outputs of the largest matrix product in the layers of a model."""
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.numel()]
    inner = [p for p in matrices if model.context.vocab_size not in p.shape] or matrices
    outputs, inputs = max(inner, key=torch.Tensor.numel).shape if inner else (256, 256)
    return tokens, outputs, inputs


def compiled_forward(model: BaseLanguageModel, precision: Precision) -> Callable[..., Any]:
    """Compile the forward pass of a model; in fp32 without the loss, which then never needs all logits."""
    layers = model.with_compiled_layers() if precision.name == "fp32" else None
    return layers or torch.compile(model)


class _Passes:
    """Passes of a run, forward and backward, by a model of their own that is then discarded.

    They are of whole micro-batches, or of some of the rows if there is no telling whether all have room.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        tokenizer: PreTrainedTokenizerFast,
        data: ExperimentData,
        device: torch.device,
        precision: str,
        kernels: str,
        quiet: bool,
    ):
        self.config, self.tokenizer, self.data, self.device = config, tokenizer, data, device
        self.kernels, self.quiet = kernels, quiet
        self.plan = RunPlan.of(config, data)
        self.length, self.most_tokens = data.train_rows.length, _MOST_TOKENS[device.type]
        self.rows = max(1, min(config.data.batch_size, self.most_tokens // self.length))
        self.count = -(-self.plan.total_samples // self.rows)
        self.precision = Precision(precision, device)
        self.model: Any = None
        self.tried = False
        self.own_loss: TokenLoss | None = None

    def obstacle(self, model: BaseLanguageModel) -> str:
        """Return why compiling cannot be tried, or nothing."""
        if not self.config.capabilities.compile:
            return "the architecture does not support it"
        if self.length > self.most_tokens:
            return f"it is not tried with rows of more than {self.most_tokens:,} tokens"
        if model.get_memory_footprint().total > memory_of(self.device) / 2:
            return "there is no room for another model to try it on"
        return ""

    def rough_seconds(self, model: BaseLanguageModel) -> float:
        """Estimate the seconds of the run, as on a slow core: 5 GFLOP/s, and 50 ms of work around each pass."""
        flops = training_flops(model, self.plan.total_samples, self.length)
        return flops / 5e9 + 0.05 * self.count

    def seconds(self) -> float:
        """Measure the seconds of a pass. 0 if it fails: then so will training, with a message of its own."""
        with suppress(Exception), kept_generators():
            model = self._built()
            return min(self._take(model, batch) for batch in self._batches(3))
        return 0.0

    def trial(self) -> Trial | str:
        """Compile the model and compare; the reason if that cannot be done."""
        from torch import _dynamo
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            if self.device.type == "cpu":
                get_cpp_compiler()
            if not self.quiet:
                tell("compiling a copy of the model to see whether the run gains by it (training.compile: auto)\n")
            with kept_generators():
                return self._compared()
        except InvalidCxxCompiler:
            return "there is no C++ compiler: install g++"
        except Exception as error:  # noqa: BLE001 - whatever fails in a trial, training can do without
            return f"a trial failed: {one_line(str(error))[:200]}"
        finally:
            self.model = None
            _dynamo.reset()  # what the run compiles is what it would have compiled without a trial

    def discard(self) -> None:
        """Free the model that was tried, which refers to itself, before training needs its memory."""
        if self.tried:
            self.model = None
            gc.collect()
            return_freed_memory()

    def _compared(self) -> Trial:
        model = self._built()
        forward = compiled_forward(model, self.precision)
        # The second and third batch may compile again, for sizes that differ from one to the next.
        batches = list(self._batches(3 + _ROUNDS))
        first = sum(self._take(forward, batch) for batch in batches[:3])
        eager, compiled, begun = [], [], time.perf_counter()
        for batch in batches[3:]:
            eager.append(self._take(model, batch))
            compiled.append(self._take(forward, batch))
            if len(eager) >= 3 and time.perf_counter() - begun > _MOST_SECONDS:
                break
        return Trial(max(first - 3 * median(compiled), 0.0), median(eager), median(compiled))

    def _built(self) -> Any:
        if self.model is None:
            self.tried = True
            model = create_model(self.config, self.tokenizer)
            model.kernels = self.kernels
            if self.config.training.gradient_checkpointing:
                model.gradient_checkpointing_enable()
            self.model, self.own_loss = model.to(self.device).train(), objective_loss(self.config)
        return self.model

    def _batches(self, count: int) -> list[Batch]:
        config, rows = self.config, self.data.train_rows
        collate = get_data_collator(config, self.tokenizer)
        return list(islice(Batches(rows, self.data.order, collate, self.rows, 0, self.plan.total_samples), count))

    def _take(self, forward: Callable[..., Any], batch: Batch) -> float:
        start = time.perf_counter()
        with self.precision.autocast():
            placed = to_device(batch, self.device)
            optimised, _ = summed_losses(self.model, forward, placed, self.own_loss)
        torch.autograd.backward(optimised)
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start
