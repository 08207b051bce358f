"""The sections of the YAML: their keys, types, defaults and the rules inside one section. Light.

`foundry init` writes a description as a comment, and `foundry schema` passes it to editors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, SerializeAsAny, Tag

from foundry_core.registry.tokenizer_type import Role
from foundry_core.schema import ConfigSection, PathText, Positions

MOST_ROWS = 2**20
"""Limit on the sequences in one forward pass, and in one optimizer step."""
MOST_COUNT = 2**42
"""Limit on the steps, tokens, words or bytes of a budget or a milestone."""
MOST_EPOCHS = 1e9
TEXT_KEYS = ("training_corpus", "documents", "files", "blank_lines", "steps")
"""The keys of `data` that decide what the training text is, and with it the tokenizer."""
BUDGETS = ("epochs", "train_steps", "train_tokens", "train_words", "train_bytes")
"""The keys of `training` of which exactly one is given."""
LEAST_SHARE = 10_000
"""A corpus of a mixture has at least one of so many rows."""
MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def count(value: Any) -> Any:
    """Return 10000000 for `10M`, and anything that is not such a text as it is."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMbB])", value) if isinstance(value, str) else None
    if match is None:
        return value
    number = Decimal(match.group(1)) * MULTIPLES[match.group(2).lower()]
    return int(number) if number == int(number) else value


def shares(value: Any) -> Any:
    """Check a share, or the pair of those at the beginning and the end of a run.

    One message for both: a union of types would report what is wrong with a value for each of them.
    """
    pair = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(pair) != 2:
        raise ValueError(f"must be a share, or two: at the beginning and at the end; not {len(pair)}")
    for share in pair:
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ValueError(f"must be a number, or a list of two, not {share!r}")
        if not share > 0:
            raise ValueError(f"must be greater than 0, not {share!r}")
        if not share < 1:
            raise ValueError(f"must be less than 1, not {share!r}")
    return tuple(map(float, pair)) if len(pair) == 2 else value


