"""Stages 2 to 4 of the walk of the data for one experiment: corpus, tokenizer, token file; and what follows from them.

Everything is kept under the digest of its inputs and reused while they are unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.config import ExperimentConfig, load_config
from foundry_core.config_sections import default_special_tokens
from foundry_core.corpus import Corpus
from foundry_core.dataset import Rows, TokenFile, prepare_tokens
from foundry_core.errors import TokenizerError
from foundry_core.optim import warmup_steps
from foundry_core.storage import write_file
from foundry_core.tokenizers import load_tokenizer, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SIDECAR = "foundry.json"


def training_corpus(config: ExperimentConfig) -> Corpus:
    """The documents a model is trained on."""
    return Corpus.open(config.data.training_corpus, unit=config.data.documents, name="data.training_corpus")


def test_corpus(config: ExperimentConfig) -> Corpus | None:
    """The documents a model is scored on, when there are any."""
    if config.data.test_corpus is None:
        return None
    return Corpus.open(config.data.test_corpus, unit=config.data.documents, name="data.test_corpus")


def tokenizer_folder(config: ExperimentConfig) -> Path:
    """Where the experiment's tokenizer and its token files are kept."""
    return Path(config.tokenizer.output_dir or Path(config.training.output_dir) / "tokenizer")


def _tokenizer_inputs(config: ExperimentConfig, corpus: Corpus) -> dict[str, Any]:
    kind = config.tokenizer.tokenizer_type
    special = default_special_tokens(kind, masked="mask_token" in config.objective.required_tokens)
    chosen = config.tokenizer.special_tokens or {}
    roles: dict[str, str | None] = {**special, **{str(role): token for role, token in chosen.items()}}
    return {
        "tokenizer_type": kind,
        "vocab_size": config.tokenizer.vocab_size,
        "special_tokens": {role: token for role, token in sorted(roles.items()) if token is not None},
        "training_corpus": corpus.digest,
    }


