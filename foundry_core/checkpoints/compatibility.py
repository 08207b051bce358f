"""Differences between the run that saved a checkpoint and the one that resumes it: settings, data, environment."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from foundry_core import __version__
from foundry_core.checkpoints.state import TrainState, unchecked_manifest
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import CheckpointError, UsageError, did_you_mean
from foundry_core.models.building import installed_plugin, read_description, release
from foundry_core.run_folder import MANIFEST

FREE = ("logging", "plugins", "training.output_dir", "training.checkpoints", "training.num_workers", "training.device")
"""Settings that may differ, because they change no weight: where and how often a run reports and saves, and the modules
of observers. The packages that ship what is trained with are compared by themselves.
"""


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested sections under their dotted keys."""
    found, sections = {}, [("", settings)]
    for prefix, section in sections:  # not recursive: a stranger's may be nested deeply
        for key, value in section.items():
            if isinstance(value, Mapping):
                sections.append((f"{prefix}{key}.", value))
            else:
                found[f"{prefix}{key}"] = value
    return found


def covered(key: str, names: Iterable[str]) -> bool:
    """Check whether a dotted key is among names of keys and sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], added: Collection[str] = ()) -> dict[str, str]:
    """Return a phrase for each key whose value differs.

    A key that `old` lacks was added to core since, with its default: it counts only if it is in `added`.
    """
    before, after = flat(old), flat(new)
    return {
        key: f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and (covered(key, before) or key in added)
    }


def check_allowed(allowed: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise UsageError for a name in `--allow` that is not a key or a section, and so would allow nothing."""
    known = {"plugin": None, **settings, **flat(settings)}
    for name in allowed:
        if not any(covered(key, (name,)) for key in known):
            raise UsageError(f"--allow {name}: there is no such key or section.{did_you_mean(name, known)}")


def accepted_differences(
    folder: Path, state: TrainState, config: ExperimentConfig, fresh: TrainState, allowed: Iterable[str]
) -> set[str]:
    """Return the keys that differ from those a checkpoint was trained with; `fresh` is the state of a new run.

    Raises:
        CheckpointError: One of them is neither free nor allowed; lists all of these.
    """
    description = read_description(folder)
    chosen = flat(config.model_dump(mode="json", exclude_defaults=True))
    differences = changed_settings(description["experiment"], config.resolved(), chosen)
    differences |= changed_plugins(description, config)
    if state.precision != fresh.precision:
        phrase = f"training.precision was {state.precision}, is {fresh.precision}"
        differences.setdefault("training.precision", phrase)
    changed = changed_data(state.data, fresh.data)
    if changed:
        differences["data"] = f"data: {' and '.join(changed)} changed since"
    barred = refused_differences(differences, allowed)
    if barred:
        raise CheckpointError(
            f"{folder} was trained with other settings: {'; '.join(barred)}. Put them back, or allow a key by name: "
            "--allow KEY"
        )
    return set(differences)


def changed_plugins(description: Mapping[str, Any], config: ExperimentConfig) -> dict[str, str]:
    """Return a phrase, by its key, for each plugin whose package or version is not that of a model's description."""
    differences = {}
    plugin = installed_plugin(config.model.architecture)
    if description.get("plugin") != plugin:
        differences["plugin"] = f"plugin was {release(description.get('plugin'))}, is {release(plugin)}"
    for kind, provider in config.providers.items():
        before = description["providers"].get(kind, provider)
        if before != provider:
            differences[f"plugin.{kind}"] = f"the plugin of the {kind} was {before}, is {provider}"
    return differences


def refused_differences(differences: Mapping[str, str], allowed: Iterable[str]) -> list[str]:
    """Return the phrases of the differing keys that change the result and were not allowed."""
    return [phrase for key, phrase in differences.items() if not covered(key, (*FREE, *allowed))]


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the data whose digests differ."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


@cache
def versions() -> Mapping[str, str]:
    """Return the versions that a result depends on; cached, because reading them takes longer than a small save."""
    packages = ("torch", "transformers", "tokenizers", "sentencepiece")
    found = {"python": sys.version.split()[0], "model-foundry": __version__}
    return found | {name: metadata.version(name) for name in packages}


def environment(device: torch.device) -> dict[str, str]:
    """Return everything that a bit-identical result depends on besides configuration and data."""
    return {**versions(), "threads": str(torch.get_num_threads()), "device": device.type}


def environment_changes(folder: Path, device: torch.device) -> list[str]:
    """Return a phrase for each part of the environment that has changed since a checkpoint was saved."""
    before = unchecked_manifest(folder).get("environment")
    if not isinstance(before, Mapping):
        raise CheckpointError(f"{folder / MANIFEST} has no environment")
    now = environment(device).items()
    return [f"{name} was {before.get(name)}, is {value}" for name, value in now if before.get(name) != value]
