"""A configuration of the format before `model.architecture`, turned into one that means the same. Light.

The old software trained one architecture, GPT-2, causally, on a SentencePiece vocabulary. What it said in a key that
still exists is copied; what it said otherwise is renamed or replaced; what has no counterpart is dropped, with the
reason. Where the same meaning cannot be had without knowing the data, the file is refused or the change says so:
nothing that alters training happens in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foundry_core.config import load_config
from foundry_core.errors import ConfigError, Problem, UsageError, did_you_mean
from foundry_core.yaml_source import KeyPath, YamlSource

_SECTIONS = ("data", "tokenizer", "model", "training", "logging")

# fmt: off
_MODEL_KEYS = (
    "layers", "embedding_size", "hidden_size", "intermediate_hidden_size", "attention_heads", "activation_function",
    "dropout", "attention_dropout",
)

# What keeps its name and its value, by section; "" is the top level.
_KEPT: dict[str, tuple[str, ...]] = {
    "": ("experiment_name", "random_seed"),
    "data": ("training_corpus", "test_corpus", "batch_size", "max_sequence_length"),
    "tokenizer": ("output_dir", "vocab_size"),
    "training": (
        "output_dir", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "epochs",
        "gradient_accumulation_steps", "max_grad_norm",
    ),
    "logging": ("use_wandb", "wandb_project"),
}

# Keys that a rule below reads, alone or together.
_READ_BY_RULES: dict[str, tuple[str, ...]] = {
    "": ("dataset_manipulation",),
    "model": _MODEL_KEYS,
    "training": (
        "train_steps", "warmup_steps", "warmup_ratio", "use_amp", "use_gradient_checkpointing", "compile_mode",
        "auto_generate_checkpoints", "first_epoch_checkpoints", "subsequent_epochs_spacing", "log_base",
        "min_checkpoint_interval", "min_checkpoints_per_epoch",
    ),
}
# fmt: on

_DROPPED: dict[tuple[str, str], str] = {
    (
        "data",
        "source_corpus",
    ): "copying it to training_corpus was done outside training; training_corpus is what is read",
    ("training", "use_tf32"): "training.precision governs how matrices are multiplied",
    ("training", "use_flash_attention"): "scaled-dot-product attention, flash kernels included, is always used",
}

# Without these the old run cannot be told; our own defaults would be a guess.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "": ("experiment_name", "random_seed"),
    "data": ("training_corpus", "batch_size", "max_sequence_length"),
    "tokenizer": ("vocab_size",),
    "model": _MODEL_KEYS,
    "training": ("output_dir", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon"),
}


@dataclass(frozen=True)
class Change:
    """What became of one key, and why. key: in the old file, or in the new one where the old had none."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


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
    if not isinstance(model, dict) or not set(model) & set(_MODEL_KEYS):
        message = "holds none of the old format's keys (layers, hidden_size, ...) and no architecture: see foundry init"
        raise ConfigError([Problem(source.path, source.line_of(("model",)), "model", message)])
    return _Migrator(source).migration()


