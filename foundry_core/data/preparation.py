"""The data of one experiment: corpora, tokenizer, token files and rows, each reused while its inputs are unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerFast

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.corpus.delimiters import stray_delimiter
from foundry_core.corpus.files import shown
from foundry_core.corpus.mixture import one_or_several
from foundry_core.corpus.reader import Corpus
from foundry_core.corpus.steps import Steps
from foundry_core.data.batching import cut_rows, training_order
from foundry_core.data.given_order import row_scores
from foundry_core.data.order import Order
from foundry_core.data.overlap import Overlap, overlap
from foundry_core.data.rows import AnyRows
from foundry_core.data.token_file import Progress, TokenFile, prepare_tokens
from foundry_core.errors import DataError, TokenizerError, UsageError, warn
from foundry_core.run_folder import METRICS, TOKENIZER, TOKENIZER_LOCK, TOKENIZER_MODEL, TOKENIZER_ORIGIN, TOKENS
from foundry_core.storage.files import write_file
from foundry_core.storage.lock import RunLock
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest

TRAINING_DATA, TOKENIZER_DATA = "the training corpus", "the tokenizer"
TEST_DATA, VALIDATION_DATA = "the test corpus", "the validation corpus"
"""Names of digests in `data_identity`."""
HeldOut: TypeAlias = Literal["validation", "test"]
_MUCH_UNKNOWN = 0.2
"""Share of unknown tokens that is likely to be a mistake. Of the recipes the one with the most has 11 %."""
_GIVEN = "given_tokenizer"
"""In the sidecar of a tokenizer that was not trained: its digest."""


@dataclass(frozen=True)
class Corpora:
    """The documents a model is trained on, and those it is evaluated on, if any.

    overlap, validation_overlap: of the test and of the validation corpus with the training corpus.
    """

    train: Corpus
    test: Corpus | None
    overlap: Overlap | None = None
    validation: Corpus | None = None
    validation_overlap: Overlap | None = None

    def description(self) -> dict[str, Any]:
        """Return what was read, as plain data for the record of the run."""
        found = {"training_corpus": self.train.description}
        held_out = (("test", self.test, self.overlap), ("validation", self.validation, self.validation_overlap))
        for name, corpus, shared in held_out:
            if corpus is not None:
                seen = {} if shared is None else {"also_in_training": asdict(shared)}
                found[f"{name}_corpus"] = corpus.description | seen
        return found


def _opened(config: ExperimentConfig, setting: str) -> Corpus:
    """Open a corpus of `data:`, or several as one."""
    return one_or_several(getattr(config.data, setting), f"data.{setting}", partial(_opened_path, config))


def _opened_path(config: ExperimentConfig, spec: str, name: str) -> Corpus:
    """Open a corpus. Refuse one that contains files of this run, because it would be another one the next time."""
    folder, output_dir = Path(spec).expanduser(), Path(config.training.output_dir)
    for key, own in (("training.output_dir", output_dir), ("tokenizer.output_dir", tokenizer_folder(config))):
        if folder.is_dir() and own.resolve().is_relative_to(folder.resolve()):
            below = own.resolve().relative_to(folder.resolve()).parts
            if not any(part.startswith(".") for part in below):  # hidden folders are not searched
                raise DataError(
                    f"{name}: {shown(folder)} contains {key} ({own}), whose files would join the corpus: name a folder "
                    f"with nothing but the text, or another {key}"
                )
    corpus = Corpus.open(
        spec,
        unit=config.data.documents,
        name=name,
        pattern=config.data.files,
        keep_blank_lines=config.data.blank_lines == "keep",
    )
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
    """Open the corpora, and report how many documents of those held out also stand in the training corpus.

    Raises:
        DataError: A file that is held out is also trained on, whatever its name there, or every document of it is; or
            the validation corpus is the test corpus in the same way.
    """
    train = training_text(config)
    test, shared = _held_out(config, "test_corpus", train)
    validation, shared_validation = _held_out(config, "validation_corpus", train)
    if test is not None and validation is not None:
        _unseen(config, "data.validation_corpus", validation, "data.test_corpus", test)
    return Corpora(train, test, shared, validation, shared_validation)


def _held_out(config: ExperimentConfig, setting: str, train: Corpus) -> tuple[Corpus | None, Overlap | None]:
    """Open a corpus that is not trained on, if there is one, and compare it with the training corpus."""
    if getattr(config.data, setting) is None:
        return None, None
    corpus = _opened(config, setting)
    return corpus, _unseen(config, f"data.{setting}", corpus, "data.training_corpus", train)


def _unseen(config: ExperimentConfig, name: str, corpus: Corpus, other_name: str, other: Corpus) -> Overlap:
    """Report how much of a corpus also stands in another one. Raises DataError if a whole file or everything does."""
    there = dict(zip(other.file_digests, other.files, strict=True))
    for path, digest, (size, _) in zip(corpus.files, corpus.file_digests, corpus.stamps, strict=True):
        if size and digest in there:
            same = (
                f"{path} is also" if path == there[digest] else f"{path} has the content of {there[digest]}, which is"
            )
            raise DataError(f"{name}: {same} in {other_name}: its loss would mean nothing. Take it out of one of them.")
    shared = overlap(other, corpus, tokenizer_folder(config) / TOKENS)
    if shared.shared == shared.documents:
        raise DataError(
            f"{name}: every one of its {shared.documents:,} documents also stands in {other_name}: its loss would mean "
            "nothing. Take them out of one of the two."
        )
    if shared.shared:
        warn(f"{name}: {shared.line(other_name)}")
    return shared


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

    A run that is resumed keeps its tokenizer, with a warning, when the corpus has changed since. One that is given is
    copied, whatever the corpus; it is the same as long as it has the same digest.

    Raises:
        TokenizerError: The folder contains a tokenizer made from other inputs and `force` is False. Replacing it would
            invalidate existing checkpoints.
    """
    corpus = corpus.without_holes  # that of the run without them, which has the same tokenizer
    folder = tokenizer_folder(config)
    inputs, make = _copied(config, corpus) if config.tokenizer.path is not None else _trained(config, corpus)
    tokenizer = None if force else _stored_tokenizer(folder, inputs, resume)
    if tokenizer is None:
        # Of two runs at once the second waits, and finds what the first has trained, or is refused.
        line = f"waiting for the tokenizer in {folder}"
        with RunLock(folder, TOKENIZER_LOCK, waiting=lambda owner: warn(f"{line}: {owner}")):
            tokenizer = None if force else _stored_tokenizer(folder, inputs, resume)
            if tokenizer is None:
                tokenizer = _kept_tokenizer(folder, inputs, make())
    tokenizer.model_max_length = config.data.max_sequence_length
    return tokenizer


