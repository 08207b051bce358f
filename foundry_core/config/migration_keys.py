"""The keys of the two formats before this one: which stay, which are renamed, which are dropped, and why. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECTIONS = ("data", "tokenizer", "model", "training", "logging")
FAMILIES = {
    "gpt2": "transformer",
    "bert": "transformer",
    **dict.fromkeys(("lstm", "gru", "rnn"), "rnn"),
    "mamba": "mamba",
}
"""The section of `model:` with the sizes of each architecture of the second format."""


def _keys(**sections: str) -> tuple[str, ...]:
    return tuple(f"{section}.{key}" for section, keys in sections.items() for key in keys.split())


_TRANSFORMER = (
    "layers embedding_size hidden_size intermediate_hidden_size attention_heads activation_function dropout "
    "attention_dropout"
)
MODEL_KEYS = _keys(model=_TRANSFORMER)
"""The sizes in the first format; the second has them in `model.transformer`."""
# Our defaults in place of these would be a guess.
SIZES = {
    "transformer": _keys(**{"model.transformer": _TRANSFORMER.replace("activation_function ", "")}),
    "rnn": _keys(**{"model.rnn": "embedding_size hidden_size num_layers"}),
    "mamba": _keys(**{"model.mamba": "d_model n_layers"}),
}
REQUIRED = (
    *("experiment_name", "random_seed"),
    *_keys(data="training_corpus batch_size max_sequence_length", tokenizer="vocab_size"),
    *_keys(training="output_dir learning_rate adam_beta1 adam_beta2 adam_epsilon"),
)
KEPT = (
    *REQUIRED,
    *_keys(data="test_corpus", tokenizer="output_dir tokenizer_type special_tokens"),
    *_keys(training="epochs gradient_accumulation_steps max_grad_norm objective mlm_probability"),
    *_keys(logging="use_wandb wandb_project"),
    *_keys(model="architecture", **{"model.transformer": _TRANSFORMER, "model.bert": "type_vocab_size pooler_type"}),
    *_keys(**{"model.rnn": "embedding_size hidden_size num_layers bidirectional dropout rnn_type"}),
    *_keys(**{"model.mamba": "expand dropout"}),
)
_OWN_SECTION = "a transformer's sizes have their own section"
_ONE_NAME = "sizes have one name in every architecture"
RENAMED = {
    **{key: (f"model.transformer.{key.removeprefix('model.')}", _OWN_SECTION) for key in MODEL_KEYS},
    "model.mamba.d_model": ("model.mamba.hidden_size", _ONE_NAME),
    "model.mamba.n_layers": ("model.mamba.num_layers", _ONE_NAME),
    "model.mamba.d_state": ("model.mamba.state_size", "the name that transformers uses"),
    "model.mamba.d_conv": ("model.mamba.conv_kernel", "the name that transformers uses"),
    "data.num_workers": ("training.num_workers", "it changes the speed of training, not the data"),
    "logging.log_metrics_every_n_steps": ("logging.log_every_steps", "the steps between two lines of metrics.jsonl"),
}
DEFAULTS: dict[str, tuple[Any, str]] = {
    "tokenizer.tokenizer_type": ("sentencepiece", "the default there was, for every architecture"),
    "training.objective": ("causal_lm", "the default there was, for every architecture"),
    "model.rnn.dropout": (0.0, "the default there was"),
    "model.mamba.dropout": (0.0, "the default there was"),
}
"""Values that the second format took for missing keys, where the present one takes others."""
_LOG = "there are no log files; metrics.jsonl and every other file of a run are in training.output_dir"
_LEVEL = "there are no log levels; --debug shows the traceback of an error"
_SPEED = "it changes speed only"
DROPPED = {
    "data.source_corpus": "copied to training_corpus before training; training_corpus is what is read",
    "data.pin_memory": _SPEED,
    "data.prefetch_factor": _SPEED,
    "training.use_tf32": "training.precision governs how matrices are multiplied",
    "training.use_flash_attention": "scaled-dot-product attention, flash kernels included, is always used",
    "training.resume_from_checkpoint": "not a setting of the experiment: resume with foundry train --resume",
    "training.checkpointing_strategy": "a name; the other keys set when to save",
    "training.save_resume_state_last_n": "every checkpoint can be resumed; training.checkpoints.keep removes old ones",
    **dict.fromkeys(_keys(logging="level console_level file_level"), _LEVEL),
    **dict.fromkeys(
        _keys(logging="dir use_structured_logging max_log_files max_log_size_mb max_errors_to_track"), _LOG
    ),
    "logging.log_detailed_metrics_every_n_steps": "every line of metrics.jsonl has all figures",
    "logging.log_memory_every_n_steps": "foundry plan estimates the memory",
    "logging.profile_performance": "every line of metrics.jsonl has the tokens per second",
    "logging.wandb_project_sweeps": "for another kind of run; wandb_project is that of this one",
    "logging.wandb_entity": "not a setting of the experiment: set the environment variable WANDB_ENTITY",
}
CONVERTED = _keys(
    tokenizer="strip_accents",
    training="train_steps warmup_steps warmup_ratio use_amp use_gradient_checkpointing compile_mode "
    "checkpoint_schedule",
)
GENERATED = _keys(
    training="auto_generate_checkpoints first_epoch_checkpoints subsequent_epochs_spacing log_base linear_interval "
    "min_checkpoint_interval min_checkpoints_per_epoch"
)
KNOWN = (*KEPT, *RENAMED, *DROPPED, "dataset_manipulation", *CONVERTED, *GENERATED)
_ALSO_NEW = _keys(training="train_steps warmup_steps warmup_ratio")
OLD = {*DROPPED, *RENAMED, *CONVERTED, *GENERATED}.difference(_ALSO_NEW)
"""Keys that the present format does not have: a file with one of them is old."""


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an old file by their dotted keys."""
    return {key: value for name, content in data.items() for key, value in _flat(name, content, SECTIONS).items()}


def is_second_format(data: Mapping[str, Any]) -> bool:
    """Check whether a file was written for the second format: with keys that are gone, and none that came later."""
    empty = {*SECTIONS, "model.bert", *(f"model.{family}" for family in FAMILIES.values())}
    keys = flat(data).keys() - empty
    gone = not OLD.isdisjoint(keys) and keys <= set(KNOWN)
    return "model.architecture" in keys and (gone or "data.source_corpus" in keys)


def _flat(name: str, content: Any, sections: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a section by their dotted keys; those of `model:` have sections inside."""
    if name not in sections or not isinstance(content, dict):
        return {name: content}
    inner = tuple(f"model.{each}" for each in ("bert", *FAMILIES.values())) if name == "model" else ()
    return {key: value for each in content for key, value in _flat(f"{name}.{each}", content[each], inner).items()}
