"""An optimizer of any kind goes on bit for bit, or is refused in one line after its first step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foundry_core import ExperimentConfig, run
from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.checkpoints.optimizer_state import first_state, load_optimizer, optimizer_tensors, optimizer_values
from foundry_core.config.sections import TrainingConfig
from foundry_core.errors import CheckpointError, PluginError
from foundry_core.models.tensor_file import weights_file
from foundry_core.registry.optimizer import Optimizer
from foundry_core.training.optimizers import build_optimizer
from tests.each import each

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 2))


def follow(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


class Counting(torch.optim.Optimizer):
    """Keeps its progress in a number of its state, in its groups, and in doubles: none of which torch's own loading
    would bring back as it was.
    """

    def __init__(self, groups: Any, lr: float):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "taken": 0, "weight_sum": 0.0, "betas": (0.9, 0.5)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["taken"] += 1
            group["weight_sum"] += 1 / 3
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(calls=0, speed=0.1, mean=torch.zeros_like(weight, dtype=torch.float64), last=None)
                state["calls"] += 1
                state["speed"] *= 1.1
                state["mean"].mul_(0.7).add_(weight.grad.double(), alpha=1 / 7)
                scale = group["lr"] * state["speed"] / math.sqrt(state["calls"] + group["taken"] + group["weight_sum"])
                weight.sub_((scale * (state["mean"] * 2**30).frac()).float())  # the last bits of a double decide


KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "counting": lambda groups: Counting(groups, lr=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True, foreach=False),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.1),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.1),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.1),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.1),
}


@each("kind", KINDS)
def test_what_is_saved_and_put_back_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole, first, second = network(), network(), network()
    optimizers = [
        KINDS[kind]([{"params": list(part.parameters())} for part in (model[:2], model[2:])])
        for model in (whole, first, second)
    ]
    follow(whole, optimizers[0], range(6))
    follow(first, optimizers[1], range(3))
    (tmp_path / "optimizer.safetensors").write_bytes(b"".join(weights_file(optimizer_tensors(first, optimizers[1]))))
    values = json.loads(json.dumps(optimizer_values(first, optimizers[1])))
    second.load_state_dict(first.state_dict())
    load_optimizer(tmp_path / "optimizer.safetensors", values, second, optimizers[2], begun=True)
    follow(second, optimizers[2], range(3, 6))
    for ours, theirs in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@each("kind", KINDS)
def test_what_it_will_store_is_found_without_changing_anything(kind: str) -> None:
    asked, left = network(), network()
    optimizers = [KINDS[kind](list(model.parameters())) for model in (asked, left)]
    expected = first_state(asked, optimizers[0])
    for model, optimizer in zip((asked, left), optimizers, strict=True):
        follow(model, optimizer, range(2))
    assert set(expected) == {
        *optimizer_tensors(left, optimizers[1]),
        *optimizer_values(left, optimizers[1]).get("values", {}),
    }
    for ours, theirs in zip(asked.parameters(), left.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def damaged(key: str, value: Any = None) -> Callable[[dict[str, Any], Any], None]:
    """Sets a tensor that is saved, or removes it."""

    def damage(tensors: dict[str, Any], values: dict[str, Any]) -> None:
        tensors.pop(key, None)
        tensors.update({key: value} if value is not None else {})

    return damage


@each(
    ("damage", "said"),
    [
        (damaged("mean/1.weight"), "lacks mean of '1.weight'"),
        (damaged("mean/3.weight", torch.zeros(4, 3)), "contains mean for '3.weight', which"),
        (damaged("other/1.weight", torch.zeros(4, 3)), "contains other for '1.weight', which"),
        (damaged("mean", torch.zeros(4, 3)), "contains mean for '', which"),
        (
            damaged("mean/1.weight", torch.zeros(3, 4, dtype=torch.float64)),
            "mean/1.weight is float64 of shape (3, 4), not float64 of shape (4, 3)",
        ),
        (
            damaged("mean/1.weight", torch.zeros(4, 3)),
            "mean/1.weight is float32 of shape (4, 3), not float64 of shape (4, 3)",
        ),
        (lambda tensors, values: values["values"].update({"calls/1.weight": "3"}), "calls/1.weight is str, not int"),
        (lambda tensors, values: values["values"].update({"calls/1.weight": True}), "calls/1.weight is bool, not int"),
        (lambda tensors, values: (tensors.clear(), values.clear()), "is empty, and steps have been taken"),
        (lambda tensors, values: values["groups"].append({}), "was trained with 2 parameter groups, here are 1: the "),
    ],
)
def test_what_an_optimizer_would_not_remember_is_not_put_into_it(
    damage: Callable[[dict[str, Any], Any], None], said: str, tmp_path: Path
) -> None:
    model, fresh = network(), network()
    optimizer = Counting(model.parameters(), lr=0.1)
    follow(model, optimizer, range(2))
    tensors, values = optimizer_tensors(model, optimizer), optimizer_values(model, optimizer)
    damage(tensors, values)
    path = tmp_path / "optimizer.safetensors"
    path.write_bytes(b"".join(weights_file(tensors)))
    with pytest.raises(CheckpointError) as raised:
        load_optimizer(path, values, fresh, Counting(fresh.parameters(), lr=0.1), begun=True)
    assert said in str(raised.value)


def test_a_parameter_without_a_gradient_has_no_state_to_restore(tmp_path: Path) -> None:
    model, fresh = network(), network()
    optimizer = KINDS["adamw"](model.parameters())
    for parameter in model[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = tmp_path / "optimizer.safetensors"
    path.write_bytes(b"".join(weights_file(optimizer_tensors(model, optimizer))))
    other = KINDS["adamw"](fresh.parameters())
    load_optimizer(path, {}, fresh, other, begun=True)
    assert set(other.state) == set(fresh[1].parameters())


def test_an_optimizer_of_tensors_alone_adds_nothing_to_the_json() -> None:
    model = network()
    for make in (KINDS["adamw"], KINDS["sgd"]):
        optimizer = make([{"params": list(model.parameters()), "lr": 0.7}])
        follow(model, optimizer, range(2))
        assert optimizer_values(model, optimizer) == {}


class Careless(torch.optim.SGD):
    """Does something else that cannot be saved for each name."""

    what = ""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        weight = self.param_groups[0]["params"][0]
        match self.what:
            case "list":
                self.state[weight]["history"] = [torch.zeros(2)]
            case "object":
                self.state[weight]["generator"] = torch.Generator()
            case "slash":
                self.state[weight]["a/b"] = torch.zeros(2)
            case "stranger":
                self.state[torch.zeros(1)]["mean"] = torch.zeros(2)
            case "group":
                self.param_groups[0]["scale"] = torch.ones(1)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"extra": 1} if self.what == "extra" else {})


@each(
    ("what", "said"),
    [
        ("list", "a list as history/0.weight"),
        ("object", "a Generator as generator/0.weight"),
        ("slash", "state under 'a/b'"),
        ("stranger", "state of something that is not a parameter"),
        ("group", "a Tensor as 'scale' of a parameter group"),
        ("extra", "'extra' in addition to its state"),
    ],
)
def test_what_could_not_be_saved_is_named_in_one_line(what: str, said: str) -> None:
    model = network()
    optimizer = Careless(model.parameters(), lr=0.1)
    optimizer.what = what
    follow(model, optimizer, range(1))
    with pytest.raises(PluginError) as raised:
        optimizer_values(model, optimizer)
    assert str(raised.value).startswith(f"the optimizer Careless keeps {said}")
    assert "\n" not in str(raised.value)


LIGHT = """\
from foundry_core import Optimizer, hookimpl

