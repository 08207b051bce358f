"""Descriptors of tokenizers: core's five kinds, and those of the hook `foundry_tokenizer_types`. Light."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from string import punctuation
from typing import Any, Literal

from foundry_core.registry.checks import check_import_string, check_name, check_names

Role = Literal["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token"]
Roles = Mapping[str, str]
"""Special tokens by role, such as `{"eos_token": "</s>"}`."""

_DEFAULT = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def _none(roles: Roles) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class TokenizerType:
    """A kind of tokenizer. Raises PluginError for an invalid name, trainer or required_tokens.

    Attributes:
        name: The value of `tokenizer.tokenizer_type`.
        trainer: Import string of a function `f(documents, vocab_size, special_tokens)` that returns a transformers
            `PreTrainedTokenizerFast`. `documents()` starts a new pass over the texts; `vocab_size` counts the special
            tokens and is a limit, None for no limit; `special_tokens` are names by role. The same input must give the
            same tokenizer, byte for byte. What a checkpoint's tokenizer adds around a text follows from the objective:
            core sets it on saving. None: core's own.
        special_tokens: Names by role, for roles that the YAML does not set: those that any objective needs, so that
            models of different objectives can share a tokenizer.
        required_tokens: Roles that this kind cannot do without.
        problems: A function of the special tokens that yields each unusable role, with the reason.
    """

    name: str
    summary: str
    trainer: str | None = None
    special_tokens: Roles = field(default_factory=lambda: dict(_DEFAULT))
    required_tokens: tuple[str, ...] = ()
    problems: Callable[[Roles], Iterable[tuple[str, str]]] = _none

    def __post_init__(self) -> None:
        check_name("tokenizer type", self.name)
        if self.trainer is not None:
            check_import_string(f"the tokenizer type '{self.name}': its trainer", self.trainer)
        check_names(f"the tokenizer type '{self.name}': its required_tokens", self.required_tokens)

    def tokens_by_role(self, changes: Mapping[Any, str | None] | None = None) -> dict[str, str]:
        """Return the special tokens by role; `changes` are those of the YAML, where None removes a role."""
        tokens = {**self.special_tokens, **(changes or {})}
        return {role: token for role, token in tokens.items() if token is not None}


def special_token_problems(kind: TokenizerType, roles: Roles) -> Iterator[tuple[str | None, str]]:
    """Yield each role that makes special tokens unusable, None for all of them, with the reason."""
    for role, name in roles.items():
        if not name or re.search("[\\s:$\u2581]", name):
            forbidden = "white space, ':', '$' or '\u2581'"
            yield role, f"{name!r} cannot be a special token: it must not be empty and must not contain {forbidden}"
    ends = [role for role in ("eos_token", "sep_token") if role in roles]
    if not ends:
        yield None, "a tokenizer needs an eos_token or a sep_token, which ends a document: add one of them"
    pad, mask = roles.get("pad_token"), roles.get("mask_token")
    if clash := next((role for role in ends if pad is not None and pad == roles[role]), None):
        reason = "padding is not learned, so the end of a text would never be learned"
        yield "pad_token", f"equals the {clash} {pad!r}: {reason}; use another token, such as '<pad>'"
    if mask is not None and list(roles.values()).count(mask) > 1:
        yield "mask_token", f"{mask!r} has a second role: use another token for masking, such as '<mask>'"
    for role in kind.required_tokens:
        if role not in roles:
            yield role, f"a {kind.name} tokenizer needs {'an' if role[0] in 'eu' else 'a'} {role}"
    yield from kind.problems(roles)


def _sentencepiece_problems(roles: Roles) -> Iterator[tuple[str, str]]:
    unknown = roles.get("unk_token")
    if unknown is not None and len(unknown) < 2:
        yield "unk_token", f"{unknown!r} of a sentencepiece tokenizer is one character: write it as '<unk>'"


def _wordpiece_problems(roles: Roles) -> Iterator[tuple[str, str]]:
    unknown = roles.get("unk_token")
    if unknown is not None and not _is_split(unknown):
        yield "unk_token", f"{unknown!r} of a wordpiece tokenizer is spelt like a word: write it as '[UNK]'"


def _is_split(name: str) -> bool:
    """Return whether wordpiece, which splits at punctuation, never sees a name as one word."""
    return len(name) > 1 and any(c in punctuation or unicodedata.category(c).startswith("P") for c in name)


SENTENCEPIECE = TokenizerType(
    name="sentencepiece",
    summary="unigram pieces within words, bytes for rare characters (Kudo and Richardson 2018)",
    problems=_sentencepiece_problems,
)
WORDPIECE = TokenizerType(
    name="wordpiece",
    summary="BERT's pieces of words, with case and accents (Devlin et al. 2019)",
    special_tokens={f"{role}_token": f"[{role.upper()}]" for role in ("cls", "sep", "mask", "unk", "pad")},
    required_tokens=("unk_token",),
    problems=_wordpiece_problems,
)
BPE = TokenizerType("bpe", "merged pairs of bytes: no text is unknown (Radford et al. 2019)")
CHARACTER = TokenizerType("character", "one token for each character", required_tokens=("unk_token",))
WORD = TokenizerType("word", "one token for each frequent word, split at white space", required_tokens=("unk_token",))

CORE_TOKENIZER_TYPES = {kind.name: kind for kind in (SENTENCEPIECE, WORDPIECE, BPE, CHARACTER, WORD)}

GIVEN_TOKENIZER = TokenizerType("given", "a tokenizer of tokenizer.path, which is not trained", special_tokens={})
"""What `tokenizer.path` stands for; not a value of `tokenizer.tokenizer_type`. Its special tokens are its own."""
