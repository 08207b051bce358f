"""What each of the five kinds of tokenizer is, and how it is trained, in memory that does not grow with the corpus.

A trainer is given what `text_counts` finds: the parts of words and how often they occur, cut where no token of that
kind reaches across. Of what was counted, the trainer of a subword kind gets as many of the most frequent parts as
`_HANDED` holds. With the bounds of `text_counts` that keeps a corpus of any size in less than a gigabyte:
206 MB of text took 22 to 107 s and at most 590 MB. `tokenizers` has the figures for each kind.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL
from foundry_core.storage.files import scratch_reported
from foundry_core.tokenization.text_counts import (
    SPACE,
    UNIT,
    blocks,
    by_frequency,
    character_counts,
    count,
    most_frequent,
    seeds,
)

Documents = Callable[[], Iterable[str]]

SPECIAL_TOKEN_ROLES = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
KIND_KEY = "foundry_tokenizer_type"
"""Where a tokenizer of ours says which of the five it is."""

_ALPHABET_LIMIT = 1000  # characters that wordpiece keeps; the limit that `tokenizers` itself has
_TRAINING_PIECE = 4000  # characters; longer text without white space is cut for training only
_HANDED = 6 << 20  # characters of parts, as `most_frequent` counts them, that a subword trainer gets
_SEEDS = 200_000  # strings that sentencepiece may make pieces of
_LONGEST = 16  # characters of a piece of sentencepiece

_WORD = re.compile(r"[^ \n]+")
# sentencepiece marks a tab and U+2585 itself: no piece holds either, and a line with U+2585 would be dropped whole.
_SENTENCE_PART = re.compile(" [^ \n\t\u2585]*|[^ \n\t\u2585]+")
# Nor does a piece hold two scripts: letters have one, these marks and digits have another.
_MARKS = r"[!-@\[-`{-~\u3001-\u3003\u3008-\u3011\uff01-\uff20]"
_SCRIPT_CHANGE = re.compile(rf"(?<=[^\W\d_])(?={_MARKS})|(?<={_MARKS})(?=[^\W\d_])")


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
        for block in blocks(document, _TRAINING_PIECE // 4):
            for at in range(0, len(block), _TRAINING_PIECE):
                text = block[at : at + _TRAINING_PIECE]
                for name in self.names:
                    text = text.replace(name, f"{name[0]}\n{name[1:]}")
                yield text


def _train(backend: Tokenizer, trainer: trainers.Trainer, counts: Mapping[str, int]) -> None:
    """Trains on words, none with white space inside: the trainer counts for itself, so each comes as often as it is."""

    def texts() -> Iterator[str]:
        text: list[str] = []
        size = 0
        for word, times in counts.items():
            while times > 0:
                now = min(times, _TRAINING_PIECE // (len(word) + 1) + 1)
                text.append(f"{word} " * now)
                times -= now
                size += now * (len(word) + 1)
                if size >= _TRAINING_PIECE:
                    yield "".join(text)
                    text, size = [], 0
        yield "".join(text)

    splitter, backend.pre_tokenizer = backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit()
    normalizer, backend.normalizer = backend.normalizer, None
    backend.train_from_iterator(texts(), trainer)
    backend.pre_tokenizer, backend.normalizer = splitter, normalizer


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
    splitter = backend.pre_tokenizer
    counts = count(order.texts(), UNIT.findall, lambda text: [part for part, _ in splitter.pre_tokenize_str(text)])
    _train(backend, trainer, most_frequent(counts, _HANDED))
    return _with_special_tokens(order, backend)


def _build_wordpiece(order: _Order) -> Tokenizer:
    """BERT's WordPiece, case and accents kept; white space is not encoded."""
    unknown = order.roles["unk_token"]
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = count(
        order.texts(),
        _WORD.findall,
        lambda text: [part for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))],
    )
    counts = most_frequent(counts, _HANDED)
    characters: Counter[str] = Counter()
    for word, times in counts.items():
        for character in word:
            characters[character] += times
    kept = by_frequency(characters)[:_ALPHABET_LIMIT]
    # The trainer numbers "##a" in the order of a hash table, which differs from run to run and decides ties. Given
    # in sorted order, they are the same every time.
    continued = sorted(f"##{character}" for character in {c for word in counts for c in word[1:]}.intersection(kept))
    room = order.room(unknown)
    backend = Tokenizer(models.WordPiece(unk_token=unknown))
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(room, 0),
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        special_tokens=[unknown, *continued],
        show_progress=False,
    )
    _train(backend, trainer, counts)
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
    unknown = order.roles["unk_token"]
    backend = _word_level(order, character_counts(order.documents()), [unknown])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return _with_special_tokens(order, backend, unknown)


