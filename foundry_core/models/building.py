"""Building a model through its plugin, from a configuration or from the description that its config.json carries.

The description, under `foundry`, is plain data: enough to build the model again.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core import __version__
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.errors import CheckpointError, ConfigError, PluginError, TokenizerError
from foundry_core.models.interface import LanguageModel
from foundry_core.models.migrations import migrated, pending
from foundry_core.random_streams import kept_generators
from foundry_core.registry.architecture import BuildContext
from foundry_core.registry.loading import import_string, shipped_by
from foundry_core.registry.objective import Objective
from foundry_core.run_folder import MODEL_CONFIG
from foundry_core.storage.manifest import parse_json, read_plain_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PARTS = {"experiment": dict, "context": dict, "providers": dict, "needs": list}
_ONLY_TRAINING = {
    "optimizer": ("training", ("optimizer", "optimizer_settings")),
    "schedule": ("training", ("lr_scheduler", "schedule_settings")),
    "order": ("data", ("order", "order_settings")),
    "corpus step": ("data", ("steps",)),
}
"""Kinds of providers that a trained model does not need: section and keys of the experiment that choose them."""


def build_context(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> BuildContext:
    """Return sizes and ids from the tokenizer that exists; without one, the configured vocabulary size."""
    length, objective = config.data.max_sequence_length, config.objective
    if tokenizer is None:
        return BuildContext(_vocabulary(config), length, objective)
    for role in objective.required_tokens:
        if getattr(tokenizer, role) is None:
            raise TokenizerError(f"{objective.name} needs a tokenizer with a {role}: see tokenizer.special_tokens")
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_id") for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    known = {key: value for key, value in ids.items() if key in BuildContext.__dataclass_fields__}
    return BuildContext(len(tokenizer), length, objective, **known)


def _vocabulary(config: ExperimentConfig) -> int:
    """Return the size that a configuration asks for, or that of the tokenizer that it names."""
    if config.tokenizer.path is None:
        assert config.tokenizer.vocab_size is not None, "load_config sets it"
        return config.tokenizer.vocab_size
    from foundry_core.tokenization.given import given_tokenizer

    return len(given_tokenizer(config.tokenizer.path, config.tokenizer.special_tokens or {}, config.objective))


def build(config: ExperimentConfig, context: BuildContext) -> LanguageModel:
    """Build the model of a configuration through its plugin.

    Raises:
        PluginError: The plugin's class is not a BaseLanguageModel, or not one that can be trained.
    """
    target = config.architecture.model_class
    model_class = import_string(target) if isinstance(target, str) else target
    if not (isinstance(model_class, type) and issubclass(model_class, LanguageModel)):
        raise PluginError(f"{target} is not a subclass of BaseLanguageModel")
    name = f"{model_class.__module__}.{model_class.__qualname__}"
    if model_class.__abstractmethods__:
        raise PluginError(f"{name} does not define {', '.join(sorted(model_class.__abstractmethods__))}")
    model: Any = model_class.from_config(config, context)
    if not isinstance(model, LanguageModel):
        raise PluginError(f"{name}.from_config returned a {type(model).__name__}, not a BaseLanguageModel")
    if "context" not in vars(model):
        raise PluginError(f"{name}.__init__ does not call super().__init__(config, context)")
    called_with = {"attention_mask": None, "labels": None, "reduction": "sum", "return_logits": False}
    try:
        inspect.signature(model.forward).bind(None, **called_with)
    except TypeError as error:
        raise PluginError(
            f"{name}.forward does not take (input_ids, attention_mask=, labels=, **kwargs), which are passed on to "
            f"`self.lm_output`: {error}"
        ) from error
    return model


def describe(model: LanguageModel) -> dict[str, Any]:
    """Return the description of a model."""
    config = model.config
    return {
        "format": 1,
        "core": __version__,
        "plugin": installed_plugin(config.model.architecture),
        "providers": config.providers,
        "needs": config.needed_to_read,
        "experiment": config.resolved(),
        "context": {**asdict(model.context), "objective": model.context.objective.name},
    }


def installed_plugin(architecture: str) -> dict[str, str] | None:
    """Return distribution and version that ship an architecture; None for one registered in this process."""
    point = shipped_by(architecture)
    return None if point is None else {"distribution": point.distribution, "version": point.version}


def release(plugin: Any) -> str:
    """Return the plugin of `installed_plugin`, or of a description, in words."""
    return (
        f"{plugin.get('distribution')} {plugin.get('version')}" if isinstance(plugin, dict) else "no installed package"
    )


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read the description in a folder's config.json. Raises CheckpointError if there is none."""
    path = Path(folder) / MODEL_CONFIG
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} is not a model folder: it has no {MODEL_CONFIG}")
    content = parse_json(path, read_plain_file(path))
    if isinstance(content, dict) and "foundry" not in content:
        raise CheckpointError(
            f"{path} was not written by foundry, or is damaged: minicons and lm-eval score other models"
        )
    try:
        description: dict[str, Any] = content["foundry"]
        if description["format"] != 1 or not all(isinstance(description[key], kind) for key, kind in _PARTS.items()):
            raise KeyError("format")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} was not written by foundry, or is damaged ({type(error).__name__})") from error
    return description


