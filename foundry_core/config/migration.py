"""A configuration of the two formats before this one, turned into one that means the same. Light.

The first trained one architecture, GPT-2, causally, on a SentencePiece vocabulary. The second also trained BERT, LSTM,
GRU, RNN and Mamba. Both share one table of keys. A file that would need the data to be converted is refused; every
other difference is listed as a change with its reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from foundry_core.config.loading import load_config
from foundry_core.config.migration_keys import (
    DEFAULTS,
    DROPPED,
    FAMILIES,
    GENERATED,
    KEPT,
    KNOWN,
    MODEL_KEYS,
    OLD,
    RENAMED,
    REQUIRED,
    SECTIONS,
    SIZES,
    flat,
)
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError, Problem, UsageError, did_you_mean


class Change(NamedTuple):
    """The conversion of one key, and its reason. key: in the old file, or in the new one if the old has none."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Migration(NamedTuple):
    """data: the new configuration, valid. changes: every key that does not simply stay, in the order of the file."""

    data: dict[str, Any]
    changes: tuple[Change, ...]


class _OldFile:
    """The settings of an old file by dotted key, and the new ones, each with the old key that decides it."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.values = flat(source.data)
        self.second = "model.architecture" in self.values
        self.architecture = self.values.get("model.architecture", "gpt2")
        # Forward passes in one optimizer step; the old software may have counted them as steps.
        self.passes = self.values.get("training.gradient_accumulation_steps", 1)
        self.new: dict[str, tuple[Any, str]] = {}
        self.changes: list[Change] = []
        self.problems: list[Problem] = []

    def line(self, key: str) -> int:
        return self.source.line_of(tuple(key.split(".")))

    def problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.source.path, self.line(key), key, message))

    def change(self, key: str, text: str) -> None:
        self.changes.append(Change(key, text))

    def keep(self, *keys: str) -> None:
        self.new |= {key: (self.values[key], key) for key in keys if key in self.values}

    def drop(self, key: str, reason: str) -> None:
        if key in self.values:
            self.change(key, f"dropped: {reason}")

    def add(self, key: str, value: Any, reason: str) -> None:
        self.convert(key, key, value, f"added as {'null' if value is None else value}: {reason}")

    def convert(self, key: str, target: str, value: Any, text: str) -> None:
        self.new[target] = value, key
        self.change(key, text)

    def switch(self, key: str) -> bool:
        """Return a setting that is on or off; off by default."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.problem(key, f"must be true or false, not {value!r}")
        return value is True


def _corpus(old: _OldFile) -> None:
    key = "dataset_manipulation"
    if old.values.get(key):
        advice = "write the changed corpus to files, name them in data.training_corpus, and remove this key"
        old.problem(key, f"changed the corpus before training: {advice}")
    else:
        old.drop(key, "it was empty, so the corpus is read as it is")


def _sections_not_read(old: _OldFile) -> None:
    others = {"bert", *FAMILIES.values()} - {old.architecture, FAMILIES[old.architecture]}
    for key in list(old.values):
        if key.startswith("model.") and key.split(".")[1] in others:
            old.drop(key, f"{old.architecture} does not read it")
            del old.values[key]


def _tokenizer(old: _OldFile) -> None:
    key = "tokenizer.strip_accents"
    if old.values.get("tokenizer.tokenizer_type") == "wordpiece":
        if old.values.get(key, True) is not False:
            text = "accents are kept here, where wordpiece may have removed them"
            old.change(key if key in old.values else "tokenizer.tokenizer_type", f"dropped: {text}")
        else:
            old.drop(key, "it was false, and accents are kept here")
    else:
        old.drop(key, "it was read for wordpiece only")


def _model(old: _OldFile) -> None:
    if not old.second:
        old.add("tokenizer.tokenizer_type", "sentencepiece", "the only kind there was")
        old.add("model.architecture", "gpt2", "the only kind there was")
        old.add("training.objective", "causal_lm", "the only one there was")
    family = FAMILIES[old.architecture]
    for key, (value, reason) in DEFAULTS.items():
        read = not key.startswith("model.") or key.startswith(f"model.{family}.")
        if read and old.new.get(key, (None, key))[0] is None:
            old.add(key, value, reason)
    for key in ("model.activation_function", "model.transformer.activation_function"):
        target, value = f"model.transformer.{key.rpartition('.')[2]}", old.values.get(key)
        if isinstance(value, str) and value != value.lower():
            old.convert(key, target, value.lower(), f"{value} is written {value.lower()}")
    key = "model.rnn.rnn_type"
    if key in old.new and old.values[key] != old.architecture:
        del old.new[key]
        old.drop(key, f"the architecture decided, {old.architecture}")
    for key in ("model.rnn.dropout", "model.mamba.dropout"):
        if old.values.get(key):
            where = "the embeddings" if family == "rnn" else "what each block adds"
            old.change(key, f"kept: here it is applied to {where} as well")


