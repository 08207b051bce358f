"""A configuration of the format before `model.architecture`, turned into one that means the same. Light.

The old software trained one architecture, GPT-2, causally, on a SentencePiece vocabulary. What it said in a key that
still exists is copied; what it said otherwise is renamed or replaced; what has no counterpart is dropped, with the
reason. Where the same meaning cannot be had without knowing the data, the file is refused or the change says so:
nothing that alters training happens in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foundry_core.config.loading import load_config
from foundry_core.config.migration_rules import DROPPED, KEPT, MODEL_KEYS, READ_BY_RULES, REQUIRED, RULES
from foundry_core.config.old_format import SECTIONS, Change, OldFile
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError, Problem, UsageError, did_you_mean


@dataclass(frozen=True)
class Migration:
    """data: the new configuration, valid. changes: every key that is not simply the same, in the order of the file."""

    data: dict[str, Any]
    changes: tuple[Change, ...]


def migrate(source: YamlSource) -> Migration:
    """Convert an old file.

    Raises UsageError for a file of the present format, ConfigError with all problems of a file that cannot be
    converted, each at its line in the old file.
    """
    if not isinstance(source.data, dict):
        raise ConfigError([Problem(source.path, 1, "file", "is empty or not a mapping of sections")])
    model = source.data.get("model")
    if isinstance(model, dict) and "architecture" in model:
        raise UsageError(
            f"{source.path} is in the present format already, it has model.architecture: check it with "
            f"foundry validate {source.path}"
        )
    if not isinstance(model, dict) or not set(model) & set(MODEL_KEYS):
        message = "holds none of the old format's keys (layers, hidden_size, ...) and no architecture: see foundry init"
        raise ConfigError([Problem(source.path, source.line_of(("model",)), "model", message)])
    return _migration(OldFile(source))


def _migration(file: OldFile) -> Migration:
    """Gather the changes and the problems of a file, then return the migration or raise all problems."""
    _check_keys(file)
    for section, keys in KEPT.items():
        for key in keys:
            file.keep((section, key) if section else (key,))
    for place, reason in DROPPED.items():
        if file.has(place):
            file.changed(place, f"dropped: {reason}")
    for rule in RULES:
        rule(file)
    if file.problems:
        raise ConfigError(file.problems)
    data = {key: value for key, value in file.new.items() if value != {}}
    try:
        load_config(data)
    except ConfigError as error:
        raise ConfigError([file.at_old_line(problem) for problem in error.problems]) from error
    ordered = sorted(file.changes, key=lambda change: change[0])
    return Migration(data, tuple(change for _, change in ordered))


def _check_keys(file: OldFile) -> None:
    """Report sections of another kind, keys that the old format did not have, and keys it could not do without."""
    known = {name: _known(name) for name in ("", *SECTIONS)}
    known[""] += SECTIONS
    for name in known:
        content = file.old if not name else file.old.get(name)
        if content is None:
            if name in REQUIRED:
                file.problem((name,), "missing or empty: this section is needed")
            continue
        if not isinstance(content, dict):
            file.problem((name,), f"must be a section, not {content!r}")
            continue
        for key in content:
            place = (name, key) if name else (key,)
            if key not in known[name]:
                file.problem(place, _unknown(key, known, name))
        for key in REQUIRED.get(name, ()):
            if content.get(key) is None:
                file.problem((name, key) if name else (key,), "missing: the old run cannot be told without it")


def _known(section: str) -> list[str]:
    dropped = [place[1] for place in DROPPED if place[0] == section]
    return [*KEPT.get(section, ()), *dropped, *READ_BY_RULES.get(section, ())]


def _unknown(key: str, known: Mapping[str, list[str]], section: str) -> str:
    homes = [name or "the top level" for name, keys in known.items() if key in keys]
    if homes:
        return f"unknown key here. It belongs under {homes[0]}."
    return f"unknown key of the old format.{did_you_mean(key, known[section])} Correct it, or remove it."