@hookimpl
def foundry_optimizers():
    return [Optimizer("{name}", "of a test", "foundry_test_optimizer.heavy:build")]
"""


@pytest.fixture
def shipping(
    distribution: Callable[..., Path], experiment: Callable[..., ExperimentConfig], tmp_path: Path
) -> Callable[..., Callable[..., ExperimentConfig]]:
    """`shipping(heavy)(name, **training)`: an experiment whose optimizer a package builds with this code."""

    def ship(heavy: str, called: str = "of_a_test") -> Callable[..., ExperimentConfig]:
        files = {
            "foundry_test_optimizer/__init__.py": LIGHT.format(name=called),
            "foundry_test_optimizer/heavy.py": heavy,
        }
        distribution("foundry-test", {"foundry.plugins": {"test": "foundry_test_optimizer"}}, files)

        def make(name: str, **training: Any) -> ExperimentConfig:
            settings = {"optimizer": called, "train_steps": 4, "checkpoints": {"every_steps": 1}, **training}
            return experiment("lstm", tmp_path / name, training=settings, plugins=["foundry_test_optimizer"])

        return make

    return ship


COUNTING = """\
import math
import torch

class Counting(torch.optim.Optimizer):
    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "taken": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                state.setdefault("speed", 1.0)
                state["speed"] *= 1.1
                weight.sub_(group["lr"] * state["speed"] / math.sqrt(group["taken"]) * weight.grad)

