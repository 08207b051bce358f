"""The data of one experiment: corpora, tokenizer, token files and rows, each reused while its inputs are unchanged."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.corpus.delimiters import stray_delimiter
from foundry_core.corpus.files import shown
from foundry_core.corpus.reader import Corpus
from foundry_core.corpus.steps import Steps
from foundry_core.data.overlap import Overlap, overlap
from foundry_core.data.rows import Rows
from foundry_core.data.token_file import Progress, TokenFile, prepare_tokens
from foundry_core.errors import DataError, TokenizerError, warn
from foundry_core.run_folder import METRICS, TOKENIZER, TOKENIZER_LOCK, TOKENIZER_MODEL, TOKENIZER_ORIGIN, TOKENS
from foundry_core.storage.files import write_file
from foundry_core.storage.lock import RunLock
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest

TOKENIZER_DATA, TEST_DATA = "the tokenizer", "the test corpus"
"""Names of digests in `data_identity`."""


@dataclass(frozen=True)
class Corpora:
    """The documents a model is trained on, and those it is evaluated on, if any."""

    train: Corpus
    test: Corpus | None
    overlap: Overlap | None = None

    def description(self) -> dict[str, Any]:
        """Return what was read, as plain data for the record of the run."""
        if self.test is None:
            return {"training_corpus": self.train.description}
        shared = {} if self.overlap is None else {"also_in_training": asdict(self.overlap)}
        return {"training_corpus": self.train.description, "test_corpus": self.test.description | shared}


def _opened(config: ExperimentConfig, setting: str) -> Corpus:
    """Open a corpus. Refuse one that contains files of this run, because it would be another one the next time."""
    name, spec = f"data.{setting}", getattr(config.data, setting)
    folder, output_dir = Path(spec).expanduser(), Path(config.training.output_dir)
    for key, own in (("training.output_dir", output_dir), ("tokenizer.output_dir", tokenizer_folder(config))):
        if folder.is_dir() and own.resolve().is_relative_to(folder.resolve()):
            below = own.resolve().relative_to(folder.resolve()).parts
            if not any(part.startswith(".") for part in below):  # hidden folders are not searched
                raise DataError(
                    f"{name}: {shown(folder)} contains {key} ({own}), whose files would join the corpus: name a folder "
                    f"with nothing but the text, or another {key}"
                )
    corpus = Corpus.open(spec, unit=config.data.documents, name=name, pattern=config.data.files)
    if (output_dir / METRICS).resolve() in (path.resolve() for path in corpus.files):
        raise DataError(f"{name}: {output_dir / METRICS} is written by the run itself: leave training.output_dir out")
    roles = ("eos_token", "sep_token", "bos_token", "cls_token")
    mark = stray_delimiter(corpus, [token for role, token in config.special_tokens.items() if role in roles])
    if mark is not None:
        setting = f"data.documents: {{delimiter: {json.dumps(mark, ensure_ascii=False)}}}"
        warn(f"{name}: {mark} is read as text; where it separates documents, set {setting}")
    return corpus


def training_text(config: ExperimentConfig) -> Corpus:
    """Open the training corpus with the steps of `data.steps`."""
    return _opened(config, "training_corpus").changed_by(Steps.of(config))


def experiment_corpora(config: ExperimentConfig) -> Corpora:
    """Open both corpora, and report how many documents of the test corpus also stand in the training corpus.

    Raises:
        DataError: A test file is also trained on, whatever its name there, or every test document is.
    """
    train = training_text(config)
    if config.data.test_corpus is None:
        return Corpora(train, None)
    test = _opened(config, "test_corpus")
    trained = dict(zip(train.file_digests, train.files, strict=True))
    for path, digest, (size, _) in zip(test.files, test.file_digests, test.stamps, strict=True):
        if size and digest in trained:
            other = trained[digest]
            same = f"{path} is also" if path == other else f"{path} has the content of {other}, which is"
            raise DataError(
                f"data.test_corpus: {same} in data.training_corpus: its loss would mean nothing. Take it out of one "
                "of them."
            )
    shared = overlap(train, test, tokenizer_folder(config) / TOKENS)
    if shared.shared == shared.documents:
        raise DataError(
            f"data.test_corpus: every one of its {shared.documents:,} documents also stands in data.training_corpus: "
            "its loss would mean nothing. Take them out of one of the two."
        )
    if shared.shared:
        warn(f"data.test_corpus: {shared.line}")
    return Corpora(train, test, shared)


def tokenizer_folder(config: ExperimentConfig) -> Path:
    """Return the folder of the experiment's tokenizer and token files."""
    return Path(config.tokenizer.output_dir or Path(config.training.output_dir) / TOKENIZER)


