"""A tokenizer that is given (`tokenizer.path`): read as data, checked, and never trained.

Its files are read, nothing in them is imported, unpickled or downloaded. What counts is tokenizer.json, or the
sentencepiece model; of a folder's other files only the names of the special tokens are taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError, warn
from foundry_core.registry.objective import Objective
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, GIVEN_TOKENIZER, special_token_problems
from foundry_core.run_folder import SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, TOKENIZER_MODEL
from foundry_core.storage.manifest import parse_json, read_plain_file
from foundry_core.tokenization.encoding import text_ids
from foundry_core.tokenization.parts import plain_backend
from foundry_core.tokenization.sentencepiece_model import ODD, PLAIN, convert, differences
from foundry_core.tokenization.tokenizer_folder import (
    KIND_KEY,
    MODEL_INPUTS,
    SENTENCEPIECE_KIND,
    SPECIAL_TOKEN_ROLES,
    read_backend,
)

_ROLES_FILE = "special_tokens_map.json"
_SLOW_FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_USUAL = {
    "bos_token": ("<s>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>", "<eos>", "[SEP]"),
    "unk_token": ("<unk>", "[UNK]"),
    "pad_token": ("<pad>", "[PAD]"),
    "mask_token": ("<mask>", "[MASK]"),
    "cls_token": ("[CLS]", "<cls>", "<s>"),
    "sep_token": ("[SEP]", "<sep>", "</s>"),
}
"""Spellings of special tokens that an error suggests."""
_VOCABULARY = 1000  # tokens that a tokenizer which claims to be core's is tried on
_SAMPLE, _LONGEST = 500, 2000  # documents of the corpus that a conversion is tried on, and characters of each
_SHARE = 0.01
"""Of them, how many may differ. With equal scores the sums of two libraries may round to different sides."""


def given_tokenizer(
    spec: str, changes: Mapping[Any, str | None], objective: Objective, *, pretokenized: bool = False
) -> PreTrainedTokenizerFast:
    """Read the tokenizer that `tokenizer.path` names.

    Args:
        spec: A folder with a tokenizer.json, such a file, or a sentencepiece model.
        changes: `tokenizer.special_tokens`: names by role, None to leave out a role that the files name. A name that is
            not in the vocabulary is appended to it.
        objective: What the tokenizer is for.
        pretokenized: Whether the words of the text have to be its tokens.

    Raises:
        TokenizerError: There is no tokenizer, it cannot be used as it is, or a special token is missing.
    """
    path = Path(spec)
    what = f"tokenizer.path: {path}"
    if not path.exists():
        raise TokenizerError(f"{what} does not exist: name a folder or a file, nothing is downloaded")
    try:
        backend, roles, kind, files = _read(path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parser of `tokenizers` raises no narrower class; where it panics, not even one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TokenizerError(f"{what} cannot be used: {reason}") from error
    state = json.loads(backend.to_str())
    if problem := _loses_text(state, kind):
        raise TokenizerError(f"{what} cannot be used: {problem}")
    if pretokenized and state["model"]["type"] != "WordLevel":
        raise TokenizerError(f"{what} is not a tokenizer of whole words, which tokenizer.pretokenized needs")
    own = _unknown(state)
    if own is not None:
        if changes.get("unk_token", own) != own:
            raise TokenizerError(
                f"{what}: unknown text becomes {own!r} in its model, so that no other token can be its unk_token: "
                "remove tokenizer.special_tokens.unk_token"
            )
        roles["unk_token"] = own
    named = GIVEN_TOKENIZER.tokens_by_role({**roles, **changes})
    _check_roles(what, backend, named, changes, objective)
    tokenizer = _built(backend, named, kind, files)
    if kind in CORE_TOKENIZER_TYPES and not _encodes_as_whole(tokenizer):
        tokenizer = _built(backend, named, None, files)
    if max(tokenizer.get_vocab().values()) >= len(tokenizer):
        raise TokenizerError(f"{what} cannot be used: its token ids are not the numbers from 0 on")
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _built(
    backend: Tokenizer, roles: Mapping[str, str], kind: str | None, files: Mapping[str, bytes]
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=list(MODEL_INPUTS),
        **{role: roles[role] for role in SPECIAL_TOKEN_ROLES if role in roles},
        **({} if kind is None else {KIND_KEY: kind}),
    )
    tokenizer.foundry_files = dict(files) if kind is not None else {}
    return tokenizer


def _encodes_as_whole(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Check that text may be encoded in parts, as that of a tokenizer that core has trained and nobody has changed."""
    known = " ".join(sorted(tokenizer.get_vocab())[:_VOCABULARY])
    texts = [*PLAIN, *ODD, known, known.upper(), known.lower(), known.replace(" ", "\n")]
    whole = plain_backend(tokenizer.backend_tokenizer.to_str())
    found = whole.encode_batch(texts, add_special_tokens=False)
    return text_ids(tokenizer, texts) == [encoding.ids for encoding in found]