def _build_word(order: _Order) -> Tokenizer:
    """One token for each frequent word of the corpus, white space as `str.split()` has it; a newline is the separator.

    A literal unknown token stays what it is, as the files of Penn Treebank and WikiText mean it. A word spelt like the
    separator is unknown.
    """
    unknown = order.roles["unk_token"]
    separator = order.roles["eos_token" if "eos_token" in order.roles else "sep_token"]
    texts = (block for document in order.documents() for block in blocks(document, 1 << 16))
    counts = count(texts, str.split, lambda word: (word,))
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
    model = _sentencepiece_model(order, unknown)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    backend = Tokenizer(models.Unigram(pieces, processor.unk_id(), byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # The model would find "<0x41>" in the text like any other piece: the first character of such text is set apart.
    literal = rf"<(?=0x[0-9A-F]{{2}}>)|{re.escape(unknown[0])}(?={re.escape(unknown[1:])})"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(literal), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(SPACE, "merged_with_next"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    order.files[SENTENCEPIECE_MODEL] = model
    return _with_special_tokens(order, backend, unknown)


def _sentencepiece_model(order: _Order, unknown: str) -> bytes:
    """Trains a unigram model and returns its file; its ids are those of the tokenizer, less the appended ones."""

    def texts() -> Iterator[str]:
        for document in order.documents():
            lead = " "
            for piece in order.pieces(document):
                yield lead + piece
                lead = ""

    counts = count(texts(), _SENTENCE_PART.findall, _SCRIPT_CHANGE.split)
    counts = most_frequent(counts, _HANDED)

    appended = order.size() - order.room(unknown)
    model = io.BytesIO()
    try:
        with (
            scratch_reported(),
            tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".tsv") as scratch,
        ):
            scratch.writelines(seeds(counts, _LONGEST, _SEEDS))
            scratch.flush()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{part}\t{times}" for part, times in counts.items()),
                input_format="tsv",
                seed_sentencepieces_file=scratch.name,
                seed_sentencepiece_size=_SEEDS,
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
                max_sentencepiece_length=_LONGEST,
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
    return _without_path(model.getvalue(), scratch.name.encode())


def _without_path(model: bytes, path: bytes) -> bytes:
    """A sentencepiece model less the name of the file of seeds, which differs on every run.

    The model is a protocol buffer of tags, lengths and contents; the trainer's settings are its field 2, the name is
    field 54 of those.
    """
    at = 0
    while True:
        tag, start, size = model[at], at + 1, 0
        for shift in range(0, 35, 7):
            size |= (model[start] & 127) << shift
            start += 1
            if model[start - 1] < 128:
                break
        if tag == 2 << 3 | 2:
            break
        at = start + size
    settings = model[start : start + size].replace(b"\xb2\x03" + _varint(len(path)) + path, b"")
    return model[: at + 1] + _varint(len(settings)) + settings + model[start + size :]


def _varint(number: int) -> bytes:
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + _varint(number >> 7)


def _word_level(order: _Order, counts: Mapping[str, int], first: Sequence[str]) -> Tokenizer:
    """A model that looks tokens up: `first`, then as many of the most frequent as there is room for."""
    for name in order.names:
        if name in counts:
            raise _ambiguous(name)
    reserved = len(order.names)
    if order.vocab_size is not None and order.vocab_size <= reserved:
        raise order.too_small(reserved + 1)
    room = None if order.vocab_size is None else order.vocab_size - reserved
    tokens = dict.fromkeys([*first, *by_frequency(counts)[:room]])
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


Trainer = Callable[[Documents, int | None, Mapping[str, str]], PreTrainedTokenizerFast]


def _trainer(kind: str, build: Callable[[_Order], Tokenizer]) -> Trainer:
    """The function that a `TokenizerType` of core names."""

    def train(
        documents: Documents, vocab_size: int | None, special_tokens: Mapping[str, str]
    ) -> PreTrainedTokenizerFast:
        order = _Order(kind, documents, vocab_size, special_tokens)
        backend = build(order)
        # Without segment ids unless the model is asked for [CLS] A [SEP] B [SEP]: GPT-2 would add them to its
        # embeddings.
        segments = ["token_type_ids"] if backend.post_processor is not None else []
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", *segments, "attention_mask"],
            **special_tokens,
            **{KIND_KEY: kind},
        )
        tokenizer.foundry_files = order.files
        return tokenizer

    return train


CORE_TRAINERS = {
    kind: _trainer(kind, build)
    for kind, build in {
        "sentencepiece": _build_sentencepiece,
        "wordpiece": _build_wordpiece,
        "bpe": _build_bpe,
        "character": _build_character,
        "word": _build_word,
    }.items()
}
"""How core's own types are trained; those of plugins name it in `TokenizerType.trainer`."""
