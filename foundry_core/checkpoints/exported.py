"""A checkpoint as a folder for others: without the optimizer and, standalone, for processes without foundry.

The weights are those of the checkpoint, under the names by which transformers 4 reads them, too. For an architecture
that transformers lacks, a standalone folder carries the file that its plugin names (`Architecture.standalone`), whose
classes stand in `auto_map`.
"""

from __future__ import annotations

import ast
import json
from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.errors import PluginError, UsageError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.building import installed_plugin, release
from foundry_core.models.folder import model_files, stored_tensors
from foundry_core.models.original import original_names, with_original_settings
from foundry_core.models.tensor_file import weights_file
from foundry_core.run_folder import MODEL_CONFIG, MODELING, WEIGHTS
from foundry_core.storage.files import InPlaceFolder
from foundry_core.tokenization.tokenizer_folder import tokenizer_files

_LANGUAGE_MODELS = {"ForCausalLM": "AutoModelForCausalLM", "ForMaskedLM": "AutoModelForMaskedLM"}
_AUTO_CLASSES = {
    "Config": "AutoConfig",
    "Model": "AutoModel",
    **_LANGUAGE_MODELS,
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}
"""How the names of the classes in a standalone file end, as in transformers, and what opens them."""
_KEPT = ("dtype", "foundry", "max_position_embeddings", "tie_word_embeddings", "tokenizer_class", "vocab_size")
"""Keys that config.json shares with that of a checkpoint, besides the ids of special tokens."""


@dataclass(frozen=True)
class Exported:
    """Describes a folder that was written.

    Attributes:
        auto_classes: The auto classes of transformers that open it, that of its language model first.
        trust: Whether they need `trust_remote_code=True`.
        named: The special tokens that its tokenizer names and the checkpoint's does not, by their roles.
        names: What weights are called in it, by their names in the checkpoint, if it is anything else.
    """

    auto_classes: tuple[str, ...]
    trust: bool
    named: dict[str, str]
    names: dict[str, str]


def export(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path, *, standalone: bool = False
) -> Exported:
    """Write a model and its tokenizer, both of a checkpoint, into a folder; config.json, which opens it, last.

    Raises:
        UsageError: The model cannot be opened without foundry.
        PluginError: The file that its plugin names is missing, or lacks a class.
    """
    files, exported = exported_files(model, tokenizer, standalone=standalone)
    sink = InPlaceFolder(folder)
    weights = {exported.names.get(name, name): each for name, each in stored_tensors(model).items()}
    sink.write(WEIGHTS, weights_file(weights))
    for name, content in sorted(files.items(), key=lambda item: item[0] == MODEL_CONFIG):
        sink.write(name, content)
    return exported


def exported_files(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, *, standalone: bool
) -> tuple[dict[str, bytes], Exported]:
    """Return the files of a folder besides the weights, the same for all checkpoints of a run, and what opens it.

    Raises:
        UsageError: The model cannot be opened without foundry.
        PluginError: The file that its plugin names is missing, or lacks a class.
    """
    files = standalone_files(model) if standalone and model.is_adapted else model_files(model)
    others, named = for_others(model, tokenizer)
    config = with_original_settings(json.loads(files[MODEL_CONFIG]))
    own, mapped = model.context.objective.auto_class, config.get("auto_map", {})
    further = sorted(name for name in mapped if name not in (own, "AutoConfig"))
    exported = Exported((own, *further), MODELING in files, named, original_names(model))
    return tokenizer_files(others) | files | {MODEL_CONFIG: _json(config)}, exported


def standalone_files(model: BaseLanguageModel) -> dict[str, bytes]:
    """Return the files of a model besides its weights, with the plugin's file in place of one that imports it.

    config.json has the section `model:` under `settings`.

    Raises:
        UsageError: Its plugin names no such file.
        PluginError: The file is missing, or lacks a class.
    """
    architecture = model.config.architecture
    if architecture.standalone is None:
        raise UsageError(
            f"transformers does not have the architecture '{architecture.name}', and "
            f"{release(installed_plugin(architecture.name))} has no file that opens it without foundry "
            "(Architecture.standalone): leave --standalone out"
        )
    package = type(model).__module__.partition(".")[0]
    try:
        source = resources.files(package).joinpath(architecture.standalone).read_bytes()
    except OSError as error:
        raise PluginError(f"{package} lacks {architecture.standalone}, its standalone file: {error.strerror}") from None
    files = model_files(model)
    config = json.loads(files[MODEL_CONFIG])
    model_type, classes = _classes(source, f"{package}/{architecture.standalone}")
    own = model.context.objective.auto_class
    if own not in classes:
        raise PluginError(f"{package}/{architecture.standalone} has no class for {own}")
    others = {auto for auto in _LANGUAGE_MODELS.values() if auto != own}
    module = MODELING.removesuffix(".py")
    content: dict[str, Any] = {name: config[name] for name in (*_KEPT, *model.context.special_ids)}
    content |= {
        "model_type": model_type,
        "architectures": [classes[own]],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items() if auto not in others},
        "settings": config["foundry"]["experiment"]["model"],
    }
    return {**files, MODELING: source, MODEL_CONFIG: _json(content)}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _classes(source: bytes, name: str) -> tuple[str, dict[str, str]]:
    """Return the model type of a standalone file, and its classes by their auto classes. The file is only parsed.

    Raises:
        PluginError: It has no configuration class with a model type.
    """
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for config, node in found.items():
        prefix, constants = config.removesuffix("Config"), dict[str, Any]()
        for each in node.body:
            if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant):
                constants |= {target.id: each.value.value for target in each.targets if isinstance(target, ast.Name)}
        if config != prefix and "model_type" in constants:
            named = {auto: prefix + end for end, auto in _AUTO_CLASSES.items() if prefix + end in found}
            return str(constants["model_type"]), named
    raise PluginError(f"{name} has no class whose name ends with Config and which sets a model_type")


def for_others(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreTrainedTokenizerFast, dict[str, str]]:
    """Return a tokenizer that also names bos and eos tokens, those of config.json, and the names that it added.

    Evaluation code asks for them, and a tokenizer of a masked model calls them cls and sep.
    """
    named, ids, tokenizer = dict[str, str](), model.context.special_ids, deepcopy(tokenizer)
    for role in ("bos_token", "eos_token"):
        number = ids[f"{role}_id"]
        if getattr(tokenizer, role) is None and number is not None:
            named[role] = tokenizer.convert_ids_to_tokens(number)
            setattr(tokenizer, role, named[role])
    return tokenizer, named
