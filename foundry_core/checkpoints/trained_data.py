"""The rows that a run has trained on and their order, from a checkpoint and the token file; the model is not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.corpus.reader import Corpus
from foundry_core.data.order import Order
from foundry_core.data.preparation import (
    TOKENIZER_DATA,
    TRAINING_DATA,
    TokenFiles,
    experiment_rows,
    tokenizer_folder,
    training_text,
)
from foundry_core.data.rows import AnyRows
from foundry_core.data.token_file import TokenFile, stored_tokens
from foundry_core.errors import CheckpointError, ConfigError, DataError, PluginError
from foundry_core.models.migrations import migrated, pending
from foundry_core.run_folder import CONFIG, TOKENIZER, TOKENS
from foundry_core.tokenization.tokenizer_folder import load_tokenizer

FindTokens = Callable[[tuple[Path, ...], str, str], TokenFile | None]


@dataclass(frozen=True)
class TrainedData:
    """What a checkpoint was trained on: token file, rows, and the order in which they were taken."""

    folder: Path
    config: ExperimentConfig
    tokenizer: PreTrainedTokenizerFast
    tokens: TokenFile
    rows: AnyRows
    order: Order

    def corpus(self) -> Corpus:
        """Open the training corpus. Raises DataError if it is not that of the checkpoint."""
        corpus = training_text(self.config)
        if corpus.digest != self.tokens.info.corpus_digest:
            raise DataError(
                f"{corpus.name}: it has changed since {self.folder} was trained on it, so that what was seen cannot be "
                "counted: put the text back"
            )
        return corpus


def trained_data(
    folder: Path, state: TrainState, description: dict[str, Any], find: FindTokens = stored_tokens
) -> TrainedData:
    """Return what a checkpoint was trained on.

    Args:
        folder: The checkpoint, in the folder of its run.
        state: Its state.
        description: Its description, as `read_description` returns it.
        find: Finds a token file by folders, digest of the corpus and digest of the tokenizer.

    Raises:
        CheckpointError: The configuration cannot be read here, or does not come to the rows of the checkpoint.
        DataError: The token file is gone.
    """
    config = _config(folder, description, None)
    digests = [state.data.get(name, "") for name in (TRAINING_DATA, TOKENIZER_DATA)]
    tokens = find(tuple(dict.fromkeys(_token_folders(config, folder.parent))), *digests)
    if tokens is None:
        raise DataError(
            f"{folder.parent}: there is no token file of the text that {folder.name} was trained on. If that text is "
            f"unchanged, encode it again: foundry data prepare {folder.parent / CONFIG}"
        )
    # A description has its keys sorted; the token file has the corpora of a mixture in their order.
    config = _config(folder, description, tokens.info.account.get("parts") or None)
    tokenizer = load_tokenizer(folder)
    made = TrainedData(folder, config, tokenizer, tokens, *_rows(config, tokenizer, tokens))
    sizes = state.stream
    assert sizes is not None, "read_state refuses a state without"
    if (made.rows.per_epoch, made.rows.total_tokens) != (sizes.rows, sizes.tokens_per_epoch):
        raise CheckpointError(f"{folder}: its configuration comes to other rows than those that it was trained on")
    return made


def _config(folder: Path, description: dict[str, Any], corpora: Iterable[str] | None) -> ExperimentConfig:
    """Return the configuration of a checkpoint, with the corpora of a mixture in the given order."""
    try:
        experiment = dict(description["experiment"])
        experiment["model"] = migrated(experiment["model"], pending(description))
        if corpora is not None:
            given = experiment["data"]["training_corpus"]
            experiment["data"] = {**experiment["data"], "training_corpus": {name: given[name] for name in corpora}}
        return load_config(experiment)
    except (ConfigError, PluginError) as error:
        problems = "; ".join(str(error).splitlines())
        raise CheckpointError(f"{folder}: its rows cannot be derived here: {problems}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: its configuration is damaged: {error}") from error


def _token_folders(config: ExperimentConfig, run: Path) -> Iterable[Path]:
    """Return the folders that may hold the token file of a run, which may have been moved since."""
    return run / TOKENIZER / TOKENS, run / TOKENS, tokenizer_folder(config) / TOKENS


def _rows(config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, tokens: TokenFile) -> tuple[AnyRows, Order]:
    if config.data_order.score is not None and training_text(config).digest != tokens.info.corpus_digest:
        raise DataError(f"data.training_corpus: it has changed, and data.order: {config.data.order} reads its text")
    made = experiment_rows(config, tokenizer, TokenFiles(tokens))
    return made.train_rows, made.order
