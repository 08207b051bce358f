"""Training a tokenizer on the corpus of the checks, also in a fresh process, which imports no more than it needs."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping

from transformers import PreTrainedTokenizerFast

from foundry_core.registry.loading import import_string, load_plugin_file
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType
from foundry_core.testing.toy_language import ToyLanguage
from foundry_core.tokenization.tokenizer_folder import tokenizer_files
from foundry_core.tokenization.training import train_tokenizer


def documents() -> Iterator[str]:
    """Yield a corpus of a few thousand words: sentences, made-up words, numbers and marks."""
    yield from ToyLanguage().sentences(600, seed=1)
    rng = random.Random(1)
    for _ in range(600):
        words = ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(6))
        yield f"{' '.join(words).capitalize()}, {rng.randint(0, 999)}; \u201c\u00e9t\u00e9\u201d!"


def trained(kind: TokenizerType, size: int | None, roles: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer, without core's checks of what the trainer of a plugin returns."""
    if kind.trainer is None:
        return train_tokenizer(kind, documents, size, roles)
    return import_string(kind.trainer)(documents, size, roles)


def digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a digest of the files of a tokenizer."""
    files = sorted(tokenizer_files(tokenizer).items())
    return hashlib.sha256(b"".join(name.encode() + b"\0" + content for name, content in files)).hexdigest()


def answer(request: str) -> None:
    """Train a tokenizer and print its digest: what the other process runs."""
    name, trainer, size, roles, file = json.loads(request)
    if file is not None:
        load_plugin_file(file)
    kind = CORE_TOKENIZER_TYPES[name] if trainer is None else TokenizerType(name, "", trainer=trainer)
    sys.stdout.write(digest(trained(kind, size, roles)) + "\n")
