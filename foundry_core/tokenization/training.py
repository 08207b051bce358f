"""Training a tokenizer of any type, and the rules that every trainer has to keep.

* The same input gives the same tokenizer, byte for byte.
* `vocab_size` counts the special tokens and is never exceeded.
* It adds nothing around a text: the objective decides about that when a model is saved (`encoding.as_trained`).
* Text that looks like a special token stays text: no trained piece spells one, and special tokens that the model
  itself does not need are appended behind its vocabulary, where text cannot reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import Corpus, DocumentUnit
from foundry_core.errors import PluginError, TokenizerError, did_you_mean
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType, special_token_problems
from foundry_core.tokenization import trainers
from foundry_core.tokenization.tokenizer_folder import KIND_KEY, MODEL_INPUTS, SPECIAL_TOKEN_ROLES, save_tokenizer
from foundry_core.tokenization.trainers import Documents, Request

_BUILDERS = {
    "sentencepiece": trainers.build_sentencepiece,
    "wordpiece": trainers.build_wordpiece,
    "bpe": trainers.build_bpe,
    "character": trainers.build_character,
    "word": trainers.build_word,
}


def _check_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise TokenizerError(f"unknown {what} {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}")


def _core_type(name: str) -> TokenizerType:
    _check_known("tokenizer type", name, CORE_TOKENIZER_TYPES)
    return CORE_TOKENIZER_TYPES[name]


def default_special_tokens(tokenizer_type: str) -> dict[str, str]:
    """Return the default special tokens of one of core's types, by role."""
    return _core_type(tokenizer_type).tokens_by_role()


def train_tokenizer(
    tokenizer_type: str | TokenizerType, documents: Documents, vocab_size: int | None, special_tokens: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    Args:
        tokenizer_type: The name of one of core's five types, or any descriptor.
        documents: A function that starts a pass over the texts; some types take several.
        vocab_size: An upper bound, special tokens included; None takes every character or word.
        special_tokens: Names by role.

    Raises:
        TokenizerError: The type or a special token is unusable, the corpus is empty, or the size is impossible.
        PluginError: A plugin's trainer breaks the rules of this module.
    """
    kind = tokenizer_type if isinstance(tokenizer_type, TokenizerType) else _core_type(tokenizer_type)
    for role in special_tokens:
        _check_known("special token role", role, SPECIAL_TOKEN_ROLES)
    for concerned, problem in special_token_problems(kind, special_tokens):
        raise TokenizerError(f"{concerned} {problem}" if concerned else problem)
    if not any(document.strip() for document in documents()):
        raise TokenizerError("the training corpus contains no text: a tokenizer cannot be trained on it")
    if kind.trainer is not None:
        trainer = import_string(kind.trainer)
    elif kind is CORE_TOKENIZER_TYPES.get(kind.name):
        trainer = partial(_train_core_type, kind.name)
    else:
        raise PluginError(f"the tokenizer type {kind.name} has no trainer: give it an import string")
    what = f"the trainer of the tokenizer type {kind.name}"
    with failing_as(what):
        tokenizer = trainer(documents, vocab_size, special_tokens)
    if broken := _broken_rule(tokenizer, vocab_size, special_tokens):
        raise PluginError(f"{what}, {kind.trainer}, {broken}")
    return tokenizer


def _train_core_type(
    name: str, documents: Documents, vocab_size: int | None, special_tokens: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    request = Request(name, documents, vocab_size, special_tokens)
    backend = _BUILDERS[name](request)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=list(MODEL_INPUTS),
        **special_tokens,
        **{KIND_KEY: name},
    )
    tokenizer.foundry_files = request.files
    return tokenizer


def _broken_rule(tokenizer: Any, vocab_size: int | None, special_tokens: Mapping[str, str]) -> str | None:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return f"returned a {type(tokenizer).__name__}, not a PreTrainedTokenizerFast"
    for role, name in special_tokens.items():
        if getattr(tokenizer, role) != name or name not in tokenizer.all_special_tokens:
            return f"was asked for the {role} {name!r} and returned {getattr(tokenizer, role)!r}"
    if vocab_size is not None and len(tokenizer) > vocab_size:
        return f"returned {len(tokenizer)} tokens where at most {vocab_size} were asked for"
    return None


def _training_on_files(tokenizer_type: str, default_size: int | None) -> Callable[..., PreTrainedTokenizerFast]:
    def train(
        input_files: str | Path | Sequence[str | Path],
        output_dir: str | Path | None = None,
        vocab_size: int | None = default_size,
        special_tokens: Mapping[str, str] | None = None,
        *,
        unit: DocumentUnit = "line",
    ) -> PreTrainedTokenizerFast:
        """Train a tokenizer on files; see `TokenizerFactory`."""
        special = default_special_tokens(tokenizer_type) if special_tokens is None else special_tokens
        corpus = Corpus.open(input_files, unit=unit)
        tokenizer = train_tokenizer(tokenizer_type, corpus.documents, vocab_size, special)
        if output_dir is not None:
            save_tokenizer(tokenizer, Path(output_dir))
        return tokenizer

    return train


class TokenizerFactory:
    """Trains a tokenizer on files and saves it in `output_dir`, if given; every method has the same arguments.

    `input_files` (one path or several) and `unit` are those of `Corpus.open`, the other arguments those of
    `train_tokenizer`. List the training corpus only: a tokenizer that has seen the test corpus has seen the answers.
    """

    train_sentencepiece = staticmethod(_training_on_files("sentencepiece", 8000))
    train_wordpiece = staticmethod(_training_on_files("wordpiece", 8000))
    train_bpe = staticmethod(_training_on_files("bpe", 8000))
    train_character = staticmethod(_training_on_files("character", None))
    train_word = staticmethod(_training_on_files("word", 8000))
