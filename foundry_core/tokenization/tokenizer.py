"""Five kinds of tokenizer, one type: `transformers.PreTrainedTokenizerFast`, trained here and encoded here.

`train_tokenizer` builds any of them, `TokenizerFactory` reads the corpus for it and saves the folder, `DocumentEncoder`
turns documents into token ids.

Costs, measured on two shared cores with 8000 tokens. On 3 MB of English (MASC), training takes
3.4 s (sentencepiece), 1.3 s (wordpiece, bpe) or 0.2 s; encoding runs at 3 to 4 MB/s in a first pass and at 5 to 8 when
all words have been seen, because each distinct word is encoded once and looked up afterwards. On 206 MB of generated
text with more distinct words than are kept, training takes at most 107 s and 375 MB (sentencepiece), 93 s and
590 MB (bpe) or 22 s and 230 MB (word); more text takes more time, not more memory: see `text_counts`.

Three rules hold for every kind:

* The same input gives the same tokenizer, byte for byte.
* `vocab_size` counts the special tokens and is never exceeded.
* Text that merely looks like a special token stays text: no trained piece spells one, and special tokens that the model
  itself does not need are appended behind its vocabulary, where text cannot reach them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import Corpus, DocumentUnit
from foundry_core.errors import PluginError, TokenizerError, did_you_mean
from foundry_core.registry.isolation import failing_as
from foundry_core.registry.loading import import_string
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES, TokenizerType, special_token_problems
from foundry_core.run_folder import SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, TOKENIZER_MODEL
from foundry_core.storage.files import InPlaceFolder, scratch_reported
from foundry_core.storage.manifest import parse_json, read_plain_file
from foundry_core.tokenization.limits import check_bounds
from foundry_core.tokenization.text_counts import UNIT, blocks
from foundry_core.tokenization.training import CORE_TRAINERS, KIND_KEY, SPECIAL_TOKEN_ROLES, Documents, Trainer

InputFiles = str | Path | Sequence[str | Path]

_PROBE = "a \N{SNOWMAN}1\n"
_SETTINGS = (
    *SPECIAL_TOKEN_ROLES,
    *("clean_up_tokenization_spaces", "model_input_names", "model_max_length", "padding_side", "truncation_side"),
    KIND_KEY,
)


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


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """The files of the folder that `AutoTokenizer.from_pretrained` loads, and sentencepiece's own model with them."""
    with scratch_reported(), tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files[TOKENIZER_CONFIG])
    # transformers 5 writes "TokenizersBackend", a name that version 4 does not know.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    files[TOKENIZER_CONFIG] = (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
    return files | getattr(tokenizer, "foundry_files", {})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes those files into a folder; other files in it stay."""
    sink = InPlaceFolder(folder)
    for name, content in tokenizer_files(tokenizer).items():
        sink.write(name, content)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer from a folder, never from the network.

    Of tokenizer_config.json only the settings that `tokenizer_files` writes are taken: others of transformers name
    files, repositories and code. Raises TokenizerError when the folder holds no tokenizer.json or one that cannot be
    read.
    """
    if not (Path(folder) / TOKENIZER_MODEL).is_file():
        raise TokenizerError(f"{folder} holds no tokenizer.json: name the folder that a tokenizer was saved in")
    try:
        path = Path(folder) / TOKENIZER_MODEL
        raw = read_plain_file(path)
        check_bounds(parse_json(path, raw))
        backend = Tokenizer.from_str(raw.decode())
        # What an earlier call asked for is none of a file's business: it may say 10^12 tokens of padding.
        backend.no_padding()
        backend.no_truncation()
        path = Path(folder) / TOKENIZER_CONFIG
        stored = parse_json(path, read_plain_file(path))
        settings = {name: stored[name] for name in _SETTINGS if stored.get(name) is not None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
        tokenizer.decode(tokenizer(_PROBE)["input_ids"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parser of `tokenizers` raises no narrower class; where it panics, not even one
        reason = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer in {folder} cannot be read, train it again: {reason}") from error
    model = Path(folder) / SENTENCEPIECE_MODEL
    tokenizer.foundry_files = {SENTENCEPIECE_MODEL: read_plain_file(model)} if model.is_file() else {}
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256, in hex, of everything that shapes encoding; padding and truncation of earlier calls do not count."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    shape = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    roles = {role: str(name) for role, name in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([shape, roles], sort_keys=True).encode()).hexdigest()


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a document in the token stream: eos_token's, or sep_token's when there is no eos_token."""
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    raise TokenizerError(
        "the tokenizer has neither an eos_token nor a sep_token to end a document with: add one of them"
    )


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


class DocumentEncoder:
    """Documents to token ids: those of `tokenizer(document, add_special_tokens=False)`, but special tokens stay text.

    A document is cut before every space or newline that follows a non-space. For the five types of this module no token
    reaches over such a cut, so that the ids of the parts are the ids of the whole, and each distinct part is encoded
    once. A tokenizer of another origin, or one with tokens added later, gets whole documents.
    """

    _WINDOW = 1 << 20  # characters of text taken at a time
    _REMEMBERED = 2 << 20  # characters of distinct parts whose ids are remembered: about 50 MB

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        kind = tokenizer.init_kwargs.get(KIND_KEY)
        # An added token that is not special is found in the text, and may hold a space.
        self._cuts = kind in CORE_TOKENIZER_TYPES and all(token["special"] for token in state["added_tokens"])
        self._lead = ""
        if self._cuts and kind == "sentencepiece":
            # The space before a document belongs to its first part alone, so the document brings it along.
            self._lead = " "
            state["normalizer"]["normalizers"] = [
                step for step in state["normalizer"]["normalizers"] if step["type"] != "Prepend"
            ]
        self._backend = Tokenizer.from_str(json.dumps(state))
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        self._known: dict[str, bytes] = {}
        self._held = 0

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """One uint32 array for each document, in order, without added special tokens.

        Beside the document and its own ids, memory holds a window of text, however long a document with spaces is.
        """
        ids = bytearray()
        for batch in self._batches(documents):
            known = self._known_after(set().union(*(parts for parts, _ in batch)))
            for parts, last in batch:
                ids += b"".join(map(known.__getitem__, parts))
                if last:
                    yield np.frombuffer(ids, np.uint32)
                    ids = bytearray()

    def _batches(self, documents: Iterable[str]) -> Iterator[list[tuple[list[str], bool]]]:
        """Windows of text as lists of (parts, whether the last of them ends a document)."""
        batch: list[tuple[list[str], bool]] = []
        size = 0
        for document in documents:
            text = self._lead + document if document else document
            done = 0
            for window in blocks(text, self._WINDOW) if self._cuts else (text,):
                done += len(window)
                size += len(window) + 1
                batch.append((UNIT.findall(window) if self._cuts else [window], done == len(text)))
                if size >= self._WINDOW:
                    yield batch
                    batch, size = [], 0
        yield batch

    def _known_after(self, wanted: set[str]) -> dict[str, bytes]:
        """The ids of parts as bytes, with those of all `wanted` ones among them."""
        missing = [part for part in wanted if part not in self._known]
        self._held += sum(map(len, missing))
        if self._held > self._REMEMBERED:
            self._known.clear()
            missing = list(wanted)
            self._held = sum(map(len, missing))
        encodings = self._backend.encode_batch_fast(missing, add_special_tokens=False)
        for part, encoding in zip(missing, encodings, strict=True):
            self._known[part] = array("I", encoding.ids).tobytes()
        return self._known
