"""A language model as a normal transformers folder: config.json, model.safetensors, and the way back.

A model that transformers has (GPT-2, BERT) is saved under its own keys. Any other is saved through its adapter; its
folder also carries a two-line module, so that `AutoModel...from_pretrained(folder, trust_remote_code=True)` opens it in
a process that has not imported the plugin, and transformers names the package to install when it is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import CheckpointError
from foundry_core.models.adapted_config import adapted_config, tied_names
from foundry_core.models.building import build, describe, described, read_description
from foundry_core.models.interface import LanguageModel
from foundry_core.models.migrations import own_shapes, pending, present_names
from foundry_core.models.original import original_names
from foundry_core.models.registration import register_auto_classes
from foundry_core.models.shards import divided_like
from foundry_core.random_streams import kept_generators
from foundry_core.registry.architecture import BuildContext, Migration
from foundry_core.registry.loading import blame
from foundry_core.run_folder import GENERATION_CONFIG, MANIFEST, MODEL_CONFIG, TRAINER_STATE, WEIGHTS
from foundry_core.storage.manifest import read_manifest

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def model_files(model: LanguageModel) -> dict[str, bytes]:
    """Return config.json and, if they apply, generation_config.json and the loading module."""
    if model.is_adapted:
        register_auto_classes(model.model_type)
        adapted = adapted_config(model)
        files, config, name = adapted.loading_module(), adapted.to_dict(), adapted.architectures[0]
    else:
        _, name, config = model.transformers_form()
        files = {}
    config.update(model.context.special_ids, architectures=[name], dtype="float32")
    config["foundry"] = describe(model)
    # Pipelines of transformers 4 load no tokenizer of a model type that they do not know without it.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for labels in ("id2label", "label2id"):  # of a classifier, and transformers would warn of another number of them
        config.pop(labels, None)
    contents = {MODEL_CONFIG: config}
    if model.supports_generation:
        ids = model.context.special_ids
        contents[GENERATION_CONFIG] = {role: value for role, value in ids.items() if value is not None}
    for name, content in contents.items():
        files[name] = (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()
    return files


def stored_tensors(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Return the model's own tensors under their names in the file, each shared one once."""
    state, tied = _named_tensors(model)
    return {name: tensor.detach() for name, tensor in state.items() if name not in tied}


def _named_tensors(model: LanguageModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a model under the names that transformers has for them, and `tied_names` of those."""
    if not model.is_adapted:
        weights = model.transformers_form().weights
        return weights.state_dict(), tied_names(weights)
    tied = {f"model.{name}": f"model.{first}" for name, first in tied_names(model).items()}
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, tied


def load_model(folder: str | Path) -> LanguageModel:
    """Return the model of a saved folder, weights included, in evaluation mode.

    A checkpoint must match its manifest; a folder of `save_pretrained` has none. Sizes that the folder merely claims
    take no memory.

    Raises:
        CheckpointError: Names the file that is damaged or does not fit.
    """
    folder = Path(folder)
    if os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / TRAINER_STATE):
        read_manifest(folder)
    description = read_description(folder)
    try:
        config, context = described(description)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MODEL_CONFIG}: {error}") from error
    steps = pending(description)
    _check_sizes(config, context, folder, steps)
    with kept_generators():
        model = build(config, context)
    load_weights(model, folder / WEIGHTS, steps)
    return model.eval()


def _check_sizes(
    config: ExperimentConfig, context: BuildContext, folder: Path, steps: Sequence[Migration] = ()
) -> None:
    """Compare a model that takes no memory (torch's meta device) with the weights file, name by name.

    Otherwise 60 bytes of JSON could ask for a terabyte, or for a million layers. The parameters are counted while they
    are made, so that the latter ends early: a tied one is made twice, and a file may hold narrower numbers.
    """
    path, described_by = folder / WEIGHTS, f"{folder / MODEL_CONFIG} describes a model that"
    with open_tensors(path) as file:
        room = 16 * path.stat().st_size

        def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            nonlocal room
            room -= parameter.nbytes
            if room < 0:
                raise CheckpointError(f"{described_by} is larger than {WEIGHTS}: they do not belong together")

        counting = register_module_parameter_registration_hook(count)
        try:
            with torch.device("meta"), kept_generators():
                skeleton = build(config, context)
        except (RuntimeError, ArithmeticError, MemoryError, TypeError, ValueError, LookupError) as error:
            reason = blame(error) or error
            raise CheckpointError(f"{described_by} cannot be built on torch's meta device: {reason}") from error
        finally:
            counting.remove()
        fitting(skeleton, path, file, steps)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file and read its header. Raises CheckpointError with its path if that fails."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a plain file")
    if any("\udc80" <= c <= "\udcff" for c in str(path)):
        raise CheckpointError(f"{path} cannot be opened: its name is not UTF-8, rename it")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_weights(model: LanguageModel, path: Path, steps: Sequence[Migration] = ()) -> None:
    """Copy a weights file into a model. Raises CheckpointError with the first tensor that does not fit.

    steps: what the plugin has renamed since the file was written.
    """
    with open_tensors(path) as file, torch.no_grad():
        for name, tensor in fitting(model, path, file, steps).items():
            tensor.copy_(divided_like(file.get_tensor(name), tensor))


def fitting(model: LanguageModel, path: Path, file: Any, steps: Sequence[Migration] = ()) -> dict[str, torch.Tensor]:
    """Return the model's tensors that a file stores, by name there; compare their shapes before any of it is read.

    Raises:
        CheckpointError: Names the first tensor that does not fit.
    """
    stored = present_names(sorted(file.keys()), steps, adapted=model.is_adapted)
    model.make_room(own_shapes(file, stored))
    state, tied = _named_tensors(model)
    if set(state) - set(stored) - set(tied):  # perhaps an exported folder
        present = {original: name for name, original in original_names(model).items()}
        stored = {present.get(name, name): written for name, written in stored.items()}
    missing = sorted(set(state) - set(stored) - set(tied))
    unknown = sorted(set(stored) - set(state))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model does not have"
        raise CheckpointError(f"{path} {what}: it belongs to another architecture or setting")
    for name, written in stored.items():
        header, expected = file.get_slice(written), tuple(state[name].shape)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if shape != expected:
            raise CheckpointError(f"{path}: {name} has shape {shape}, the model {expected}")
        if dtype not in _DTYPES:
            raise CheckpointError(f"{path}: {name} has the type {dtype}, which no model here has")
    return {written: state[name] for name, written in stored.items()}
