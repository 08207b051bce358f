"""Stages 2 to 4 of the walk of the data for one experiment: corpus, tokenizer, token file; and what follows from them.

Everything is kept under the digest of its inputs and reused while they are unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.corpus.files import shown
from foundry_core.corpus.reader import Corpus
from foundry_core.data.rows import Rows
from foundry_core.data.token_file import TokenFile, prepare_tokens
from foundry_core.errors import DataError, TokenizerError, warn
from foundry_core.run_folder import METRICS, TOKENIZER, TOKENIZER_LOCK, TOKENIZER_MODEL, TOKENIZER_ORIGIN, TOKENS
from foundry_core.storage.files import write_file
from foundry_core.storage.lock import RunLock
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest
from foundry_core.tokenization.training import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Corpora:
    """The documents a model is trained on, and those it is scored on, when there are any."""

    train: Corpus
    test: Corpus | None


def training_corpus(config: ExperimentConfig) -> Corpus:
    """The documents a model is trained on, and the only ones that a tokenizer sees."""
    return _opened(config, config.data.training_corpus, "data.training_corpus")


def _opened(config: ExperimentConfig, spec: str, name: str) -> Corpus:
    """A corpus that holds nothing that a run writes: it would be another one the next time."""
    folder, output_dir = Path(spec).expanduser(), Path(config.training.output_dir)
    for key, own in (("training.output_dir", output_dir), ("tokenizer.output_dir", tokenizer_folder(config))):
        if folder.is_dir() and own.resolve().is_relative_to(folder.resolve()):
            below = own.resolve().relative_to(folder.resolve()).parts
            if not any(part.startswith(".") for part in below):  # no corpus enters what is hidden
                raise DataError(
                    f"{name}: {shown(folder)} contains {key} ({own}), whose files would join the corpus: give a folder "
                    f"that holds the text alone, or another {key}"
                )
    corpus = Corpus.open(spec, unit=config.data.documents, name=name)
    written = (output_dir / METRICS).resolve()
    if any(path.resolve() == written for path in corpus.files):
        raise DataError(f"{name}: {output_dir / METRICS} is written by the run itself: leave training.output_dir out")
    return corpus


def experiment_corpora(config: ExperimentConfig) -> Corpora:
    """Both corpora, opened. Raises DataError when a test file is trained on, whatever its name there."""
    train = training_corpus(config)
    if config.data.test_corpus is None:
        return Corpora(train, None)
    test = _opened(config, config.data.test_corpus, "data.test_corpus")
    trained = dict(zip(train.file_digests, train.files, strict=True))
    for path, digest, (size, _) in zip(test.files, test.file_digests, test.stamps, strict=True):
        if size and digest in trained:
            raise DataError(
                f"data.test_corpus: {path} has the content of {trained[digest]}, which is in data.training_corpus: "
                "its loss would say nothing. Take it out of one of them."
            )
    return Corpora(train, test)


def tokenizer_folder(config: ExperimentConfig) -> Path:
    """Where the experiment's tokenizer and its token files are kept."""
    return Path(config.tokenizer.output_dir or Path(config.training.output_dir) / TOKENIZER)


def own_folders(config: ExperimentConfig) -> list[Path]:
    """Where only this run writes: all of its folders, but for a tokenizer that it may share with others."""
    output_dir, tokenizer = Path(config.training.output_dir), tokenizer_folder(config)
    # A link leads to what others may use, too.
    if config.tokenizer.output_dir is not None or tokenizer.is_symlink():
        return [output_dir]
    return [output_dir, tokenizer, *(folder for folder in (tokenizer / TOKENS,) if not folder.is_symlink())]


def _tokenizer_inputs(config: ExperimentConfig, corpus: Corpus) -> dict[str, Any]:
    return {
        "tokenizer_type": config.tokenizer.tokenizer_type,
        "vocab_size": config.tokenizer.vocab_size,
        "special_tokens": dict(sorted(config.special_tokens.items())),
        "training_corpus": corpus.digest,
    }