def _trained(config: ExperimentConfig, corpus: Corpus) -> tuple[dict[str, Any], Callable[[], PreTrainedTokenizerFast]]:
    """Return what the tokenizer is made from, and what trains it."""
    special, size = dict(sorted(config.special_tokens.items())), config.tokenizer.vocab_size

    def make() -> PreTrainedTokenizerFast:
        # Imported here with sentencepiece, which prepared data do not need.
        from foundry_core.tokenization.training import train_tokenizer

        trained = train_tokenizer(config.tokenizer_type, corpus.documents, size, special)
        if config.tokenizer.pretokenized and len(trained) == size:
            warn(f"tokenizer.vocab_size: {size:,} leaves no room for further words of the text, which are unknown")
        return trained

    types = {"tokenizer_type": config.tokenizer.tokenizer_type, "vocab_size": size}
    return types | {"special_tokens": special, "training_corpus": corpus.digest}, make


def _copied(config: ExperimentConfig, corpus: Corpus) -> tuple[dict[str, Any], Callable[[], PreTrainedTokenizerFast]]:
    """Return the identity of a given tokenizer, and what returns it, with a report of what is done to it."""
    from foundry_core.tokenization.given import check_conversion, given_tokenizer, warn_of_additions

    path, changes = str(config.tokenizer.path), config.tokenizer.special_tokens or {}
    given = given_tokenizer(path, changes, config.objective, pretokenized=config.tokenizer.pretokenized)

    def make() -> PreTrainedTokenizerFast:
        check_conversion(path, given, corpus.documents)
        warn_of_additions(path, given)
        return given

    return {_GIVEN: tokenizer_digest(given)}, make


