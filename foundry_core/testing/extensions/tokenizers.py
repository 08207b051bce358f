"""Checks of tokenizer types: the same input gives the same bytes, text comes back, other libraries open it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from foundry_core.errors import FoundryError
from foundry_core.registry.loading import plugin_files
from foundry_core.registry.tokenizer_type import TokenizerType
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.retrained import digest, documents, trained
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.testing.kit.check import NonconformanceError, NotLookedAtError, require
from foundry_core.testing.kit.processes import fresh
from foundry_core.tokenization.encoding import text_ids
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer

_SIZES = (512, 2048, 8192)
"""Vocabulary sizes that are tried; the checks use the first that the type accepts."""

_UNSEEN = ("Ĝis la revido!", "\N{GRINNING FACE} x\u0301 \u4f60\u597d", "1234567890", "two  spaces", " led by one")


@dataclass(frozen=True, eq=False)
class TokenizerBench:
    """A tokenizer type, and a tokenizer of it for `documents`."""

    subject: Subject
    size: int
    tokenizer: PreTrainedTokenizerFast
    roles: Mapping[str, str] = field(repr=False)

    @property
    def kind(self) -> TokenizerType:
        return self.subject.descriptor  # type: ignore[no-any-return]

    @cached_property
    def texts(self) -> list[str]:
        """Some of the documents that the tokenizer was trained on."""
        return list(documents())[::7]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts as training reads them."""
        return text_ids(self.tokenizer, texts)


@bench("tokenizer")
def tokenizer_bench(subject: Subject) -> TokenizerBench:
    kind: TokenizerType = subject.descriptor
    roles, refusals = kind.tokens_by_role(None), []
    for size in _SIZES:
        try:
            tokenizer = trained(kind, size, roles)
            name = type(tokenizer).__name__
            require(isinstance(tokenizer, PreTrainedTokenizerFast), f"the trainer returned a {name}")
            return TokenizerBench(subject, size, tokenizer, roles)
        except FoundryError as error:  # a size that the type refuses
            refusals.append(error)
    raise refusals[0]


@check(
    "tokenizer",
    "runs",
    fix="The named line raises an exception, or refuses vocabularies of 512, 2048 and 8192 tokens. `f(documents, "
    "vocab_size, special_tokens)` returns a transformers PreTrainedTokenizerFast; `documents()` starts a pass over the "
    "texts, as often as it is called.",
)
def runs(bench: TokenizerBench) -> None:
    """The trainer returns a fast tokenizer for a corpus of a few thousand words."""
    require(len(bench.tokenizer) > len(set(bench.roles.values())), "it has special tokens only")


@check(
    "tokenizer",
    "special-tokens",
    fix="Use the names that `special_tokens` gives by role: add them as special tokens, and pass them to "
    "PreTrainedTokenizerFast(tokenizer_object=..., **special_tokens). A role that is not asked for is not there.",
)
def special_tokens(bench: TokenizerBench) -> None:
    """Every special token that is asked for is there under its role, a single id, and no other; names may be any."""
    named = {role: f"[{role}-]" for role in bench.roles}
    for roles in (bench.roles, named):
        tokenizer = bench.tokenizer if roles is bench.roles else trained(bench.kind, bench.size, roles)
        found = {role: str(name) for role, name in tokenizer.special_tokens_map.items() if isinstance(name, str)}
        require(found == dict(roles), f"asked for {_listed(roles)}, it has {_listed(found)}")
        for name in roles.values():
            require(name in tokenizer.get_vocab(), f"{name} has no id")
            require(name in tokenizer.all_special_tokens, f"{name} is not special")


def _listed(roles: Mapping[str, str]) -> str:
    return ", ".join(f"{role} {name}" for role, name in sorted(roles.items())) or "none"


@check(
    "tokenizer",
    "vocab-size",
    fix="`vocab_size` counts the special tokens: leave room for them. Raise a FoundryError if it is too small.",
)
def vocab_size(bench: TokenizerBench) -> str:
    """The tokenizer has at most `vocab_size` tokens, special ones included, or the size is refused as too small."""
    for size in (bench.size, bench.size + 61, len(bench.tokenizer) - 7):
        try:
            tokenizer = bench.tokenizer if size == bench.size else trained(bench.kind, size, bench.roles)
        except FoundryError:
            require(size < bench.size, f"vocab_size {bench.size} is accepted, {size} refused")
            continue
        require(len(tokenizer) <= size, f"with vocab_size {size} it has {len(tokenizer)} tokens")
    return f"{len(bench.tokenizer)} tokens with vocab_size {bench.size}"


