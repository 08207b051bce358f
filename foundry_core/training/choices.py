"""The choices that a run makes once, before its first step: precision, compiling and kernels, with the reason for each.

A setting that is `auto` is decided here: for a new run by what this machine measures, for one that is resumed by what
its checkpoint records, whatever the machine would choose now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Batches
from foundry_core.data.collators import get_data_collator
from foundry_core.data.preparation import ExperimentData
from foundry_core.data.workers import Batch
from foundry_core.devices import (
    bf16_gain,
    choose_device,
    computes_in_bf16,
    keep_freed_memory,
    memory_of,
)
from foundry_core.errors import tell, warn
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.cost import training_flops
from foundry_core.processes import World
from foundry_core.training.plan import RunPlan
from foundry_core.training.trial import FIRST, ROUNDS, Passes, Trial, try_compiler

LONG = 30 * 60.0
"""Seconds of training from which compiling is tried: the trial takes about a minute, and the gain is some percent."""
ENOUGH = 1.3
"""How many times as fast as fp32 bf16 has to be before a CPU takes it by itself."""

KEYS = ("precision", "compile", "kernels")
"""The choices, by the names of their settings in `training:`."""

_MOST_TOKENS = {"cpu": 2**13, "cuda": 2**15, "mps": 2**13}
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
    """Make the choices of a run; the model's values and the random generators stay as they are.

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
    if settings.reduction == "sharded":
        made["compile"] = (False, "training.reduction: sharded does not compile")
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
        passes = Passes(config, device, made["precision"][0], made["kernels"][0])
        run = _Run(passes, model, tokenizer, data)
        measured = (run.seconds, partial(run.trial, quiet=quiet)) if trial else ()
        made["compile"] = compile_of(run.obstacle(), run.count, run.rough_seconds(), *measured)
    reasons = {name: reason for name, (_, reason) in made.items()}
    return Choices(**{name: value for name, (value, _) in made.items()}, reasons=reasons)


def agreed_choices(config: ExperimentConfig, world: World, choose: Callable[[], Choices]) -> Choices:
    """Return the choices that process 0 makes for all: what one measures, another could measure differently."""
    if not world.first and choose_device(config.training.device).type == "cpu":
        keep_freed_memory()
    return Choices(**world.from_first("measuring what this machine computes fastest", lambda: asdict(choose())))


def precision_of(device: torch.device, proven: tuple[str, ...], gain: Callable[[], float]) -> Made:
    """Choose the precision of a new run.

    Args:
        proven: Precisions in which the architecture is known to learn as in fp32.
        gain: Measures how many times as fast as fp32 bf16 is on this CPU.
    """
    if device.type == "mps":
        return "fp32", "what bf16 gains on MPS has not been measured"
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
        trial: Compiles the model and compares; its reason if it cannot.
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


class _Run:
    """What decides whether a run is compiled.

    It is measured with whole micro-batches, or some of the rows if there is no telling whether all have room.
    """

    def __init__(
        self, passes: Passes, model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, data: ExperimentData
    ):
        self.passes, self.model, self.tokenizer, self.data = passes, model, tokenizer, data
        self.plan = RunPlan.of(passes.config, data)
        self.length, self.most_tokens = data.train_rows.length, _MOST_TOKENS[passes.device.type]
        self.rows = max(1, min(passes.config.data.batch_size, self.most_tokens // self.length))
        self.count = -(-self.plan.total_samples // self.rows)

    def obstacle(self) -> str:
        """Return why compiling cannot be tried, or nothing."""
        if not self.passes.config.capabilities.compile:
            return "the architecture does not support it"
        if self.passes.device.type == "mps":
            return "compiling for MPS has not been tried"
        if self.length > self.most_tokens:
            return f"it is not tried with rows of more than {self.most_tokens:,} tokens"
        if self.model.get_memory_footprint().total > memory_of(self.passes.device) / 2:
            return "there is no room for another model to try it on"
        return ""

    def rough_seconds(self) -> float:
        """Estimate the seconds of the run, as on a slow core: 5 GFLOP/s, and 50 ms of work around each pass."""
        flops = training_flops(self.model, self.plan.total_samples, self.length)
        return flops / 5e9 + 0.05 * self.count

    def seconds(self) -> float:
        """Measure the seconds of a pass. 0 if it fails: then so will training, with a message of its own."""
        with suppress(Exception), self.passes.ready(self.model):
            return min(self.passes.seconds(self.model, batch) for batch in self._batches(3))
        return 0.0

    def trial(self, *, quiet: bool) -> Trial | str:
        """Compile the model in another process and compare; the reason if that cannot be done."""
        if not quiet:
            tell("compiling the model to see whether the run gains by it (training.compile: auto)\n")
        return try_compiler(self.passes, self.tokenizer, self._batches(FIRST + ROUNDS))

    def _batches(self, count: int) -> list[Batch]:
        collate = get_data_collator(self.passes.config, self.tokenizer)
        batches = Batches(self.data.train_rows, self.data.order, collate, self.rows, 0, self.plan.total_samples)
        return list(islice(batches, count))
