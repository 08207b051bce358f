"""Five kinds of tokenizer, one type: `transformers.PreTrainedTokenizerFast`, trained here and encoded here.

`train_tokenizer` builds any of them, `TokenizerFactory` reads the corpus for it and saves the folder, `DocumentEncoder`
turns documents into token ids.

Costs, on two shared cores and 3 MB of English with 8000 tokens: training takes 4 s (sentencepiece, wordpiece), 1.3 s
(bpe) or 0.1 s; encoding starts at 3 to 6 MB/s and reaches 5 to 15 MB/s when most words have been seen, against 1 to 3
(word: 8) for `encode_batch_fast` on lines, because each distinct word is encoded once and looked up afterwards.

Three rules hold for every kind:

* The same input gives the same tokenizer, byte for byte.
* `vocab_size` counts the special tokens and is never exceeded.
* Text that merely looks like a special token stays text: no trained piece spells one, and special tokens that the model
  itself does not need are appended behind its vocabulary, where text cannot reach them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus import Corpus, DocumentUnit
from foundry_core.errors import TokenizerError, did_you_mean
from foundry_core.storage import InPlaceFolder

Documents = Callable[[], Iterable[str]]
InputFiles = str | Path | Sequence[str | Path]

SPECIAL_TOKEN_ROLES = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
SENTENCEPIECE_FILE = "sentencepiece.model"

_SPACE = "▁"
_KIND_KEY = "foundry_tokenizer_type"
_ALPHABET_LIMIT = 1000  # characters that wordpiece keeps; the limit that `tokenizers` itself has
_TRAINING_PIECE = 4000  # characters; longer text without white space is cut for training only
_CUT = re.compile(r"(?<=\S)(?=[ \n])")
_UNIT = re.compile(r"\s*\S+(?:[^\S \n]\s*\S*)*|\s+")  # what lies between two such cuts; the matches spell the text


@dataclass(frozen=True)
class _Order:
    """What a builder is given: a fresh pass over the documents, the size asked for, the special tokens by role."""

    kind: str
    documents: Documents
    vocab_size: int | None
    roles: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict)  # what the builder wants kept beside the tokenizer

    @property
    def names(self) -> list[str]:
        """Each distinct special token once, always in the same order."""
        return list(dict.fromkeys(self.roles[role] for role in SPECIAL_TOKEN_ROLES if role in self.roles))

    def size(self) -> int:
        """The vocabulary size, for the kinds that cannot do without one."""
        if self.vocab_size is None:
            raise TokenizerError(f"a {self.kind} tokenizer needs a vocab_size: set tokenizer.vocab_size")
        return self.vocab_size

    def room(self, *in_model: str) -> int:
        """How many tokens the model may have when all special tokens but `in_model` are appended behind it."""
        return self.size() - len(set(self.names) - set(in_model))

    def unknown(self) -> str:
        """The unknown token, for the kinds that cannot do without one."""
        if "unk_token" not in self.roles:
            raise TokenizerError(f"a {self.kind} tokenizer needs an unk_token: add one to tokenizer.special_tokens")
        return self.roles["unk_token"]

    def too_small(self, smallest: int) -> TokenizerError:
        """The error for a vocabulary that cannot hold what it must; `smallest` counts the special tokens."""
        return TokenizerError(
            f"vocab_size {self.vocab_size} is too small for a {self.kind} tokenizer of this corpus: "
            f"the smallest that works is {smallest}"
        )

    def texts(self) -> Iterator[str]:
        """All documents, in the pieces of `pieces`."""
        for document in self.documents():
            yield from self.pieces(document)

    def pieces(self, document: str) -> Iterator[str]:
        """A document in pieces of a few kilobytes, with a line break inside everything that spells a special token.

        Trainers hold a piece at a time, so that a document of any length is no burden; and no token that they learn
        spells a special token, because they never see one whole.
        """
        for block in _blocks(document, _TRAINING_PIECE // 4):
            for at in range(0, len(block), _TRAINING_PIECE):
                text = block[at : at + _TRAINING_PIECE]
                for name in self.names:
                    text = text.replace(name, f"{name[0]}\n{name[1:]}")
                yield text


def _blocks(text: str, size: int) -> Iterator[str]:
    """Cuts a text before a space or newline that follows a non-space, into blocks of about `size` characters."""
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def default_special_tokens(tokenizer_type: str, masked: bool) -> dict[str, str]:
    """The special tokens of a tokenizer whose configuration names none; `masked` is true for masked_lm."""
    _builder(tokenizer_type)
    if tokenizer_type == "wordpiece":
        roles = ("cls", "sep", "mask", "unk", "pad")
        return {f"{role}_token": f"[{role.upper()}]" for role in roles}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return tokens | ({"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"} if masked else {})


def _check(roles: Mapping[str, str]) -> None:
    """Refuses special tokens that would make a text unlearnable or a token ambiguous."""
    for role, name in roles.items():
        if role not in SPECIAL_TOKEN_ROLES:
            near = did_you_mean(role, SPECIAL_TOKEN_ROLES)
            raise TokenizerError(f"unknown special token role {role!r}.{near} Roles: {', '.join(SPECIAL_TOKEN_ROLES)}")
        if not name or re.search(rf"[\s:${_SPACE}]", name):
            raise TokenizerError(
                f"{role} {name!r} cannot be a special token: it must not be empty and must not hold white space, "
                f"':', '$' or '{_SPACE}'"
            )
    if "eos_token" not in roles and "sep_token" not in roles:
        raise TokenizerError("a tokenizer needs an eos_token or a sep_token, which ends a document: add one of them")
    pad, mask = roles.get("pad_token"), roles.get("mask_token")
    for role in ("eos_token", "sep_token"):
        if pad is not None and pad == roles.get(role):
            raise TokenizerError(
                f"pad_token and {role} are both {pad!r}, so the end of a text would never be learned: "
                f"give padding a token of its own, such as '<pad>'"
            )
    if mask is not None and list(roles.values()).count(mask) > 1:
        raise TokenizerError(
            f"mask_token {mask!r} has a second role: give masking a token of its own, such as '<mask>'"
        )


def _build_bpe(order: _Order) -> Tokenizer:
    """Byte-level BPE: every Unicode text comes back exactly, no token is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = order.room()
    if room < len(alphabet):
        raise order.too_small(order.size() - room + len(alphabet))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(order.texts(), trainer)
    return _with_special_tokens(order, backend)


