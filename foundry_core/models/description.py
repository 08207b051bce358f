"""What config.json carries under `foundry`: enough to build a model again, as plain data, and the way back."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundry_core import __version__
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.errors import CheckpointError, ConfigError, PluginError
from foundry_core.models.building import build
from foundry_core.models.interface import LanguageModel
from foundry_core.random_streams import kept_generators
from foundry_core.registry.architecture import BuildContext
from foundry_core.registry.loading import shipped_by
from foundry_core.registry.objective import Objective
from foundry_core.run_folder import MODEL_CONFIG
from foundry_core.storage.manifest import parse_json, read_plain_file

_PARTS = {"experiment": dict, "context": dict, "providers": dict, "needs": list}


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
    """Return in words what `installed_plugin` found, or what a checkpoint names as its plugin."""
    if not isinstance(plugin, dict):
        return "no installed package"
    return f"{plugin.get('distribution')} {plugin.get('version')}"


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read the description in a folder's config.json. Raises CheckpointError where there is none."""
    path = Path(folder) / MODEL_CONFIG
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} is not a model folder: it has no {MODEL_CONFIG}")
    content = parse_json(path, read_plain_file(path))
    try:
        description = content["foundry"]
        if description["format"] != 1 or not all(isinstance(description[key], kind) for key, kind in _PARTS.items()):
            raise KeyError("format")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} was not written by foundry, or is damaged ({type(error).__name__})") from error
    return dict(description)


def rebuild(description: dict[str, Any]) -> LanguageModel:
    """Build a model with fresh weights from its description; the process's random state is left as it was.

    Raises:
        CheckpointError: The architecture is not installed here, or the description is damaged.
    """
    config, context = described(description)
    with kept_generators():
        return build(config, context)


def described(description: dict[str, Any]) -> tuple[ExperimentConfig, BuildContext]:
    """Return what a model was built from. Raises CheckpointError as `rebuild` does."""
    try:
        config = load_config(_without_training(description))
        return config, _stored_context(description["context"], config.objective)
    except (ConfigError, PluginError) as error:
        made_with = release(description.get("plugin"))
        problems = "; ".join(str(error).splitlines())
        raise CheckpointError(f"this model cannot be built here. It was made with {made_with}. {problems}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the foundry part of config.json is damaged: {error}") from error


def _without_training(description: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment without what only training needs: observers, and the optimizer of another package."""
    experiment = dict(description["experiment"])
    experiment["plugins"] = [module for module in experiment["plugins"] if module in description["needs"]]
    if "optimizer" in description["providers"]:
        optimizer = ("optimizer", "optimizer_settings")
        experiment["training"] = {key: value for key, value in experiment["training"].items() if key not in optimizer}
    return experiment


def _stored_context(stored: dict[str, Any], objective: Objective) -> BuildContext:
    """Raise TypeError or ValueError for sizes and ids that no tokenizer gives."""
    context = BuildContext(**{**stored, "objective": objective})
    sizes = ("vocab_size", "max_sequence_length")
    for name in sizes:
        if type(stored[name]) is not int or stored[name] < 1:
            raise ValueError(f"its context has {name} {stored[name]!r}")
    for name, value in stored.items():
        if name in ("objective", *sizes) or value is None:
            continue
        if type(value) is not int or not 0 <= value < context.vocab_size:
            raise ValueError(f"its context has {name} {value!r}")
    return context
