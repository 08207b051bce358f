"""The configuration: what is refused, where the finger points, what a valid file becomes."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from foundry_core import load_config
from foundry_core.cli import main
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError
from foundry_core.registry.loading import get_architecture
from foundry_core.registry.objective import CORE_OBJECTIVES
from foundry_core.schema import ConfigSection, PathText
from tests.each import each

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("**/*.yaml"))

VALID = """\
experiment_name: trial
random_seed: 7
data:
  training_corpus: corpora/train.txt
  test_corpus: corpora/dev.txt
  max_sequence_length: 64
  batch_size: 8
tokenizer:
  tokenizer_type: sentencepiece
  vocab_size: 500
model:
  architecture: gpt2
  transformer: {
    layers: 2,
    embedding_size: 32,
    hidden_size: 32, intermediate_hidden_size: 64,
    attention_heads: 2}
training:
  output_dir: runs/trial
  learning_rate: 1e-3
  train_steps: 10
logging:
  log_every_steps: 5
"""
AVAILABLE = "Available: bert, gpt2, gru, lstm, mamba, ngram, rnn, transformers."
GPT2 = VALID[VALID.index("  architecture: gpt2") : VALID.index("training:\n")]
TRANSFORMER_SIZES = ("layers", "embedding_size", "hidden_size", "intermediate_hidden_size", "attention_heads")
RNN_SIZES = "embedding_size: 8, hidden_size: 8, num_layers: 1"
OLD = """\
experiment_name: exp0
data: {source_corpus: data/raw/, training_corpus: data/raw/, batch_size: 32}
model: {layers: 12, embedding_size: 768, hidden_size: 768, attention_heads: 12}
training: {output_dir: models/exp0/, epochs: 20}
"""
TOP_KEYS = "experiment_name, random_seed, data, tokenizer, model, training, logging, seeds, plugins"
DATA_KEYS = (
    "training_corpus, test_corpus, validation_corpus, files, documents, blank_lines, max_sequence_length, "
    "tokens_per_row, batch_size, batching, isolate_documents, order, order_settings, steps"
)
BUDGETS = "give exactly one of epochs, train_steps, train_tokens, train_words, train_bytes"
END_NOT_LEARNED = (
    "padding is not learned, so the end of a text would never be learned; use another token, such as '<pad>'"
)
NOT_SECTIONS = "1: file: is empty or not a mapping of sections: see foundry init"


def edited(*replacements: tuple[str, str], text: str = VALID) -> str:
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the text"
        text = text.replace(old, new)
    return text


def after(line: str, *added: str) -> tuple[str, str]:
    """A replacement that adds lines under a line."""
    return line, "\n".join((line, *added))


def without(start: str, end: str) -> tuple[str, str]:
    """A replacement that drops the lines from one to before another."""
    return VALID[VALID.index(start) : VALID.index(end)], ""


@dataclass
class Wrong:
    """A file and all that is wrong with it, each as `line: key: problem`."""

    name: str
    content: str | bytes
    problems: tuple[str, ...]


def wrong(name: str, content: str | bytes, *problems: str) -> Wrong:
    return Wrong(name, content, problems)


LEARNING_RATE = "learning_rate: 1e-3"
STEPS = "  train_steps: 10"
VOCABULARY = "  vocab_size: 500"
SIZE = "batch_size: 8"


def in_training(name: str, added: str, *problems: str) -> Wrong:
    """A file with more lines in its section `training`, from line 22 on."""
    return wrong(name, edited(after(STEPS, *(f"  {line}" for line in added.split("\n")))), *problems)


MISTYPED = [
    wrong("key", edited((SIZE, "batch_sise: 8")), "7: data.batch_sise: unknown key. Did you mean 'batch_size'?"),
    wrong("section", edited(("logging:", "loging:")), "22: loging: unknown key. Did you mean 'logging'?"),
    wrong(
        "key of the plugin's section",
        edited(("    layers", "    layer")),
        "13: model.transformer.layers: missing: architecture 'gpt2' requires it",
        "14: model.transformer.layer: unknown key. Did you mean 'layers'?",
    ),
    wrong("key like no other", edited((SIZE, "zzz: 8")), f"7: data.zzz: unknown key. Known here: {DATA_KEYS}."),
    wrong(
        "architecture",
        edited(("architecture: gpt2", "architecture: lstn")),
        f"12: model.architecture: Unknown architecture: 'lstn'. Did you mean 'lstm'? {AVAILABLE}",
    ),
    wrong(
        "architecture in capitals",
        edited(("architecture: gpt2", "architecture: LSTM")),
        f"12: model.architecture: Unknown architecture: 'LSTM'. Did you mean 'lstm'? {AVAILABLE}",
    ),
    wrong(
        "architecture like no other",
        edited(("architecture: gpt2", "architecture: xylophone")),
        f"12: model.architecture: Unknown architecture: 'xylophone'. {AVAILABLE}",
    ),
    in_training(
        "objective",
        "objective: casual_lm",
        "22: training.objective: unknown objective 'casual_lm'. Did you mean 'causal_lm'? "
        "Available: causal_lm, masked_lm",
    ),
    wrong(
        "choice",
        edited(("sentencepiece", "sentencepeice")),
        "9: tokenizer.tokenizer_type: unknown tokenizer type 'sentencepeice'. Did you mean 'sentencepiece'? "
        "Available: bpe, character, sentencepiece, word, wordpiece",
    ),
    wrong(
        "word of a key that can be a section",
        edited((SIZE, f"{SIZE}\n  documents: lines")),
        "8: data.documents: is 'lines', must be 'line', 'block' or 'file'. Did you mean 'line'?",
    ),
    wrong(
        "key of a section that can be a word",
        edited((SIZE, f"{SIZE}\n  documents: {{delimitre: x}}")),
        "8: data.documents.delimiter: missing",
        "8: data.documents.delimitre: unknown key. Did you mean 'delimiter'?",
    ),
    wrong(
        "special token",
        edited(after(VOCABULARY, "  special_tokens:", "    msk_token: <m>")),
        "12: tokenizer.special_tokens.msk_token: unknown key. Did you mean 'mask_token'? Known here: bos_token, "
        "eos_token, unk_token, pad_token, mask_token, cls_token, sep_token.",
    ),
    wrong(
        "random stream",
        VALID + "seeds: {initialization: 1}\n",
        "24: seeds.initialization: unknown key. Did you mean 'initialisation'?",
    ),
    wrong(
        "key of another section",
        edited(after(STEPS, "  max_sequence_length: 64"), ("  max_sequence_length: 64\n  batch", "  batch")),
        "21: training.max_sequence_length: unknown key. It belongs under data.",
    ),
    wrong(
        "key of the top level",
        edited(("random_seed: 7\n", ""), after("  " + SIZE, "  random_seed: 7")),
        "7: data.random_seed: unknown key. It belongs at the top level.",
    ),
    wrong(
        "key of a section of the plugin",
        edited(after("  architecture: gpt2", "  layers: 2")),
        "13: model.layers: unknown key. It belongs under model.transformer.",
    ),
    wrong(
        "section of another architecture",
        edited(after("  architecture: gpt2", "  rnn: {num_layers: 2}")),
        "13: model.rnn: unknown key. Known here: architecture, transformer, gpt2.",
    ),
    wrong("number as a key", VALID + "5: x\n", f"24: 5: unknown key. Known here: {TOP_KEYS}."),
    wrong("newline in a key", VALID + '"a\\nb": x\n', rf"24: a\nb: unknown key. Known here: {TOP_KEYS}."),
    wrong(
        "newline in a name",
        edited(("architecture: gpt2", 'architecture: "a\\nb"')),
        rf"12: model.architecture: Unknown architecture: 'a\nb'. {AVAILABLE}",
    ),
]

MISSING = [
    wrong("section data", edited(without("data:", "tokenizer:")), "1: data: missing"),
    wrong(
        "section model",
        edited(without("model:", "training:")),
        "1: model: missing: give it architecture and its settings",
    ),
    wrong("section training", edited(without("training:", "logging:")), "1: training: missing"),
    wrong("experiment_name", edited(("experiment_name: trial\n", "")), "1: experiment_name: missing"),
    wrong(
        "training_corpus",
        edited(("  training_corpus: corpora/train.txt\n", "")),
        "3: data.training_corpus: missing",
    ),
    wrong("output_dir", edited(("  output_dir: runs/trial\n", "")), "18: training.output_dir: missing"),
    wrong(
        "architecture",
        edited(("  architecture: gpt2\n", "")),
        "11: model.architecture: missing: name one, see foundry plugins list",
    ),
    wrong(
        "architecture's name",
        edited(("architecture: gpt2", "architecture:")),
        "12: model.architecture: missing: name one, see foundry plugins list",
    ),
    wrong(
        "section of the architecture",
        edited((GPT2, "  architecture: gpt2\n")),
        "11: model.transformer: missing: architecture 'gpt2' requires it",
    ),
    wrong(
        "section of another architecture",
        edited((GPT2, "  architecture: lstm\n")),
        "11: model.rnn: missing: architecture 'lstm' requires it",
    ),
    *(
        wrong(
            f"{len(keys)} sizes of {name}",
            edited((GPT2, f"  architecture: {name}\n  {section}: {{dropout: 0.1}}\n")),
            *(f"13: model.{section}.{key}: missing: architecture '{name}' requires it" for key in keys),
        )
        for name, section, keys in (
            ("gpt2", "transformer", TRANSFORMER_SIZES),
            ("rnn", "rnn", ("embedding_size", "hidden_size", "num_layers")),
            ("mamba", "mamba", ("hidden_size", "num_layers")),
        )
    ),
    wrong("keys of a section", edited(("  log_every_steps: 5\n", "")), "22: logging: is empty: give it its keys"),
    wrong("value", edited((SIZE, "batch_size:")), "7: data.batch_size: must be an integer, not nothing (null)"),
    wrong(
        "text between quotes",
        edited(("corpora/train.txt", "''")),
        "4: data.training_corpus: text should have at least 1 character, not ''",
    ),
    wrong("budget", edited((STEPS + "\n", "")), f"18: training: {BUDGETS}: found none"),
    wrong(
        "project of W&B",
        edited(after("  log_every_steps: 5", "  use_wandb: true")),
        "22: logging: use_wandb needs wandb_project",
    ),
]

BERT = ("architecture: gpt2", "architecture: bert")
CONTRADICTORY = [
    in_training("two budgets", "epochs: 1", f"18: training: {BUDGETS}: found epochs and train_steps"),
    in_training(
        "warm-up twice",
        "warmup_steps: 1\nwarmup_ratio: 0.1",
        "18: training: give warmup_steps or warmup_ratio, not both",
    ),
    in_training(
        "warm-up longer than training",
        "warmup_steps: 11",
        "18: training: warmup_steps (11) exceeds train_steps (10)",
    ),
    wrong(
        "BERT trained causally",
        edited(BERT, after(STEPS, "  objective: causal_lm")),
        "22: training.objective: bert with these settings cannot be trained with causal_lm; it accepts masked_lm",
    ),
    in_training(
        "GPT-2 trained on masks",
        "objective: masked_lm",
        "22: training.objective: gpt2 with these settings cannot be trained with masked_lm; it accepts causal_lm",
    ),
    wrong(
        "two directions trained causally",
        edited(
            (GPT2, f"  architecture: lstm\n  rnn: {{bidirectional: true, {RNN_SIZES}}}\n"),
            after(STEPS, "  objective: causal_lm"),
        ),
        "18: training.objective: lstm with these settings cannot be trained with causal_lm; it accepts masked_lm",
    ),
    wrong(
        "rnn_type of another architecture",
        edited((GPT2, f"  architecture: lstm\n  rnn: {{rnn_type: gru, {RNN_SIZES}}}\n")),
        "11: model: rnn.rnn_type is gru under architecture: lstm; leave rnn_type out or make them agree",
    ),
    wrong(
        "heads that do not divide the width",
        edited(("attention_heads: 2", "attention_heads: 5")),
        "13: model.transformer: attention_heads (5) must divide hidden_size (32)",
    ),
    wrong(
        "embeddings of another width",
        edited(("embedding_size: 32", "embedding_size: 16")),
        "13: model.transformer: embedding_size (16) must equal hidden_size (32): there is no projection between them",
    ),
    wrong(
        "a special token that could not be told from text",
        edited(after(VOCABULARY, "  special_tokens: {eos_token: the end}")),
        "11: tokenizer.special_tokens.eos_token: 'the end' cannot be a special token: it must not be empty and must "
        "not contain white space, ':', '$' or '\u2581'",
    ),
    wrong(
        "a mask with a second role",
        edited(BERT, after(VOCABULARY, "  special_tokens: {mask_token: <s>}")),
        "11: tokenizer.special_tokens.mask_token: '<s>' has a second role: use another token for masking, "
        "such as '<mask>'",
    ),
    wrong(
        "an unknown token that a tokenizer cannot do without",
        edited(("sentencepiece", "word"), after(VOCABULARY, "  special_tokens: {unk_token: null}")),
        "11: tokenizer.special_tokens.unk_token: a word tokenizer needs an unk_token",
    ),
    wrong(
        "padding that ends a document",
        edited(after(VOCABULARY, "  special_tokens: {eos_token: <e>, pad_token: <e>}")),
        f"11: tokenizer.special_tokens.pad_token: equals the eos_token '<e>': {END_NOT_LEARNED}",
    ),
    wrong(
        "padding that ends a document by default",
        edited(after(VOCABULARY, "  special_tokens: {pad_token: </s>}")),
        f"11: tokenizer.special_tokens.pad_token: equals the eos_token '</s>': {END_NOT_LEARNED}",
    ),
    wrong(
        "padding that is BERT's separator",
        edited(BERT, ("sentencepiece", "wordpiece"), after(VOCABULARY, "  special_tokens: {pad_token: '[SEP]'}")),
        f"11: tokenizer.special_tokens.pad_token: equals the sep_token '[SEP]': {END_NOT_LEARNED}",
    ),
    wrong(
        "an end that is the padding by default",
        edited(after(VOCABULARY, "  special_tokens: {eos_token: <pad>}")),
        f"11: tokenizer.special_tokens.eos_token: pad_token equals the eos_token '<pad>': {END_NOT_LEARNED}",
    ),
    wrong(
        "no token that ends a document",
        edited(after(VOCABULARY, "  special_tokens: {eos_token: null, sep_token: null}")),
        "11: tokenizer.special_tokens: a tokenizer needs an eos_token or a sep_token, which ends a document: "
        "add one of them",
    ),
    wrong(
        "more text in a row than fits beside the token before it",
        edited(after(SIZE, "  tokens_per_row: 64")),
        "8: data.tokens_per_row: at most 63 fit into max_sequence_length 64 under causal_lm",
    ),
    wrong(
        "more text in a row than fits into its frame",
        edited(BERT, after(SIZE, "  tokens_per_row: 63")),
        "8: data.tokens_per_row: at most 62 fit into max_sequence_length 64 under masked_lm",
    ),
    wrong(
        "masked_lm without a mask",
        edited(BERT, after(VOCABULARY, "  special_tokens:", "    mask_token: null")),
        "12: tokenizer.special_tokens.mask_token: masked_lm needs a mask_token",
    ),
    wrong(
        "plateau of a loss that is never computed",
        edited(
            ("  test_corpus: corpora/dev.txt\n", ""),
            after(STEPS, "  lr_scheduler: plateau", "  evaluate_every_steps: 5"),
        ),
        "21: training.lr_scheduler: needs data.validation_corpus or data.test_corpus",
        "22: training.evaluate_every_steps: needs data.validation_corpus, data.test_corpus or training.suites",
    ),
    in_training(
        "plateau of a loss computed once",
        "lr_scheduler: plateau",
        "22: training.lr_scheduler: plateau needs training.evaluate_every_steps or training.evaluate_at",
    ),
    wrong(
        "schedule of evaluations without a text",
        edited(("  test_corpus: corpora/dev.txt\n", ""), after(STEPS, "  evaluate_at: {log_base: 2}")),
        "21: training.evaluate_at: needs data.validation_corpus, data.test_corpus or training.suites",
    ),
    in_training(
        "two schedules of evaluations",
        "evaluate_at: {every_steps: 5}\nevaluate_every_steps: 5",
        "18: training: give evaluate_every_steps or evaluate_at, not both; evaluate_at takes every_steps too",
    ),
    in_training(
        "unknown key of a schedule of evaluations",
        "evaluate_at: {keep: 5}",
        "22: training.evaluate_at.keep: unknown key. It belongs under training.checkpoints.",
    ),
    in_training(
        "early stopping by the test corpus",
        "evaluate_every_steps: 5\nearly_stopping_patience: 2",
        "23: training.early_stopping_patience: needs data.validation_corpus",
    ),
    wrong(
        "early stopping by a loss computed once",
        edited(
            ("  test_corpus: corpora/dev.txt", "  validation_corpus: corpora/dev.txt"),
            after(STEPS, "  early_stopping_patience: 2", "  evaluate_test: always"),
        ),
        "22: training.early_stopping_patience: needs training.evaluate_every_steps or training.evaluate_at",
        "23: training.evaluate_test: needs data.test_corpus",
    ),
    wrong(
        "validation by the test corpus",
        edited(after("  test_corpus: corpora/dev.txt", "  validation_corpus: corpora//dev.txt")),
        "6: data.validation_corpus: is the test corpus: what is chosen by it would be chosen by the test",
    ),
    wrong(
        "validation by what is trained on",
        edited(after("  test_corpus: corpora/dev.txt", "  validation_corpus: corpora/train.txt")),
        "6: data.validation_corpus: is the training corpus: its loss would not mean anything",
    ),
    in_training(
        "names of milestones in another unit",
        "checkpoints: {names: babylm, milestones: {tokens: [1M]}}",
        "22: training.checkpoints: names: babylm needs milestones.words, which it names",
    ),
    in_training(
        "milestone after nothing",
        "checkpoints: {milestones: {epochs: [0.5, 0]}}",
        "22: training.checkpoints.milestones.epochs.1: must be greater than 0, not 0",
    ),
    wrong(
        "test corpus that is trained on",
        edited(("corpora/dev.txt", "./corpora/train.txt")),
        "5: data.test_corpus: is the training corpus: its loss would not mean anything",
    ),
    wrong(
        "checkpointing of gradients that the architecture lacks",
        edited(
            (GPT2, f"  architecture: lstm\n  rnn: {{{RNN_SIZES}}}\n"), after(STEPS, "  gradient_checkpointing: true")
        ),
        "18: training.gradient_checkpointing: lstm does not support it",
    ),
    in_training(
        "checkpoint before the start",
        "checkpoints: {steps: [5, -1]}",
        "22: training.checkpoints.steps.1: must be greater than or equal to 0, not -1",
    ),
]

CONTRADICTORY += [
    wrong(
        "rules beside a missing key",
        edited(
            ("    layers: 2,\n", ""),
            ("embedding_size: 32", "embedding_size: 16"),
            ("attention_heads: 2", "attention_heads: 5"),
            ("  output_dir: runs/trial\n", ""),
            after(STEPS, "  epochs: 1"),
        ),
        "13: model.transformer.layers: missing: architecture 'gpt2' requires it",
        "13: model.transformer: embedding_size (16) must equal hidden_size (32): there is no projection between them",
        "13: model.transformer: attention_heads (5) must divide hidden_size (32)",
        "17: training.output_dir: missing",
        f"17: training: {BUDGETS}: found epochs and train_steps",
    ),
    wrong(
        "a rule of the model beside a missing key of its section",
        edited((GPT2, "  architecture: lstm\n  rnn: {rnn_type: gru, embedding_size: 8, num_layers: 1}\n")),
        "11: model: rnn.rnn_type is gru under architecture: lstm; leave rnn_type out or make them agree",
        "13: model.rnn.hidden_size: missing: architecture 'lstm' requires it",
    ),
]

MISTAKEN_VALUES = [
    ("text for an integer", SIZE, "batch_size: eight", "7: data.batch_size: must be an integer, not 'eight'"),
    ("digits as text", SIZE, "batch_size: '8'", "7: data.batch_size: must be an integer, not '8'"),
    ("a boolean for an integer", SIZE, "batch_size: true", "7: data.batch_size: must be an integer, not True"),
    ("a whole float for an integer", SIZE, "batch_size: 8.0", "7: data.batch_size: must be an integer, not 8.0"),
    ("a list for an integer", SIZE, "batch_size: [8]", "7: data.batch_size: must be an integer, not [8]"),
    (
        "zero of what must be positive",
        SIZE,
        "batch_size: 0",
        "7: data.batch_size: must be greater than or equal to 1, not 0",
    ),
    (
        "a negative count",
        SIZE,
        "batch_size: -8",
        "7: data.batch_size: must be greater than or equal to 1, not -8",
    ),
    (
        "a number for text",
        "experiment_name: trial",
        "experiment_name: 5",
        "1: experiment_name: must be a string, not 5",
    ),
    (
        "a number for yes or no",
        "log_every_steps: 5",
        "tensorboard: 1",
        "23: logging.tensorboard: must be a boolean, not 1",
    ),
    (
        "no for false",
        "log_every_steps: 5",
        "tensorboard: no",
        "23: logging.tensorboard: must be a boolean, not 'no'",
    ),
    ("NaN", LEARNING_RATE, "learning_rate: .nan", "20: training.learning_rate: must be a finite number, not nan"),
    ("infinity", LEARNING_RATE, "learning_rate: .inf", "20: training.learning_rate: must be a finite number, not inf"),
    (
        "more than a float holds",
        LEARNING_RATE,
        "learning_rate: 1e999",
        "20: training.learning_rate: must be a finite number, not inf",
    ),
    (
        "a negative rate",
        LEARNING_RATE,
        "learning_rate: -1e-3",
        "20: training.learning_rate: must be greater than 0, not -0.001",
    ),
    (
        "a count in unknown units",
        STEPS,
        "  train_steps: 10X",
        "21: training.train_steps: must be an integer, not '10X'",
    ),
    (
        "a count that is no whole number",
        STEPS,
        "  train_tokens: 1.00005k",
        "21: training.train_tokens: must be an integer, not '1.00005k'",
    ),
    (
        "a share of everything",
        STEPS,
        STEPS + "\n  mlm_probability: 1.0",
        "22: training.mlm_probability: must be less than 1, not 1.0",
    ),
    (
        "one of a list",
        STEPS,
        STEPS + "\n  checkpoints: {milestones: {words: [1M, 1.5x]}}",
        "22: training.checkpoints.milestones.words.1: must be an integer, not '1.5x'",
    ),
    (
        "rows too short for a sentence",
        "max_sequence_length: 64",
        "max_sequence_length: 2",
        "6: data.max_sequence_length: must be greater than or equal to 4, not 2",
    ),
    ("an octal number", "random_seed: 7", "random_seed: 010", "2: random_seed: must be an integer, not '010'"),
    ("base sixty", "random_seed: 7", "random_seed: 1:30", "2: random_seed: must be an integer, not '1:30'"),
    (
        "a negative seed",
        "random_seed: 7",
        "random_seed: -1",
        "2: random_seed: must be greater than or equal to 0, not -1",
    ),
    (
        "a name that is a path",
        "name: trial",
        "name: a/b",
        r"1: experiment_name: text should match pattern '^[^/\\\x00-\x1f]+$', not 'a/b'",
    ),
    (
        "an empty special token",
        VOCABULARY,
        VOCABULARY + "\n  special_tokens: {unk_token: ''}",
        "11: tokenizer.special_tokens.unk_token: text should have at least 1 character, not ''",
    ),
    (
        "a list for a section",
        "logging:\n  log_every_steps: 5\n",
        "logging: [1]\n",
        "22: logging: must be a section, not [1]",
    ),
    (
        "a word for a section",
        "logging:\n  log_every_steps: 5\n",
        "logging: verbose\n",
        "22: logging: must be a section, not 'verbose'",
    ),
    ("a word for the model", "model:\n" + GPT2, "model: gpt2\n", "11: model: must be a section"),
    ("a number for a name", "architecture: gpt2", "architecture: 3", "12: model.architecture: must be text"),
    (
        "one plugin that is no list",
        "logging:\n",
        "plugins: mine\nlogging:\n",
        "22: plugins: must be a list, not 'mine'",
    ),
]
MISTAKEN = [wrong(name, edited((old, new)), problem) for name, old, new, problem in MISTAKEN_VALUES]

UNREADABLE = [
    wrong(
        "equal keys",
        edited(after("  " + SIZE, '  "batch_size": 9')),
        "8: data.batch_size: duplicate key, first on line 7: keep one of them",
    ),
    wrong(
        "equal sections",
        VALID + "data: {batch_size: 5}\n",
        "24: data: duplicate key, first on line 3: keep one of them",
    ),
    wrong(
        "alias of nothing",
        edited((SIZE, "batch_size: *d")),
        "7: syntax: not valid YAML: found undefined alias",
    ),
    wrong("alias inside its anchor", edited((SIZE, "batch_size: &d [*d]")), "7: syntax: nested more than 20 deep"),
    wrong(
        "tag that would run something",
        edited((SIZE, "batch_size: !!python/object/apply:os.system ['exit 3']")),
        "7: data.batch_size: YAML tag tag:yaml.org,2002:python/object/apply:os.system is not supported: remove it",
    ),
    wrong(
        "tag on a section",
        edited(("logging:", "logging: !!python/object:os.environ")),
        "22: logging: YAML tag tag:yaml.org,2002:python/object:os.environ is not supported: remove it",
    ),
    wrong(
        "tag of an application",
        edited((SIZE, "batch_size: !env BATCH")),
        "7: data.batch_size: YAML tag !env is not supported: remove it",
    ),
    wrong(
        "tag that converts",
        edited((SIZE, "batch_size: !!int '8'")),
        "7: data.batch_size: YAML tag tag:yaml.org,2002:int is not supported: remove it",
    ),
    wrong(
        "merge key",
        edited(("  " + SIZE, "  <<: {batch_size: 8}")),
        f"7: data.<<: unknown key. Known here: {DATA_KEYS}.",
    ),
    wrong(
        "tab",
        edited(("  " + SIZE, "\t" + SIZE)),
        "7: syntax: not valid YAML: found a tab character that violates indentation",
    ),
    wrong(
        "bracket left open",
        edited((SIZE, "batch_size: [8")),
        "8: syntax: not valid YAML: did not find expected ',' or ']'",
    ),
    wrong("deep nesting", "a: " + "[" * 25 + "]" * 25, "1: syntax: nested more than 20 deep"),
    wrong(
        "deeper nesting", "a: " + "[" * 5000 + "]" * 5000, "1: syntax: not valid YAML: exceeded maximum nesting depth"
    ),
    wrong("list as a key", VALID + "[a, b]: x\n", "24: file: a key must be plain text"),
    wrong(
        "second document",
        VALID + "---\n" + VALID,
        "24: syntax: not valid YAML: but found another document",
    ),
    wrong("invalid UTF-8", VALID.encode().replace(b"dev", b"d\xffv"), "5: file: invalid UTF-8 at byte 105"),
    wrong("UTF-16", VALID.encode("utf-16"), "1: file: invalid UTF-8 at byte 0"),
    wrong(
        "NUL",
        edited(("name: trial", "name: tri\0al")),
        "1: syntax: not valid YAML: unacceptable character #x0000: control characters are not allowed",
    ),
    wrong("nothing", "", NOT_SECTIONS),
    wrong("only a comment", "# later\n", NOT_SECTIONS),
    wrong("list", "- a\n- b\n", NOT_SECTIONS),
    wrong("word", "hello\n", NOT_SECTIONS),
    wrong(
        "more than a configuration",
        "#" * (1 << 20) + "\n",
        "1: file: is larger than 1 MiB: not an experiment's configuration",
    ),
    wrong(
        "format before model.architecture",
        OLD,
        "3: model: written before model.architecture existed: convert it with: foundry migrate FILE",
    ),
]

ALL = [*MISTYPED, *MISSING, *CONTRADICTORY, *MISTAKEN, *UNREADABLE]


def validate(path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str, list[str]]:
    code = main(["validate", str(path), *overrides])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(VALID)
    return path


@each("case", ALL)
def test_each_problem_is_one_line_with_its_place_and_its_key(
    case: Wrong, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    code, out, lines = validate(path, capsys)
    assert code == 2
    assert out == ""
    shape = re.compile(rf"{re.escape(str(path))}:\d+: [^:]+: .+")
    assert all(shape.fullmatch(line) for line in lines)
    found = [line.removeprefix(f"{path}:") for line in lines]
    expected = [problem.replace("FILE", str(path)) for problem in case.problems]
    assert found == expected


def test_all_problems_of_a_file_are_reported_at_once_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        edited((SIZE, "batch_sise: 8"), (VOCABULARY, "  vocab_size: many"), ("layers: 2", "layers: 0"))
        .replace("log_every_steps: 5", "log_every: 5")
        .replace(STEPS, STEPS + "\n  epochs: 1")
    )
    _, _, lines = validate(path, capsys)
    assert [line.removeprefix(f"{path}:").split(": ")[:2] for line in lines] == [
        ["7", "data.batch_sise"],
        ["10", "tokenizer.vocab_size"],
        ["14", "model.transformer.layers"],
        ["18", "training"],
        ["24", "logging.log_every"],
    ]


def test_rules_of_valid_sections_are_checked_despite_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        edited(("log_every_steps", "log_evry_steps"), ("dev.txt", "train.txt"), after(STEPS, "  objective: masked_lm"))
    )
    _, _, lines = validate(path, capsys)
    assert [line.removeprefix(f"{path}:").split(": ")[:2] for line in lines] == [
        ["5", "data.test_corpus"],
        ["22", "training.objective"],
        ["24", "logging.log_evry_steps"],
    ]


class _Inner(ConfigSection):
    low: int
    high: int = 3


def _within_the_limit(outer: Any) -> Iterator[str]:
    if outer.inner.high > outer.limit:
        yield "high exceeds limit"


def _few(outer: Any) -> Iterator[str]:
    if len(outer.many) > outer.inner.low:
        yield "many exceeds low"


class _Outer(ConfigSection):
    RULES = (_within_the_limit, _few)

    inner: _Inner
    many: Annotated[tuple[int, ...], Field(strict=False)] = ()
    limit: int


@each(
    ("content", "problems"),
    [
        ({"inner": {"low": 1}, "limit": 3}, []),
        ({"inner": {}, "limit": 2}, ["inner.low", "high exceeds limit"]),
        ({"inner": {"low": 1, "high": "x"}, "limit": 2, "many": [1, 2]}, ["inner.high", "many exceeds low"]),
        ({"inner": {"low": 1}, "many": [1, 2]}, ["limit", "many exceeds low"]),
        ({"inner": {"low": 1}, "many": 4}, ["limit", "many"]),
        ({"inner": {"low": 1}, "many": [1, 2], "limit": 2}, ["high exceeds limit", "many exceeds low"]),
        ({"inner": 5, "limit": 2}, ["inner"]),
        ({"limit": 2, "new": 1}, ["inner", "new"]),
    ],
)
def test_a_rule_is_checked_when_the_keys_it_reads_are_valid(content: dict[str, Any], problems: list[str]) -> None:
    found = []
    try:
        _Outer.model_validate(content)
    except ValidationError as error:
        found = [".".join(map(str, each["loc"])) or each["ctx"]["error"] for each in error.errors()]
    assert sorted(found) == sorted(problems)


class _OfPydantic(ConfigSection):
    low: int
    high: int = 3

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low exceeds high")
        return self


def test_a_validator_of_pydantic_is_a_rule_too() -> None:
    assert _OfPydantic(low=1).high == 3
    with pytest.raises(ValidationError, match="low exceeds high"):
        _OfPydantic(low=4)
    with pytest.raises(ValidationError, match="high"):
        _OfPydantic.model_validate({"low": 4, "high": "x"})


COUNTED = (
    "data.max_sequence_length",
    "data.batch_size",
    "tokenizer.vocab_size",
    "training.train_steps",
    "training.num_workers",
    "training.gradient_accumulation_steps",
    "training.warmup_steps",
    "training.plateau_patience",
    "training.evaluate_every_steps",
    "training.early_stopping_patience",
    "training.checkpoints.every_steps",
    "training.checkpoints.keep",
    "logging.log_every_steps",
    "model.transformer.layers",
    "model.transformer.hidden_size",
    "model.transformer.attention_heads",
    "model.transformer.intermediate_hidden_size",
)


@each(
    "setting",
    [
        *(f"{key}={10**30}" for key in COUNTED),
        f"training.checkpoints.steps=[{10**30}]",
        "training.num_workers=100000",
        "model.transformer.layers=1000000",
        "data.training_corpus=~nosuchuser/x",
        "data.test_corpus=~nosuchuser/x",
        "data.validation_corpus=~nosuchuser/x",
        "training.output_dir=~nosuchuser/x",
        "tokenizer.output_dir=~nosuchuser/x",
        'training={train_steps: 1, output_dir: "a\\0b"}',
        'tokenizer={output_dir: "a\\0b"}',
        'plugins=["a\\0b"]',
        "random_seed=18446744073709551616",
    ],
)
def test_what_no_machine_can_do_is_refused_at_its_key(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(VALID)
    with pytest.raises(ConfigError) as refused:
        load_config(path, [setting])
    key = setting.partition("=")[0]
    assert any(f"{problem.key}.".startswith(f"{key}.") for problem in refused.value.problems)


@pytest.mark.parametrize("epochs", ["1e308", "1e300"])
def test_a_number_of_epochs_that_cannot_be_counted_is_refused(tmp_path: Path, epochs: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(edited((STEPS, f"  epochs: {epochs}")))
    with pytest.raises(ConfigError, match=r"a\.yaml:21: training\.epochs: must be less than or equal to 1000000000"):
        load_config(path)


def test_a_step_of_more_rows_than_there_can_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(VALID)
    with pytest.raises(ConfigError, match=r"training\.gradient_accumulation_steps: times data\.batch_size must be"):
        load_config(path, ["data.batch_size=2048", "training.gradient_accumulation_steps=1024"])


@pytest.mark.parametrize("budget", ["train_steps: 1000000000", "train_tokens: 1000B", "epochs: 1e6"])
def test_a_budget_that_nobody_will_reach_is_one(tmp_path: Path, budget: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(edited((STEPS, f"  {budget}")))
    load_config(path)


def test_rows_longer_than_the_architecture_takes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from foundry_core.models.base import BaseLanguageModel
    from foundry_core.registry.architecture import Capabilities, register_architecture
    from foundry_core.schema import ModelConfig

    register_architecture("short_sighted", config=ModelConfig, capabilities=Capabilities(longest_sequence=63))(
        type("ShortSighted", (BaseLanguageModel,), {})
    )
    path = tmp_path / "wrong.yaml"
    path.write_text(edited((GPT2, "  architecture: short_sighted\n")))
    code, _, lines = validate(path, capsys)
    assert (code, lines) == (2, [f"{path}:6: data.max_sequence_length: short_sighted takes at most 63 tokens"])
    assert validate(path, capsys, "data.max_sequence_length=63")[0] == 0


def test_compiling_is_refused_where_it_is_not_supported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from foundry_core import BaseLanguageModel
    from foundry_core.registry.architecture import Capabilities, register_architecture
    from foundry_core.schema import ModelConfig

    register_architecture("as_it_is", config=ModelConfig, capabilities=Capabilities(compile=False))(
        type("AsItIs", (BaseLanguageModel,), {})
    )
    path = tmp_path / "x.yaml"
    path.write_text(edited((GPT2, "  architecture: as_it_is\n")))
    assert validate(path, capsys)[0] == 0
    path.write_text(edited((GPT2, "  architecture: as_it_is\n"), after(STEPS, "  compile: true")))
    assert validate(path, capsys) == (2, "", [f"{path}:17: training.compile: as_it_is does not support it"])


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.yaml"
    assert validate(path, capsys) == (2, "", [f"{path}: cannot be read: No such file or directory"])
    assert validate(tmp_path, capsys) == (2, "", [f"{tmp_path}: cannot be read: Is a directory"])


def test_a_file_of_windows_is_read_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert validate(path, capsys)[0] == 0
    path.write_bytes(VALID.replace(SIZE, "batch_size: x").replace("\n", "\r\n").encode())
    assert validate(path, capsys)[2] == [f"{path}:7: data.batch_size: must be an integer, not 'x'"]


@each(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("3", 3),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("y", "y"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
        ('"null"', "null"),
        ("[CLS]", ["CLS"]),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: object) -> None:
    read = YamlSource.parse(f"key: {text}\n", "text").data["key"]
    assert read == value
    assert type(read) is type(value)


@each(("text", "count"), [("10M", 10_000_000), ("1.5k", 1500), ("2b", 2_000_000_000), ("0.1M", 100_000), ("12", 12)])
def test_a_count_may_be_written_short(text: str, count: int, valid: Path) -> None:
    config = load_config(valid, ["training.train_steps=null", f"training.train_tokens={text}"])
    assert config.training.train_tokens == count
    assert type(config.training.train_tokens) is int


def test_an_anchor_states_two_sizes_that_must_be_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        edited(("embedding_size: 32", "embedding_size: &width 32"), ("hidden_size: 32", "hidden_size: *width"))
    )
    assert load_config(path).model == load_config(YamlSource.parse(VALID, "valid").data).model


def test_an_override_replaces_a_value_of_the_file(valid: Path) -> None:
    config = load_config(valid, ["training.learning_rate=1e-4", "data.batch_size=4", "experiment_name=other"])
    assert config.training.learning_rate == 1e-4
    assert config.data.batch_size == 4
    assert config.experiment_name == "other"


def test_an_override_may_open_sections_that_the_file_lacks(valid: Path) -> None:
    config = load_config(valid, ["seeds.masking=3", "training.checkpoints.milestones.words=[1M, 2M]"])
    assert config.seeds.masking == 3
    assert config.training.checkpoints.milestones.words == (1_000_000, 2_000_000)


def test_the_last_of_two_overrides_counts(valid: Path) -> None:
    assert load_config(valid, ["data.batch_size=1", "data.batch_size=2"]).data.batch_size == 2


def test_an_override_may_replace_a_whole_section(valid: Path) -> None:
    config = load_config(valid, ["data={training_corpus: other.txt}"])
    assert (config.data.training_corpus, config.data.test_corpus) == ("other.txt", None)


TEXTS = [
    *("notes.txt #2.txt", "[set]/run", "{a}", "a: b", '"quoted"', "'x'", " led and trailed ", "1e-4", "true", "- a"),
    *("null#", "!x", "&a", "*a", "%a", "@a", "?", "a=b=c", "#", "b\u00fccher", "it's", "|", ">", "a\tb", ""),
]
TEXT_KEYS = [
    ("data.training_corpus",),
    ("data.test_corpus",),
    ("tokenizer.output_dir",),
    ("training.output_dir",),
    ("logging.wandb_project",),
    ("tokenizer.special_tokens.unk_token",),
    ("tokenizer.special_tokens={}", "tokenizer.special_tokens.unk_token"),
]


@each("keys", TEXT_KEYS)
def test_a_key_of_text_takes_the_rest_of_the_argument(keys: tuple[str, ...]) -> None:
    *before, key = keys
    settings = {**smallest({"architecture": "gpt2"}), "tokenizer": {"tokenizer_type": "bpe"}}
    for text in TEXTS:
        try:
            value: Any = load_config(settings, [*before, f"{key}={text}"])
        except ConfigError as error:
            taken = repr(text) in str(error)  # not every text can be a path or a special token
        else:
            for part in key.split("."):
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            taken = value == text
        assert taken, text


class Leaf(ConfigSection):
    text: str = ""


class Inner(ConfigSection):
    name: str = "x"
    limits: dict[str, int] = Field({})
    labels: dict[str, str | None] = Field({})
    either: str | int = 0
    choice: Literal["a", "b"] | None = None
    variant: Literal["a", "b"] | Leaf = "a"
    anything: Any = None


class Outer(ConfigSection):
    inner: Inner | None = None
    path: PathText | None = None


@each(
    ("key", "text", "value"),
    [
        ("inner.name", "a #b", "a #b"),
        ("inner.name", "7", "7"),
        ("inner.limits.a #b", "7 # seven", 7),
        ("inner.labels.a", "7 # seven", "7 # seven"),
        ("inner.labels.a", "null", None),
        ("inner.either", "7 # seven", 7),
        ("inner.either", "'7'", "7"),
        ("inner.choice", "a", "a"),
        ("inner.choice", "null", None),
        ("inner.variant", "b", "b"),
        ("inner.variant.text", "# 7", "# 7"),
        ("inner.anything", "[1, 2] # two", [1, 2]),
        ("inner", "{name: '#'}", Inner(name="#")),
        ("path", "~/a #b", "/home/me/a #b"),
        ("path", "null", None),
    ],
)
def test_the_schema_of_a_plugin_decides_what_is_text(
    key: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    source = YamlSource("x.yaml", {}, {})
    source.override(f"{key}={text}")
    found: Any = Outer.model_validate(source.data)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_overrides_reach_the_keys_that_a_model_type_has() -> None:
    settings = smallest({"architecture": "transformers"})
    overrides = ["model.transformers.layer_norm_epsilon=1e-3 # a number", "model.transformers.n_layer=3"]
    config = load_config(settings, ["model.transformers={model_type: gpt2, n_embd: 8, n_head: 2}", *overrides])
    values = config.resolved()["model"]["transformers"]
    assert (values["layer_norm_epsilon"], values["n_layer"]) == (1e-3, 3)
    with pytest.raises(ConfigError, match=r"n_layer: not valid YAML"):
        load_config(settings, ["model.transformers={model_type: gpt2, n_embd: 8}", "model.transformers.n_layer=[1"])


@each(
    ("key", "value"),
    [
        ("data.test_corpus", None),
        ("training.objective", "causal_lm"),
        ("tokenizer.tokenizer_type", "sentencepiece"),
        ("experiment_name", "null"),
        ("training.output_dir", "null"),
    ],
)
def test_null_resets_a_key_that_may_be_left_out(key: str, value: str | None, valid: Path) -> None:
    found: Any = load_config(valid, [f"{key}=null"])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_home_folder_is_found_in_every_path_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = ("data.training_corpus", "data.test_corpus", "tokenizer.output_dir", "training.output_dir")
    settings = smallest({"architecture": "gpt2"})
    for key in keys:
        section, name = key.split(".")
        settings.setdefault(section, {})[name] = f"~/{name}/*.txt"
    resolved = load_config(settings).resolved()
    overridden = load_config(smallest({"architecture": "gpt2"}), [f"{key}=~/{key}" for key in keys]).resolved()
    for key in keys:
        section, name = key.split(".")
        assert resolved[section][name] == f"/home/me/{name}/*.txt"
        assert overridden[section][name] == f"/home/me/{key}"


@each(
    ("override", "problem"),
    [
        ("training.learning_rate=fast", "training.learning_rate: must be a number, not 'fast'"),
        ("training.lerning_rate=1", "training.lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        ("nope.x=3", f"nope: unknown key. Known here: {TOP_KEYS}."),
        ("training.learning_rate", "training.learning_rate: an override is section.key=value"),
        ("=3", "=3: an override is section.key=value"),
        ("training..x=3", "training..x=3: an override is section.key=value"),
        ("experiment_name.x=3", "experiment_name.x: experiment_name is not a section"),
        ("data.batch_size=[1", "data.batch_size: not valid YAML: did not find expected ',' or ']'"),
        ("data.batch_size=!x 3", "data.batch_size: YAML tag !x is not supported: remove it"),
        ("data={batch_size: 3}", "data.training_corpus: missing"),
        ("model=gpt2", "model: must be a section"),
        (
            "model.architecture=lstn",
            f"model.architecture: Unknown architecture: 'lstn'. Did you mean 'lstm'? {AVAILABLE}",
        ),
    ],
)
def test_a_wrong_override_names_the_command_line(
    override: str, problem: str, valid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(valid, capsys, override) == (2, "", [f"command line: {problem}"])


def test_an_override_contradicting_the_file_is_reported_there(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, lines = validate(valid, capsys, "training.epochs=2")
    assert lines == [f"{valid}:18: training: {BUDGETS}: found epochs and train_steps"]


@each(
    ("model", "tokenizer", "objective"),
    [
        ({"architecture": "gpt2"}, "sentencepiece", "causal_lm"),
        ({"architecture": "bert"}, "wordpiece", "masked_lm"),
        ({"architecture": "lstm"}, "sentencepiece", "causal_lm"),
        ({"architecture": "gru"}, "sentencepiece", "causal_lm"),
        ({"architecture": "rnn"}, "sentencepiece", "causal_lm"),
        ({"architecture": "lstm", "rnn": {"bidirectional": True}}, "sentencepiece", "masked_lm"),
    ],
)
def test_what_a_file_leaves_open_the_architecture_decides(
    model: dict[str, Any], tokenizer: str, objective: str
) -> None:
    config = load_config(smallest(model))
    assert config.tokenizer.tokenizer_type == tokenizer
    assert config.training.objective == objective
    assert config.objective is CORE_OBJECTIVES[objective]


def test_what_a_file_says_the_architecture_does_not_decide() -> None:
    settings = smallest({"architecture": "bert"})
    settings["tokenizer"] = {"tokenizer_type": "bpe", "vocab_size": 300}
    assert load_config(settings).tokenizer.tokenizer_type == "bpe"
    settings = smallest({"architecture": "lstm"})
    settings["training"]["objective"] = "masked_lm"
    assert load_config(settings).training.objective == "masked_lm"


def test_seeds_default_to_the_random_seed() -> None:
    settings = smallest({"architecture": "gpt2"}) | {"random_seed": 5, "seeds": {"masking": 0}}
    config = load_config(settings)
    assert [config.seed(stream) for stream in ("initialisation", "data_order", "masking", "dropout")] == [5, 5, 0, 5]


def test_a_configuration_cannot_be_written_to(valid: Path) -> None:
    config = load_config(valid)
    for section, key, value in ((config, "random_seed", 1), (config.data, "batch_size", 1), (config.model, "x", 1)):
        with pytest.raises(ValidationError):
            setattr(section, key, value)


def test_loading_leaves_the_mapping_it_was_given_alone() -> None:
    settings = smallest({"architecture": "bert"})
    load_config(settings, ["training.learning_rate=1e-4"])
    assert settings == smallest({"architecture": "bert"})


@each("path", CONFIGS)
def test_every_shipped_file_validates(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, lines = validate(path, capsys)
    assert (code, lines) == (0, [])
    assert out.startswith(f"{path}: valid; ")


def test_there_are_files_shipped() -> None:
    assert {"bert", "gpt2", "lstm", "gru", "rnn", "mamba", "llama"} <= {path.stem for path in CONFIGS}


@each("path", CONFIGS)
def test_what_is_resolved_loads_as_the_same_configuration(path: Path) -> None:
    config = load_config(path)
    again = load_config(config.resolved())
    assert again == config
    assert again.resolved() == config.resolved()


def test_the_resolved_configuration_holds_every_key_and_default(valid: Path) -> None:
    resolved = load_config(valid).resolved()
    assert resolved["model"]["transformer"]["attention_dropout"] == 0.1
    assert set(resolved) == set(ExperimentConfig.model_fields)
    assert resolved["training"]["adam_beta1"] == 0.9
    assert resolved["training"]["objective"] == "causal_lm"


def test_every_key_of_the_design_is_accepted() -> None:
    config = load_config(YamlSource.parse(EVERY_KEY, "design").data)
    assert config.tokenizer.special_tokens is not None
    assert config.tokenizer.special_tokens["mask_token"] == "[MASK]"
    assert config.training.checkpoints.milestones.words == (1_000_000, 10_000_000)
    assert config.training.adam_beta2 == 0.98
    for budget in ("train_steps: 100", "train_tokens: 1M", "train_words: 1M", "train_bytes: 5M"):
        load_config(YamlSource.parse(EVERY_KEY.replace("epochs: 10", budget), "design").data)
    load_config(YamlSource.parse(EVERY_KEY.replace("warmup_ratio: 0.1", "warmup_steps: 10"), "design").data)


def test_load_config_raises_what_the_command_prints(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(edited((SIZE, "batch_sise: 8")))
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(raised.value) == f"{path}:7: data.batch_sise: unknown key. Did you mean 'batch_size'?"
    assert [(problem.line, problem.key) for problem in raised.value.problems] == [(7, "data.batch_sise")]


def smallest(model: dict[str, Any]) -> dict[str, Any]:
    """model: `model:`, laid over the tiny sizes of its architecture."""
    tiny = get_architecture(model["architecture"]).examples["tiny"]
    return {
        "experiment_name": "trial",
        "data": {"training_corpus": "corpora/train.txt"},
        "model": {**model, **{name: {**sizes, **model.get(name, {})} for name, sizes in tiny.items()}},
        "training": {"output_dir": "runs/trial", "train_steps": 10},
    }


EVERY_KEY = """\
experiment_name: bert-small
random_seed: 42
data:
  training_corpus: corpora/train
  test_corpus: corpora/dev.txt
  max_sequence_length: 128
  batch_size: 32
