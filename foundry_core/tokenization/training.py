"""Training a tokenizer of any type, and the rules that every trainer has to keep.

* The same input gives the same tokenizer, byte for byte.
* `vocab_size` counts the special tokens and is never exceeded.
* Text that merely looks like a special token stays text: no trained piece spells one, and special tokens that the model
  itself does not need are appended behind its vocabulary, where text cannot reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import Corpus, DocumentUnit
from foundry_core.errors import PluginError, TokenizerError, did_you_mean
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType, special_token_problems
from foundry_core.tokenization.tokenizer_folder import save_tokenizer
from foundry_core.tokenization.trainers import CORE_TRAINERS, Trainer
from foundry_core.tokenization.training_request import SPECIAL_TOKEN_ROLES, Documents

InputFiles = str | Path | Sequence[str | Path]


def _core_type(name: str) -> TokenizerType:
    if name not in CORE_TOKENIZER_TYPES:
        near = did_you_mean(name, CORE_TOKENIZER_TYPES)
        raise TokenizerError(f"unknown tokenizer type: {name!r}.{near} Available: {', '.join(CORE_TOKENIZER_TYPES)}")
    return CORE_TOKENIZER_TYPES[name]


def default_special_tokens(tokenizer_type: str, masked: bool) -> dict[str, str]:
    """The special tokens of one of core's types when none are given; `masked`: the objective hides tokens."""
    return _core_type(tokenizer_type).tokens_by_role(None, masked)


def _check(kind: TokenizerType, roles: Mapping[str, str]) -> None:
    """Refuses special tokens that would make a text unlearnable or a token ambiguous."""
    for role in roles:
        if role not in SPECIAL_TOKEN_ROLES:
            near = did_you_mean(role, SPECIAL_TOKEN_ROLES)
            raise TokenizerError(f"unknown special token role {role!r}.{near} Roles: {', '.join(SPECIAL_TOKEN_ROLES)}")
    for concerned, problem in special_token_problems(kind, roles):
        raise TokenizerError(f"{concerned} {problem}" if concerned else problem)


def train_tokenizer(
    tokenizer_type: str | TokenizerType,
    documents: Documents,
    vocab_size: int | None,
    special_tokens: Mapping[str, str],
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of a type: the name of one of core's five, or any descriptor.

    `documents()` starts a fresh pass; some types take several. `vocab_size` counts the special tokens and is an upper
    bound, except for sentencepiece, which fills it or says how far it gets; None takes every character or word.
    Raises TokenizerError for an unknown type, unusable special tokens, an empty corpus and an impossible size,
    PluginError for a trainer that breaks these rules.
    """
    kind = tokenizer_type if isinstance(tokenizer_type, TokenizerType) else _core_type(tokenizer_type)
    _check(kind, special_tokens)
    if not any(document.strip() for document in documents()):
        raise TokenizerError("the training corpus holds no text: a tokenizer cannot be trained on it")
    trainer = _trainer_of(kind)
    with failing_as(f"the trainer of the tokenizer type {kind.name}"):
        tokenizer = trainer(documents, vocab_size, special_tokens)
    broken = _broken_rule(tokenizer, vocab_size, special_tokens)
    if broken:
        raise PluginError(f"the trainer of the tokenizer type {kind.name}, {kind.trainer}, {broken}")
    return tokenizer


def _trainer_of(kind: TokenizerType) -> Trainer:
    if kind.trainer is not None:
        trainer: Trainer = import_string(kind.trainer)
        return trainer
    if kind is not CORE_TOKENIZER_TYPES.get(kind.name):
        raise PluginError(f"the tokenizer type {kind.name} has no trainer: give it an import string")
    return CORE_TRAINERS[kind.name]


def _broken_rule(tokenizer: Any, vocab_size: int | None, special_tokens: Mapping[str, str]) -> str | None:
    """What a trainer did that none may do."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return f"gives a {type(tokenizer).__name__}, not a PreTrainedTokenizerFast"
    for role, name in special_tokens.items():
        if getattr(tokenizer, role) != name or name not in tokenizer.all_special_tokens:
            return f"was asked for the {role} {name!r} and gives {getattr(tokenizer, role)!r}"
    if vocab_size is not None and len(tokenizer) > vocab_size:
        return f"gives {len(tokenizer)} tokens where at most {vocab_size} were asked for"
    return None


def _training_on_files(tokenizer_type: str, default_size: int | None) -> Callable[..., PreTrainedTokenizerFast]:
    """The method of `TokenizerFactory` for one type."""

    def train(
        input_files: InputFiles,
        output_dir: str | Path | None = None,
        vocab_size: int | None = default_size,
        special_tokens: Mapping[str, str] | None = None,
        *,
        unit: DocumentUnit = "line",
    ) -> PreTrainedTokenizerFast:
        corpus = Corpus.open(input_files, unit=unit)
        special = default_special_tokens(tokenizer_type, masked=False) if special_tokens is None else special_tokens
        tokenizer = train_tokenizer(tokenizer_type, corpus.documents, vocab_size, special)
        if output_dir is not None:
            save_tokenizer(tokenizer, Path(output_dir))
        return tokenizer

    train.__name__ = f"train_{tokenizer_type}"
    train.__doc__ = f"Trains a {tokenizer_type} tokenizer on files; see `TokenizerFactory`."
    return train


class TokenizerFactory:
    """Trains a tokenizer on files and saves it; every method has the same arguments.

    `input_files` is a path or a list of paths, read as `corpus.reader` reads a corpus, and `unit` is what counts as one
    document there. `output_dir` is the folder to save in, None for none. `vocab_size` and the errors are those
    of `train_tokenizer`. `special_tokens` defaults to `default_special_tokens(type, masked=False)`. List the training
    corpus only: a tokenizer that has seen the test corpus has seen the answers.
    """

    train_sentencepiece = staticmethod(_training_on_files("sentencepiece", 8000))
    train_wordpiece = staticmethod(_training_on_files("wordpiece", 8000))
    train_bpe = staticmethod(_training_on_files("bpe", 8000))
    train_character = staticmethod(_training_on_files("character", None))
    train_word = staticmethod(_training_on_files("word", 8000))
