"""A model's tensors in a safetensors file: writing them, and putting them back by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from foundry_core.errors import CheckpointError
from foundry_core.models.interface import LanguageModel

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return names that share one parameter: each further name with the first."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[id(each)] for name, each in named if first.setdefault(id(each), name) != name}


def stored_tensors(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Return the model's own tensors under their names in the file, each shared one once."""
    outer = model.to_transformers()
    tied = tied_names(outer)
    return {name: tensor.detach() for name, tensor in outer.state_dict().items() if name not in tied}


def weights_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the content of a safetensors file of tensors on any device."""
    content: bytes = to_safetensors(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"}
    )
    return content


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file and read its header. Raises CheckpointError naming the file where that fails."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a plain file")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_weights(model: LanguageModel, path: str | Path) -> None:
    """Copy a weights file into a model. Raises CheckpointError naming the first tensor that does not fit."""
    with open_tensors(path) as file, torch.no_grad():
        for name, tensor in fitting(model, Path(path), file).items():
            tensor.copy_(file.get_tensor(name))


def fitting(model: LanguageModel, path: Path, file: Any) -> dict[str, torch.Tensor]:
    """Return the model's tensors that a file stores, by name; their shapes are compared before any of it is read.

    Raises:
        CheckpointError: Names the first tensor that does not fit.
    """
    outer = model.to_transformers()
    state = outer.state_dict()
    stored = sorted(file.keys())
    missing = sorted(set(state) - set(stored) - set(tied_names(outer)))
    unknown = sorted(set(stored) - set(state))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model has not"
        raise CheckpointError(f"{path} {what}: it belongs to another architecture or setting")
    for name in stored:
        header, expected = file.get_slice(name), tuple(state[name].shape)
        shape = tuple(header.get_shape())
        if shape != expected:
            raise CheckpointError(f"{path}: {name} has shape {shape}, the model {expected}")
        if header.get_dtype() not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is of type {header.get_dtype()}, which no model here has")
    return {name: state[name] for name in stored}