def _budget(old: _OldFile) -> None:
    steps, epochs = "training.train_steps", "training.epochs"
    by_steps, by_epochs = old.values.get(steps) is not None, old.values.get(epochs) is not None
    if by_steps and by_epochs:
        old.problem(steps, "given with epochs, and the first one reached ended the run: set the other one to null")
    elif by_steps and old.passes != 1:
        advice = "set it to null and give the epochs that the old run made"
        old.problem(steps, f"with gradient_accumulation_steps it may have counted forward passes: {advice}")
    elif by_steps:
        old.keep(steps)
    elif by_epochs:
        old.drop(steps, "it was null, epochs is the budget")
    else:
        old.problem(epochs, "missing: the old run cannot be reproduced without it")


def _warm_up(old: _OldFile) -> None:
    steps, ratio = "training.warmup_steps", "training.warmup_ratio"
    if old.values.get(steps) is not None:
        old.keep(steps)
        if old.passes != 1:
            old.change(steps, "kept: here it counts optimizer steps, not forward passes; check it")
        old.drop(ratio, "warmup_steps is given and sets the warm-up")
    elif old.values.get(ratio) is not None:
        old.keep(ratio)
        old.drop(steps, "it was null, warmup_ratio sets the warm-up")
    else:
        old.add(ratio, 0.1, "the default there was")


def _training(old: _OldFile) -> None:
    reason = "every parameter was decayed, by 0.01 as here; the default excludes biases, norms and embeddings"
    old.add("training.weight_decay_on", "all", reason)
    if "training.max_grad_norm" not in old.values:
        reason = "without it gradients were not scaled down; here they would be, to 1.0"
        old.add("training.max_grad_norm", None, reason)
    key, target = "training.use_gradient_checkpointing", "training.gradient_checkpointing"
    if key in old.values:
        old.convert(key, target, old.switch(key), f"renamed to {target}")
    key, target = "training.use_amp", "training.precision"
    if key not in old.values:
        old.add(target, "fp32", "use_amp was missing, so there was no mixed precision")
    elif old.switch(key):
        old.convert(key, target, "auto", f"replaced by {target}: auto: bf16 on a GPU that supports it")
    else:
        old.convert(key, target, "fp32", f"replaced by {target}: fp32: no mixed precision")
    key, target = "training.compile_mode", "training.compile"
    if key in old.values:
        mode = old.values[key]
        on = mode not in (None, False, "", "none", "None", "false", "off")
        text = f"replaced by {target}: {'true' if on else 'false'}"
        if on and mode not in (True, "default"):
            text += f": the mode {mode} changes speed only and is not offered"
        old.convert(key, target, on, text)


def _checkpoints(old: _OldFile) -> None:
    """Convert the list of steps, or else the settings from which one was generated."""
    key, generated = "training.checkpoint_schedule", old.switch("training.auto_generate_checkpoints")
    if old.values.get(key):
        _listed(old, key)
        reason = "checkpoint_schedule is given and sets when to save"
    else:
        old.drop(key, "it was empty")
        if generated:
            _generated(old)
            return
        reason = "auto_generate_checkpoints was false; step 0 and the end are always saved"
    for unused in GENERATED:
        old.drop(unused, reason)