def experiment_tokenizer(config: ExperimentConfig, corpus: Corpus, *, force: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of an experiment: trained on the training corpus alone, or reused when its inputs are unchanged.

    Raises TokenizerError when the folder holds one made from other inputs and `force` is not given: a tokenizer that
    changed under a trained model would make its checkpoints worthless.
    """
    folder = tokenizer_folder(config)
    inputs = _tokenizer_inputs(config, corpus)
    sidecar = folder / _SIDECAR
    if sidecar.exists() and not force:
        try:
            stored = json.loads(sidecar.read_bytes())
        except ValueError:
            raise TokenizerError(f"{sidecar} is damaged: delete {folder}") from None
        changed = sorted(key for key in inputs if stored.get(key) != inputs[key])
        if changed:
            raise TokenizerError(
                f"{folder} was trained from other inputs ({_difference(stored, inputs, changed)}): name another "
                "tokenizer.output_dir, or train it anew with: foundry tokenizer train YAML --force"
            )
        return _sized(load_tokenizer(folder), config)
    if (folder / "tokenizer.json").exists() and not force:
        raise TokenizerError(
            f"{folder} holds a tokenizer of unknown origin: name another tokenizer.output_dir, or train over it with: "
            "foundry tokenizer train YAML --force"
        )
    tokenizer = train_tokenizer(
        inputs["tokenizer_type"], corpus.documents, config.tokenizer.vocab_size, inputs["special_tokens"]
    )
    save_tokenizer(tokenizer, folder)
    write_file(sidecar, (json.dumps(inputs, indent=1) + "\n").encode())
    return _sized(load_tokenizer(folder), config)


def _sized(tokenizer: PreTrainedTokenizerFast, config: ExperimentConfig) -> PreTrainedTokenizerFast:
    tokenizer.model_max_length = config.data.max_sequence_length
    return tokenizer


def _difference(stored: dict[str, Any], inputs: dict[str, Any], changed: list[str]) -> str:
    parts = []
    for key in changed:
        small = isinstance(inputs[key], int) or key == "tokenizer_type"
        parts.append(f"{key} was {stored.get(key)}, is {inputs[key]}" if small else f"{key} changed")
    return "; ".join(parts)


def train_tokenizer_from_config(
    config: ExperimentConfig | str | Path, *, force: bool = False
) -> PreTrainedTokenizerFast:
    """Train, or reuse, the tokenizer that a configuration describes; the test corpus is never looked at."""
    loaded = config if isinstance(config, ExperimentConfig) else load_config(config)
    return experiment_tokenizer(loaded, training_corpus(loaded), force=force)


@dataclass(frozen=True)
class ExperimentData:
    """Token files of an experiment and the rows they are cut into."""

    train: TokenFile
    train_rows: Rows
    test: TokenFile | None
    test_rows: Rows | None


def experiment_data(
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    *,
    progress: Callable[[int], None] | None = None,
) -> ExperimentData:
    """Encode both corpora, or reuse their token files, and cut them into rows as the objective asks."""
    folder = tokenizer_folder(config) / "tokens"
    train = prepare_tokens(corpus, tokenizer, folder, progress=progress)
    held_out = test_corpus(config)
    test = prepare_tokens(held_out, tokenizer, folder, progress=progress) if held_out is not None else None
    test_rows = cut_rows(test, config, tokenizer) if test is not None else None
    return ExperimentData(train, cut_rows(train, config, tokenizer), test, test_rows)


def cut_rows(tokens: TokenFile, config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast) -> Rows:
    """A token file as rows of at most `data.max_sequence_length` tokens, laid out as the objective asks."""
    framed = config.objective.layout == "framed"
    ids = {"start_id": tokenizer.cls_token_id, "end_id": tokenizer.sep_token_id} if framed else {}
    return Rows(tokens.tokens, config.objective.layout, config.data.max_sequence_length, **ids)


@dataclass(frozen=True)
class RunPlan:
    """What a configuration comes to once its data are known; computed, never written into the configuration.

    Counts are of the training corpus. Tokens are those of the stream: padding, overlap and row frames not counted. The
    words of a part of an epoch are its share of the epoch's words.
    """

    rows: int
    tokens_per_epoch: int
    words_per_epoch: int
    samples_per_step: int
    total_samples: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: tuple[int, ...]

    @classmethod
    def of(cls, config: ExperimentConfig, data: ExperimentData) -> RunPlan:
        training = config.training
        rows, tokens, words = len(data.train_rows), data.train_rows.total_tokens, data.train.info.words
        per_step = config.data.batch_size * training.gradient_accumulation_steps

        def samples_for(amount: float, per_epoch: int) -> int:
            return max(1, math.ceil(amount * rows / per_epoch))

        if training.epochs is not None:
            samples = max(1, round(training.epochs * rows))
        elif training.train_steps is not None:
            samples = training.train_steps * per_step
        elif training.train_tokens is not None:
            samples = samples_for(training.train_tokens, tokens)
        else:
            assert training.train_words is not None
            samples = samples_for(training.train_words, words)
        steps = math.ceil(samples / per_step)

        schedule = training.checkpoints
        chosen = {0, steps, *schedule.steps}
        if schedule.every_steps:
            chosen.update(range(schedule.every_steps, steps + 1, schedule.every_steps))
        if schedule.log_base:
            power = 1.0
            while power <= steps:
                chosen.add(round(power))
                power *= schedule.log_base
        for amounts, per_epoch in ((schedule.milestones.words, words), (schedule.milestones.tokens, tokens)):
            chosen.update(math.ceil(samples_for(amount, per_epoch) / per_step) for amount in amounts)
        return cls(
            rows=rows,
            tokens_per_epoch=tokens,
            words_per_epoch=words,
            samples_per_step=per_step,
            total_samples=samples,
            total_steps=steps,
            warmup_steps=warmup_steps(training, steps),
            checkpoint_steps=tuple(sorted(step for step in chosen if step <= steps)),
        )

    def words_after(self, tokens_seen: int) -> int:
        """White-space separated words in so many tokens of the corpus."""
        return round(tokens_seen * self.words_per_epoch / self.tokens_per_epoch)


def data_identity(data: ExperimentData, tokenizer_digest: str) -> str:
    """One digest for everything training reads: the training tokens' sidecar digest and the tokenizer's."""
    return hashlib.sha256(f"{data.train.info.digest}:{tokenizer_digest}".encode()).hexdigest()