def warn_of_additions(spec: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Report the special tokens that the vocabulary of the files does not contain."""
    known = _read(Path(spec))[0].get_vocab()
    added = sorted({str(name) for name in tokenizer.special_tokens_map.values()} - known.keys())
    if added:
        names = ", ".join(map(repr, added))
        warn(f"tokenizer.path: {names} added to the {len(known):,} tokens of {spec}: {len(tokenizer):,} now")


def check_conversion(spec: str, tokenizer: PreTrainedTokenizerFast, documents: Callable[[], Iterable[str]]) -> None:
    """Compare a converted sentencepiece model with the library, on odd characters and on the start of a corpus.

    Encoding here is exact in any case. What differs would be read differently by transformers, for which the
    conversion is: on odd characters that is reported, on text of the corpus or plain ASCII it is refused.

    Raises:
        TokenizerError: transformers would encode more than 1 in 100 documents of the corpus, or ASCII, differently.
    """
    content = tokenizer.foundry_files.get(SENTENCEPIECE_MODEL)
    if tokenizer.init_kwargs.get(KIND_KEY) != SENTENCEPIECE_KIND or content is None:
        return
    backend, _ = convert(content)
    sample = [text[:_LONGEST] for text in islice(documents(), _SAMPLE)]
    plain, wrong, odd = (differences(content, backend, texts) for texts in (PLAIN, sample, ODD))
    if plain or len(wrong) > _SHARE * len(sample):
        raise TokenizerError(
            f"tokenizer.path: {spec} cannot be converted exactly: transformers would encode {(plain or wrong)[0]!r} in "
            "another way than sentencepiece does. Train the model again with model_type unigram or bpe and "
            "normalization_rule_name identity"
        )
    if others := [*wrong, *odd]:
        shown = ", ".join(map(ascii, others[:3]))
        warn(f"{spec}: encoded here as by sentencepiece itself; transformers reads such texts differently: {shown}")


def _read(path: Path) -> tuple[Tokenizer, dict[str, str], str | None, dict[str, bytes]]:
    """Return the backend, the special tokens by role, the type if it is known, and the files to be kept with it."""
    if path.is_file() and path.suffix == ".json":
        return read_backend(path), {}, None, {}
    if path.is_file():
        content = read_plain_file(path)
        backend, roles = convert(content)
        return backend, roles, SENTENCEPIECE_KIND, {SENTENCEPIECE_MODEL: content}
    if not (path / TOKENIZER_MODEL).is_file():
        slow = next((name for name in _SLOW_FILES if (path / name).is_file()), None)
        if slow is not None and slow.endswith(".model"):
            raise TokenizerError(f"it has no {TOKENIZER_MODEL}: name its sentencepiece model itself, {path / slow}")
        advice = (
            f"of {slow} alone, transformers' AutoTokenizer and save_pretrained make one" if slow else "name another"
        )
        raise TokenizerError(f"it has no {TOKENIZER_MODEL}: {advice}")
    stored: dict[str, Any] = {}
    for name in (_ROLES_FILE, TOKENIZER_CONFIG):
        if (path / name).is_file():
            found = parse_json(path / name, read_plain_file(path / name))
            stored |= found if isinstance(found, dict) else {}
    found_roles = {role: _name(role, stored.get(role)) for role in SPECIAL_TOKEN_ROLES}
    roles = {role: name for role, name in found_roles.items() if name is not None}
    kind, model = stored.get(KIND_KEY), path / SENTENCEPIECE_MODEL
    kind = kind if kind in (*CORE_TOKENIZER_TYPES, SENTENCEPIECE_KIND) else None
    files = {SENTENCEPIECE_MODEL: read_plain_file(model)} if kind is not None and model.is_file() else {}
    return read_backend(path / TOKENIZER_MODEL), roles, kind, files


def _name(role: str, stored: Any) -> str | None:
    """Return the spelling of a special token, which transformers stores alone or with its settings."""
    name = stored.get("content") if isinstance(stored, dict) else stored
    if name is not None and not isinstance(name, str):
        raise TokenizerError(f"its {role} is not text")
    return name or None


def _unknown(state: Mapping[str, Any]) -> str | None:
    """Return the token of the vocabulary that unknown text becomes."""
    model = state["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    name = model.get("unk_token")
    return str(name) if name in model["vocab"] else None


def _loses_text(state: Mapping[str, Any], kind: str | None) -> str | None:
    """Return why a tokenizer may lose text, or encode the same text in two ways."""
    model = state["model"]
    if model.get("dropout"):
        return "its model draws merges at random (dropout)"
    names = {name for name, _ in model["vocab"]} if model["type"] == "Unigram" else set(model["vocab"])
    if _unknown(state) is not None or kind == SENTENCEPIECE_KIND:
        return None
    all_bytes = names.issuperset(f"<0x{byte:02X}>" for byte in range(256))
    if model.get("byte_fallback") and all_bytes:
        return None
    if '"ByteLevel"' in json.dumps([state["normalizer"], state["pre_tokenizer"]]):
        if names.issuperset(pre_tokenizers.ByteLevel.alphabet()):
            return None
        return "it drops text: its vocabulary lacks some of the 256 bytes, and it has no unk_token"
    return "it drops text that it does not know, or fails on it: its model has no unk_token in its vocabulary"


def _check_roles(
    what: str, backend: Tokenizer, named: Mapping[str, str], changes: Mapping[Any, str | None], objective: Objective
) -> None:
    """Raise TokenizerError for special tokens that are missing or cannot be used, with the way to name others."""
    vocabulary = backend.get_vocab()

    def way_out(*roles: str) -> str:
        names: dict[str, str] = {}
        for role in roles:
            free = [name for name in _USUAL[role] if name not in (*named.values(), *names.values())]
            names[role] = next((name for name in free if name in vocabulary), next(iter(free), _USUAL[role][0]))
        text = ", ".join(f'{role}: "{name}"' for role, name in names.items())
        added = "" if vocabulary.keys() >= set(names.values()) else " (a name that is not in its vocabulary is added)"
        return f"set tokenizer.special_tokens: {{{text}}}{added}"

    needed = dict.fromkeys(objective.required_tokens, objective.name)
    if not {"eos_token", "sep_token"} & named.keys():
        needed["eos_token"] = "a separator of documents"
    if "pad_token" not in changes:
        needed.setdefault("pad_token", "rows of unequal length")
    if missing := [role for role in needed if role not in named]:
        reasons = ", ".join(f"no {role}, needed for {needed[role]}" for role in missing)
        raise TokenizerError(f"{what} has {reasons}: {way_out(*missing)}")
    for role, problem in special_token_problems(GIVEN_TOKENIZER, named):
        advice = f": {way_out(role)}" if role is not None and role not in changes else ""
        raise TokenizerError(f"{what}: {role or 'special tokens'}: {problem}{advice}")
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    for role, name in changes.items():
        if name in vocabulary and name not in special and str(name).strip("\u2581\u0120#").isalnum():
            raise TokenizerError(f"{what}: {role}: {name!r} is a word of its text: name another token")