def own_folders(config: ExperimentConfig) -> list[Path]:
    """Return the folders that only this run writes to: not a tokenizer that it may share, nor what a link leads to."""
    output_dir, tokenizer = Path(config.training.output_dir), tokenizer_folder(config)
    if config.tokenizer.output_dir is not None or tokenizer.is_symlink():
        return [output_dir, output_dir / TOKENS]
    return [output_dir, *(folder for folder in (tokenizer, tokenizer / TOKENS) if not folder.is_symlink())]


def experiment_tokenizer(
    config: ExperimentConfig, corpus: Corpus, *, force: bool = False, resume: bool = False
) -> PreTrainedTokenizerFast:
    """Train the tokenizer of an experiment on the training corpus, or reuse it when its inputs are unchanged.

    A run that is resumed keeps its tokenizer, with a warning, when the corpus has changed since.

    Raises:
        TokenizerError: The folder contains a tokenizer made from other inputs and `force` is False. Replacing it would
            invalidate existing checkpoints.
    """
    corpus = corpus.without_holes  # that of the run without them, which has the same tokenizer
    folder = tokenizer_folder(config)
    inputs = {
        "tokenizer_type": config.tokenizer.tokenizer_type,
        "vocab_size": config.tokenizer.vocab_size,
        "special_tokens": dict(sorted(config.special_tokens.items())),
        "training_corpus": corpus.digest,
    }
    tokenizer = None if force else _stored_tokenizer(folder, inputs, resume)
    if tokenizer is None:
        # Of two runs at once the second waits, and finds what the first has trained, or is refused.
        line = f"waiting for the tokenizer in {folder}"
        with RunLock(folder, TOKENIZER_LOCK, waiting=lambda owner: warn(f"{line}: {owner}")):
            tokenizer = None if force else _stored_tokenizer(folder, inputs, resume)
            if tokenizer is None:
                tokenizer = _trained_tokenizer(config, corpus, folder, inputs)
    tokenizer.model_max_length = config.data.max_sequence_length
    return tokenizer