def experiment_tokenizer(config: ExperimentConfig, corpus: Corpus, *, force: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of an experiment: trained on the training corpus alone, or reused when its inputs are unchanged.

    Raises TokenizerError when the folder holds one made from other inputs and `force` is not given: a tokenizer that
    changed under a trained model would make its checkpoints worthless.
    """
    folder = tokenizer_folder(config)
    inputs = _tokenizer_inputs(config, corpus)
    tokenizer = None if force else _stored_tokenizer(folder, inputs)
    if tokenizer is None:
        # Two runs at once train one after the other: the second one finds what the first has made, or is refused.
        with RunLock(
            folder, TOKENIZER_LOCK, waiting=lambda owner: warn(f"waiting for the tokenizer in {folder}: {owner}")
        ):
            tokenizer = None if force else _stored_tokenizer(folder, inputs)
            if tokenizer is None:
                tokenizer = _trained_tokenizer(config, corpus, folder, inputs)
    tokenizer.model_max_length = config.data.max_sequence_length
    return tokenizer


def _stored_tokenizer(folder: Path, inputs: dict[str, Any]) -> PreTrainedTokenizerFast | None:
    """The tokenizer that was made from these inputs; None when there is none yet, or one that was never finished."""
    sidecar = folder / TOKENIZER_ORIGIN
    # Looked for first, because it is written last.
    there = (folder / TOKENIZER_MODEL).exists()
    if not sidecar.exists():
        if there:
            raise TokenizerError(
                f"{folder} holds a tokenizer of unknown origin: name another tokenizer.output_dir, or train over it "
                "with: foundry tokenizer train YAML --force"
            )
        return None
    stored = _read_sidecar(sidecar)
    if stored["tokenizer"] is None:
        return None
    changed = sorted(key for key in inputs if stored.get(key) != inputs[key])
    if changed:
        raise TokenizerError(
            f"{folder} was trained from other inputs ({_difference(stored, inputs, changed)}): name another "
            "tokenizer.output_dir, or train it anew with: foundry tokenizer train YAML --force"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != stored["tokenizer"]:
        raise TokenizerError(
            f"{folder} was changed after it was trained: put its files back, or train it anew with: "
            "foundry tokenizer train YAML --force"
        )
    return tokenizer


def _trained_tokenizer(
    config: ExperimentConfig, corpus: Corpus, folder: Path, inputs: dict[str, Any]
) -> PreTrainedTokenizerFast:
    """A new tokenizer, as it is read back from the folder that it is saved in; only for who holds the folder's lock."""
    sidecar = folder / TOKENIZER_ORIGIN
    trained = train_tokenizer(
        config.tokenizer_type, corpus.documents, config.tokenizer.vocab_size, inputs["special_tokens"]
    )
    # Written before the files without a digest and after them with it: one that was interrupted is trained again.
    _write_sidecar(sidecar, inputs, None)
    save_tokenizer(trained, folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != tokenizer_digest(trained):
        raise TokenizerError(
            f"{folder} does not hold the tokenizer that was just saved there, but another one: something else writes "
            "to it, name another tokenizer.output_dir"
        )
    _write_sidecar(sidecar, inputs, tokenizer_digest(tokenizer))
    return tokenizer


def _write_sidecar(path: Path, inputs: dict[str, Any], digest: str | None) -> None:
    write_file(path, (json.dumps(inputs | {"tokenizer": digest}, indent=1) + "\n").encode())


def _read_sidecar(path: Path) -> dict[str, Any]:
    """What the tokenizer beside it was made from, and its digest: None while it was being written."""
    try:
        stored = json.loads(path.read_bytes())
        if not isinstance(stored["tokenizer"], str | None):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TokenizerError(f"{path} is damaged: delete {path.parent}") from None
    return dict(stored)


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
class TokenFiles:
    """The corpora of an experiment as token files."""

    train: TokenFile
    test: TokenFile | None


@dataclass(frozen=True)
class ExperimentData:
    """Token files of an experiment and the rows they are cut into."""

    train: TokenFile
    train_rows: Rows
    test: TokenFile | None
    test_rows: Rows | None


def experiment_tokens(
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerFast,
    corpora: Corpora,
    *,
    progress: Callable[[int], None] | None = None,
) -> TokenFiles:
    """Encode both corpora, or reuse their token files."""
    folder = tokenizer_folder(config) / TOKENS
    train = prepare_tokens(corpora.train, tokenizer, folder, progress=progress)
    test = prepare_tokens(corpora.test, tokenizer, folder, progress=progress) if corpora.test is not None else None
    return TokenFiles(train, test)


def experiment_rows(config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, tokens: TokenFiles) -> ExperimentData:
    """Cut both token files into rows as the objective asks."""
    test_rows = cut_rows(tokens.test, config, tokenizer) if tokens.test is not None else None
    return ExperimentData(tokens.train, cut_rows(tokens.train, config, tokenizer), tokens.test, test_rows)


def cut_rows(tokens: TokenFile, config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast) -> Rows:
    """A token file as rows of at most `data.max_sequence_length` tokens, laid out as the objective asks."""
    framed = config.objective.layout == "framed"
    ids = {"start_id": tokenizer.cls_token_id, "end_id": tokenizer.sep_token_id} if framed else {}
    return Rows(tokens.tokens, config.objective.layout, config.data.max_sequence_length, **ids)


def data_identity(data: ExperimentData) -> dict[str, str]:
    """Digests of all that a run reads, each under the name it has in a message."""
    found = {
        "the training corpus": data.train.info.corpus_digest,
        "the tokenizer": data.train.info.tokenizer_digest,
    }
    return found | ({"the test corpus": data.test.info.corpus_digest} if data.test is not None else {})
