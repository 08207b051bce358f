"""The commitments of a package, `state_keys.txt` next to its light module: names of weights, and what they compute.

    [lstm: tiny, causal_lm] 0.8104327 -1.2290551 ...
    [lstm: tiny, masked_lm] 0.6522012 -0.9110384 ...
    embedding.weight
    output_layer.bias

A title names architecture, example and objective; consecutive titles share the list below them. The numbers after it
are sums over the logits of a model whose weights depend on their names and shapes alone. They are stored, not hashed:
other processors give other last digits.
"""

from __future__ import annotations

import math
import zlib
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from foundry_core.errors import UsageError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.registry.architecture import Architecture
from foundry_core.registry.loading import import_string, shipped_by
from foundry_core.storage.files import write_file
from foundry_core.testing.kit.case import ODD_SIZES, Case, Suite
from foundry_core.testing.kit.masking import padded

_FILE = "state_keys.txt"
_HEADER = """\
# Names of the weights, by which saved models are read, and sums of the logits that fixed weights give.
# Written by: foundry check NAME --write-keys
"""
_SUMS = 6
_ROWS = (0, 9), (3, 5)
"""Numbers of the first token, and lengths, of the rows that are read."""


class Commitment(NamedTuple):
    """The names of the weights of a case, and its sums; no sums if none are written or the model returns NaN."""

    names: list[str]
    sums: list[float]


def keys_file(architecture: Architecture) -> Path | None:
    """Return the path of a package's commitments; None for an architecture that is registered in this process."""
    point = shipped_by(architecture.name)
    return None if point is None else Path(import_string(f"{point.module}:__file__")).with_name(_FILE)


def title(case: Case) -> str:
    return f"{case.architecture.name}: {case}"


@torch.no_grad()
def fixed_sums(case: Case, model: BaseLanguageModel) -> list[float]:
    """Give a model weights that are fixed by their names and shapes, or fixed counts; return sums over its logits."""
    model = model.double()
    if case.counts:
        model.count((fixed_numbers("counted", 20 * 24).abs() * case.vocabulary).long().view(20, 24))
    for name, parameter in model.named_parameters():
        # Signals keep about their size.
        scale = math.sqrt(6 / max(parameter.shape[-1], 1)) if parameter.ndim > 1 else 1.0
        parameter.copy_(scale * fixed_numbers(name, parameter.numel()).view(parameter.shape))
    rows = [case.ordinary[torch.arange(first, first + length) * 5 % len(case.ordinary)] for first, length in _ROWS]
    ids, mask = padded(rows, case.capabilities.padding_sides[0], int(case.ordinary[0]))
    logits = model(ids, attention_mask=mask).logits.double()[mask == 1].flatten()
    sums = [float(logits @ fixed_numbers(f"sum {number}", len(logits))) for number in range(_SUMS)]
    return sums if all(map(math.isfinite, sums)) else []


def fixed_numbers(name: str, count: int) -> torch.Tensor:
    """Return numbers between -1 and 1 that are the same on every machine: a hash of a name and of their places."""
    mixed = torch.arange(count) * 2654435761 + zlib.crc32(name.encode())
    for _ in range(2):
        mixed &= 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 16)) * 0x45D9F3B
    mixed &= 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)).double() + 0.5) / 2**31 - 1


def committed(path: Path) -> dict[str, Commitment]:
    """Return the commitments by title; an empty dictionary if there is no such file."""
    found: dict[str, Commitment] = {}
    titles: dict[str, list[float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    content = (line for line in lines if line and not line.startswith("#"))
    for is_title, group in groupby(content, key=lambda line: line.startswith("[")):
        if is_title:
            parts = (line[1:].partition("]") for line in group)
            titles = {title: [float(number) for number in sums.split()] for title, _, sums in parts}
        else:
            names = list(group)
            found |= {title: Commitment(names, sums) for title, sums in titles.items()}
    return found


def write_keys(suite: Suite) -> Path:
    """Write the commitments of an architecture; those of other architectures in the same file stay."""
    name = suite.architecture.name
    path = keys_file(suite.architecture)
    if path is None:
        raise UsageError(f"--write-keys: '{name}' is registered in this process, so there is no package to write to")
    others = {title: each for title, each in committed(path).items() if title.partition(":")[0] != name}
    models = {case: case.model() for case in suite.cases if case.example != ODD_SIZES}
    own = {
        title(case): Commitment(sorted(model.state_dict()), fixed_sums(case, model)) for case, model in models.items()
    }
    titles: dict[tuple[str, ...], list[str]] = {}
    for each, (names, sums) in sorted({**others, **own}.items()):
        line = " ".join([f"[{each}]", *(f"{number:.8g}" for number in sums)])
        titles.setdefault(tuple(names), []).append(line)
    text = _HEADER + "".join(f"{line}\n" for names, group in titles.items() for line in ("", *group, *names))
    write_file(path, text.encode())
    return path
