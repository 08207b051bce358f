"""The sections of the YAML: their keys, types, defaults and the rules inside one section. Light.

A description is what `foundry init` writes as a comment and `foundry schema` shows in an editor.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from foundry_core.registry.tokenizer_type import Role
from foundry_core.schema import ConfigSection

MOST_ROWS = 2**20
"""Sequences in one forward pass, and in one optimizer step."""
MOST_COUNT = 2**42
"""Steps, tokens or words of a budget or a milestone."""
MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def count(value: Any) -> Any:
    """`10M` is 10000000; plain integers pass."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMbB])", value) if isinstance(value, str) else None
    if match is None:
        return value
    number = Decimal(match.group(1)) * MULTIPLES[match.group(2).lower()]
    return int(number) if number == int(number) else value


Count = Annotated[int, BeforeValidator(count), Field(ge=1, le=MOST_COUNT)]


class DataConfig(ConfigSection):
    training_corpus: str = Field(
        min_length=1, description="a file, a folder or a glob; .txt or .jsonl (key text), optionally .gz"
    )
    test_corpus: str | None = Field(None, min_length=1, description="what is evaluated; never seen in training")
    documents: Literal["line", "block", "file"] = Field(
        "line",
        description="what one document of a .txt file is: a line, a block between blank lines, or the whole file",
    )
    max_sequence_length: int = Field(128, ge=4, le=2**24, description="tokens in a row, special tokens included")
    batch_size: int = Field(32, ge=1, le=MOST_ROWS, description="sequences per forward pass on one device")

    @field_validator("training_corpus", "test_corpus")
    @classmethod
    def _home_is_known(cls, value: str | None) -> str | None:
        try:
            Path(value or "").expanduser()
        except RuntimeError:
            raise ValueError(f"{value!r} names the home of a user who is not known here") from None
        return value


class TokenizerConfig(ConfigSection):
    tokenizer_type: str = Field(
        "sentencepiece",
        description="sentencepiece, wordpiece, bpe (byte-level), character, word, or one that a plugin adds; default: "
        "the architecture's",
    )
    vocab_size: int = Field(
        8000, ge=8, le=2**24, description="most tokens, special ones included; for character and word a limit"
    )
    output_dir: str | None = Field(
        None,
        min_length=1,
        description="where it is kept: trained once, reused while its inputs are unchanged; default: in the run",
    )
    special_tokens: dict[Role, Annotated[str, Field(min_length=1)] | None] | None = Field(
        None, description="changes to the default special tokens, by role"
    )


class Milestones(ConfigSection):
    LARGEST = 2**63 - 1

    words: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        (), description="save when so many words were seen"
    )
    tokens: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        (), description="save when so many tokens were seen"
    )


class CheckpointConfig(ConfigSection):
    LARGEST = 2**63 - 1

    every_steps: int | None = Field(None, ge=1, description="save every so many optimizer steps")
    log_base: float | None = Field(None, ge=1.01, description="save at steps 1, b, b^2, b^3, ...")
    steps: Annotated[tuple[int, ...], Field(strict=False)] = Field((), description="save at these steps")
    milestones: Milestones = Field(Milestones(), description="save when so many words or tokens were seen")
    keep: int | None = Field(
        None, ge=1, description="newest checkpoints to keep, the one of step 0 aside; null keeps all"
    )
    ephemeral_minutes: float | None = Field(
        None, gt=0, description="also save after so many minutes, for crash safety only: the newest such one is kept"
    )


class TrainingConfig(ConfigSection):
    LARGEST = 2**63 - 1

    output_dir: str = Field(min_length=1, description="the run's folder: checkpoints, metrics.jsonl, config.yaml")
    objective: str = Field(
        "causal_lm", description="causal_lm, masked_lm, or one that a plugin adds; default: the architecture's"
    )
    objective_settings: SerializeAsAny[ConfigSection] | None = Field(
        None, description="settings of an objective that a plugin adds, where it has any"
    )
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden under masked_lm")
    learning_rate: float = Field(5e-4, gt=0, description="the peak, after warm-up")
    epochs: float | None = Field(None, gt=0, le=1e9, description="budget: passes over the training corpus")
    train_steps: Count | None = Field(None, description="budget: optimizer steps")
    train_tokens: Count | None = Field(
        None, description="budget: tokens of the corpus, such as 10M; padding not counted"
    )
    train_words: Count | None = Field(None, description="budget: white-space separated words, such as 10M")
    optimizer: str = Field("adamw", description="adamw, sgd, or one that a plugin adds")
    optimizer_settings: SerializeAsAny[ConfigSection] | None = Field(
        None, description="settings of an optimizer that a plugin adds, where it has any"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's average")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's average")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the denominator of the update")
    sgd_momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.01, ge=0, description="decoupled for adamw, L2 for sgd")
    weight_decay_on: Literal["matrices", "all"] = Field(
        "matrices", description="matrices leaves biases, norms and embeddings out; all does not"
    )
    lr_scheduler: Literal["linear", "cosine", "constant", "plateau"] = Field(
        "linear",
        description="after warm-up: linear or cosine to 0, constant, or plateau (cut when the test loss stalls)",
    )
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: multiply the learning rate by this")
    plateau_patience: int = Field(1, ge=0, description="plateau: evaluations without improvement before a cut")
    warmup_steps: int | None = Field(None, ge=0, description="optimizer steps of linear warm-up")
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="warm-up as a share of all steps")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST_ROWS, description="forward passes in one optimizer step")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are scaled down to this norm; null: never")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that computes in it, fp32 otherwise; weights stay in fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU when there is one")
    compile: bool = Field(False, description="torch.compile: costs 10 to 40 s once, pays from minutes of training on")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="score the test corpus so often; always at the end"
    )
    num_workers: int = Field(0, ge=0, le=1024, description="processes that prepare batches; never changes the result")
    checkpoints: CheckpointConfig = Field(CheckpointConfig(), description="when to save; step 0 and the end always are")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        budgets = [
            key for key in ("epochs", "train_steps", "train_tokens", "train_words") if getattr(self, key) is not None
        ]
        if len(budgets) != 1:
            given = f"found {' and '.join(budgets)}" if budgets else "found none"
            raise ValueError(f"give exactly one of epochs, train_steps, train_tokens, train_words: {given}")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.train_steps is not None and (self.warmup_steps or 0) > self.train_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) exceeds train_steps ({self.train_steps})")
        if any(step < 0 for step in self.checkpoints.steps):
            raise ValueError("checkpoints.steps must not be negative")
        return self


class LoggingConfig(ConfigSection):
    log_every_steps: int = Field(10, ge=1, description="optimizer steps between two lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="write TensorBoard events to output_dir/tensorboard")
    use_wandb: bool = Field(False, description="report to Weights & Biases")
    wandb_project: str | None = Field(None, description="project there; needed with use_wandb")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.use_wandb and not self.wandb_project:
            raise ValueError("use_wandb needs wandb_project")
        return self


class SeedsConfig(ConfigSection):
    LARGEST = 2**63 - 1

    initialisation: int | None = Field(None, ge=0, lt=2**63, description="weights at step 0; default random_seed")
    data_order: int | None = Field(None, ge=0, lt=2**63, description="order of the rows; default random_seed")
    masking: int | None = Field(None, ge=0, lt=2**63, description="which tokens are hidden; default random_seed")
    dropout: int | None = Field(None, ge=0, lt=2**63, description="dropout; default random_seed")
