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
from foundry_core.config.settings import FREE, covered, flat
from foundry_core.data.preparation import TOKENIZER_DATA
from foundry_core.errors import CheckpointError, UsageError, did_you_mean
from foundry_core.models.building import installed_plugin, read_description, release
from foundry_core.run_folder import MANIFEST
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest

SCHEDULE = tuple(f"training.checkpoints.{key}" for key in ("every_steps", "log_base", "steps", "milestones"))
"""Settings among them that are not free where `training.evaluate_at` follows the checkpoints: evaluations decide."""


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
        CheckpointError: One of them is neither free nor allowed, or the tokenizer differs; lists all of these.
    """
    now = {"experiment": config.resolved(), **present_plugins(config)}
    chosen = flat(config.model_dump(mode="json", exclude_defaults=True))
    differences = differing(read_description(folder), state, now, fresh, chosen)
    fixed = _fixed_by_batching(read_description(folder)["experiment"], config)
    barred = refused_differences(differences, allowed)
    advice = "Put them back, or allow a key by name: --allow KEY"
    if moved := [phrase for key, phrase in differences.items() if covered(key, allowed) and key in fixed]:
        barred += moved
        advice = "The rows of its epoch would move, which --allow does not cover: put them back"
    if another := other_tokenizer(folder, fresh):
        barred += another
        advice = (
            "Its weights mean nothing under other token ids, which --allow does not cover. Put back the tokenizer, or "
            "what it was trained from, or begin a new run in another training.output_dir"
        )
    if barred:
        raise CheckpointError(f"{folder} was trained with other settings: {'; '.join(barred)}. {advice}")
    return set(differences)


def _fixed_by_batching(before: Mapping[str, Any], config: ExperimentConfig) -> tuple[str, ...]:
    """Return the keys that decide which row is trained at which position, and so cannot change within a run."""
    was, accumulated = before["data"], before["training"].get("gradient_accumulation_steps", 1)
    kinds = (was.get("batching", "shuffled"), config.data.batching)
    if "contiguous" in kinds:
        return ("data.batching", "data.batch_size")
    per_step = config.data.batch_size * config.training.gradient_accumulation_steps
    if "documents" in kinds and (kinds[0] != kinds[1] or was["batch_size"] * accumulated != per_step):
        return ("data.batching", "data.batch_size", "training.gradient_accumulation_steps")
    return ()


def changed_plugins(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return a phrase, by its key, for each plugin whose package or version differs between two descriptions."""
    differences = {}
    if before.get("plugin") != after.get("plugin"):
        differences["plugin"] = f"plugin was {release(before.get('plugin'))}, is {release(after.get('plugin'))}"
    for kind, provider in after["providers"].items():
        former = before["providers"].get(kind, provider)
        if former != provider:
            differences[f"plugin.{kind}"] = f"the plugin of the {kind} was {former}, is {provider}"
    return differences


def present_plugins(config: ExperimentConfig) -> dict[str, Any]:
    """Return the plugins of a configuration as a model's description lists them."""
    return {"plugin": installed_plugin(config.model.architecture), "providers": config.providers}


def differing(
    before: Mapping[str, Any], was: TrainState, after: Mapping[str, Any], now: TrainState, added: Collection[str] = ()
) -> dict[str, str]:
    """Return a phrase for each key of settings, plugins and data that differs, the tokenizer apart.

    Args:
        before: The description of a model, with the state `was`.
        after: That of the model that continues from it, with the state `now`.
        added: As for `changed_settings`.
    """
    differences = changed_settings(before["experiment"], after["experiment"], added)
    # Compared by what it comes to: the default depends on another key, and the first checkpoints lack this one.
    differences.pop("data.tokens_per_row", None)
    old, new = was.stream, now.stream
    if old and new and old.tokens_per_row != new.tokens_per_row and "data.max_sequence_length" not in differences:
        phrase = f"data.tokens_per_row was {old.tokens_per_row}, is {new.tokens_per_row}"
        differences["data.tokens_per_row"] = phrase
    moved = [phrase for key, phrase in differences.items() if covered(key, SCHEDULE)]
    if moved and after["experiment"]["training"].get("evaluate_at") == "checkpoints":
        differences.setdefault("training.evaluate_at", f"training.evaluate_at is checkpoints, and {'; '.join(moved)}")
    differences |= changed_plugins(before, after)
    for name in ("precision", "compile", "kernels"):
        # Compared by what was chosen: `auto` comes to another value on another machine, and takes that of the run here.
        key, old_value, new_value = f"training.{name}", getattr(was, name), getattr(now, name)
        if old_value == new_value:
            differences.pop(key, None)
        else:
            differences.setdefault(key, f"{key} was {old_value}, is {new_value}")
    if changed := changed_data(was.data, now.data):
        differences["data"] = f"data: {' and '.join(changed)} changed since"
    return differences


def refused_differences(differences: Mapping[str, str], allowed: Iterable[str]) -> list[str]:
    """Return the phrases of the differing keys that change the result and were not allowed."""
    return [phrase for key, phrase in differences.items() if not covered(key, (*FREE, *allowed))]


def other_tokenizer(folder: Path, fresh: TrainState) -> list[str]:
    """Return a phrase if the tokenizer of the run is not that of a checkpoint, whose weights belong to its ids."""
    same = tokenizer_digest(load_tokenizer(folder)) == fresh.data[TOKENIZER_DATA]
    return [] if same else ["its tokenizer is another one"]


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the corpora whose digests differ."""
    return sorted(key for key in {*before, *now} - {TOKENIZER_DATA} if before.get(key) != now.get(key))


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