def rebuild(description: dict[str, Any]) -> LanguageModel:
    """Build a model with fresh weights from its description; leave the process's random state as it was.

    Raises:
        CheckpointError: The architecture is not installed here, or the description is damaged.
    """
    with kept_generators():
        return build(*described(description))


def described(description: dict[str, Any]) -> tuple[ExperimentConfig, BuildContext]:
    """Return the configuration and the context of a description. Raises CheckpointError as `rebuild` does."""
    try:
        config = load_config(_without_training(description))
        return config, _stored_context(description["context"], config.objective)
    except (ConfigError, PluginError) as error:
        made_with, problems = _made_with(description), "; ".join(str(error).splitlines()).rstrip(".")
        releases = [each.split(" ") for each in made_with if each.count(" ") == 1]  # not a file of --plugin
        missing = ["==".join(each) for each in releases if not any(metadata.distributions(name=each[0]))]
        line = f"this model cannot be built here. It was made with {' and '.join(made_with)}. {problems}."
        raise CheckpointError(line + (f" Install it: pip install {' '.join(missing)}" if missing else "")) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the foundry part of config.json is damaged: {error}") from error


def _made_with(description: dict[str, Any]) -> list[str]:
    """Return the packages that are needed to read a model, each with its version."""
    needed = [str(owner) for kind, owner in description["providers"].items() if kind not in _ONLY_TRAINING]
    return list(dict.fromkeys([release(description.get("plugin")), *needed]))


def _without_training(description: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment without what only training needs of other packages: observers, optimizer, schedule, ...

    Keys of `model:` that the plugin has renamed since have their present names.
    """
    experiment = dict(description["experiment"])
    experiment["model"] = migrated(experiment["model"], pending(description))
    experiment["plugins"] = [module for module in experiment["plugins"] if module in description["needs"]]
    for kind, (section, keys) in _ONLY_TRAINING.items():
        if kind in description["providers"]:
            experiment[section] = {key: value for key, value in experiment[section].items() if key not in keys}
    return experiment


def _stored_context(stored: dict[str, Any], objective: Objective) -> BuildContext:
    """Return the context of a description. Raises TypeError or ValueError for sizes and ids that cannot be."""
    context, sizes = BuildContext(**{**stored, "objective": objective}), ("vocab_size", "max_sequence_length")
    for name in (*sizes, *stored):
        value, bounds = stored[name], range(1, 2**63) if name in sizes else range(context.vocab_size)
        absent = name == "objective" or (value is None and name not in sizes)
        if not absent and not (type(value) is int and value in bounds):
            raise ValueError(f"its context has {name} {value!r}")
    return context