def _build_wordpiece(order: _Order) -> Tokenizer:
    """BERT's WordPiece, case and accents kept; white space is not encoded."""
    unknown = order.unknown()
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    if len(splitter.pre_tokenize_str(unknown)) < 2:
        raise TokenizerError(
            f"unk_token {unknown!r} of a wordpiece tokenizer is spelt like a word of the text: write it as '[UNK]'"
        )
    counts = _character_counts(order)
    kept = [c for c in _by_frequency(counts) if normalizer.normalize_str(c).strip() == c][:_ALPHABET_LIMIT]

    def trained(vocab_size: int, first: list[str]) -> Tokenizer:
        backend = Tokenizer(models.WordPiece(unk_token=unknown))
        backend.normalizer = normalizer
        backend.pre_tokenizer = splitter
        trainer = trainers.WordPieceTrainer(
            vocab_size=max(vocab_size, 0),
            initial_alphabet=kept,
            limit_alphabet=len(kept),
            special_tokens=first,
            show_progress=False,
        )
        backend.train_from_iterator(order.texts(), trainer)
        return backend

    # The trainer numbers "##a" in the order of a hash table, which differs from run to run and decides ties. A first
    # run without merges finds them; given in sorted order, they make the second run the same every time.
    continued = sorted(token for token in trained(0, [unknown]).get_vocab() if len(token) == 3 and token[:2] == "##")
    room = order.room(unknown)
    backend = trained(room, [unknown, *continued])
    if backend.get_vocab_size() > room:
        raise order.too_small(order.size() - room + backend.get_vocab_size())
    # Built anew because the trainer has registered "##a" and its like as special tokens.
    result = Tokenizer(backend.model)
    result.normalizer = normalizer
    result.pre_tokenizer = splitter
    result.decoder = decoders.WordPiece(cleanup=False)
    return _with_special_tokens(order, result, unknown)


def _build_character(order: _Order) -> Tokenizer:
    """One token for each character of the corpus, the most frequent ones if there are more than fit."""
    unknown = order.unknown()
    backend = _word_level(order, _character_counts(order), [unknown])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return _with_special_tokens(order, backend, unknown)


