"""Checks of optimizers: exact resuming, decay, the learning rate that core sets, and a loss that goes down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load, save

from foundry_core.checkpoints.optimizer_state import load_optimizer, optimizer_tensors, optimizer_values
from foundry_core.models.base import BaseLanguageModel, create_model
from foundry_core.models.loss import training_loss
from foundry_core.storage.files import write_file
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import experiment, letters
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NonconformanceError, listed, require
from foundry_core.testing.kit.processes import forked
from foundry_core.training.optimizers import build_optimizer

Tensors = dict[str, torch.Tensor]
_RATES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_STEPS = 100


@dataclass(eq=False)
class Training:
    """The small model and a new optimizer for it, as the trainer makes them."""

    model: BaseLanguageModel
    optimizer: torch.optim.Optimizer
    rate: float
    step: int = 0

    def weights(self) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def update(self, *, rate: float | None = None) -> None:
        """Take a step with the gradients that the parameters have; random numbers follow from the step."""
        torch.manual_seed(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if rate is None else rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def learn(self) -> float:
        """Take a step towards a rule from one token to the next; return the loss before it."""
        size = self.model.context.vocab_size
        columns = [torch.randint(0, size, (16,), generator=torch.Generator().manual_seed(self.step))]
        for _ in range(15):
            columns.append((5 * columns[-1] + 3) % size)
        ids = torch.stack(columns, dim=1)
        loss = training_loss(self.model, self.model(ids, labels=ids))
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        return loss.item()

    def push(self, without: Iterable[str] = ()) -> None:
        """Take a step with random gradients, which do not depend on the weights; some parameters get none."""
        generator = torch.Generator().manual_seed(self.step)
        for name, parameter in self.model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if name in without else gradient
        self.update()


@dataclass(frozen=True, eq=False)
class OptimizerBench:
    """An optimizer, and experiments with it."""

    subject: Subject

    def training(self, *, rate: float = 1e-3, **settings: Any) -> Training:
        """Return a new model with a new optimizer."""
        config = experiment(self.subject, training={"learning_rate": rate, "max_grad_norm": None, **settings})
        model = create_model(config, letters()).train()
        return Training(model, build_optimizer(model, config.training, config.optimizer), rate)


@bench("optimizer")
def optimizer_bench(subject: Subject) -> OptimizerBench:
    made = OptimizerBench(subject)
    made.training().learn()
    return made


@check(
    "optimizer",
    "runs",
    fix="The named line raises an exception. `f(parameter_groups, training)` returns a torch.optim.Optimizer over the "
    "groups it was given. `step` leaves out parameters whose `grad` is None: a parameter that takes no part has none.",
)
def runs(bench: OptimizerBench) -> None:
    """The builder returns an optimizer over the groups that it was given, and steps leave parameters without a gradient
    as they are.
    """
    training = bench.training()
    before = training.weights()
    for _ in range(2):
        training.push(without=["inner.bias", "inner.weight"])
    after = training.weights()
    for name in ("inner.bias", "inner.weight"):
        require(torch.equal(before[name], after[name]), f"{name} changes although it has no gradient")


@check(
    "optimizer",
    "resume",
    fix="What is remembered between steps must be a tensor, a number or text in `state[parameter]` or in a parameter "
    "group: nothing else is saved. A global variable, a closure or an attribute is lost when a run is resumed.",
)
def resume(bench: OptimizerBench) -> None:
    """Training that is saved after one or three steps and continued in another process ends with the same weights, bit
    for bit.
    """
    (whole,) = forked(lambda: _trained(bench, 6))
    expected = load(whole)
    for steps in (1, 3):
        with TemporaryDirectory(prefix="foundry-check-") as folder:
            place = Path(folder)
            forked(lambda steps=steps, place=place: _saved(bench, steps, place))  # type: ignore[misc]
            (answer,) = forked(lambda steps=steps, place=place: _continued(bench, steps, place))  # type: ignore[misc]
        found = load(answer)
        differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
        require(not differing, f"saved after step {steps} and continued, {listed(differing)} differ after step 6")


def _trained(bench: OptimizerBench, steps: int) -> bytes:
    training = bench.training()
    for _ in range(steps):
        training.learn()
    return bytes(save(training.weights()))


def _saved(bench: OptimizerBench, steps: int, folder: Path) -> bytes:
    training = bench.training()
    for _ in range(steps):
        training.learn()
    write_file(folder / "weights", save(training.weights()))
    values = json.dumps(optimizer_values(training.model, training.optimizer))
    write_file(folder / "values", values.encode())
    tensors = optimizer_tensors(training.model, training.optimizer)
    write_file(folder / "optimizer", save({name: tensor.clone() for name, tensor in tensors.items()}))
    return b""


def _continued(bench: OptimizerBench, steps: int, folder: Path) -> bytes:
    training = bench.training()
    training.model.load_state_dict(load((folder / "weights").read_bytes()))
    stored = json.loads((folder / "values").read_text())
    load_optimizer(folder / "optimizer", stored, training.model, training.optimizer, begun=True)
    training.step = steps
    while training.step < 6:
        training.learn()
    return bytes(save(training.weights()))


@check(
    "optimizer",
    "state",
    fix="Keep it in `self.state[parameter]` or in the parameter group: attributes are not saved, so that a resumed run "
    "differs, perhaps only after thousands of steps. What can be computed from the step belongs there too.",
)
def state(bench: OptimizerBench) -> None:
    """A step changes no attribute of the optimizer but `state` and `param_groups`."""
    training = bench.training()
    of_torch = vars(torch.optim.Optimizer([torch.zeros(1)], {})).keys()
    seen = []
    for _ in range(3):
        training.learn()
        own = {name: value for name, value in vars(training.optimizer).items() if name not in of_torch}
        seen.append({name: _frozen(value) for name, value in own.items()})
    changed = sorted({name for first, then in pairwise(seen) for name in then if then[name] != first.get(name)})
    require(not changed, f"a step changes {listed([f'self.{name}' for name in changed])}, which is not saved")


def _frozen(value: Any) -> Any:
    """Return a value that can be compared later, of the numbers, text and tensors in it."""
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.device.type == "cpu" else value.detach().cpu().tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, Mapping):
        return [(str(key), _frozen(each)) for key, each in value.items() if key != "params"]
    if isinstance(value, list | tuple | set):
        return [_frozen(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


@check(
    "optimizer",
    "decay",
    fix="Read `weight_decay` of each parameter group when a step is taken. Core gives matrices the decay of the YAML, "
    "and norms, biases and embeddings 0; a decay of the optimizer's own replaces neither.",
)
def decay(bench: OptimizerBench) -> None:
    """With the same gradients, weight decay pulls the parameters of groups that have it towards 0, and changes no other
    bit.
    """
    ended = []
    for amount in (0.5, 0.0):
        training = bench.training(rate=1e-2, weight_decay=amount)
        decayed = {
            id(each) for group in training.optimizer.param_groups if group["weight_decay"] for each in group["params"]
        }
        names = {name for name, each in training.model.named_parameters() if id(each) in decayed}
        for _ in range(4):
            training.push()
        ended.append((training.weights(), names))
    (with_it, names), (without, none) = ended
    require(
        bool(names) and not none,
        f"its groups decay {listed(sorted(names))}, and with weight_decay 0 {listed(sorted(none))}",
    )
    for name, plain in without.items():
        moved = with_it[name] - plain
        if name in names:
            require(float((moved * plain).sum()) < 0, f"{name} has weight decay, but is not pulled towards 0 by it")
        else:
            require(not moved.any(), f"{name} is spared, but decays: it changes by up to {moved.abs().max():.1g}")


@check(
    "optimizer",
    "learning-rate",
    fix='Read `group["lr"]` in every step: core sets it before each one, from the schedule. `training.learning_rate` '
    "in the builder is only the peak.",
)
def learning_rate(bench: OptimizerBench) -> None:
    """Each step follows the learning rate of its groups: at 0 nothing moves, at a tenth everything moves less."""
    moved = []
    for factor in (1.0, 0.1, 0.0):
        training = bench.training(rate=1e-2)
        for _ in range(2):
            training.push()
        before = training.weights()
        training.rate *= factor
        training.push()
        after = training.weights()
        moved.append(math.sqrt(sum(float(((after[name] - before[name]) ** 2).sum()) for name in after)))
    require(moved[2] == 0, f"at a learning rate of 0 the weights move by {moved[2]:.2g}")
    require(
        0 < moved[1] < 0.5 * moved[0],
        f"a tenth of the learning rate moves the weights {moved[1] / (moved[0] or 1):.2g} times as far",
    )


@check(
    "optimizer",
    "learns",
    fix="The update does not go down the gradient: look at its sign, and at what the gradient is divided by.",
)
def learns(bench: OptimizerBench) -> str:
    """With some learning rate between 0.0001 and 1, the loss of a small problem falls to half within 100 steps."""
    lowest: dict[float, float] = {}
    first = math.nan
    for rate in _RATES:
        training = bench.training(rate=rate)
        first = training.learn()
        lowest[rate] = math.inf
        for _ in range(_STEPS):
            lowest[rate] = min(lowest[rate], training.learn())
            if lowest[rate] < first / 2:
                return f"learns at a learning rate of {rate:g} in {training.step} steps"
    best = min(lowest, key=lambda rate: lowest[rate])
    raise NonconformanceError(
        f"the loss falls from {first:.2f} to {lowest[best]:.2f} at the best learning rate, {best:g}"
    )
