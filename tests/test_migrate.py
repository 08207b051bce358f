"""`foundry migrate`: an old configuration validates afterwards and means the same, and every change is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli import main
from foundry_core.config.loading import load_config
from foundry_core.config.migration import Migration, migrate
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError, UsageError
from tests.each import each

# The example of the design, letter by letter.
EXAMPLE = """\
experiment_name: exp0
data: {source_corpus: data/raw/, training_corpus: data/raw/, test_corpus: data/test/, batch_size: 32, max_sequence_length: 1000}
dataset_manipulation: []
tokenizer: {output_dir: tokenizers/exp0/, vocab_size: 50004}
model: {layers: 12, embedding_size: 768, hidden_size: 768, intermediate_hidden_size: 3072, attention_heads: 12,
        activation_function: gelu, dropout: 0.1, attention_dropout: 0.1}
training: {output_dir: models/exp0/, learning_rate: 0.0004, adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1.0e-6,
           warmup_steps: null, warmup_ratio: 0.1, train_steps: null, epochs: 20, use_amp: true, gradient_accumulation_steps: 8,
           max_grad_norm: 1.0, use_tf32: true, use_gradient_checkpointing: true, use_flash_attention: true, compile_mode: default,
           auto_generate_checkpoints: true, first_epoch_checkpoints: 20, subsequent_epochs_spacing: log, log_base: 2,
           min_checkpoint_interval: 100, min_checkpoints_per_epoch: 5}