def _build_word(order: _Order) -> Tokenizer:
    """One token for each frequent word of the corpus, white space as `str.split()` has it; a newline is the separator.

    A literal unknown token stays what it is, as the files of Penn Treebank and WikiText mean it. A word spelt like the
    separator is unknown.
    """
    unknown = order.unknown()
    separator = order.roles["eos_token" if "eos_token" in order.roles else "sep_token"]
    counts: Counter[str] = Counter()
    for document in order.documents():
        for block in _blocks(document, 1 << 20):
            counts.update(block.split())
    for name in order.names:
        counts.pop(name, None)
    backend = _word_level(order, counts, [unknown, separator])
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\x1c-\x1f]"), " "),  # white space in Python, not in Rust
            normalizers.Replace(Regex(rf"(?<!\S){re.escape(separator)}(?!\S)"), unknown),
            normalizers.Replace("\n", f" {separator} "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_special_tokens(order, backend, unknown, separator)


def _build_sentencepiece(order: _Order) -> Tokenizer:
    """Unigram pieces by the `sentencepiece` library, bytes for rare characters: every text comes back exactly.

    The one exception is a literal U+2581, which stands for a space in the pieces and comes back as one. A document
    starts with an unwritten space, so that its first word gets the pieces that it has elsewhere.
    """
    unknown = order.roles.get("unk_token", "<unk>")
    if len(unknown) < 2:
        raise TokenizerError(
            f"unk_token {unknown!r} of a sentencepiece tokenizer is one character: write it as '<unk>'"
        )
    model = _sentencepiece_model(order, unknown)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    backend = Tokenizer(models.Unigram(pieces, processor.unk_id(), byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    # The model would find "<0x41>" in the text like any other piece: the first character of such text is set apart.
    literal = rf"<(?=0x[0-9A-F]{{2}}>)|{re.escape(unknown[0])}(?={re.escape(unknown[1:])})"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(literal), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(_SPACE, "merged_with_next"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    order.files[SENTENCEPIECE_FILE] = model
    return _with_special_tokens(order, backend, unknown)


def _sentencepiece_model(order: _Order, unknown: str) -> bytes:
    """Trains a unigram model and returns its file; its ids are those of the tokenizer, less the appended ones."""

    def lines() -> Iterator[str]:
        for document in order.documents():
            lead = " "
            for piece in order.pieces(document):
                # The trainer drops a whole line that holds U+2585, which it uses itself.
                for line in re.split("[\n\u2585]", piece):
                    yield lead + line
                    lead = ""

    appended = order.size() - order.room(unknown)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="unigram",
            vocab_size=max(order.room(unknown), 1),
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=["\n"],
            unk_id=0,
            unk_piece=unknown,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _TRAINING_PIECE,
            num_threads=1,  # the sums of several threads round differently with their number
            minloglevel=2,
        )
    except RuntimeError as error:
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise order.too_small(int(found[1]) + appended) from None
        if found := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise TokenizerError(
                f"vocab_size {order.vocab_size} is too large for a sentencepiece tokenizer of this corpus: "
                f"the largest that works is {int(found[1]) + appended}"
            ) from None
        raise TokenizerError(f"sentencepiece cannot train on this corpus: {error}") from error
    return model.getvalue()


def _character_counts(order: _Order) -> Counter[str]:
    """How often each character of the corpus occurs."""
    counts: Counter[str] = Counter()
    for document in order.documents():
        counts.update(document)
    return counts


def _by_frequency(counts: Counter[str]) -> list[str]:
    """The most frequent first, equal counts in the order of their code points."""
    return sorted(counts, key=lambda token: (-counts[token], token))


def _word_level(order: _Order, counts: Counter[str], first: Sequence[str]) -> Tokenizer:
    """A model that looks tokens up: `first`, then as many of the most frequent as there is room for."""
    for name in order.names:
        if name in counts:
            raise _ambiguous(name)
    reserved = len(order.names)
    if order.vocab_size is not None and order.vocab_size <= reserved:
        raise order.too_small(reserved + 1)
    room = None if order.vocab_size is None else order.vocab_size - reserved
    tokens = dict.fromkeys([*first, *_by_frequency(counts)[:room]])
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=first[0]))


def _ambiguous(name: str) -> TokenizerError:
    return TokenizerError(
        f"the special token {name!r} is also an ordinary token of this corpus: choose another spelling"
    )


def _with_special_tokens(order: _Order, backend: Tokenizer, *in_model: str) -> Tokenizer:
    """Registers the special tokens: those `in_model` keep their ids, the others are appended.

    With a cls_token and a sep_token, encoding a text puts it between the two, as masked models expect it.
    """
    vocabulary = backend.get_vocab()
    for name in order.names:
        if name in vocabulary and name not in in_model:
            raise _ambiguous(name)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in order.names])
    cls, sep = order.roles.get("cls_token"), order.roles.get("sep_token")
    if cls is not None and sep is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys((cls, sep))],
        )
    return backend