@check(
    "tokenizer",
    "same-bytes",
    fix="Sort what comes from a set or a hash table before it is numbered, break ties by spelling, use one thread, and "
    "write no path or time into the tokenizer: its digest decides whether encoded corpora can be reused.",
)
def same_bytes(bench: TokenizerBench) -> None:
    """Trained again, here and in another process with another hash seed, the tokenizer has the same bytes."""
    first = digest(bench.tokenizer)
    require(digest(trained(bench.kind, bench.size, bench.roles)) == first, "trained a second time, it differs")
    name = (bench.kind.trainer or "").partition(":")[0]
    if name == "__main__":
        raise NotLookedAtError("defined in this process: no other process can import it")
    file = sys.modules[name].__file__ if name in plugin_files else None
    program = "import sys\nfrom foundry_core.testing.extensions.retrained import answer\nanswer(sys.argv[1])"
    request = json.dumps([bench.kind.name, bench.kind.trainer, bench.size, dict(bench.roles), file])
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = fresh(program, request, hash_seed=other_seed).splitlines()[-1]
    require(found == first, "trained in another process, with another hash seed, it differs")


@check(
    "tokenizer",
    "text-back",
    fix="The decoder is missing or does not undo the pre-tokenizer, or characters are dropped without an unknown "
    "token. A change to the text, such as lower case, belongs in the normalizer of the tokenizer, where it shows.",
)
def text_back(bench: TokenizerBench) -> str:
    """A text without unknown tokens comes back from its ids: exactly, but for white space, or as its normalizer writes
    it; a text that was not seen in training comes back or has an unknown token.
    """
    normalizer = bench.tokenizer.backend_tokenizer.normalizer
    ways: dict[str, Callable[[str, str], bool]] = {
        "exactly": lambda text, back: back == text,
        "but for white space": lambda text, back: _squeezed(back) == _squeezed(text),
        "as its normalizer writes it": lambda text, back: (
            normalizer is not None and _squeezed(back) == _squeezed(normalizer.normalize_str(text))
        ),
    }
    used, came_back, unknown, total = 0, 0, 0, 0
    for text in (*bench.texts, *_UNSEEN):
        (ids,) = bench.ids([text])
        lost = sum(number == bench.tokenizer.unk_token_id for number in ids)
        unknown, total = unknown + lost, total + len(ids)
        if lost:
            continue
        back = bench.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        way = next((number for number, same in enumerate(ways.values()) if same(text, back)), None)
        if way is None:
            raise NonconformanceError(f"{text!r} comes back as {back!r}, without an unknown token")
        used, came_back = max(used, way), came_back + 1
    require(came_back > len(bench.texts) / 20, f"{came_back} of {len(bench.texts)} texts have no unknown token")
    return f"text comes back {list(ways)[used]}; {unknown / total:.1%} of the tokens are unknown"


def _squeezed(text: str) -> str:
    return "".join(text.replace("\u2581", " ").split())


@check(
    "tokenizer",
    "auto-tokenizer",
    fix="Everything that shapes encoding must be in `tokenizer_object`, the Tokenizer of the library `tokenizers`, "
    "which is saved as tokenizer.json. What a Python subclass or a Python component does is not saved.",
)
def auto_tokenizer(bench: TokenizerBench) -> None:
    """The saved folder, opened by transformers' AutoTokenizer and by core, gives the same ids and texts."""
    texts = [*bench.texts, *_UNSEEN]
    with TemporaryDirectory(prefix="foundry-check-") as folder:
        save_tokenizer(bench.tokenizer, folder)
        opened: dict[str, Any] = {
            "AutoTokenizer": AutoTokenizer.from_pretrained(folder),
            "core": load_tokenizer(Path(folder)),
        }
    expected = bench.tokenizer(texts, add_special_tokens=False)["input_ids"]
    require(expected == bench.ids(texts), "called directly and as training reads it, it gives other ids")
    for name, tokenizer in opened.items():
        found = tokenizer(texts, add_special_tokens=False)["input_ids"]
        differing = [text for text, one, other in zip(texts, found, expected, strict=True) if one != other]
        require(not differing, f"opened by {name}, {differing[:1]} has other ids")
        back = [tokenizer.decode(ids) == bench.tokenizer.decode(ids) for ids in expected]
        require(all(back), f"opened by {name}, the same ids become another text")


@check(
    "tokenizer",
    "literal-tokens",
    fix="The vocabulary of the model contains the special token, so that text reaches it. Add special tokens with "
    "`add_special_tokens` after training, behind the vocabulary, and let no piece be learned that spells one.",
)
def literal_tokens(bench: TokenizerBench) -> None:
    """Text that spells a special token gets ordinary ids, or the unknown token."""
    special = set(bench.tokenizer.all_special_ids) - {bench.tokenizer.unk_token_id}
    for name in sorted(set(bench.roles.values())):
        for text in (name, f"the {name} is", f"the{name}is"):
            (ids,) = bench.ids([text])
            reached = sorted(special & set(ids))
            require(not reached, f"the text {text!r} becomes {bench.tokenizer.convert_ids_to_tokens(reached)}")
