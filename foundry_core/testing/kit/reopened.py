"""Saved models, opened again where nothing of this process is left.

All models of an architecture are saved, and one other process opens them all: its start takes longer than the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save

from foundry_core.model import BaseLanguageModel
from foundry_core.plugins import import_string
from foundry_core.storage import write_file
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.processes import forked, fresh

_REQUEST, _ANSWER = "request.safetensors", "answer.safetensors"
_PROGRAM = "import sys; from foundry_core.testing.kit.reopened import open_all; open_all(*sys.argv[1:])"
_OTHER_SEED = 99


@dataclass(frozen=True)
class Reopened:
    """A model that was saved, and its logits: before, from `BaseLanguageModel.from_pretrained`, from its auto class.

    What went wrong stands where there are none.
    """

    case: Case
    before: torch.Tensor
    by_us: torch.Tensor | str
    by_transformers: torch.Tensor | str


@cache
def reopened(suite: Suite) -> list[Reopened]:
    """The model of each case, opened in another process with another seed."""
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
            problems[name] = f"it is not saved: {_said(error)}"
    write_file(parent / _REQUEST, save(ids, metadata=auto_classes))
    target = suite.architecture.model_class
    if isinstance(target, str):
        fresh(_PROGRAM, str(parent), target.partition(":")[0])
    else:  # a class of this process: a child of it knows the class, and none of the models
        forked(lambda: open_all(str(parent)))
    with safe_open(str(parent / _ANSWER), framework="pt") as file:
        found: dict[str, Any] = {**(file.metadata() or {}), **{key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
    return [
        Reopened(
            case,
            before[number],
            **{way: problems.get(str(number)) or found[f"{number}/{way}"] for way in _WAYS},
        )
        for number, case in enumerate(suite.cases)
    ]


def _moved_on(case: Case) -> BaseLanguageModel:
    """A model whose weights and whatever it gathers in training are not those that it was built with."""
    model = case.stirred().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        ids = case.ids(4, case.length, seed=step)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def open_all(parent: str, module: str | None = None) -> bytes:
    """Open every folder that `reopened` has saved, both ways, and write down the logits or what went wrong."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(_OTHER_SEED)
    if module is not None:
        import_string(f"{module}:__name__")  # for what it registers
    logits: dict[str, torch.Tensor] = {}
    problems: dict[str, str] = {}
    with safe_open(str(Path(parent) / _REQUEST), framework="pt") as file:
        # transformers first: ours would register an architecture whose module has not done so.
        for way, opened in _WAYS.items():
            for name, auto_class in file.metadata().items():
                try:
                    model = opened(Path(parent) / name, auto_class)
                    logits[f"{name}/{way}"] = model(file.get_tensor(name)).logits.detach().contiguous()
                except Exception as error:  # noqa: BLE001 - said by the check that asks
                    problems[f"{name}/{way}"] = _said(error)
    write_file(Path(parent) / _ANSWER, save(logits, metadata=problems))
    return b""


def _by_transformers(folder: Path, auto_class: str) -> Any:
    # Without a word transformers would ask on the terminal whether it may run the folder's module.
    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=False)


def _by_us(folder: Path, auto_class: str) -> Any:
    return BaseLanguageModel.from_pretrained(folder)


_WAYS: dict[str, Callable[[Path, str], Any]] = {"by_transformers": _by_transformers, "by_us": _by_us}


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