def _listed(old: _OldFile, key: str) -> None:
    steps, passes, text = old.values[key], old.passes, "replaced by training.checkpoints.steps"
    if not isinstance(steps, list) or any(type(step) is not int or step < 0 for step in steps):
        old.problem(key, "must be a list of steps, whole numbers from 0 on, or null")
        return
    if isinstance(passes, int) and passes > 1:
        steps = sorted({-(-step // passes) for step in steps})
        text += f": divided by {passes}, the forward passes in one optimizer step, and rounded up"
    old.convert(key, "training.checkpoints.steps", steps, text)


def _generated(old: _OldFile) -> None:
    auto, first, spacing, base, linear, interval, least = GENERATED
    power, number = old.values.get(base), old.values.get(first, 20)
    if old.values.get(spacing, "log") != "log":
        advice = "set auto_generate_checkpoints to false, and training.checkpoints.every_steps in the new file"
        old.problem(spacing, f"only log can be converted without the length of an epoch: {advice}")
        return
    if power is None:
        power = 2
        old.add("training.checkpoints.log_base", power, "the default there was for log_base")
    else:
        old.convert(base, "training.checkpoints.log_base", power, "renamed to training.checkpoints.log_base")
    old.change(auto, "replaced by training.checkpoints, which sets when to save; step 0 and the end are always saved")
    powers = f"powers of {power} over the whole run, not in each epoch"
    if spacing in old.values:
        old.change(spacing, f"replaced by training.checkpoints.log_base: {power}: {powers}")
    even = f"set training.checkpoints.every_steps to an epoch's steps (foundry plan) / {number}"
    old.drop(first, f"log_base is dense at first; for {number} even parts of an epoch {even}")
    old.drop(linear, "it was read for linear spacing only, and subsequent_epochs_spacing is log")
    old.drop(interval, "powers have no least distance; the first are close together")
    old.drop(least, "it depends on the data; add training.checkpoints.every_steps for more")


def migrate(source: YamlSource) -> Migration:
    """Convert an old file.

    Raises:
        UsageError: The file is in the present format.
        ConfigError: All problems of a file that cannot be converted, each at its line in the old file.
    """
    path = source.path
    source.require_sections("see foundry init")
    old, model = _OldFile(source), source.data.get("model")
    if old.second and OLD.isdisjoint(old.values):
        raise UsageError(f"{path} is in the present format already: check it with: foundry validate {path}")
    if not isinstance(model, dict) or not (old.second or any(f"model.{key}" in MODEL_KEYS for key in model)):
        message = "has neither architecture nor keys of the old format (layers, hidden_size, ...): see foundry init"
        raise ConfigError([Problem(path, source.line_of(("model",)), "model", message)])
    _check_keys(old)
    if old.architecture not in FAMILIES:
        old.problem("model.architecture", f"{old.architecture!r} is not one of {', '.join(FAMILIES)}")
        raise ConfigError(old.problems)
    _sections_not_read(old)
    old.keep(*KEPT)
    for key, (target, reason) in RENAMED.items():
        if old.values.get(key) is not None:
            old.convert(key, target, old.values[key], f"renamed to {target}: {reason}")
        else:
            old.drop(key, "it was null")
    for key, reason in DROPPED.items():
        old.drop(key, reason)
    for rule in (_corpus, _tokenizer, _model, _budget, _warm_up, _training, _checkpoints):
        rule(old)
    if old.problems:
        raise ConfigError(old.problems)
    data = _nested(old)
    try:
        load_config(data)
    except ConfigError as error:
        for problem in error.problems:
            _, origin = old.new.get(problem.key, (None, problem.key))
            old.problem(origin, problem.message)
        raise ConfigError(old.problems) from error
    return Migration(data, tuple(sorted(old.changes, key=lambda change: old.line(change.key))))


def _nested(old: _OldFile) -> dict[str, Any]:
    """Return the new settings as sections, in the order of `foundry init`."""
    order = ("experiment_name", "random_seed", *SECTIONS)
    data: dict[str, Any] = {}
    for key in sorted(old.new, key=lambda key: (order.index(key.partition(".")[0]), key != "model.architecture")):
        *sections, name = key.split(".")
        section = data
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = old.new[key][0]
    return data


def _check_keys(old: _OldFile) -> None:
    """Report wrong sections, unknown keys, and required keys that are missing."""
    sections = (*SECTIONS, "model.bert", *(f"model.{family}" for family in FAMILIES.values()))
    for key, value in old.values.items():
        section, _, name = key.rpartition(".")
        if key in sections and value is not None:
            old.problem(key, f"must be a section, not {value!r}")
        elif key not in (*sections, *KNOWN):
            near = did_you_mean(name, [each.rpartition(".")[2] for each in KNOWN if each.rpartition(".")[0] == section])
            old.problem(key, f"unknown key of the old format.{near} Correct it, or remove it.")
    sizes = SIZES.get(FAMILIES.get(old.architecture, ""), ()) if old.second else MODEL_KEYS
    for key in (*REQUIRED, *sizes):
        if old.values.get(key) is None:
            old.problem(key, "missing: the old run cannot be reproduced without it")