def _stored_tokenizer(folder: Path, inputs: dict[str, Any], resume: bool) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer that was made from these inputs; None when there is none yet, or an unfinished one."""

    def refused(problem: str, instead: str = "name another tokenizer.output_dir") -> TokenizerError:
        again = "train it again with: foundry tokenizer train YAML --force"
        others = "a run that was begun with another tokenizer cannot go on with it"
        return TokenizerError(f"{folder} {problem}: {instead}, or {again} ({others})")

    path = folder / TOKENIZER_ORIGIN
    there = (folder / TOKENIZER_MODEL).exists()  # before the sidecar, which is written last
    if not path.exists():
        if there:
            raise refused("contains a tokenizer of unknown origin")
        return None
    try:
        stored = json.loads(path.read_bytes())
        if not isinstance(stored["tokenizer"], str | None):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TokenizerError(f"{path} is damaged: delete {folder}") from None
    if stored["tokenizer"] is None:
        return None
    changed = {
        key: f"{key} was {stored.get(key)}, is {value}" if key in ("tokenizer_type", "vocab_size") else f"{key} changed"
        for key, value in inputs.items()
        if stored.get(key) != value
    }
    if resume and changed.keys() == {"training_corpus"}:
        warn(
            f"the tokenizer in {folder} was trained on another corpus than this one, and is kept: its ids are the run's"
        )
    elif changed:
        other = f"was trained from other inputs ({'; '.join(changed.values())})"
        if resume:
            raise TokenizerError(f"{folder} {other}: put them back, or begin a new run in another training.output_dir")
        raise refused(other)
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != stored["tokenizer"]:
        raise refused("was changed after it was trained, or trained by an earlier version", "put its files back")
    return tokenizer


def _trained_tokenizer(
    config: ExperimentConfig, corpus: Corpus, folder: Path, inputs: dict[str, Any]
) -> PreTrainedTokenizerFast:
    """Train a tokenizer, save it, and return it as it is read back. The caller must hold the folder's lock."""
    from foundry_core.tokenization.training import (
        train_tokenizer,
    )  # with sentencepiece, which prepared data do not need

    path = folder / TOKENIZER_ORIGIN
    size, special = config.tokenizer.vocab_size, inputs["special_tokens"]
    trained = train_tokenizer(config.tokenizer_type, corpus.documents, size, special)
    # Written before the files without a digest and after them with it: one that was interrupted is trained again.
    _write_sidecar(path, inputs, None)
    save_tokenizer(trained, folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != tokenizer_digest(trained):
        problem = "does not hold the tokenizer that was just saved there: something else writes to it"
        raise TokenizerError(f"{folder} {problem}, name another tokenizer.output_dir")
    _write_sidecar(path, inputs, tokenizer_digest(tokenizer))
    return tokenizer


def _write_sidecar(path: Path, inputs: dict[str, Any], digest: str | None) -> None:
    write_file(path, (json.dumps(inputs | {"tokenizer": digest}, indent=1) + "\n").encode())


def train_tokenizer_from_config(
    config: ExperimentConfig | str | Path, *, force: bool = False
) -> PreTrainedTokenizerFast:
    """Train, or reuse, the tokenizer that a configuration describes; the test corpus is never read."""
    loaded = config if isinstance(config, ExperimentConfig) else load_config(config)
    return experiment_tokenizer(loaded, training_text(loaded), force=force)


@dataclass(frozen=True)
class ExperimentData:
    """The token files of an experiment and the rows they are cut into."""

    train: TokenFile
    train_rows: Rows
    test: TokenFile | None
    test_rows: Rows | None
    description: dict[str, Any] = field(default_factory=dict)
    """Files of the corpora that were read and those that were not, for the record of the run."""


def experiment_tokens(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, corpora: Corpora, *, progress: Progress | None = None
) -> tuple[TokenFile, TokenFile | None]:
    """Encode the training and the test corpus, or reuse their token files."""
    folder, own = tokenizer_folder(config) / TOKENS, Path(config.training.output_dir) / TOKENS
    train = prepare_tokens(corpora.train, tokenizer, folder, progress=progress, own=own)
    if corpora.test is None:
        return train, None
    return train, prepare_tokens(corpora.test, tokenizer, folder, progress=progress, own=own)


def experiment_rows(
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerFast,
    tokens: tuple[TokenFile, TokenFile | None],
    corpora: Corpora | None = None,
) -> ExperimentData:
    """Cut the token files of the training and the test corpus into rows, as the objective requires.

    `corpora`, where the tokens come from, is described in the record of the run.
    """
    train, test = tokens
    test_rows = cut_rows(test, config, tokenizer) if test is not None else None
    description = corpora.description() if corpora is not None else {}
    if description and "steps" in train.info.account:
        description["training_corpus"]["counts_of_steps"] = train.info.account["steps"]
    return ExperimentData(train, cut_rows(train, config, tokenizer), test, test_rows, description)


def cut_rows(tokens: TokenFile, config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Cut a token file into rows that consume `data.tokens_per_row` tokens, in the layout of the objective."""
    framed = config.objective.layout == "framed"
    ids = {"start_id": tokenizer.cls_token_id, "end_id": tokenizer.sep_token_id} if framed else {}
    return Rows(tokens.tokens, config.objective.layout, config.data.consumed_per_row, holes=tokens.holes, **ids)


def data_identity(data: ExperimentData) -> dict[str, str]:
    """Return the digests of all that a run reads, each under its name in messages."""
    train, test = data.train.info, data.test and data.test.info
    found = {"the training corpus": train.corpus_digest, TOKENIZER_DATA: train.tokenizer_digest}
    return found | ({TEST_DATA: test.corpus_digest} if test else {})
