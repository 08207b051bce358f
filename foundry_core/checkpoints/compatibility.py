"""What may differ between the run that saved a checkpoint and the one that goes on: settings, data, environment."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from foundry_core import __version__
from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.errors import CheckpointError, FoundryError, UsageError, did_you_mean
from foundry_core.models.description import installed_plugin, release
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import read_manifest

FREE = ("logging", "plugins", "training.output_dir", "training.checkpoints", "training.num_workers", "training.device")
"""Settings that may differ, because they change no weight: where and how often a run reports and saves, and the modules
of observers. The packages that ship what is trained with are compared by themselves.
"""


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the keys whose values differ, each with a phrase that says how."""
    found: dict[str, str] = {}
    for key in sorted({*old, *new}):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= config_differences(before, after, f"{name}.")
        elif before != after:
            found[name] = f"{name} was {before!r}, is {after!r}"
    return found


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose values differ; a key that was added after `old` was written has its default there."""
    found = config_differences(old, new)
    if found:
        with suppress(FoundryError):  # settings that this version refuses are compared as they are
            found = config_differences(load_config(old).resolved(), new)
    return found


def covered(key: str, names: Iterable[str]) -> bool:
    """Return whether a dotted key is among names of keys and sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def check_allowed(allowed: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise UsageError for a name in `--allow` that is not a key or a section, and so would allow nothing."""
    known = ["plugin", *_names(settings)]
    for name in allowed:
        if name not in known:
            raise UsageError(f"--allow {name}: there is no such key or section.{did_you_mean(name, known)}")


def _names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key and section with its dotted name."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def accepted_differences(
    folder: Path, description: Mapping[str, Any], config: ExperimentConfig, allowed: Iterable[str]
) -> set[str]:
    """Return the settings that differ from those a checkpoint was trained with, by their dotted names.

    Raises:
        CheckpointError: One of them is neither free nor allowed; lists all of these.
    """
    differences = changed_settings(description["experiment"], config.resolved())
    plugin = installed_plugin(config.model.architecture)
    if description.get("plugin") != plugin:
        differences["plugin"] = f"plugin was {release(description.get('plugin'))}, is {release(plugin)}"
    for kind, provider in config.providers.items():
        before = description["providers"].get(kind, provider)
        if before != provider:
            differences[f"plugin.{kind}"] = f"the plugin of the {kind} was {before}, is {provider}"
    barred = refused_differences(differences, allowed)
    if barred:
        raise CheckpointError(
            f"{folder} was trained with other settings: {'; '.join(barred)}. Put them back, or allow a key by name: "
            "--allow KEY"
        )
    return set(differences)


def refuse_other_data(folder: Path, state: TrainState, fresh: TrainState, allowed: Iterable[str]) -> None:
    """Raise CheckpointError where precision or data differ from those of a new run, unless that is allowed."""
    if state.precision != fresh.precision and not covered("training.precision", allowed):
        raise CheckpointError(
            f"{folder} was trained in {state.precision}, here training.precision comes to {fresh.precision}: set it, "
            "or allow it: --allow training.precision"
        )
    changed = changed_data(state.data, fresh.data)
    if changed and not covered("data", allowed):
        raise CheckpointError(
            f"{folder} was trained on other data: {' and '.join(changed)} changed since. Put it back, or allow it: "
            "--allow data"
        )


def refused_differences(differences: Mapping[str, str], allowed: Iterable[str]) -> list[str]:
    """Return the phrases of the differing keys that change the result and were not allowed."""
    return [phrase for key, phrase in differences.items() if not covered(key, (*FREE, *allowed))]


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the data whose digests differ."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


@cache
def versions() -> Mapping[str, str]:
    """Return versions that a result depends on; read once, because that takes longer than saving a small model."""
    found = {"python": sys.version.split()[0], "foundry-core": __version__}
    found |= {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "sentencepiece")}
    return MappingProxyType(found)


def environment(device: torch.device) -> dict[str, str]:
    """Return what a bit-identical result depends on besides configuration and data."""
    return {**versions(), "threads": str(torch.get_num_threads()), "device": device.type}


def environment_changes(folder: Path, device: torch.device) -> list[str]:
    """Return a phrase for each part of the environment that has changed since a checkpoint was saved."""
    before = read_manifest(folder).get("environment")
    if not isinstance(before, Mapping):
        raise CheckpointError(f"{folder / MANIFEST} does not say in which environment it was saved")
    return [
        f"{name} was {before.get(name)}, is {now}"
        for name, now in environment(device).items()
        if before.get(name) != now
    ]
