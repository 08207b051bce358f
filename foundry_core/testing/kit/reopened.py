"""A fresh process that imports a plugin, builds its models and opens saved ones.

One process does everything for all cases of an architecture, because starting it takes longer than the rest.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save

from foundry_core.models import adapter as adapter  # what torch and transformers do when imported is not the plugin's
from foundry_core.models.base import BaseLanguageModel
from foundry_core.registry.loading import shipped_by
from foundry_core.storage.files import write_file
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.processes import Warm, forked, hash_seed_that_reverses
from foundry_core.testing.kit.surroundings import changed, settings, watched

_REQUEST, _ANSWER = "request.safetensors", "answer.safetensors"
_PROGRAM = """
import sys
from foundry_core.testing.kit.reopened import open_all
open_all(*sys.argv[1:])
"""
_OTHER_SEED = 99


@dataclass(frozen=True)
class Reopened:
    """The logits of a model before saving, opened by `BaseLanguageModel.from_pretrained`, and by its auto class.

    If opening failed, the error message takes the place of the logits.
    """

    case: Case
    before: torch.Tensor
    by_us: torch.Tensor | str
    by_transformers: torch.Tensor | str


@dataclass(frozen=True)
class Elsewhere:
    """The findings of the other process.

    Attributes:
        models: The model of each case, opened with another seed.
        imports: Modules of the plugin with the side effects of importing them. None for a class defined in this
            process, which another process cannot import.
        weights: For a new model of each case, a digest of every tensor by name, or an error message; None likewise.
    """

    models: list[Reopened]
    imports: dict[str, list[str]] | None
    weights: list[dict[str, str] | str] | None


def reopened(suite: Suite) -> list[Reopened]:
    """Return the model of each case, opened in another process with another seed."""
    return elsewhere(suite).models


@cache
def elsewhere(suite: Suite) -> Elsewhere:
    """Run the other process, once for a suite, and return its findings."""
    parent = suite.folder / "saved"
    ids: dict[str, torch.Tensor] = {}
    auto_classes: dict[str, str] = {}
    before: list[torch.Tensor] = []
    problems: dict[str, str] = {}
    for number, case in enumerate(suite.cases):
        name = str(number)
        model = _moved_on(case)
        ids[name], auto_classes[name] = case.ids(2, case.length), case.objective.auto_class
        before.append(model(ids[name]).logits.detach())
        try:
            model.save_pretrained(parent / name)
        except Exception as error:  # noqa: BLE001 - whatever saving raises is a finding
            problems[name] = f"saving failed: {_one_line(error)}"
    write_file(parent / _REQUEST, save(ids, metadata=auto_classes))
    target = suite.architecture.model_class
    if isinstance(target, str):
        elsewhere = Warm.of(suite.folder, hash_seed_that_reverses(_neighbours(suite)))
        elsewhere.run(_PROGRAM, str(parent), suite.architecture.name, target.partition(":")[0])
    else:  # a class defined in this process: a forked child has the class
        forked(lambda: open_all(str(parent)))
    with safe_open(str(parent / _ANSWER), framework="pt") as file:
        found: dict[str, Any] = {**(file.metadata() or {}), **{key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
    models = [
        Reopened(case, before[number], **{way: problems.get(str(number)) or found[f"{number}/{way}"] for way in _WAYS})
        for number, case in enumerate(suite.cases)
    ]
    return Elsewhere(
        models, **{name: json.loads(found[name]) if name in found else None for name in ("imports", "weights")}
    )


def _neighbours(suite: Suite) -> frozenset[tuple[str, str]]:
    """Return pairs of consecutive names in a module, each in the order in which this process iterates over its set.

    If layers were created from a set of names, their order changes with that of the pairs. Only randomly initialised
    members count: the order of the others changes nothing.
    """
    return frozenset(
        _in_order_of_a_set(*pair)
        for case in suite.cases
        for module in case.model().modules()
        for members in (module._parameters, module._modules)
        for pair in pairwise(name for name, member in members.items() if not name.isdigit() and _is_drawn(member))
    )


def _in_order_of_a_set(first: str, second: str) -> tuple[str, str]:
    """Return two names in the order in which this process iterates over their set.

    For about one pair in nine that depends on the order of insertion, so the set order cannot be determined; such a
    pair is returned unchanged, which is correct for layers created from a set.
    """
    orders = {tuple({first, second}), tuple({second, first})}
    return (first, second) if len(orders) == 2 else orders.pop()  # type: ignore[return-value]


def _is_drawn(member: torch.nn.Module | torch.nn.Parameter | None) -> bool:
    """Check whether a module or parameter is randomly initialised: it contains different numbers."""
    if isinstance(member, torch.nn.Module):
        return any(map(_is_drawn, member.parameters()))
    return member is not None and bool((member != member.flatten()[:1]).any())


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Return a digest of every tensor in the state, by name."""
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def _moved_on(case: Case) -> BaseLanguageModel:
    """Return a model after two training steps, whose weights and statistics differ from those of a new model."""
    model = case.stirred().train()
    if case.counts:
        return model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        ids = case.ids(4, case.length, seed=step)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def open_all(parent: str, architecture: str | None = None, module: str | None = None) -> bytes:
    """Open every saved folder in both ways, and write the logits or error messages to a file.

    Given an architecture and the module of its model, which must not have been imported yet, also record the side
    effects of importing them and the initial weights of the cases.
    """
    found: dict[str, Any] = {}
    if architecture is not None and module is not None:
        light = shipped_by(architecture)
        found["imports"] = {name: _imported(name) for name in ([] if light is None else [light.module]) + [module]}
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(_OTHER_SEED)
    logits: dict[str, torch.Tensor] = {}
    problems: dict[str, str] = {}
    with safe_open(str(Path(parent) / _REQUEST), framework="pt") as file:
        # transformers first: from_pretrained would register an architecture whose module forgot to.
        for way, opened in _WAYS.items():
            for name, auto_class in file.metadata().items():
                try:
                    model = opened(Path(parent) / name, auto_class)
                    logits[f"{name}/{way}"] = model(file.get_tensor(name)).logits.detach().contiguous()
                except Exception as error:  # noqa: BLE001 - reported by the check
                    problems[f"{name}/{way}"] = _one_line(error)
    if architecture is not None:
        found["weights"] = [_initial_weights(case) for case in Suite.of(architecture).cases]
    findings = {name: json.dumps(value) for name, value in found.items()}
    write_file(Path(parent) / _ANSWER, save(logits, metadata={**problems, **findings}))
    return b""


def _imported(module: str) -> list[str]:
    """Import a module and return its side effects."""
    before = {**settings(), "torch's random state": torch.get_rng_state().tolist()}
    with watched() as seen:
        importlib.import_module(module)
    touched = changed(before, {**settings(), "torch's random state": torch.get_rng_state().tolist()})
    return [*(f"changes {name}" for name in touched), *seen]


def _initial_weights(case: Case) -> dict[str, str] | str:
    try:
        return digests(case.model())
    except Exception as error:  # noqa: BLE001 - reported by the check
        return _one_line(error)


def _by_transformers(folder: Path, auto_class: str) -> Any:
    # If trust_remote_code is not given, transformers asks on the terminal whether to run the module in the folder.
    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=False)


def _by_us(folder: Path, auto_class: str) -> Any:
    return BaseLanguageModel.from_pretrained(folder)


_WAYS: dict[str, Callable[[Path, str], Any]] = {"by_transformers": _by_transformers, "by_us": _by_us}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