def _stored_tokenizer(folder: Path, inputs: dict[str, Any], resume: bool) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer that was made from these inputs; None when there is none yet, or an unfinished one."""

    def refused(problem: str, instead: str = "name another tokenizer.output_dir") -> TokenizerError:
        if _GIVEN in inputs:
            return TokenizerError(f"{folder} {problem}: {instead}")
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
    if changed and _GIVEN in {*stored, *inputs}:
        changed = {_GIVEN: "tokenizer.path names another one" if _GIVEN in inputs else "it was given, not trained"}
    made = "given" if _GIVEN in stored else "trained"
    if resume and changed.keys() == {"training_corpus"}:
        warn(
            f"the tokenizer in {folder} was trained on another corpus than this one, and is kept: its ids are the run's"
        )
    elif changed:
        other = f"contains a tokenizer {made} from other inputs ({'; '.join(changed.values())})"
        if resume:
            raise TokenizerError(f"{folder} {other}: put them back, or begin a new run in another training.output_dir")
        raise refused(other)
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != stored["tokenizer"]:
        raise refused(f"was changed after it was {made}, or {made} by an earlier version", "put its files back")
    return tokenizer


def _kept_tokenizer(folder: Path, inputs: dict[str, Any], made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Save a tokenizer, and return it as it is read back. The caller must hold the folder's lock."""
    path = folder / TOKENIZER_ORIGIN
    # Written before the files without a digest and after them with it: one that was interrupted is trained again.
    _write_sidecar(path, inputs, None)
    save_tokenizer(made, folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer_digest(tokenizer) != tokenizer_digest(made):
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
    if loaded.tokenizer.path is not None:
        raise UsageError(
            f"tokenizer.path names {loaded.tokenizer.path}: given tokenizers are not trained; foundry train copies it"
        )
    return experiment_tokenizer(loaded, training_text(loaded), force=force)


@dataclass(frozen=True)
class ExperimentData:
    """The token files of an experiment and the rows they are cut into."""

    train: TokenFile
    train_rows: AnyRows
    order: Order
    """Maps a position to the row that is trained there."""
    test: TokenFile | None
    test_rows: AnyRows | None
    description: dict[str, Any] = field(default_factory=dict)
    """Files of the corpora that were read and those that were not, for the record of the run."""
    validation: TokenFile | None = None
    validation_rows: AnyRows | None = None

    def held_out(self, corpus: HeldOut) -> tuple[TokenFile, AnyRows]:
        """Return the tokens and the rows of a text that is not trained on."""
        tokens, rows = (
            (self.validation, self.validation_rows) if corpus == "validation" else (self.test, self.test_rows)
        )
        assert tokens is not None, f"there is no {corpus} corpus"
        assert rows is not None, f"the {corpus} corpus has no rows"
        return tokens, rows


class TokenFiles(NamedTuple):
    """The token files of an experiment's corpora."""

    train: TokenFile
    test: TokenFile | None = None
    validation: TokenFile | None = None


def experiment_tokens(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, corpora: Corpora, *, progress: Progress | None = None
) -> TokenFiles:
    """Encode the corpora, or reuse their token files."""
    folder, own = tokenizer_folder(config) / TOKENS, Path(config.training.output_dir) / TOKENS

    def encoded(corpus: Corpus) -> TokenFile:
        tokens = prepare_tokens(corpus, tokenizer, folder, progress=progress, own=own)
        if tokens.info.unknown_share >= _MUCH_UNKNOWN:
            warn(_unknown_line(config, corpus.name, tokens.info.unknown_share))
        return tokens

    held_out = (None if corpus is None else encoded(corpus) for corpus in (corpora.test, corpora.validation))
    return TokenFiles(encoded(corpora.train), *held_out)


def _unknown_line(config: ExperimentConfig, name: str, share: float) -> str:
    """Return the line about a text most of which is lost to unknown tokens, with what is likely to be wrong."""
    if config.tokenizer.path is not None:
        why = f"tokenizer.path, {config.tokenizer.path}, may be made for lower-case text or for another language"
    elif name == "data.training_corpus":
        why = "raise tokenizer.vocab_size, or set tokenizer.tokenizer_type: bpe, which has a token for every text"
    else:
        why = "its letters or its language may be others than those of data.training_corpus"
    return f"{name}: {share:.0%} of its tokens are unknown, all of which look alike to a model: {why}"


def experiment_rows(
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerFast,
    tokens: TokenFiles,
    corpora: Corpora | None = None,
) -> ExperimentData:
    """Cut the token files of the corpora into rows, as the objective requires.

    `corpora`, where the tokens come from, is described in the record of the run.
    """
    train, test, validation = tokens
    test_rows = cut_rows(test, config, tokenizer) if test is not None else None
    validation_rows = cut_rows(validation, config, tokenizer) if validation is not None else None
    description = corpora.description() if corpora is not None else {}
    if description and "steps" in train.info.account:
        description["training_corpus"]["counts_of_steps"] = train.info.account["steps"]
    rows, scores = cut_rows(train, config, tokenizer, training=True), None
    if config.data_order.score is not None:
        corpus = corpora.train if corpora is not None else training_text(config)
        scores = row_scores(config.data_order, corpus, train, rows)
    order = training_order(config, rows, scores)
    return ExperimentData(train, rows, order, test, test_rows, description, validation, validation_rows)


def data_identity(data: ExperimentData) -> dict[str, str]:
    """Return the digests of all that a run reads, each under its name in messages."""
    train = data.train.info
    found = {TRAINING_DATA: train.corpus_digest, TOKENIZER_DATA: train.tokenizer_digest}
    held_out = ((TEST_DATA, data.test), (VALIDATION_DATA, data.validation))
    return found | {name: tokens.info.corpus_digest for name, tokens in held_out if tokens is not None}