def build(groups, training):
    return Counting(groups, training.learning_rate)
"""


def test_a_run_whose_optimizer_keeps_numbers_resumes_exactly(
    shipping: Callable[..., Callable[..., ExperimentConfig]],
) -> None:
    make = shipping(COUNTING)
    whole, broken = make("whole", lr_scheduler="constant"), make("broken", lr_scheduler="constant", train_steps=2)
    run(whole, quiet=True)
    run(broken, quiet=True)
    longer = make("broken", lr_scheduler="constant")
    run(longer, resume=True, quiet=True, allowed_changes=["training.train_steps"])
    ends = [Path(config.training.output_dir) / "checkpoint-4" for config in (whole, longer)]
    for first, second in ([end / "model.safetensors" for end in ends], [optimizer_file(end) for end in ends]):
        assert first.read_bytes() == second.read_bytes()
    states = [json.loads((end / "trainer_state.json").read_bytes())["foundry"]["optimizer"] for end in ends]
    assert states[0] == states[1]
    assert states[0]["groups"][0] == {"taken": 4}
    # Another optimizer, where that is allowed, begins anew.
    other = make("broken", lr_scheduler="constant", train_steps=5, optimizer="adamw")
    run(other, resume=True, quiet=True, allowed_changes=["training"])
    Path(other.training.output_dir, "checkpoint-5").rename(Path(other.training.output_dir).parent / "aside")
    # The groups are those of the roles, whatever decays.
    decaying = make("broken", lr_scheduler="constant", train_steps=5, weight_decay_on="all")
    run(decaying, resume=True, quiet=True, allowed_changes=["training"])
    state = json.loads((ends[1].parent / "checkpoint-5" / "trainer_state.json").read_bytes())
    assert state["foundry"]["optimizer"]["groups"][0] == {"taken": 5}


def test_an_optimizer_that_cannot_resume_stops_after_one_step(
    shipping: Callable[..., Callable[..., ExperimentConfig]],
) -> None:
    heavy = (
        "import torch\n"
        "class Listing(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        super().step()\n"
        "        for weight in self.param_groups[0]['params']:\n"
        "            self.state[weight]['history'] = [1, 2]\n"
        "def build(groups, training):\n"
        "    return Listing(groups, lr=training.learning_rate)\n"
    )
    config = shipping(heavy)("run", train_steps=100, checkpoints={})
    with pytest.raises(PluginError, match=r"^the optimizer Listing keeps a list as history/"):
        run(config, quiet=True)
    records = (Path(config.training.output_dir) / "metrics.jsonl").read_text()
    assert records == ""


@pytest.mark.parametrize(
    ("heavy", "said"),
    [
        (
            "import torch_kernels\n",
            "import of foundry_test_optimizer.heavy:build fails: ModuleNotFoundError: ",
        ),
        ("", "import of foundry_test_optimizer.heavy:build fails: AttributeError: "),
        ("def build(groups, training):\n    return 1 / 0\n", "the optimizer of_a_test, .* fails: ZeroDivisionError"),
        ("def build(groups):\n    pass\n", "the optimizer of_a_test, .* fails: TypeError"),
        ("def build(groups, training):\n    return groups\n", "returned a list, not a torch.optim.Optimizer"),
        (
            "import torch\ndef build(groups, training):\n    return torch.optim.SGD(groups[:1], lr=1.0)\n",
            "changes the parameter groups it was given",
        ),
        (
            "import torch\ndef build(groups, training):\n"
            "    return torch.optim.AdamW([p for group in groups for p in group['params']], lr=1.0)\n",
            "changes the parameter groups it was given",
        ),
    ],
    ids=["import", "name", "raises", "arguments", "no optimizer", "parameters left out", "decay of its own"],
)
def test_a_builder_that_breaks_a_rule_is_named(
    shipping: Callable[..., Callable[..., ExperimentConfig]], heavy: str, said: str
) -> None:
    config = shipping(heavy)("run")
    with pytest.raises(PluginError, match=said) as raised:
        run(config, quiet=True)
    assert "\n" not in str(raised.value)


def test_cores_own_are_built_like_any_other() -> None:
    model = network()
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        config = TrainingConfig(output_dir="run", train_steps=1, optimizer=name)
        assert isinstance(build_optimizer(model, config), kind)
    own = Optimizer("own", "of a test", "foundry_core.training.optimizers:sgd")
    assert isinstance(build_optimizer(model, config, own), torch.optim.SGD)
