"""The keys of the old format and what becomes of each, for `migrate`. Light."""

from __future__ import annotations

from collections.abc import Callable

from foundry_core.config.old_format import OldFile
from foundry_core.config.yaml_source import KeyPath

# fmt: off
MODEL_KEYS = (
    "layers", "embedding_size", "hidden_size", "intermediate_hidden_size", "attention_heads", "activation_function",
    "dropout", "attention_dropout",
)

# What keeps its name and its value, by section; "" is the top level.
KEPT: dict[str, tuple[str, ...]] = {
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
READ_BY_RULES: dict[str, tuple[str, ...]] = {
    "": ("dataset_manipulation",),
    "model": MODEL_KEYS,
    "training": (
        "train_steps", "warmup_steps", "warmup_ratio", "use_amp", "use_gradient_checkpointing", "compile_mode",
        "checkpoint_schedule", "auto_generate_checkpoints", "first_epoch_checkpoints", "subsequent_epochs_spacing",
        "log_base", "linear_interval", "min_checkpoint_interval", "min_checkpoints_per_epoch",
    ),
}
# fmt: on

DROPPED: dict[tuple[str, str], str] = {
    ("data", "source_corpus"): "copied to training_corpus before training; training_corpus is what is read",
    ("training", "use_tf32"): "training.precision governs how matrices are multiplied",
    ("training", "use_flash_attention"): "scaled-dot-product attention, flash kernels included, is always used",
    (
        "training",
        "resume_from_checkpoint",
    ): "not a setting of the experiment: foundry train --resume goes on with a run",
    ("logging", "level"): "nothing is logged by levels; --debug shows the traceback of an error",
    ("logging", "dir"): "metrics.jsonl and all else of a run go to training.output_dir",
}

# Without these the old run cannot be told; our own defaults would be a guess.
REQUIRED: dict[str, tuple[str, ...]] = {
    "": ("experiment_name", "random_seed"),
    "data": ("training_corpus", "batch_size", "max_sequence_length"),
    "tokenizer": ("vocab_size",),
    "model": MODEL_KEYS,
    "training": ("output_dir", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon"),
}


def _data_is_unchanged(old: OldFile) -> None:
    place = ("dataset_manipulation",)
    steps = old.value(place)
    if steps:
        old.problem(
            place,
            "changed the corpus before training, which foundry does not do: write the changed corpus to files, name "
            "them in data.training_corpus, and remove this key",
        )
    elif old.has(place):
        old.changed(place, "dropped: it was empty, so the corpus is read as it is")


def _tokenizer_is_sentencepiece(old: OldFile) -> None:
    old.new["tokenizer"] = {"tokenizer_type": "sentencepiece", **old.new["tokenizer"]}
    old.changed(("tokenizer", "tokenizer_type"), "added as sentencepiece: the only kind there was")


def _model_is_gpt2(old: OldFile) -> None:
    old.new["model"] = {"architecture": "gpt2"}
    old.changed(("model", "architecture"), "added as gpt2: the only kind there was")
    for key in MODEL_KEYS:
        place = ("model", key)
        value = old.value(place)
        note = "renamed to model.transformer." + key + ": a transformer's sizes have their own section"
        if key == "activation_function" and isinstance(value, str) and value != value.lower():
            note += f"; {value} is written {value.lower()}"
            value = value.lower()
        old.put(("model", "transformer", key), value, place)
        old.changed(place, note)
    old.put(("training", "objective"), "causal_lm", ("model",))
    old.changed(("training", "objective"), "added as causal_lm: the only one there was")


def _budget_is_one(old: OldFile) -> None:
    steps, epochs = ("training", "train_steps"), ("training", "epochs")
    if old.value(steps) is None:
        if old.value(epochs) is None:
            old.problem(epochs, "missing: the old run cannot be told without it")
        if old.has(steps):
            old.changed(steps, "dropped: it was null, epochs is the budget")
    elif old.value(epochs) is not None:
        old.problem(steps, "given with epochs, and the first one reached ended the run: set the other one to null")
    elif old.value(("training", "gradient_accumulation_steps"), 1) != 1:
        old.problem(
            steps,
            "with gradient_accumulation_steps it may have counted forward passes, here it counts optimizer steps: "
            "set it to null and give the epochs that the old run made",
        )
    else:
        old.keep(steps)


def _warm_up_is_one(old: OldFile) -> None:
    steps, ratio = ("training", "warmup_steps"), ("training", "warmup_ratio")
    if old.value(steps) is None and old.value(ratio) is None:
        old.problem(ratio, "missing: write the share of all steps that the old run warmed up for, 0 for none")
        return
    if old.value(steps) is None:
        old.keep(ratio)
        if old.has(steps):
            old.changed(steps, "dropped: it was null, warmup_ratio gives the warm-up")
        return
    old.keep(steps)
    if old.value(("training", "gradient_accumulation_steps"), 1) != 1:
        old.changed(steps, "kept: here it counts optimizer steps, not forward passes; check it")
    if old.has(ratio):
        old.changed(ratio, "dropped: warmup_steps is given and gives the warm-up")


def _clipping_is_said(old: OldFile) -> None:
    place = ("training", "max_grad_norm")
    if not old.has(place):
        old.put(place, None, place)
        old.changed(place, "added as null: left out, gradients were not scaled down; here they would be, to 1.0")


def _weight_decay_is_on_all(old: OldFile) -> None:
    place = ("training", "weight_decay_on")
    old.put(place, "all", place)
    reason = "every parameter was decayed, by 0.01 as here; left out, biases, norms and embeddings would not be"
    old.changed(place, f"added as all: {reason}")


def _memory_and_precision_are_named(old: OldFile) -> None:
    recompute = ("training", "use_gradient_checkpointing")
    if old.has(recompute):
        old.put(("training", "gradient_checkpointing"), old.switch(recompute), recompute)
        old.changed(recompute, "renamed to training.gradient_checkpointing")
    place = ("training", "use_amp")
    mixed = old.switch(place)
    precision = "auto" if mixed else "fp32"
    reason = "mixed precision, bf16 on a GPU that computes in it" if mixed else "no mixed precision"
    old.put(("training", "precision"), precision, place)
    if old.has(place):
        old.changed(place, f"replaced by training.precision: {precision}: {reason}")
    else:
        old.changed(("training", "precision"), "added as fp32: use_amp was left out, so there was no mixed precision")


def _compile_is_on_or_off(old: OldFile) -> None:
    place = ("training", "compile_mode")
    if not old.has(place):
        return
    mode = old.value(place)
    if not (mode is None or isinstance(mode, bool | str)):
        old.problem(place, f"must be a mode of torch.compile or null, not {mode!r}")
        return
    on = mode not in (None, False, "", "none", "None", "false", "off")
    old.put(("training", "compile"), on, place)
    text = f"replaced by training.compile: {'true' if on else 'false'}"
    if mode not in (True, "default") and on:
        text += f": the mode {mode} changes speed only and is not offered"
    old.changed(place, text)


_GENERATED = tuple(
    ("training", key)
    for key in (
        "auto_generate_checkpoints",
        "first_epoch_checkpoints",
        "subsequent_epochs_spacing",
        "log_base",
        "linear_interval",
        "min_checkpoint_interval",
        "min_checkpoints_per_epoch",
    )
)


def _checkpoints_are_scheduled(old: OldFile) -> None:
    """A list of steps, or else one that was generated from several keys when that was asked for."""
    asked = old.switch(("training", "auto_generate_checkpoints"))
    place = ("training", "checkpoint_schedule")
    if old.value(place):
        _checkpoints_are_listed(old, place)
        reason = "checkpoint_schedule is given and says when to save"
    else:
        if old.has(place):
            old.changed(place, "dropped: it was empty")
        if asked:
            _checkpoints_are_generated(old)
            return
        reason = "auto_generate_checkpoints was false; step 0 and the end are always saved"
    for unused in _GENERATED:
        if old.has(unused):
            old.changed(unused, f"dropped: {reason}")


def _checkpoints_are_listed(old: OldFile, place: KeyPath) -> None:
    steps = old.value(place)
    if not isinstance(steps, list) or any(type(step) is not int or step < 0 for step in steps):
        old.problem(place, "must be a list of steps, whole numbers from 0 on, or null")
        return
    text = "replaced by training.checkpoints.steps"
    passes = old.value(("training", "gradient_accumulation_steps"), 1)
    if isinstance(passes, int) and passes > 1:
        steps = sorted({-(-step // passes) for step in steps})
        text += (
            f": the old counter counted forward passes, {passes} in one optimizer step, which is what is counted here, "
            f"so the steps are divided by {passes} and rounded up"
        )
    old.put(("training", "checkpoints", "steps"), steps, place)
    old.changed(place, text)


def _checkpoints_are_generated(old: OldFile) -> None:
    auto, first, spacing, base, linear, interval, least = _GENERATED
    if old.value(spacing) != "log":
        old.problem(
            spacing,
            f"is {old.value(spacing)!r}; only log can be told without the length of an epoch: set "
            "auto_generate_checkpoints to false, and training.checkpoints.every_steps in the new file",
        )
        return
    if old.value(base) is None:
        old.problem(base, "missing: checkpoints cannot be spaced without it")
        return
    old.put(("training", "checkpoints", "log_base"), old.value(base), base)
    shown = str(old.value(base))
    old.changed(auto, "replaced by training.checkpoints, which says when to save; step 0 and the end are always saved")
    if old.has(first):
        number = str(old.value(first))
        old.changed(
            first,
            f"dropped: where {number} even parts of an epoch lie depends on the data; nearest is log_base, dense at "
            f"first; for even ones set training.checkpoints.every_steps to an epoch's steps (foundry plan) / {number}",
        )
    old.changed(
        spacing,
        f"replaced by training.checkpoints.log_base: {shown}: powers of {shown} over the whole run, not in each epoch",
    )
    old.changed(base, "renamed to training.checkpoints.log_base")
    if old.has(linear):
        old.changed(linear, "dropped: it was read for linear spacing only, and subsequent_epochs_spacing is log")
    if old.has(interval):
        old.changed(interval, "dropped: no least distance is kept; the first powers lie close together")
    if old.has(least):
        old.changed(least, "dropped: not known before the data are; add training.checkpoints.every_steps for more")


RULES: tuple[Callable[[OldFile], None], ...] = (
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
