"""Checks that every key of a YAML affects the model, and that initial weights depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from foundry_core.random_streams import seed_generators
from foundry_core.schema import Activation
from foundry_core.testing.kit.case import ODD_SIZES, Case, Suite
from foundry_core.testing.kit.check import check, differentiated, listed, named_gradients, not_looked_at, require
from foundry_core.testing.kit.json_schema import alternatives, kinds
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.numerics import all_tensors, any_differ
from foundry_core.testing.kit.reopened import digests, elsewhere

Path = tuple[str, ...]
Effect = Literal["none", "values", "sizes"]
"""The effect of another value: none, on what is computed, or on the names and shapes of the parameters."""

_REFUSED = "refused"
"""In place of a problem: every other value that was tried is refused."""

_INSTEAD_OF_NONE: dict[str, tuple[Any, ...]] = {
    "boolean": (True, False),
    "integer": (1, 2, 3, 8, 64),
    "number": (0.5, 2.0),
    "string": get_args(Activation),
}


@check(
    "packaging",
    "settings",
    scope="architecture",
    fix="The model ignores the key, or uses it only within bounds that the schema does not state. Use it, remove it "
    "from the schema, or state the bounds (`ge`, `le`). If a key only matters in combination with others, add "
    "an example that sets them. If it is only stored with the model, list it in `RECORDED` of its section.",
)
def settings(suite: Suite) -> None:
    """Changing any key in the settings of an example changes the sizes, the weights or the computation of the model,
    for larger and smaller numbers alike. A key that only one layer of several reads is not looked at.
    """
    trials: dict[Path, list[_Trial]] = {}
    recorded: set[Path] = set()
    for case in suite.cases:
        if case.example != ODD_SIZES:
            built = _Built(case)
            for path, value, others, is_recorded in _keys(case.config.model, case.architecture.config_class):
                # The name of the architecture is not a setting.
                news = [other for other in others if other != case.architecture.name]
                trials.setdefault(path, []).append(_Trial(built, path, value, news))
                recorded |= {path} if is_recorded else set()
    found = {path: _recorded_fault(each) if path in recorded else _fault(each) for path, each in trials.items()}
    refused = [f"model.{'.'.join(path)}" for path, fault in found.items() if fault == _REFUSED]
    if refused:
        not_looked_at(f"{listed(refused)}: no other value was accepted")
    faults = [f"model.{'.'.join(path)}: {fault}" for path, fault in found.items() if fault and fault != _REFUSED]
    require(not faults, listed(faults))


@check(
    "numerics",
    "initial-weights",
    scope="architecture",
    fix="Create layers in the order of a list or tuple, not of a set, whose iteration order differs between "
    "processes: the order of creation decides which random numbers a layer gets. Copies of one layer start "
    "equal and may stay equal: initialise each of them separately.",
)
def initial_weights(suite: Suite) -> None:
    """A seed gives the same initial weights in another process, whatever the iteration order of sets there, and no two
    randomly initialised matrices are equal.
    """
    for case in suite.cases:
        _require_distinct(case)
    found = elsewhere(suite).weights
    if found is None:
        not_looked_at("another process, which cannot import an architecture that is registered in this one")
    for case, weights in zip(suite.cases, found or (), strict=False):
        require(isinstance(weights, dict), f"{case}: building failed in a fresh process: {weights}")
        here = digests(case.model())
        moved = [name for name, digest in here.items() if weights.get(name) != digest]  # type: ignore[union-attr]
        require(not moved, f"{case}: in another process the initial values of {listed(moved)} are different")


def _require_distinct(case: Case) -> None:
    """Require randomly initialised matrices to differ; those that do not depend on the seed may be equal."""
    drawn = case.model(seed=1).state_dict()
    seen: dict[tuple[torch.Size, str], str] = {}
    model = case.model()
    found = digests(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not parameter.requires_grad or torch.equal(parameter, drawn[name]):
            continue
        twin = seen.setdefault((parameter.shape, found[name]), name)
        require(twin == name, f"{case}: {twin} and {name} start with the same values")


def _keys(section: BaseModel, declared: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Iterator[Any], bool]]:
    """Yield the keys of a section with their values, other possible values, and whether they are only recorded.

    A section whose class is not the declared one takes its keys from another library: then only keys that the example
    sets are checked.
    """
    is_open = type(section) not in (declared, *get_args(declared))
    whole: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, field.annotation, (*path, name))
        elif (name in section.model_fields_set or not is_open) and (*path, name) != ("architecture",):
            whole = whole or type(section).model_json_schema(by_alias=False)
            others = _others(value, alternatives(whole["properties"][name], whole))
            yield (*path, name), value, others, name in getattr(type(section), "RECORDED", ())


def _others(value: Any, choices: Sequence[Any]) -> Iterator[Any]:
    """Yield other values of a key; not all are valid."""
    written = [
        each for choice in choices for each in choice.get("enum", [choice[key] for key in choice if key == "const"])
    ]
    if written:
        yield from (each for each in written if each is not None and each != value)
        return
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from dict.fromkeys(each for each in (2 * value, value + 1, value - 1, value // 2, 1) if each != value)
    elif isinstance(value, float):
        yield from (each for each in (2 * value, value / 2, 0.5, 0.25) if each != value)
    elif isinstance(value, str) and value in get_args(Activation):
        yield from (each for each in get_args(Activation) if each != value)
    elif isinstance(value, list | tuple) and value:
        yield list(value[:-1])
        yield [*value, value[-1]]
        yield from ([other, *value[1:]] for other in _others(value[0], ()))
    elif isinstance(value, Mapping):
        yield from ({**value, key: other} for key, each in value.items() for other in _others(each, ()))
    elif value is None:
        for kind in sorted({kind for choice in choices for kind in kinds(choice)}):
            yield from _INSTEAD_OF_NONE.get(kind, ())


def _with(case: Case, settings: Mapping[str, Any]) -> Case:
    """Return a case with other settings. Raises ValueError if core would refuse them.

    Loading a whole configuration, which reads the metadata of every installed package, takes five times as long.
    """
    model = case.architecture.config_class.model_validate(settings)
    capabilities = case.architecture.capabilities(model)
    longest = capabilities.longest_sequence
    if not capabilities.accepts(case.objective) or (longest is not None and longest < case.length):
        raise ValueError(f"{case} cannot be trained with these settings")
    other = replace(case, settings=settings)
    config = case.config.model_copy(update={"model": model})
    vars(config).pop("capabilities", None)  # cached for the previous settings
    vars(other)["config"] = config
    return other


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation with the shapes and numbers of its arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.seen.append(f"{function}{tree_map(_comparable, (arguments, keywords))}")
        return function(*arguments, **(keywords or {}))


def _comparable(argument: Any) -> Any:
    """Return the shape of a tensor, a number or name itself, and the type of anything else."""
    if isinstance(argument, torch.Tensor):
        return argument.shape
    return argument if isinstance(argument, bool | int | float | str | torch.dtype | None) else type(argument)


class _Built:
    """The model of a case and its results."""

    def __init__(self, case: Case):
        self.case = case
        model = case.model()
        self.weights = all_tensors(model)
        self.sizes = {name: tensor.shape for name, tensor in self.weights.items()}
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def _run(self, watching: AbstractContextManager[Any]) -> list[torch.Tensor]:
        """Return logits and loss of a padded batch in evaluation and in training, and the gradients."""
        case, model = self.case, self.case.stirred()
        side, lengths = case.capabilities.padding_sides[0], (case.length // 2, case.length - 1, 1)
        rows = [case.ids(length, seed=length) for length in lengths]
        ids, mask = padded(rows, side, int(case.ordinary[0]))
        found: list[torch.Tensor] = []
        labels = case.labels(ids, mask)
        with watching:
            for training in (False, True):
                seed_generators(0)
                output = model.train(training)(ids, attention_mask=mask, labels=labels)
                found += [output.logits.detach(), output.loss.detach()]
            differentiated(case, output.loss)
        return [*found, *named_gradients(model).values()]

    @cached_property
    def results(self) -> list[torch.Tensor]:
        return self._run(nullcontext())

    @cached_property
    def operations(self) -> list[str]:
        operations = _Operations()
        self._run(operations)
        return operations.seen

    def effect(self, settings: Mapping[str, Any]) -> Effect | None:
        """Return the effect of other settings; None if they are refused."""
        results = self.results
        try:
            other = _Built(_with(self.case, settings))
            if other.sizes != self.sizes or other.trainable != self.trainable:
                return "sizes"
            if any_differ(self.weights, other.weights) or not all(map(torch.equal, results, other.results)):
                return "values"
        except Exception:  # noqa: BLE001 - the settings are refused, with whatever exception
            return None
        # A key may have an effect that changes no bit of such a small model.
        return "none" if self.operations == other.operations else "values"


@dataclass(frozen=True)
class _Trial:
    """A key of an example with its value and other possible values."""

    built: _Built
    path: Path
    value: Any
    others: list[Any]

    def effect(self, other: Any) -> Effect | None:
        """Return the effect of another value.

        If it is refused, all keys of the section with the same value are changed together.
        """
        settings = deepcopy(self.built.case.config.resolved()["model"])
        section = settings
        for part in self.path[:-1]:
            section = section[part]
        equal = [key for key, each in section.items() if type(each) is type(self.value) is int and each == self.value]
        for keys in ([self.path[-1]], equal):
            section.update(dict.fromkeys(keys, other))
            effect = self.built.effect(settings)
            if effect is not None or len(equal) < 2:
                break
        return effect


def _fault(trials: Sequence[_Trial]) -> str | None:
    """Return the problem of a key that must have an effect, _REFUSED if all other values are refused, or None.

    If smaller numbers change the sizes, larger numbers must change the model too, and vice versa. A key that affects
    only results may stop having an effect, like a window that is wider than the row.
    """
    found: dict[str, tuple[Effect, str]] = {}
    for trial in trials:
        for other in trial.others:
            direction = _direction(trial.value, other)
            if direction in found and found[direction][0] != "none":
                continue
            effect = trial.effect(other)
            if effect is not None:
                found[direction] = (effect, f"{trial.value!r} and {other!r} give the same model")
    if not found:
        return _REFUSED
    effects = {direction: effect for direction, (effect, _) in found.items()}
    idle = [problem for effect, problem in found.values() if effect == "none"]
    return idle[0] if idle and (set(effects.values()) == {"none"} or "sizes" in effects.values()) else None


def _recorded_fault(trials: Sequence[_Trial]) -> str | None:
    """Return the problem of a key that must not have an effect."""
    for trial in trials:
        for other in trial.others:
            if trial.effect(other) in ("values", "sizes"):
                return f"is in RECORDED, but {trial.value!r} and {other!r} give different models"
    return None


def _direction(value: Any, other: Any) -> str:
    if type(value) is int and type(other) is int:
        return "larger" if other > value else "smaller"
    return "another value"
