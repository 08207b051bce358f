"""The sections of the YAML: their keys, types, defaults and the rules inside one section. Light.

`foundry init` writes a description as a comment, and `foundry schema` passes it to editors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from foundry_core.registry.tokenizer_type import Role
from foundry_core.schema import ConfigSection, PathText

MOST_ROWS = 2**20
"""Limit on the sequences in one forward pass, and in one optimizer step."""
MOST_COUNT = 2**42
"""Limit on the steps, tokens or words of a budget or a milestone."""
MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def count(value: Any) -> Any:
    """Return 10000000 for `10M`, and anything that is not such a text as it is."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMbB])", value) if isinstance(value, str) else None
    if match is None:
        return value
    number = Decimal(match.group(1)) * MULTIPLES[match.group(2).lower()]
    return int(number) if number == int(number) else value


Count = Annotated[int, BeforeValidator(count), Field(ge=1, le=MOST_COUNT)]
Counts = Annotated[tuple[Count, ...], Field(strict=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Settings = SerializeAsAny[ConfigSection] | None
CorpusSteps = Annotated[tuple[dict[str, SerializeAsAny[ConfigSection]], ...], Field(strict=False)]
"""Steps of one name each, with the settings that the descriptor of that name asks for."""


class DocumentDelimiter(ConfigSection):
    delimiter: str = Field(min_length=1, description="text between two documents, such as <|endoftext|>")


class DataConfig(ConfigSection):
    training_corpus: PathText = Field(description="file, folder or glob; .txt or .jsonl (key text), also .gz; .parquet")
    test_corpus: PathText | None = Field(None, description="text to evaluate on; never used in training")
    files: str | None = Field(
        None, min_length=1, description='files of a folder to read, such as "*.train"; null: all that can be read'
    )
    documents: Literal["line", "block", "file"] | DocumentDelimiter = Field(
        "line", description="one document of a .txt file: line, block (between blank lines), file, or {delimiter: ...}"
    )
    max_sequence_length: int = Field(128, ge=4, le=2**24, description="tokens in a row, special tokens included")
    tokens_per_row: int | None = Field(
        None,
        ge=1,
        description="tokens of the text that a row consumes, under every objective; default: max_sequence_length - 2",
    )
    batch_size: int = Field(32, ge=1, le=MOST_ROWS, description="sequences per forward pass on one device")
    steps: CorpusSteps = Field(
        (), description="changes to the training text, in this order: drop, keep, replace, sample, deduplicate, ..."
    )

    @property
    def consumed_per_row(self) -> int:
        """Number of tokens of the text that a row consumes."""
        return self.max_sequence_length - 2 if self.tokens_per_row is None else self.tokens_per_row


class TokenizerConfig(ConfigSection):
    tokenizer_type: str = Field(
        "sentencepiece",
        description="sentencepiece, wordpiece, bpe, character, word, or a plugin's; default: the architecture's",
    )
    vocab_size: int = Field(
        8000, ge=8, le=2**24, description="size with special tokens; for character and word a limit"
    )
    output_dir: PathText | None = Field(
        None, description="its folder, reused while its inputs are unchanged; default: in the run's folder"
    )
    special_tokens: dict[Role, Annotated[str, Field(min_length=1)] | None] | None = Field(
        None, description="changes to the default special tokens, by role"
    )


class _Counting(ConfigSection):
    LARGEST = 2**63 - 1


class Milestones(_Counting):
    words: Counts = Field((), description="save after these numbers of words")
    tokens: Counts = Field((), description="save after these numbers of tokens")


class CheckpointConfig(_Counting):
    every_steps: int | None = Field(None, ge=1, description="save every N optimizer steps")
    log_base: float | None = Field(None, ge=1.01, description="save at steps 1, b, b^2, b^3, ...")
    steps: Steps = Field((), description="save at these steps")
    milestones: Milestones = Field(Milestones(), description="save after these numbers of words or tokens")
    keep: int | None = Field(None, ge=1, description="keep the newest N checkpoints and step 0; null keeps all")
    keep_optimizer: Literal["newest", "all"] = Field(
        "newest", description="optimizer state, only needed to resume: of the newest two checkpoints, or of all"
    )
    ephemeral_minutes: float | None = Field(
        None, gt=0, description="crash safety: save every N minutes, keep the newest"
    )


def _one_budget(training: TrainingConfig) -> Iterator[str]:
    keys = ("epochs", "train_steps", "train_tokens", "train_words")
    given = [key for key in keys if getattr(training, key) is not None]
    if len(given) != 1:
        yield f"give exactly one of {', '.join(keys)}: found {' and '.join(given) or 'none'}"


def _one_warm_up(training: TrainingConfig) -> Iterator[str]:
    if training.warmup_steps is not None and training.warmup_ratio is not None:
        yield "give warmup_steps or warmup_ratio, not both"


def _warm_up_within_the_budget(training: TrainingConfig) -> Iterator[str]:
    if training.train_steps is not None and (training.warmup_steps or 0) > training.train_steps:
        yield f"warmup_steps ({training.warmup_steps}) exceeds train_steps ({training.train_steps})"


class TrainingConfig(_Counting):
    RULES = (_one_budget, _one_warm_up, _warm_up_within_the_budget)

    output_dir: PathText = Field(description="the run's folder: checkpoints, metrics.jsonl, config.yaml")
    objective: str = Field("causal_lm", description="causal_lm, masked_lm, or a plugin's; default: the architecture's")
    objective_settings: Settings = Field(None, description="settings of a plugin's objective")
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens masked under masked_lm")
    learning_rate: float = Field(5e-4, gt=0, description="peak, after warm-up")
    epochs: float | None = Field(None, gt=0, le=1e9, description="budget: passes over the training corpus")
    train_steps: Count | None = Field(None, description="budget: optimizer steps")
    train_tokens: Count | None = Field(None, description="budget: tokens of the corpus without padding, such as 10M")
    train_words: Count | None = Field(None, description="budget: words between white space, such as 10M")
    optimizer: str = Field("adamw", description="adamw, sgd, or a plugin's")
    optimizer_settings: Settings = Field(None, description="settings of a plugin's optimizer")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's average")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's average")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the denominator of the update")
    sgd_momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.01, ge=0, description="decoupled for adamw, L2 for sgd")
    weight_decay_on: Literal["matrices", "all"] = Field(
        "matrices", description="matrices: not on biases, norms, rates and embeddings; all: on every parameter"
    )
    lr_scheduler: Literal["linear", "cosine", "constant", "plateau"] = Field(
        "linear", description="after warm-up: linear or cosine to 0, constant, or plateau: lower if test loss stalls"
    )
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: multiply the learning rate by this")
    plateau_patience: int = Field(1, ge=0, description="plateau: evaluations without improvement before lowering")
    warmup_steps: int | None = Field(None, ge=0, description="optimizer steps of linear warm-up")
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="warm-up as a share of all steps")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST_ROWS, description="forward passes in one optimizer step")
    max_grad_norm: float | None = Field(1.0, gt=0, description="scale gradients down to this norm; null: never")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where it is faster and proven for the architecture; weights stay in fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile, 10 to 40 s once; auto: in a long run, if a trial shows that it is repaid"
    )
    kernels: Literal["auto", "fast", "reference"] = Field(
        "auto",
        description="fast (auto): core's own formulation of attention, activations, dropout and the vocabulary "
        "projection; reference: that of transformers and torch; they differ by rounding",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, slower")
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="evaluate on the test corpus every N steps, and at the end"
    )
    num_workers: int = Field(0, ge=0, le=1024, description="processes that prepare batches; does not change the result")
    checkpoints: CheckpointConfig = Field(CheckpointConfig(), description="when to save, besides step 0 and the end")


def _wandb_has_a_project(logging: LoggingConfig) -> Iterator[str]:
    if logging.use_wandb and not logging.wandb_project:
        yield "use_wandb needs wandb_project"


class LoggingConfig(ConfigSection):
    RULES = (_wandb_has_a_project,)

    log_every_steps: int = Field(10, ge=1, description="write metrics.jsonl every N optimizer steps")
    tensorboard: bool = Field(False, description="write TensorBoard events to output_dir/tensorboard")
    use_wandb: bool = Field(False, description="report to Weights & Biases")
    wandb_project: str | None = Field(None, description="W&B project; required with use_wandb")


class SeedsConfig(_Counting):
    initialisation: Seed | None = Field(None, description="weights at step 0; default: random_seed")
    data_order: Seed | None = Field(None, description="order of the rows; default: random_seed")
    masking: Seed | None = Field(None, description="choice of the masked tokens; default: random_seed")
    dropout: Seed | None = Field(None, description="dropout; default: random_seed")