_BUILDERS: dict[str, Callable[[_Order], Tokenizer]] = {
    "sentencepiece": _build_sentencepiece,
    "wordpiece": _build_wordpiece,
    "bpe": _build_bpe,
    "character": _build_character,
    "word": _build_word,
}


def _builder(tokenizer_type: str) -> Callable[[_Order], Tokenizer]:
    if tokenizer_type not in _BUILDERS:
        near = did_you_mean(tokenizer_type, _BUILDERS)
        raise TokenizerError(f"unknown tokenizer type: {tokenizer_type!r}.{near} Available: {', '.join(_BUILDERS)}")
    return _BUILDERS[tokenizer_type]


def train_tokenizer(
    tokenizer_type: str, documents: Documents, vocab_size: int | None, special_tokens: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of one of the five types.

    `documents()` starts a fresh pass; some types take several. `vocab_size` counts the special tokens and is an upper
    bound, except for sentencepiece, which fills it or says how far it gets; None takes every character or word.
    Raises TokenizerError for an unknown type, unusable special tokens, an empty corpus and an impossible size.
    """
    build = _builder(tokenizer_type)
    _check(special_tokens)
    order = _Order(tokenizer_type, documents, vocab_size, dict(special_tokens))
    if not any(document.strip() for document in documents()):
        raise TokenizerError("the training corpus holds no text: a tokenizer cannot be trained on it")
    backend = build(order)
    # Without segment ids unless the model is asked for [CLS] A [SEP] B [SEP]: GPT-2 would add them to its embeddings.
    segments = ["token_type_ids"] if backend.post_processor is not None else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", *segments, "attention_mask"],
        **order.roles,
        **{_KIND_KEY: tokenizer_type},
    )
    tokenizer.foundry_files = order.files
    return tokenizer


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """The files of the folder that `AutoTokenizer.from_pretrained` loads, and sentencepiece's own model with them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files["tokenizer_config.json"])
    # transformers 5 writes "TokenizersBackend", a name that version 4 does not know.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    files["tokenizer_config.json"] = (
        json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    ).encode()
    return files | getattr(tokenizer, "foundry_files", {})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes those files into a folder; other files in it stay."""
    sink = InPlaceFolder(folder)
    for name, content in tokenizer_files(tokenizer).items():
        sink.write(name, content)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer from a folder, never from the network.

    Raises TokenizerError when the folder holds no tokenizer.json or one that cannot be read.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder} holds no tokenizer.json: name the folder that a tokenizer was saved in")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the parser of `tokenizers` raises no narrower class
        reason = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer in {folder} cannot be read, train it again: {reason}") from error
    model = Path(folder) / SENTENCEPIECE_FILE
    tokenizer.foundry_files = {SENTENCEPIECE_FILE: model.read_bytes()} if model.is_file() else {}
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

    `input_files` is a path or a list of paths, read as `foundry_core.corpus` reads a corpus, and `unit` is what counts
    as one document there. `output_dir` is the folder to save in, None for none. `vocab_size` and the errors are those
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
        kind = tokenizer.init_kwargs.get(_KIND_KEY)
        # An added token that is not special is found in the text, and may hold a space.
        self._cuts = kind in _BUILDERS and all(token["special"] for token in state["added_tokens"])
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
            for window in _blocks(text, self._WINDOW) if self._cuts else (text,):
                done += len(window)
                size += len(window) + 1
                batch.append((_UNIT.findall(window) if self._cuts else [window], done == len(text)))
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