logging: {use_wandb: true, wandb_project: my-project}
random_seed: 9
"""  # noqa: E501

# What the example means in the present format, key by key.
MEANING: dict[str, Any] = {
    "experiment_name": "exp0",
    "random_seed": 9,
    "data": {
        "training_corpus": "data/raw/",
        "test_corpus": "data/test/",
        "batch_size": 32,
        "max_sequence_length": 1000,
    },
    "tokenizer": {"tokenizer_type": "sentencepiece", "output_dir": "tokenizers/exp0/", "vocab_size": 50004},
    "model": {
        "architecture": "gpt2",
        "transformer": {
            "layers": 12,
            "embedding_size": 768,
            "hidden_size": 768,
            "intermediate_hidden_size": 3072,
            "attention_heads": 12,
            "activation_function": "gelu",
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
    },
    "training": {
        "output_dir": "models/exp0/",
        "objective": "causal_lm",
        "learning_rate": 0.0004,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 0.000001,
        "warmup_ratio": 0.1,
        "epochs": 20,
        "weight_decay_on": "all",
        "precision": "auto",
        "gradient_accumulation_steps": 8,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": True,
        "compile": True,
        "checkpoints": {"log_base": 2},
    },
    "logging": {"use_wandb": True, "wandb_project": "my-project"},
}

# What the example did not say and is told as well.
ADDED = {"tokenizer.tokenizer_type", "model.architecture", "training.objective", "training.weight_decay_on"}


def migrated(text: str) -> Migration:
    return migrate(YamlSource.parse(text, "old.yaml"))


def with_change(old: str, new: str) -> str:
    """The example with one passage replaced."""
    assert EXAMPLE.count(old) == 1
    return EXAMPLE.replace(old, new)


def changes(text: str) -> dict[str, str]:
    return {change.key: change.text for change in migrated(text).changes}


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        migrated(text)
    return str(caught.value).split("\n")


def test_the_example_means_the_same_key_by_key() -> None:
    assert migrated(EXAMPLE).data == MEANING


def test_the_example_validates_and_the_rest_is_the_default() -> None:
    training = load_config(migrated(EXAMPLE).data).training
    assert (training.optimizer, training.lr_scheduler) == ("adamw", "linear")
    assert (training.weight_decay, training.weight_decay_on) == (0.01, "all")
    assert training.warmup_steps is None
    assert training.train_steps is None


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys that are no section, dotted, with their values."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_every_key_that_changes_is_reported_once_with_a_reason() -> None:
    old, new = flat(YamlSource.parse(EXAMPLE, "").data), flat(MEANING)
    other = {key for key, value in old.items() if key not in new or new[key] != value}
    assert sorted(change.key for change in migrated(EXAMPLE).changes) == sorted(other | ADDED)
    assert len(old) - len(other) == 19
    for change in migrated(EXAMPLE).changes:
        assert change.text.startswith(("dropped: ", "renamed to ", "replaced by ", "added as ")), change


def test_the_yaml_on_stdout_reads_back_as_the_same_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(EXAMPLE)
    assert main(["migrate", str(old)]) == 0
    out, err = capsys.readouterr()
    new = tmp_path / "new.yaml"
    new.write_text(out)
    assert YamlSource.read(new).data == MEANING
    assert load_config(new) == load_config(MEANING)
    assert old.read_text() == EXAMPLE
    assert err.split("\n") == [*map(str, migrated(EXAMPLE).changes), ""]


def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(with_change("experiment_name: exp0", 'experiment_name: "1e-4"'))
    assert main(["migrate", str(old)]) == 0
    assert YamlSource.parse(capsys.readouterr().out, "").data["experiment_name"] == "1e-4"


def test_a_file_is_written_once_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(EXAMPLE)
    assert main(["migrate", str(old), "-o", str(new)]) == 0
    assert capsys.readouterr().out == ""
    assert YamlSource.read(new).data == MEANING
    new.write_text("mine")
    assert main(["migrate", str(old), "-o", str(new)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {new} exists and is not overwritten")
    assert new.read_text() == "mine"


def test_a_file_of_the_present_format_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        migrate(YamlSource("new.yaml", MEANING, {}))
    assert str(caught.value).startswith("new.yaml is in the present format already")
    assert "\n" not in str(caught.value)


def test_training_an_old_file_fails_and_names_this_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(EXAMPLE)
    assert main(["train", str(old)]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"{old}:5: model: ")
    assert line.endswith(f"foundry migrate {old}")


def test_unknown_and_missing_keys_are_reported_at_their_lines() -> None:
    text = (
        with_change("use_tf32: true", "use_tf23: true")
        .replace("random_seed: 9\n", "")
        .replace("wandb_project: my-project", "wandb_project: my-project, colour: red")
        .replace("layers: 12, ", "")
        .replace("warmup_ratio: 0.1, ", "")
        .replace("vocab_size: 50004", "vocab_size: 50004, batch_size: 3")
    )
    assert problems(text) == [
        "old.yaml:1: random_seed: missing: the old run cannot be reproduced without it",
        "old.yaml:4: tokenizer.batch_size: unknown key of the old format. Did you mean 'vocab_size'? "
        "Correct it, or remove it.",
        "old.yaml:5: model.layers: missing: the old run cannot be reproduced without it",
        "old.yaml:9: training.use_tf23: unknown key of the old format. Did you mean 'use_tf32'? "
        "Correct it, or remove it.",
        "old.yaml:12: logging.colour: unknown key of the old format. Correct it, or remove it.",
    ]


@pytest.mark.parametrize("section", ["data", "tokenizer", "training"])
def test_a_required_section_that_is_missing_is_a_problem(section: str) -> None:
    for value in ("null", "[1, 2]"):
        data = YamlSource.parse(EXAMPLE, "").data
        data[section] = YamlSource.parse(value, "").data
        with pytest.raises(ConfigError, match=rf"old\.yaml:\d+: {section}(\.\w+)?: (missing|must be a section)"):
            migrate(YamlSource("old.yaml", data, {}))


@pytest.mark.parametrize("text", ["", "[1]", "experiment_name: x\n", "model: {transformer: {layers: 2}}\n"])
def test_what_is_neither_format_is_refused(text: str) -> None:
    assert len(problems(text)) == 1


def test_a_value_refused_today_is_named_by_its_old_key_and_line() -> None:
    assert problems(with_change("attention_heads: 12", "attention_heads: 7"))[0].startswith("old.yaml:5: model")
    (line,) = problems(with_change("log_base: 2,", "log_base: 1,"))
    assert line.startswith("old.yaml:10: training.log_base: must be greater than or equal to 1.01")
    (line,) = problems(with_change("learning_rate: 0.0004", "learning_rate: high"))
    assert line.startswith("old.yaml:7: training.learning_rate: ")


@pytest.mark.parametrize(("value", "accepted"), [("[]", True), ("null", True), ("[{remove: articles}]", False)])
def test_a_corpus_that_was_changed_on_the_fly_is_refused(value: str, accepted: bool) -> None:
    text = with_change("dataset_manipulation: []", f"dataset_manipulation: {value}")
    if accepted:
        assert migrated(text).data == MEANING
    else:
        (line,) = problems(text)
        assert line.startswith("old.yaml:3: dataset_manipulation: changed the corpus before training")


@pytest.mark.parametrize(
    ("old", "key", "value"), [("use_amp: true", "precision", "auto"), ("use_amp: false", "precision", "fp32")]
)
def test_mixed_precision_is_auto_and_none_is_fp32(old: str, key: str, value: str) -> None:
    assert migrated(with_change("use_amp: true", old)).data["training"][key] == value


def test_no_mixed_precision_when_nothing_was_said() -> None:
    text = with_change("use_amp: true, ", "")
    assert migrated(text).data["training"]["precision"] == "fp32"
    assert changes(text)["training.precision"].startswith("added as fp32")


@each(
    ("mode", "compiled"),
    [("default", True), ("reduce-overhead", True), ("true", True), ("null", False), ("none", False), ("false", False)],
)
def test_any_compile_mode_is_compile(mode: str, compiled: bool) -> None:
    text = with_change("compile_mode: default", f"compile_mode: {mode}")
    assert migrated(text).data["training"]["compile"] is compiled
    assert ("reduce-overhead" in changes(text)["training.compile_mode"]) == (mode == "reduce-overhead")


def test_a_switch_that_is_neither_on_nor_off_is_a_problem() -> None:
    (line,) = problems(with_change("use_gradient_checkpointing: true", "use_gradient_checkpointing: 1"))
    assert "training.use_gradient_checkpointing: must be true or false" in line


def test_gradients_that_were_not_clipped_are_not_clipped_now() -> None:
    text = with_change("max_grad_norm: 1.0, ", "")
    assert load_config(migrated(text).data).training.max_grad_norm is None
    assert "added as null" in changes(text)["training.max_grad_norm"]


def test_two_budgets_are_refused_and_steps_with_accumulation() -> None:
    both = with_change("train_steps: null", "train_steps: 500")
    assert "training.train_steps: given with epochs" in problems(both)[0]
    steps = both.replace("epochs: 20, ", "")
    assert "it may have counted forward passes" in problems(steps)[0]
    plain = migrated(steps.replace("gradient_accumulation_steps: 8", "gradient_accumulation_steps: 1"))
    assert plain.data["training"]["train_steps"] == 500
    assert "epochs" not in plain.data["training"]
    assert "training.epochs: missing" in problems(with_change("epochs: 20, ", ""))[0]


def test_warm_up_steps_win_over_the_ratio_and_their_unit_is_told() -> None:
    text = with_change("warmup_steps: null", "warmup_steps: 50")
    training = migrated(text).data["training"]
    assert training["warmup_steps"] == 50
    assert "warmup_ratio" not in training
    assert changes(text)["training.warmup_ratio"].startswith("dropped")
    assert "optimizer steps" in changes(text)["training.warmup_steps"]


def test_what_an_old_file_leaves_out_had_a_default() -> None:
    text = with_change("warmup_ratio: 0.1, ", "").replace("subsequent_epochs_spacing: log, log_base: 2,", "")
    assert migrated(text).data == MEANING
    told = changes(text)
    assert told["training.warmup_ratio"] == "added as 0.1: the default there was"
    assert told["training.checkpoints.log_base"].startswith("added as 2: the default there was")


SECOND = """\
experiment_name: exp1
data: {source_corpus: raw/, training_corpus: clean/, batch_size: 16, max_sequence_length: 64,
       num_workers: 4, pin_memory: true, prefetch_factor: 2}
