"""Validate an untrusted tokenizer.json: consecutive ids, bounded text growth. Light.

Components run in sequence and their growth multiplies: five replacements of a character by 100 make 10 GB of one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from foundry_core.errors import TokenizerError

_MOST = 1 << 12
"""How many times as long a text may become; core's types need less than 100 with their default special tokens."""

_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 4, "ByteLevel": 4}
"""Upper bounds: Unicode Standard Annex 15, table "Maximum Expansion Factors"; a character has up to 4 bytes."""


def check_bounds(state: Mapping[str, Any]) -> None:
    """Raise TokenizerError, KeyError, TypeError or ValueError for the content of a file that must not be loaded."""
    # The library walks from the first id to the last, through every hole between them.
    vocabulary, added = state["model"]["vocab"], [token["id"] for token in state["added_tokens"]]
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else list(range(len(vocabulary)))
    whole = all(type(number) is int and 0 <= number < len(ids) + len(added) for number in [*ids, *added])
    if not whole or set(ids) != set(range(len(ids))):
        raise TokenizerError("its token ids are not the numbers from 0 on")
    for what, factors in (
        ("normalizer and pre_tokenizer", map(_growth, _steps(state.get("normalizer"), state.get("pre_tokenizer")))),
        ("decoder", map(_growth, _steps(state.get("decoder")))),
        ("post_processor", map(_template_growth, _steps(state.get("post_processor")))),
    ):
        if _too_much(factors):
            raise TokenizerError(f"its {what} may make a text more than {_MOST:,} times as long")


def _too_much(factors: Iterable[int]) -> bool:
    times = 1
    return any((times := times * max(1, factor)) > _MOST for factor in factors)


def _steps(*parts: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of a tokenizer, those of a sequence one by one, however they are nested."""
    for part in parts:
        if part is not None and part["type"] != "Sequence":
            yield part
        elif part is not None:
            for key in ("normalizers", "pretokenizers", "decoders", "processors"):
                yield from _steps(*part.get(key, ()))


def _growth(step: Mapping[str, Any]) -> int:
    """Return how many characters one character may become."""
    match step["type"]:
        case "Replace":
            return len(step["content"])
        case "Prepend":
            return 1 + len(step["prepend"])
        case "Precompiled":
            # A tree, behind its length in four bytes, then the texts that it leads to, a NUL after each.
            content = base64.b64decode(step["precompiled_charsmap"])
            texts = content[4 + int.from_bytes(content[:4], "little") :]
            return max(map(len, texts.split(b"\0")))
        case name:
            return _GROWTH.get(name, 1)


def _template_growth(step: Mapping[str, Any]) -> int:
    """Return how many tokens one token may become."""
    if step["type"] != "TemplateProcessing":
        return 3 if step["type"] in ("BertProcessing", "RobertaProcessing") else 1
    sizes = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
    return max(
        sum(sizes[piece["SpecialToken"]["id"]] if "SpecialToken" in piece else 1 for piece in template)
        for template in (step["single"], step["pair"])
    )
