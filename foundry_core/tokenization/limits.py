"""What a stranger's tokenizer.json may ask for: ids without holes, and text that grows by a bounded factor. Light.

The parts of a tokenizer run one after the other, and each may make its text longer: five replacements of one character
by a hundred, one behind the other, make ten gigabytes of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from foundry_core.errors import TokenizerError

_MOST = 1 << 12
"""Times that text may grow; our own kinds come to less than a hundred with their default special tokens."""

_GROWING = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 4, "ByteLevel": 4}
"""By how much, at most: Unicode Standard Annex 15, table "Maximum Expansion Factors"; a character has up to 4 bytes."""


def check_bounds(state: Mapping[str, Any]) -> None:
    """Raises TokenizerError, KeyError, TypeError or ValueError for the content of a file that must not be loaded."""
    _check_ids(state)
    encoding = _growth(state.get("normalizer")) * _growth(state.get("pre_tokenizer"))
    for what, times in (
        ("normalizer and pre_tokenizer", encoding),
        ("decoder", _growth(state.get("decoder"))),
        ("post_processor", _template_growth(state.get("post_processor"))),
    ):
        if times > _MOST:
            raise TokenizerError(f"its {what} may make a text more than {_MOST:,} times as long")


def _check_ids(state: Mapping[str, Any]) -> None:
    """Ids follow each other from 0: the library walks from the first to the last, through every hole in a file's."""
    vocabulary, added = state["model"]["vocab"], [token["id"] for token in state["added_tokens"]]
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else list(range(len(vocabulary)))
    whole = all(type(number) is int and 0 <= number < len(ids) + len(added) for number in [*ids, *added])
    if not whole or set(ids) != set(range(len(ids))):
        raise TokenizerError("its token ids are not the numbers from 0 on")


def _steps(part: Mapping[str, Any] | None, *inner: str) -> Iterator[Mapping[str, Any]]:
    """A part, or those of a sequence, however they are nested."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for key in inner:
            for each in part.get(key, ()):
                yield from _steps(each, *inner)
    else:
        yield part


def _growth(part: Mapping[str, Any] | None) -> int:
    """How many characters one character may become, stopped where it is too many."""
    times = 1
    for step in _steps(part, "normalizers", "pretokenizers", "decoders"):
        match step["type"]:
            case "Replace":
                times *= max(1, len(step["content"]))
            case "Prepend":
                times *= 1 + len(step["prepend"])
            case "Precompiled":
                # A tree, behind its length in four bytes, then the texts that it leads to, a NUL after each.
                content = base64.b64decode(step["precompiled_charsmap"])
                texts = content[4 + int.from_bytes(content[:4], "little") :]
                times *= max(1, *map(len, texts.split(b"\0")))
            case name:
                times *= _GROWING.get(name, 1)
        if times > _MOST:
            break
    return times


def _template_growth(part: Mapping[str, Any] | None) -> int:
    """How many tokens one token may become."""
    times = 1
    for step in _steps(part, "processors"):
        if step["type"] == "TemplateProcessing":
            own = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
            for template in (step["single"], step["pair"]):
                sizes = (own[piece["SpecialToken"]["id"]] if "SpecialToken" in piece else 1 for piece in template)
                times = max(times, times * sum(sizes))
        else:
            times *= 3 if step["type"] in ("BertProcessing", "RobertaProcessing") else 1
        if times > _MOST:
            break
    return times