tokenizer: {output_dir: toks/a, vocab_size: 4000, strip_accents: true, special_tokens: {unk_token: <u>}}
model: {architecture: ARCHITECTURE, SIZES}
training: {output_dir: out/a, learning_rate: 0.001, adam_beta1: 0.9, adam_beta2: 0.98, adam_epsilon: 1.0e-8, epochs: 4,
           objective: OBJECTIVE, mlm_probability: 0.2, checkpointing_strategy: log_steps_first_epoch,
           checkpoint_schedule: [10, 20], save_resume_state_last_n: 3, compile_mode: null}
logging: {console_level: INFO, file_level: DEBUG, level: INFO, dir: logs, use_structured_logging: true,
          use_wandb: false, wandb_project: null, wandb_project_sweeps: sweeps, wandb_entity: null, max_log_files: 10,
          max_log_size_mb: 100, log_metrics_every_n_steps: 25, log_detailed_metrics_every_n_steps: 100,
          profile_performance: false, log_memory_every_n_steps: 100, max_errors_to_track: 1000}
random_seed: 9
dataset_manipulation: []
"""
TRANSFORMER = (
    "transformer: {layers: 2, embedding_size: 64, hidden_size: 64, intermediate_hidden_size: 256, attention_heads: 2, "
    "dropout: 0.1, attention_dropout: 0.1}"
)
RNN = (
    "rnn: {embedding_size: 64, hidden_size: 32, num_layers: 2, rnn_type: lstm}, mamba: null, bert: {type_vocab_size: 1}"
)
MAMBA = "mamba: {d_model: 64, n_layers: 2, d_state: 8, d_conv: 3, expand: 1, dropout: 0.2}"
SECOND_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("causal_lm", TRANSFORMER.replace("dropout: 0.1,", "activation_function: GELU, dropout: 0.1,", 1), {}),
    "bert": ("masked_lm", f"{TRANSFORMER}, bert: {{type_vocab_size: 2, pooler_type: mean}}", {}),
    "lstm": ("causal_lm", RNN, {"rnn_type": "lstm", "dropout": 0.0, "num_layers": 2, "hidden_size": 32}),
    "gru": ("masked_lm", RNN, {"rnn_type": None, "dropout": 0.0, "bidirectional": False}),
    "mamba": (
        "causal_lm",
        MAMBA,
        {"hidden_size": 64, "num_layers": 2, "state_size": 8, "conv_kernel": 3, "expand": 1, "dropout": 0.2},
    ),
}


@each("architecture", SECOND_MODELS)
def test_the_second_format_means_the_same_key_by_key(architecture: str, tmp_path: Path, capsys: Any) -> None:
    objective, model, sizes = SECOND_MODELS[architecture]
    text = SECOND.replace("ARCHITECTURE", architecture).replace("OBJECTIVE", objective).replace("SIZES", model)
    config = load_config(migrated(text).data)
    assert (config.model.architecture, config.training.objective) == (architecture, objective)
    assert (config.tokenizer.tokenizer_type, config.training.warmup_ratio) == ("sentencepiece", 0.1)
    assert (config.training.num_workers, config.logging.log_every_steps) == (4, 25)
    assert (config.training.precision, config.training.weight_decay_on) == ("fp32", "all")
    assert config.training.max_grad_norm is None
    assert config.training.checkpoints.steps == (10, 20)
    assert (config.training.mlm_probability, config.tokenizer.special_tokens) == (0.2, {"unk_token": "<u>"})
    section: Any = config.model.model_dump()
    found = section.get("rnn") or section.get("mamba") or section["transformer"]
    assert {key: found[key] for key in sizes} == sizes
    assert found.get("activation_function", "gelu") == "gelu"
    old, new, told = flat(YamlSource.parse(text, "").data), flat(migrated(text).data), changes(text)
    assert [key for key, value in old.items() if key not in told and (key, value) not in new.items()] == []
    assert {key for key in new if key not in old and new[key] is not None} <= {
        *told,
        *(text.removeprefix("renamed to ").split(":")[0] for text in told.values()),
        *("training.checkpoints.steps", "training.precision", "training.compile"),
    }
    path = tmp_path / "old.yaml"
    for old_text in (text, text.replace("source_corpus: raw/, ", "")):
        path.write_text(old_text)
        assert main(["validate", str(path)]) == 2
        assert capsys.readouterr().err.endswith(f": convert the file with: foundry migrate {path}\n")


def test_accents_that_were_removed_are_told() -> None:
    text = SECOND.replace("ARCHITECTURE", "bert").replace("OBJECTIVE", "masked_lm").replace("SIZES", TRANSFORMER)
    wordpiece = text.replace("strip_accents: true", "tokenizer_type: wordpiece, strip_accents: true")
    assert "accents are kept here" in changes(wordpiece)["tokenizer.strip_accents"]
    kept = wordpiece.replace("strip_accents: true", "strip_accents: false")
    assert changes(kept)["tokenizer.strip_accents"].startswith("dropped: it was false")
    unsaid = wordpiece.replace(", strip_accents: true", "")
    assert "accents are kept here" in changes(unsaid)["tokenizer.tokenizer_type"]


@each(
    ("old", "new", "problem"),
    [
        ("architecture: mamba", "architecture: rwkv", "model.architecture: 'rwkv' is not one of gpt2, bert"),
        ("d_model: 64, ", "", "model.mamba.d_model: missing"),
        ("d_state: 8", "d_stat: 8", "model.mamba.d_stat: unknown key of the old format. Did you mean 'd_state'?"),
        ("d_conv: 3", "d_conv: 1", "model.mamba.d_conv: must be greater than or equal to 2"),
        (MAMBA, "mamba: [1]", "model.mamba: must be a section"),
    ],
)
def test_a_wrong_key_of_the_second_format_is_named(old: str, new: str, problem: str) -> None:
    text = SECOND.replace("ARCHITECTURE", "mamba").replace("OBJECTIVE", "causal_lm").replace("SIZES", MAMBA)
    assert any(f": {problem}" in line for line in problems(text.replace(old, new)))


def test_no_schedule_of_checkpoints_when_none_was_asked_for() -> None:
    text = with_change("auto_generate_checkpoints: true", "auto_generate_checkpoints: false")
    assert "checkpoints" not in migrated(text).data["training"]
    assert changes(text)["training.log_base"].startswith("dropped: auto_generate_checkpoints was false")


def test_even_checkpoints_cannot_be_told_without_the_data() -> None:
    (line,) = problems(with_change("subsequent_epochs_spacing: log", "subsequent_epochs_spacing: linear"))
    assert "only log can be converted" in line
    told = changes(EXAMPLE)["training.first_epoch_checkpoints"]
    assert "20 even parts" in told
    assert "training.checkpoints.every_steps" in told


@pytest.mark.parametrize(("passes", "steps"), [(8, [0, 1, 2, 125]), (1, [0, 1, 8, 9, 1000])])
def test_a_list_of_checkpoints_is_counted_in_optimizer_steps(passes: int, steps: list[int]) -> None:
    text = with_change("log_base: 2", "log_base: 2, checkpoint_schedule: [0, 1, 8, 9, 1000]")
    text = text.replace("gradient_accumulation_steps: 8", f"gradient_accumulation_steps: {passes}")
    data = migrated(text).data
    assert data["training"]["checkpoints"] == {"steps": steps}
    assert list(load_config(data).training.checkpoints.steps) == steps
    told = changes(text)
    assert told["training.checkpoint_schedule"].startswith("replaced by training.checkpoints.steps")
    assert ("forward passes" in told["training.checkpoint_schedule"]) == (passes > 1)
    # The old software generated none when a list was given, of whatever spacing.
    for key in ("auto_generate_checkpoints", "log_base", "min_checkpoint_interval"):
        assert told[f"training.{key}"].startswith("dropped: checkpoint_schedule is given")
    assert migrated(text.replace("subsequent_epochs_spacing: log", "subsequent_epochs_spacing: linear")).data == data


def test_a_list_of_checkpoints_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(with_change("log_base: 2", "log_base: 2, checkpoint_schedule: [8, 20]"))
    assert main(["migrate", str(old)]) == 0
    assert YamlSource.parse(capsys.readouterr().out, "").data["training"]["checkpoints"] == {"steps": [1, 3]}


@pytest.mark.parametrize("value", ["null", "[]"])
def test_an_empty_list_of_checkpoints_counts_for_nothing(value: str) -> None:
    text = with_change("log_base: 2", f"log_base: 2, checkpoint_schedule: {value}")
    assert migrated(text).data == MEANING
    assert changes(text)["training.checkpoint_schedule"] == "dropped: it was empty"


@each("value", ["often", "[1, x]", "[1.5]", "[true]", "[-9]", "{a: 1}", "7"])
def test_checkpoints_that_are_no_list_of_steps_are_a_problem(value: str) -> None:
    (line,) = problems(with_change("log_base: 2", f"log_base: 2, checkpoint_schedule: {value}"))
    assert line.startswith("old.yaml:10: training.checkpoint_schedule: must be a list of steps")


def test_a_linear_interval_counts_only_with_linear_spacing() -> None:
    for value in ("null", "500"):
        text = with_change("log_base: 2", f"log_base: 2, linear_interval: {value}")
        assert migrated(text).data == MEANING
        assert changes(text)["training.linear_interval"].startswith("dropped: it was read for linear spacing only")
        linear = text.replace("subsequent_epochs_spacing: log", "subsequent_epochs_spacing: linear")
        assert "only log can be converted" in problems(linear)[0]
        none = linear.replace("auto_generate_checkpoints: true", "auto_generate_checkpoints: false")
        assert changes(none)["training.linear_interval"].startswith("dropped: auto_generate_checkpoints was false")


@pytest.mark.parametrize("value", ["null", "false", "true", "models/exp0/checkpoint-9"])
def test_resuming_is_no_setting_of_the_experiment(value: str) -> None:
    text = with_change("log_base: 2", f"log_base: 2, resume_from_checkpoint: {value}")
    assert migrated(text).data == MEANING
    assert "foundry train --resume" in changes(text)["training.resume_from_checkpoint"]


@pytest.mark.parametrize(("level", "folder"), [("null", "null"), ("INFO", "logs"), ("DEBUG", "/var/log/exp0")])
def test_the_old_log_is_dropped(level: str, folder: str) -> None:
    text = with_change("use_wandb: true", f"level: {level}, dir: {folder}, use_wandb: true")
    assert migrated(text).data == MEANING
    told = changes(text)
    assert told["logging.level"].startswith("dropped: ")
    assert "training.output_dir" in told["logging.dir"]


def test_an_activation_is_written_as_it_is_known_here() -> None:
    text = with_change("activation_function: gelu", "activation_function: GELU")
    assert migrated(text).data == MEANING
    assert "GELU is written gelu" in changes(text)["model.activation_function"]


@pytest.mark.long
def test_migrating_imports_no_torch(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(EXAMPLE)
    code = "import sys; from foundry_core.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, "migrate", str(old)], check=True, capture_output=True)