Count = Annotated[int, BeforeValidator(count), Field(ge=1, le=MOST_COUNT)]
Counts = Annotated[tuple[Count, ...], Field(strict=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Shares = Annotated[Share | tuple[Share, Share], BeforeValidator(shares)]
Epochs = Annotated[tuple[Annotated[float, Field(gt=0, le=MOST_EPOCHS)], ...], Field(strict=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Settings = SerializeAsAny[ConfigSection] | None
CorpusSteps = Annotated[tuple[dict[str, SerializeAsAny[ConfigSection]], ...], Field(strict=False)]
"""Steps of one name each, with the settings that the descriptor of that name asks for."""


class DocumentDelimiter(ConfigSection):
    delimiter: str = Field(min_length=1, description="text between two documents, such as <|endoftext|>")


class CorpusShare(ConfigSection):
    path: PathText = Field(description="file, folder or glob, as of training_corpus")
    share: float = Field(ge=0, description="share of the tokens that are trained, in relation to those of the others")


Mixture = Annotated[dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], CorpusShare], Field(min_length=1)]


def _mixture(data: DataConfig) -> Mapping[str, CorpusShare] | None:
    return data.training_corpus if isinstance(data.training_corpus, Mapping) else None


def _has_a_share(data: DataConfig) -> Iterator[str]:
    shares = {name: each.share for name, each in (_mixture(data) or {}).items()}
    total = sum(shares.values())
    if shares and not total:
        yield "training_corpus: the shares sum to zero: give one of them a positive share"
    for name, share in shares.items():
        if 0 < share < total / LEAST_SHARE:
            yield f"training_corpus.{name}: its share is less than 1/{LEAST_SHARE:,} of all: leave it out or raise it"


def _one_way_of_batching(data: DataConfig) -> Iterator[str]:
    if data.isolate_documents and data.batching != "shuffled":
        instead = ", in which they are apart" if data.batching == "documents" else ""
        yield f"isolate_documents needs batching: shuffled, not {data.batching}{instead}"
    if data.order != "shuffled" and data.batching in ("contiguous", "crops"):
        yield f"order: {data.order} needs batching: shuffled or documents, not {data.batching}"


def _several_corpora_are_shuffled(data: DataConfig) -> Iterator[str]:
    if _mixture(data) is None:
        return
    for key, value in (("batching", data.batching), ("order", data.order)):
        if value != "shuffled":
            yield f"training_corpus: several corpora need {key}: shuffled, not {value}"
    if data.isolate_documents:
        yield "training_corpus: several corpora cannot be trained with isolate_documents"


class DataConfig(ConfigSection):
    RULES = (_has_a_share, _one_way_of_batching, _several_corpora_are_shuffled)

    training_corpus: Annotated[
        Annotated[PathText, Tag("[path]")] | Annotated[Mixture, Tag("[mixture]")],
        Discriminator(lambda given: "[mixture]" if isinstance(given, Mapping) else "[path]"),
    ] = Field(
        description="file, folder or glob; .txt or .jsonl (key text), also .gz; .parquet; or {name: {path, share}}"
    )
    test_corpus: PathText | None = Field(None, description="text to evaluate on; never used in training")
    validation_corpus: PathText | None = Field(
        None,
        description="text that plateau and early stopping look at instead of the test corpus, which is for the end",
    )
    files: str | None = Field(
        None, min_length=1, description='files of a folder to read, such as "*.train"; null: all that can be read'
    )
    documents: Literal["line", "block", "file"] | DocumentDelimiter = Field(
        "line", description="one document of a .txt file: line, block (between blank lines), file, or {delimiter: ...}"
    )
    blank_lines: Literal["drop", "keep"] = Field(
        "drop", description="of documents: line; keep: a blank line of a .txt file is an empty document, one separator"
    )
    max_sequence_length: Positions = Field(128, description="tokens in a row, special tokens included")
    tokens_per_row: int | None = Field(
        None,
        ge=1,
        description="tokens of the text that a row consumes, under every objective; default: max_sequence_length - 2",
    )
    batch_size: int = Field(32, ge=1, le=MOST_ROWS, description="sequences per forward pass on one device")
    batching: Literal["shuffled", "contiguous", "documents", "crops"] = Field(
        "shuffled",
        description="shuffled: the text cut into equal rows; contiguous: one parallel lane for each row of a step, the "
        "state carried from row to row; documents: one document a row; crops: random windows with replacement",
    )
    isolate_documents: bool = Field(
        False, description="attention, positions and recurrent states end with each document of a shuffled row"
    )
    order: str = Field("shuffled", description="order of the rows in an epoch: shuffled, sequential, or a plugin's")
    order_settings: Settings = Field(None, description="settings of a plugin's order")
    steps: CorpusSteps = Field(
        (), description="changes to the training text, in this order: drop, keep, replace, sample, deduplicate, ..."
    )

    @property
    def mixture(self) -> Mapping[str, CorpusShare] | None:
        """The corpora of `training_corpus` by name, if it names several."""
        return _mixture(self)

    @property
    def consumed_per_row(self) -> int:
        """Number of tokens of the text that a row consumes."""
        return self.max_sequence_length - 2 if self.tokens_per_row is None else self.tokens_per_row


class TokenizerConfig(ConfigSection):
    path: PathText | None = Field(
        None,
        description="a tokenizer to use as it is: a folder with tokenizer.json, that file, or a sentencepiece .model",
    )
    tokenizer_type: str | None = Field(
        "sentencepiece",
        description="sentencepiece, wordpiece, bpe, character, word, or a plugin's; default: the architecture's",
    )
    vocab_size: int | None = Field(
        8000, ge=8, le=2**24, description="size with special tokens; for character and word a limit"
    )
    pretokenized: bool = Field(
        False, description="the words of the text are its tokens, <unk> among them, as in Penn Treebank and WikiText"
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
    """Amounts of the training text. Each is met at the last step at which no more than that has been seen."""

    words: Counts = Field((), description="after these numbers of words")
    tokens: Counts = Field((), description="after these numbers of tokens")
    bytes: Counts = Field((), description="after these numbers of UTF-8 bytes of the text")
    epochs: Epochs = Field((), description="after these numbers of epochs, such as 0.5")


class StepSchedule(_Counting):
    """Steps at which something is due, besides step 0 and the end; `training.plan.due_steps` computes them."""

    every_steps: int | None = Field(None, ge=1, description="every N optimizer steps")
    log_base: float | None = Field(None, ge=1.01, description="at steps 1, b, b^2, b^3, ...")
    steps: Steps = Field((), description="at these steps")
    milestones: Milestones = Field(Milestones(), description="at the last step within each of these amounts of text")


def _names_have_words(checkpoints: CheckpointConfig) -> Iterator[str]:
    if checkpoints.names is not None and not checkpoints.milestones.words:
        yield f"names: {checkpoints.names} needs milestones.words, which it names"


class CheckpointConfig(StepSchedule):
    RULES = (_names_have_words,)

    keep: int | None = Field(
        None, ge=1, description="keep the newest N, step 0, listed steps and milestones; null keeps all"
    )
    keep_optimizer: Literal["newest", "all"] = Field(
        "newest", description="optimizer state, only needed to resume: of the newest two checkpoints, or of all"
    )
    ephemeral_minutes: float | None = Field(
        None, gt=0, description="crash safety: save every N minutes, keep the newest"
    )
    names: Literal["babylm"] | None = Field(
        None, description="names for the checkpoints at milestones of words; babylm: chck_1M, chck_10M, ..."
    )


def _one_budget(training: TrainingConfig) -> Iterator[str]:
    given = [key for key in BUDGETS if getattr(training, key) is not None]
    if len(given) != 1:
        yield f"give exactly one of {', '.join(BUDGETS)}: found {' and '.join(given) or 'none'}"


def _one_warm_up(training: TrainingConfig) -> Iterator[str]:
    if training.warmup_steps is not None and training.warmup_ratio is not None:
        yield "give warmup_steps or warmup_ratio, not both"


def _one_decay(training: TrainingConfig) -> Iterator[str]:
    if training.decay_steps is not None and training.decay_ratio is not None:
        yield "give decay_steps or decay_ratio, not both"


def _warm_up_within_the_budget(training: TrainingConfig) -> Iterator[str]:
    if training.train_steps is not None and (training.warmup_steps or 0) > training.train_steps:
        yield f"warmup_steps ({training.warmup_steps}) exceeds train_steps ({training.train_steps})"


def _one_evaluation_schedule(training: TrainingConfig) -> Iterator[str]:
    if training.evaluate_every_steps is not None and training.evaluate_at is not None:
        yield "give evaluate_every_steps or evaluate_at, not both; evaluate_at takes every_steps too"


class TrainingConfig(_Counting):
    RULES = (_one_budget, _one_warm_up, _one_decay, _warm_up_within_the_budget, _one_evaluation_schedule)

    output_dir: PathText = Field(description="the run's folder: checkpoints, metrics.jsonl, config.yaml")
    objective: str = Field("causal_lm", description="causal_lm, masked_lm, or a plugin's; default: the architecture's")
    objective_settings: Settings = Field(None, description="settings of a plugin's objective")
    mlm_probability: Shares = Field(
        0.15, description="share of tokens masked under masked_lm, or two: at the beginning and at the end of the run"
    )
    masking: Literal["token", "whole_word"] = Field("token", description="what masked_lm masks: tokens, or whole words")
    learning_rate: float = Field(5e-4, gt=0, description="peak, after warm-up")
    epochs: float | None = Field(None, gt=0, le=MOST_EPOCHS, description="budget: passes over the training corpus")
    train_steps: Count | None = Field(None, description="budget: optimizer steps")
    train_tokens: Count | None = Field(None, description="budget: tokens of the corpus without padding, such as 10M")
    train_words: Count | None = Field(None, description="budget: words between white space, such as 10M")
    train_bytes: Count | None = Field(None, description="budget: UTF-8 bytes of the documents' text, such as 50M")
    optimizer: str = Field("adamw", description="adamw, sgd, asgd (sgd with averaged weights), or a plugin's")
    optimizer_settings: Settings = Field(None, description="settings of a plugin's optimizer")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's average")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's average")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the denominator of the update")
    sgd_momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd and asgd")
    weight_decay: float = Field(0.01, ge=0, description="decoupled for adamw, L2 for sgd and asgd")
    weight_decay_on: Literal["matrices", "two_dimensional", "all"] = Field(
        "matrices",
        description="matrices: not on biases, norms, rates and embeddings; two_dimensional: on every parameter of two "
        "or more dimensions, embeddings too; all: on every parameter",
    )
    asgd_nonmonotonic_interval: int | None = Field(
        None,
        ge=1,
        description="asgd: average once an evaluation is worse than the best before the last N; null: at once",
    )
    lr_scheduler: str = Field(
        "linear",
        description="after warm-up: linear, cosine, wsd, inverse_sqrt, step, constant, plateau (lower if evaluations "
        "stall), or a plugin's",
    )
    schedule_settings: Settings = Field(None, description="settings of a plugin's schedule")
    min_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="floor of the learning rate, as a share of the peak"
    )
    decay_steps: int | None = Field(
        None, ge=1, description="steps of the decay: after warm-up (linear, cosine; null: all), or the last (wsd)"
    )
    decay_ratio: float | None = Field(None, gt=0, le=1, description="the decay as a share of all steps")
    step_factor: float = Field(0.5, gt=0, lt=1, description="step: multiply the learning rate by this in each epoch")
    step_after_epochs: int | None = Field(None, ge=0, description="step: epochs at the peak before that")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: multiply the learning rate by this")
    plateau_patience: int = Field(1, ge=0, description="plateau: evaluations without improvement before lowering")
    warmup_steps: int | None = Field(None, ge=0, description="optimizer steps of linear warm-up")
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="warm-up as a share of all steps")
    warmup_end: Literal["peak", "below_peak"] = Field(
        "peak", description="last step of N of warm-up: at the peak, or one part in N + 1 below it, as in nanoGPT"
    )
    restore_best: Literal["never", "at_end", "when_lowered"] = Field(
        "never",
        description="go back to the weights of the best evaluation: at the end, or also when plateau lowers the rate",
    )
    loss_sum_over: Literal["tokens", "rows"] = Field(
        "tokens", description="divide the summed loss of a step by its number of tokens, or of rows"
    )
    start_from: PathText | None = Field(
        None, description="checkpoint whose weights training starts from, with the same tokenizer"
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST_ROWS, description="forward passes in one optimizer step")
    reduction: Literal["exact", "fast", "sharded"] = Field(
        "exact",
        description="how the gradients of micro-batches add up: exact: the same bits on any number of processes; fast: "
        "several processes communicate while they compute, equal up to rounding; sharded: each holds a part of the "
        "model, which need not fit into one",
    )
    max_grad_norm: float | None = Field(1.0, gt=0, description="scale gradients down to this norm; null: never")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where it is faster and proven for the architecture; weights stay in fp32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: the GPU if there is one; mps: that of a Mac"
    )
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
        None, ge=1, description="evaluate on the validation or test corpus every N steps, and at the end"
    )
    evaluate_at: Literal["checkpoints"] | StepSchedule | None = Field(
        None,
        description="instead: evaluate at step 0, the end and by a schedule with the keys of that of the checkpoints "
        "(every_steps, log_base, steps, milestones), or at the checkpoints",
    )
    evaluate_test: Literal["end", "always"] = Field(
        "end", description="with a validation corpus: evaluate on the test corpus at the end, or each time"
    )
    suites: Annotated[tuple[PathText, ...], Field(strict=False)] = Field(
        (), description="suites to score at each evaluation, as foundry evaluate --suite takes them: paths or names"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="end the run after N evaluations in a row without a better validation loss"
    )
    num_workers: int = Field(0, ge=0, le=1024, description="processes that prepare batches; does not change the result")
    checkpoints: CheckpointConfig = Field(CheckpointConfig(), description="when to save, besides step 0 and the end")

    @property
    def masked_shares(self) -> tuple[float, float]:
        """Shares of tokens masked at the beginning and at the end of the run; evaluations take the latter."""
        given = self.mlm_probability
        return given if isinstance(given, tuple) else (given, given)


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