tokenizer:
  tokenizer_type: wordpiece
  vocab_size: 8000
  output_dir: tokenizers/bert-small
  special_tokens: {cls_token: "[CLS]", sep_token: "[SEP]", mask_token: "[MASK]", unk_token: "[UNK]", pad_token: "[PAD]"}
model:
  architecture: bert
  transformer: {layers: 4, embedding_size: 256, hidden_size: 256, intermediate_hidden_size: 1024,
                attention_heads: 4, activation_function: gelu, dropout: 0.1, attention_dropout: 0.1}
  bert: {type_vocab_size: 2}
training:
  output_dir: runs/bert-small
  objective: masked_lm
  mlm_probability: 0.15
  learning_rate: 5.0e-4
  epochs: 10
  optimizer: adamw
  adam_beta1: 0.9
  adam_beta2: 0.98
  adam_epsilon: 1e-6
  weight_decay: 0.01
  lr_scheduler: linear
  warmup_ratio: 0.1
  gradient_accumulation_steps: 2
  max_grad_norm: 1.0
  precision: bf16
  compile: false
  gradient_checkpointing: true
  evaluate_every_steps: 100
  num_workers: 2
  checkpoints: {every_steps: 1000, log_base: 2, steps: [10, 20], milestones: {words: [1M, 10M]}, keep: 5,
                ephemeral_minutes: 15}
logging: {log_every_steps: 10, tensorboard: false, use_wandb: false, wandb_project: null}
seeds: {initialisation: 1, data_order: 2, masking: 3, dropout: 4}
plugins: []
"""


def test_a_pickle_holds_the_settings_and_finds_the_descriptor(valid: Path) -> None:
    config = load_config(valid)
    assert config.architecture.name == "gpt2"
    assert config.objective.name == "causal_lm"
    back = pickle.loads(pickle.dumps(config))
    assert back == config
    assert back.architecture is config.architecture


def test_a_missing_size_hides_no_rule_of_other_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "experiment_name: x\n"
        "data: {training_corpus: a.txt, test_corpus: a.txt}\n"
        "model: {architecture: lstm, rnn: {embedding_size: 8, hidden_size: 8}}\n"
        "training: {output_dir: r, epochs: 1, lr_scheduler: plateau}\n"
    )
    code, _, lines = validate(path, capsys)
    assert code == 2
    keys = [line.removeprefix(f"{path}:").split(": ")[1] for line in lines]
    assert keys == ["data.test_corpus", "model.rnn.num_layers", "training.lr_scheduler"]
