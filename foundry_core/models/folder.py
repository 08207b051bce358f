"""Any language model as a normal transformers folder: config.json, model.safetensors, and the way back.

A model that transformers knows (GPT-2, BERT) is saved under its own keys. Any other is saved through its adapter; its
folder also carries a two-line module, so that `AutoModel...from_pretrained(folder, trust_remote_code=True)` opens it in
a process that has not imported the plugin, and transformers names the package to install when it is missing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import CheckpointError
from foundry_core.models.adapter import AdaptedModel, auto_classes
from foundry_core.models.building import build
from foundry_core.models.description import describe, described, read_description
from foundry_core.models.interface import LanguageModel
from foundry_core.models.weights import fitting, load_weights, open_tensors, stored_tensors, weights_file
from foundry_core.random_streams import kept_generators
from foundry_core.registry.architecture import BuildContext
from foundry_core.registry.loading import blame, shipped_by
from foundry_core.run_folder import GENERATION_CONFIG, MANIFEST, MODEL_CONFIG, MODELING, TRAINER_STATE, WEIGHTS
from foundry_core.storage.files import FileSink
from foundry_core.storage.manifest import read_manifest

_MODULE = MODELING.removesuffix(".py")


def save_model(model: LanguageModel, sink: FileSink) -> None:
    """Write the files of `model_files`, and model.safetensors."""
    for name, content in model_files(model).items():
        sink.write(name, content)
    sink.write(WEIGHTS, weights_file(stored_tensors(model)))


def model_files(model: LanguageModel) -> dict[str, bytes]:
    """Return config.json, and where they apply generation_config.json and the loading module."""
    outer = model.to_transformers()
    config = outer.config.to_dict()
    config.update(model.context.special_ids, architectures=[type(outer).__name__], dtype="float32")
    config["foundry"] = describe(model)
    files = {}
    loading_module = _loading_module(model) if isinstance(outer, AdaptedModel) else None
    if loading_module is not None:
        files[MODELING] = loading_module
        config["auto_map"] = {
            "AutoConfig": f"{_MODULE}.{type(outer.config).__name__}",
            model.context.objective.auto_class: f"{_MODULE}.{type(outer).__name__}",
        }
    files[MODEL_CONFIG] = _json(config)
    if model.supports_generation:
        generation = {key: value for key, value in model.context.special_ids.items() if value is not None}
        files[GENERATION_CONFIG] = _json(generation)
    return files


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()


def _loading_module(model: LanguageModel) -> bytes | None:
    """Return the module that `auto_map` names; None for an architecture that no installed package ships."""
    point = shipped_by(model.model_type)
    if point is None:
        return None
    package = point.module.partition(".")[0]
    names = ", ".join(cls.__name__ for cls in auto_classes(model.model_type))
    text = (
        f"import {package}  # pip install {point.distribution}\n"
        f"from foundry_core import auto_classes\n\n"
        f'{names} = auto_classes("{model.model_type}")\n'
    )
    return text.encode()


def load_model(folder: str | Path) -> LanguageModel:
    """Return the model of a saved folder, weights included, in evaluation mode.

    A checkpoint must match its manifest; a folder of `save_pretrained` has none. Sizes that the folder merely claims
    take no memory.

    Raises:
        CheckpointError: Names the file that is not as it should be.
    """
    folder = Path(folder)
    if os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / TRAINER_STATE):
        read_manifest(folder)
    description = read_description(folder)
    try:
        config, context = described(description)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MODEL_CONFIG}: {error}") from error
    _check_sizes(config, context, folder)
    with kept_generators():
        model = build(config, context)
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def _check_sizes(config: ExperimentConfig, context: BuildContext, folder: Path) -> None:
    """Compare a model that takes no memory (torch's meta device) with the weights file, name by name.

    Otherwise 60 bytes of JSON could ask for a terabyte, or for a million layers. The parameters are counted while they
    are made, so that the latter ends early: a tied one is made twice, and a file may hold narrower numbers.
    """
    path = folder / WEIGHTS
    with open_tensors(path) as file:
        room = 16 * path.stat().st_size

        def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            nonlocal room
            room -= parameter.nbytes
            if room < 0:
                raise CheckpointError(
                    f"{folder / MODEL_CONFIG} describes a model that is larger than {WEIGHTS}: they do not "
                    "belong together"
                )

        counting = register_module_parameter_registration_hook(count)
        try:
            with torch.device("meta"), kept_generators():
                skeleton = build(config, context)
        except (RuntimeError, ArithmeticError, MemoryError, TypeError, ValueError, LookupError) as error:
            reason = blame(error) or error
            raise CheckpointError(
                f"{folder / MODEL_CONFIG} describes a model that cannot be built on torch's meta device: {reason}"
            ) from error
        finally:
            counting.remove()
        fitting(skeleton, path, file)
