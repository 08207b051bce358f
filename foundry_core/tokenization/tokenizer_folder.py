"""The folder of a tokenizer: saving, loading, and the digest of everything that shapes encoding."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, TOKENIZER_MODEL
from foundry_core.storage.files import InPlaceFolder, scratch_reported
from foundry_core.storage.manifest import parse_json, read_plain_file

SPECIAL_TOKEN_ROLES = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
MODEL_INPUTS = ("input_ids", "attention_mask")
"""Inputs of a model that a tokenizer returns. Without token_type_ids: most models do not take them, and GPT-2 adds
them to its embeddings. To distinguish two texts, ask for them with `return_token_type_ids=True`.
"""
KIND_KEY = "foundry_tokenizer_type"
"""The setting that names the type of a tokenizer that core has trained."""
SENTENCEPIECE_KIND = "sentencepiece_model"
"""Its value for a tokenizer that was given as a sentencepiece model, which that library itself encodes with."""

_SETTINGS = (
    *SPECIAL_TOKEN_ROLES,
    *("clean_up_tokenization_spaces", "model_input_names", "model_max_length", "padding_side", "truncation_side"),
    KIND_KEY,
)

_MOST_GROWTH = 1 << 12
"""Factor by which a text may grow; core's types need less than 100 with their default special tokens."""

_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 4, "ByteLevel": 4}
"""Upper bounds: Unicode Standard Annex 15, table "Maximum Expansion Factors"; a character has up to 4 bytes."""


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """Return the files that `AutoTokenizer.from_pretrained` loads, and sentencepiece's own model with them."""
    with scratch_reported(), tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files[TOKENIZER_CONFIG])
    # transformers 5 writes "TokenizersBackend", a name that version 4 does not know.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    files[TOKENIZER_CONFIG] = (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
    return files | getattr(tokenizer, "foundry_files", {})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write the files of a tokenizer into a folder; other files in it stay."""
    sink = InPlaceFolder(folder)
    for name, content in tokenizer_files(tokenizer).items():
        sink.write(name, content)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, never from the network.

    Of tokenizer_config.json only the settings in `_SETTINGS` are taken: others of transformers name files, repositories
    and code. Raises TokenizerError when there is no tokenizer.json, or one that cannot be read.
    """
    path = folder / TOKENIZER_MODEL
    if not path.is_file():
        raise TokenizerError(f"{folder} contains no tokenizer.json: name the folder that a tokenizer was saved in")
    try:
        backend = read_backend(path)
        path = folder / TOKENIZER_CONFIG
        stored = parse_json(path, read_plain_file(path))
        settings = {name: stored[name] for name in _SETTINGS if stored.get(name) is not None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
        tokenizer.decode(tokenizer("a \N{SNOWMAN}1\n")["input_ids"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parser of `tokenizers` raises no narrower class; where it panics, not even one
        reason = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer in {folder} cannot be read, train it again: {reason}") from error
    # Whoever reads long texts cuts them, or has a model without a limit: transformers' warning would be wrong.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    model = folder / SENTENCEPIECE_MODEL
    tokenizer.foundry_files = {SENTENCEPIECE_MODEL: read_plain_file(model)} if model.is_file() else {}
    return tokenizer


def read_backend(path: Path) -> Tokenizer:
    """Read a tokenizer.json, which may be a stranger's. May raise anything, as the parser of `tokenizers` does."""
    raw = read_plain_file(path)
    _check_bounds(parse_json(path, raw))
    backend = Tokenizer.from_str(raw.decode())
    # A file may ask for 10^12 tokens of padding.
    backend.no_padding()
    backend.no_truncation()
    return backend


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 (hex) of all that training reads of a tokenizer: how text is encoded, and the special tokens.

    What is added around a text is left out, and the bos token, which training does not read: the tokenizer of every
    checkpoint has the digest of the one that it was trained with.
    """
    roles = {role: str(name) for role, name in tokenizer.special_tokens_map.items() if role != "bos_token"}
    roles.setdefault("eos_token", str(tokenizer.sep_token))
    files = {}
    if tokenizer.init_kwargs.get(KIND_KEY) == SENTENCEPIECE_KIND:
        model = getattr(tokenizer, "foundry_files", {}).get(SENTENCEPIECE_MODEL, b"")
        files[SENTENCEPIECE_MODEL] = hashlib.sha256(model).hexdigest()
    return _digest(tokenizer.backend_tokenizer.to_str(), tuple(roles.items()), tuple(files.items()))


@lru_cache(maxsize=2)  # a preparation asks twice, and sorting a vocabulary of 8,000 takes 50 ms
def _digest(backend: str, roles: tuple[tuple[str, str], ...], files: tuple[tuple[str, str], ...]) -> str:
    state = json.loads(backend)
    shape = {key: value for key, value in state.items() if key not in ("padding", "truncation", "post_processor")}
    shape |= dict(files)
    return hashlib.sha256(json.dumps([shape, dict(roles)], sort_keys=True).encode()).hexdigest()


def _check_bounds(state: Mapping[str, Any]) -> None:
    """Raise TokenizerError, KeyError, TypeError or ValueError for a stranger's tokenizer.json that must not be loaded.

    The parts of a tokenizer run one after the other, and each may make its text longer: five replacements of one
    character by a hundred make ten gigabytes of it.
    """
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
            raise TokenizerError(f"its {what} may make a text more than {_MOST_GROWTH:,} times as long")


def _too_much(factors: Iterable[int]) -> bool:
    times = 1
    return any((times := times * max(1, factor)) > _MOST_GROWTH for factor in factors)


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