class _Migrator:
    """One pass over one file: gathers problems and changes, then gives the migration or raises all problems."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.old: dict[str, Any] = source.data
        self.new: dict[str, Any] = {"experiment_name": None, "random_seed": None, **{name: {} for name in _SECTIONS}}
        self.problems: list[Problem] = []
        self.changes: list[tuple[int, Change]] = []
        # Where a key of the new configuration came from, so that what is wrong with its value is told at the old line.
        self.origins: dict[str, KeyPath] = {}

    def migration(self) -> Migration:
        self._sections_and_keys()
        for section, keys in _KEPT.items():
            for key in keys:
                self._keep((section, key) if section else (key,))
        for place, reason in _DROPPED.items():
            if self._has(place):
                self._changed(place, f"dropped: {reason}")
        for rule in _RULES:
            rule(self)
        if self.problems:
            raise ConfigError(self.problems)
        data = {key: value for key, value in self.new.items() if value != {}}
        try:
            load_config(data)
        except ConfigError as error:
            raise ConfigError([self._at_old_line(problem) for problem in error.problems]) from error
        ordered = sorted(self.changes, key=lambda change: change[0])
        return Migration(data, tuple(change for _, change in ordered))

    def _sections_and_keys(self) -> None:
        """Sections that are none, keys that the old format did not have, and keys it could not do without."""
        known = {name: self._known(name) for name in ("", *_SECTIONS)}
        known[""] += _SECTIONS
        for name in known:
            content = self.old if not name else self.old.get(name)
            if content is None:
                if name in _REQUIRED:
                    self._problem((name,), "missing or empty: this section is needed")
                continue
            if not isinstance(content, dict):
                self._problem((name,), f"must be a section, not {content!r}")
                continue
            for key in content:
                place = (name, key) if name else (key,)
                if key not in known[name]:
                    self._problem(place, self._unknown(key, known, name))
            for key in _REQUIRED.get(name, ()):
                if content.get(key) is None:
                    self._problem((name, key) if name else (key,), "missing: the old run cannot be told without it")

    @staticmethod
    def _known(section: str) -> list[str]:
        dropped = [place[1] for place in _DROPPED if place[0] == section]
        return [*_KEPT.get(section, ()), *dropped, *_READ_BY_RULES.get(section, ())]

    @staticmethod
    def _unknown(key: str, known: Mapping[str, list[str]], section: str) -> str:
        homes = [name or "the top level" for name, keys in known.items() if key in keys]
        if homes:
            return f"unknown key here. It belongs under {homes[0]}."
        return f"unknown key of the old format.{did_you_mean(key, known[section])} Correct it, or remove it."

    def _has(self, place: KeyPath) -> bool:
        return self._value(place, _ABSENT) is not _ABSENT

    def _value(self, place: KeyPath, default: Any = None) -> Any:
        value: Any = self.old
        for key in place:
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def _switch(self, place: KeyPath) -> bool | None:
        """A key that is on or off; None, with a problem, when it is neither. Left out is off."""
        value = self._value(place, False)
        if isinstance(value, bool):
            return value
        self._problem(place, f"must be true or false, not {value!r}")
        return None

    def _keep(self, place: KeyPath) -> None:
        if self._has(place):
            self._put(place, self._value(place), place)

    def _put(self, target: KeyPath, value: Any, origin: KeyPath) -> None:
        """Write a key of the new configuration that the old key `origin` decides."""
        section = self.new
        for key in target[:-1]:
            section = section.setdefault(str(key), {})
        section[str(target[-1])] = value
        self.origins[_dotted(target)] = origin

    def _changed(self, place: KeyPath, text: str) -> None:
        self.changes.append((self.source.line_of(place), Change(_dotted(place), text)))

    def _problem(self, place: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.source.path, self.source.line_of(place), _dotted(place), message))

    def _at_old_line(self, problem: Problem) -> Problem:
        """A finding about the new configuration, told where its cause stands in the old file."""
        origin = self.origins.get(problem.key)
        if origin is None:
            parts: KeyPath = tuple(problem.key.split("."))
            return Problem(self.source.path, self.source.line_of(parts), problem.key, problem.message)
        return Problem(self.source.path, self.source.line_of(origin), _dotted(origin), problem.message)


_ABSENT = object()


def _dotted(place: KeyPath) -> str:
    return ".".join(map(str, place))


def _data_is_unchanged(old: _Migrator) -> None:
    place = ("dataset_manipulation",)
    steps = old._value(place)
    if steps:
        old._problem(
            place,
            "changed the corpus before training, which foundry does not do: write the changed corpus to files, name "
            "them in data.training_corpus, and remove this key",
        )
    elif old._has(place):
        old._changed(place, "dropped: it was empty, so the corpus is read as it is")


def _tokenizer_is_sentencepiece(old: _Migrator) -> None:
    old.new["tokenizer"] = {"tokenizer_type": "sentencepiece", **old.new["tokenizer"]}
    old._changed(("tokenizer", "tokenizer_type"), "added as sentencepiece: the only kind there was")


def _model_is_gpt2(old: _Migrator) -> None:
    old.new["model"] = {"architecture": "gpt2"}
    old._changed(("model", "architecture"), "added as gpt2: the only kind there was")
    for key in _MODEL_KEYS:
        place = ("model", key)
        value = old._value(place)
        note = "renamed to model.transformer." + key + ": a transformer's sizes have their own section"
        if key == "activation_function" and isinstance(value, str) and value != value.lower():
            note += f"; {value} is written {value.lower()}"
            value = value.lower()
        old._put(("model", "transformer", key), value, place)
        old._changed(place, note)
    old._put(("training", "objective"), "causal_lm", ("model",))
    old._changed(("training", "objective"), "added as causal_lm: the only one there was")


def _budget_is_one(old: _Migrator) -> None:
    steps, epochs = ("training", "train_steps"), ("training", "epochs")
    if old._value(steps) is None:
        if old._value(epochs) is None:
            old._problem(epochs, "missing: the old run cannot be told without it")
        if old._has(steps):
            old._changed(steps, "dropped: it was null, epochs is the budget")
    elif old._value(epochs) is not None:
        old._problem(steps, "given with epochs, and the first one reached ended the run: set the other one to null")
    elif old._value(("training", "gradient_accumulation_steps"), 1) != 1:
        old._problem(
            steps,
            "with gradient_accumulation_steps it may have counted forward passes, here it counts optimizer steps: "
            "set it to null and give the epochs that the old run made",
        )
    else:
        old._keep(steps)


def _warm_up_is_one(old: _Migrator) -> None:
    steps, ratio = ("training", "warmup_steps"), ("training", "warmup_ratio")
    if old._value(steps) is None and old._value(ratio) is None:
        old._problem(ratio, "missing: write the share of all steps that the old run warmed up for, 0 for none")
        return
    if old._value(steps) is None:
        old._keep(ratio)
        if old._has(steps):
            old._changed(steps, "dropped: it was null, warmup_ratio gives the warm-up")
        return
    old._keep(steps)
    if old._value(("training", "gradient_accumulation_steps"), 1) != 1:
        old._changed(steps, "kept: here it counts optimizer steps, not forward passes; check it")
    if old._has(ratio):
        old._changed(ratio, "dropped: warmup_steps is given and gives the warm-up")


def _clipping_is_said(old: _Migrator) -> None:
    place = ("training", "max_grad_norm")
    if not old._has(place):
        old._put(place, None, place)
        old._changed(place, "added as null: left out, gradients were not scaled down; here they would be, to 1.0")


def _weight_decay_is_on_all(old: _Migrator) -> None:
    place = ("training", "weight_decay_on")
    old._put(place, "all", place)
    old._changed(
        place,
        "added as all: the old software decayed every parameter by 0.01, biases and norms included; matrices leaves them out",
    )


def _memory_and_precision_are_named(old: _Migrator) -> None:
    recompute = ("training", "use_gradient_checkpointing")
    if old._has(recompute):
        old._put(("training", "gradient_checkpointing"), old._switch(recompute), recompute)
        old._changed(recompute, "renamed to training.gradient_checkpointing")
    place = ("training", "use_amp")
    mixed = old._switch(place)
    precision = "auto" if mixed else "fp32"
    reason = "mixed precision, bf16 on a GPU that computes in it" if mixed else "no mixed precision"
    old._put(("training", "precision"), precision, place)
    if old._has(place):
        old._changed(place, f"replaced by training.precision: {precision}: {reason}")
    else:
        old._changed(("training", "precision"), "added as fp32: use_amp was left out, so there was no mixed precision")


def _compile_is_on_or_off(old: _Migrator) -> None:
    place = ("training", "compile_mode")
    if not old._has(place):
        return
    mode = old._value(place)
    if not (mode is None or isinstance(mode, bool | str)):
        old._problem(place, f"must be a mode of torch.compile or null, not {mode!r}")
        return
    on = mode not in (None, False, "", "none", "None", "false", "off")
    old._put(("training", "compile"), on, place)
    text = f"replaced by training.compile: {'true' if on else 'false'}"
    if mode not in (True, "default") and on:
        text += f": the mode {mode} changes speed only and is not offered"
    old._changed(place, text)


def _checkpoints_are_scheduled(old: _Migrator) -> None:
    asked = old._switch(("training", "auto_generate_checkpoints"))
    auto, first = ("training", "auto_generate_checkpoints"), ("training", "first_epoch_checkpoints")
    spacing, base = ("training", "subsequent_epochs_spacing"), ("training", "log_base")
    interval, least = ("training", "min_checkpoint_interval"), ("training", "min_checkpoints_per_epoch")
    if not asked:
        for place in (auto, first, spacing, base, interval, least):
            if old._has(place):
                old._changed(place, "dropped: auto_generate_checkpoints was false; step 0 and the end are always saved")
        return
    if old._value(spacing) != "log":
        old._problem(
            spacing,
            f"is {old._value(spacing)!r}; only log can be told without the length of an epoch: set "
            "auto_generate_checkpoints to false, and training.checkpoints.every_steps in the new file",
        )
        return
    if old._value(base) is None:
        old._problem(base, "missing: checkpoints cannot be spaced without it")
        return
    old._put(("training", "checkpoints", "log_base"), old._value(base), base)
    shown = str(old._value(base))
    old._changed(auto, "replaced by training.checkpoints, which says when to save; step 0 and the end are always saved")
    if old._has(first):
        number = str(old._value(first))
        old._changed(
            first,
            f"dropped: where {number} even parts of an epoch lie depends on the data; nearest is log_base, dense at "
            f"first; for even ones set training.checkpoints.every_steps to an epoch's steps (foundry plan) / {number}",
        )
    old._changed(
        spacing,
        f"replaced by training.checkpoints.log_base: {shown}: powers of {shown} over the whole run, not in each epoch",
    )
    old._changed(base, "renamed to training.checkpoints.log_base")
    if old._has(interval):
        old._changed(interval, "dropped: no least distance is kept; the first powers lie close together")
    if old._has(least):
        old._changed(least, "dropped: not known before the data are; add training.checkpoints.every_steps for more")


_RULES: tuple[Callable[[_Migrator], None], ...] = (
    _data_is_unchanged,
    _tokenizer_is_sentencepiece,
    _model_is_gpt2,
    _budget_is_one,
    _warm_up_is_one,
    _clipping_is_said,
    _weight_decay_is_on_all,
    _memory_and_precision_are_named,
    _compile_is_on_or_off,
    _checkpoints_are_scheduled,
)
