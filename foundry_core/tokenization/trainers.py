"""The trainers of core's five tokenizer types, in memory that does not grow with the corpus.

A trainer receives what `text_counts` counts: the parts of words, cut where no token of that type reaches across.

Measured on two shared cores with 8000 tokens: 3.4 s (sentencepiece), 1.3 s (wordpiece, bpe) or 0.2 s for 3 MB of
English. For 206 MB of generated text with more distinct words than are kept, 107 s and 375 MB (sentencepiece), 93 s and
590 MB (bpe) or 22 s and 230 MB (word).
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, repeat

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL
from foundry_core.storage.files import scratch_reported
from foundry_core.tokenization.parts import PLAIN_WORD, SPACE_IN_MODEL
from foundry_core.tokenization.text_counts import SPACE, UNIT, blocks, by_frequency, count, most_frequent, seeds
from foundry_core.tokenization.tokenizer_folder import SPECIAL_TOKEN_ROLES

Documents = Callable[[], Iterable[str]]

MOST = 6 << 20  # characters of parts, as `most_frequent` counts them, that a subword trainer gets
_PIECE = 4000  # characters; longer text without white space is cut for training only
_ALPHABET = 1000  # characters that wordpiece always keeps; the limit that `tokenizers` itself has
_LONG_WORD = 100  # characters; to encode 1 MB without white space takes wordpiece 8 s, cut after 400 it takes 53 s
_WORD = re.compile(r"[^ \n]+")

_SEEDS = 200_000  # strings that may become pieces of sentencepiece
_LONGEST = 16  # characters of such a piece
# sentencepiece marks a tab and U+2585 itself: no piece contains either, and a line with U+2585 would be dropped whole.
_SENTENCE_PART = re.compile(" [^ \n\t\u2585]*|[^ \n\t\u2585]+")
# Nor does a piece contain two scripts: letters have one, these marks and digits have another.
_MARKS = r"[!-@\[-`{-~\u3001-\u3003\u3008-\u3011\uff01-\uff20]"
_SCRIPT_CHANGE = re.compile(rf"(?<=[^\W\d_])(?={_MARKS})|(?<={_MARKS})(?=[^\W\d_])")


@dataclass(frozen=True)
class Request:
    """Input of a trainer: fresh passes over the documents, a size, and the special tokens by role."""

    kind: str
    documents: Documents
    vocab_size: int | None
    roles: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that a builder wants saved with the tokenizer."""

    @property
    def names(self) -> list[str]:
        """Each distinct special token once, always in the same order."""
        return list(dict.fromkeys(self.roles[role] for role in SPECIAL_TOKEN_ROLES if role in self.roles))

    def size_and_room(self, *in_model: str) -> tuple[int, int]:
        """Return the vocabulary size, and what is left of it when the special tokens not `in_model` are appended."""
        if self.vocab_size is None:
            raise TokenizerError(f"a {self.kind} tokenizer needs a vocab_size: set tokenizer.vocab_size")
        return self.vocab_size, self.vocab_size - len(set(self.names) - set(in_model))

    def too_small(self, smallest: int) -> TokenizerError:
        return TokenizerError(
            f"vocab_size {self.vocab_size} is too small for a {self.kind} tokenizer of this corpus: "
            f"the smallest that works is {smallest}"
        )

    def pieces(self, lead: str = "") -> Iterator[str]:
        """Yield all documents in pieces of a few kilobytes; `lead` precedes each document.

        Insert a newline into any text spelled like a special token, so that the trainer cannot learn that token.
        """
        for document in self.documents():
            start = lead
            for block in blocks(document, _PIECE // 4):
                for at in range(0, len(block), _PIECE):
                    text = block[at : at + _PIECE]
                    for name in self.names:
                        text = text.replace(name, f"{name[0]}\n{name[1:]}")
                    yield start + text
                    start = ""

    def finish(self, backend: Tokenizer, *in_model: str) -> Tokenizer:
        """Register the special tokens: those `in_model` keep their ids, the others are appended."""
        self.refuse_ordinary(backend.get_vocab().keys() - set(in_model))
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in self.names])
        return backend

    def refuse_ordinary(self, ordinary: Container[str]) -> None:
        """Refuse a special token that is also an ordinary one."""
        for name in self.names:
            if name in ordinary:
                raise TokenizerError(
                    f"the special token {name!r} is also an ordinary token of this corpus: choose another spelling"
                )


def build_sentencepiece(request: Request) -> Tokenizer:
    """Build unigram pieces by the `sentencepiece` library, bytes for rare characters: every text comes back exactly.

    The one exception is a literal U+2581, which stands for a space in the pieces and comes back as one. A document
    starts with an unwritten space, so that its first word gets the pieces that it has elsewhere.
    """
    unknown = request.roles.get("unk_token", "<unk>")
    model = _sentencepiece_model(request, unknown)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    backend = Tokenizer(models.Unigram(pieces, processor.unk_id(), byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # The model would find "<0x41>" in the text like any other piece: the first character of such text is set apart.
    literal = rf"<(?=0x[0-9A-F]{{2}}>)|{re.escape(unknown[0])}(?={re.escape(unknown[1:])})"
    splits: list[tuple[str | Regex, str]] = [
        (Regex(literal), "isolated"),
        ("\n", "isolated"),
        (SPACE, "merged_with_next"),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(*split) for split in splits])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    request.files[SENTENCEPIECE_MODEL] = model
    return request.finish(backend, unknown)


def _sentencepiece_model(request: Request, unknown: str) -> bytes:
    """Train a unigram model and return its file; its ids are those of the tokenizer, less the appended ones."""
    counts = most_frequent(count(request.pieces(lead=" "), _SENTENCE_PART.findall, _SCRIPT_CHANGE.split), MOST)
    size, room = request.size_and_room(unknown)
    model = io.BytesIO()
    try:
        with (
            scratch_reported(),
            tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".tsv") as scratch,
        ):
            scratch.writelines(seeds(counts, _LONGEST, _SEEDS))
            scratch.flush()
            # The model names this file, which differs on every run: a name of a fixed length can be taken out of it.
            path = os.fsencode(scratch.name).rjust(512, b"/")
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{part}\t{times}" for part, times in counts.items()),
                input_format="tsv",
                seed_sentencepieces_file=os.fsdecode(path),
                seed_sentencepiece_size=_SEEDS,
                model_writer=model,
                model_type="unigram",
                vocab_size=max(room, 1),
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
                max_sentence_length=8 * _PIECE,
                num_threads=1,  # the sums of several threads round differently with their number
                minloglevel=2,
            )
    except RuntimeError as error:
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise request.too_small(int(found[1]) + size - room) from None
        if found := re.search(r"Please set it to a value <= (\d+)", str(error)):
            raise TokenizerError(
                f"vocab_size {size} is too large for a sentencepiece tokenizer of this corpus: "
                f"the largest that works is {int(found[1]) + size - room}"
            ) from None
        raise TokenizerError(f"sentencepiece cannot train on this corpus: {error}") from error
    return model.getvalue().replace(path, b"/" * len(path))


def build_bpe(request: Request) -> Tokenizer:
    """Build a byte-level BPE: every Unicode text comes back exactly, no token is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size, room = request.size_and_room()
    if room < len(alphabet):
        raise request.too_small(size - room + len(alphabet))
    backend = Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def parts(text: str) -> list[str]:
        if PLAIN_WORD.fullmatch(text):  # what the splitter returns, in a tenth of its time
            return [text.replace(" ", SPACE_IN_MODEL["bpe"])]
        return [part for part, _ in splitter.pre_tokenize_str(text)]

    counts = count(request.pieces(), UNIT.findall, parts)
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    _train(backend, trainer, most_frequent(counts, MOST))
    backend.pre_tokenizer = splitter
    return request.finish(backend)


def build_wordpiece(request: Request) -> Tokenizer:
    """Build BERT's WordPiece, case and accents kept; white space is not encoded.

    A word of more than 100 characters, which the model would take for unknown, is cut after every 100. The vocabulary
    decides how many characters are known: the most frequent 1,000, further ones in up to half of it, and in all that
    the words of the corpus leave free.
    """
    unknown = request.roles["unk_token"]
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    long_words = pre_tokenizers.Split(Regex(f".{{{_LONG_WORD}}}"), "isolated")
    splitter = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), long_words])

    def words(text: str) -> list[str]:
        if PLAIN_WORD.fullmatch(text):
            return [text]
        return [part for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

    counts = most_frequent(count(request.pieces(), _WORD.findall, words), MOST)
    size, room = request.size_and_room(unknown)
    characters: Counter[str] = Counter()
    for word, times in counts.items():
        for character in word:
            characters[character] += times
    inside = {c for word in counts for c in word[1:]}
    spellings = {c: (c, f"##{c}") if c in inside else (c,) for c in by_frequency(characters)}
    taken = accumulate(map(len, spellings.values()))
    most = max(_ALPHABET, sum(tokens <= room // 2 for tokens in taken))
    kept = list(spellings)[:most]
    # The trainer numbers "##a" in the order of a hash table, which differs from run to run and decides ties. Given
    # in sorted order, they are the same every time.
    first = [unknown, *sorted(f"##{c}" for c in inside.intersection(kept))]
    backend = Tokenizer(models.WordPiece(unk_token=unknown))
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(room, 0),
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        special_tokens=first,
        show_progress=False,
    )
    _train(backend, trainer, counts)
    vocabulary = backend.get_vocab()
    if len(vocabulary) > room:
        raise request.too_small(size - room + len(vocabulary))
    further = chain.from_iterable(list(spellings.values())[len(kept) :])
    for token in islice(further, room - len(vocabulary)):
        vocabulary[token] = len(vocabulary)
    # A new tokenizer: the trainer has registered "##a" and its like as special tokens.
    result = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=_LONG_WORD))
    result.normalizer = normalizer
    result.pre_tokenizer = splitter
    result.decoder = decoders.WordPiece(cleanup=False)
    return request.finish(result, unknown)


def _train(backend: Tokenizer, trainer: trainers.Trainer, counts: Mapping[str, int]) -> None:
    """Train on words without white space. The trainer counts for itself, so it gets each word as often as it occurs."""

    def texts() -> Iterator[str]:
        for word, times in counts.items():
            most = _PIECE // (len(word) + 1) + 1
            yield from repeat(f"{word} " * most, times // most)
            yield f"{word} " * (times % most)

    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(texts(), trainer)


def build_character(request: Request) -> Tokenizer:
    """Build one token for each character of the corpus, the most frequent ones if there are more than fit."""
    unknown = request.roles["unk_token"]
    backend = _word_level(request, Counter(chain.from_iterable(request.documents())), [unknown])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return request.finish(backend, unknown)


def build_word(request: Request) -> Tokenizer:
    """Build one token for each frequent word of the corpus, split as by `str.split()`; a newline is the separator.

    A literal unknown token stays what it is, as the files of Penn Treebank and WikiText mean it. A word spelt like the
    separator is unknown.
    """
    unknown = request.roles["unk_token"]
    separator = request.roles["eos_token" if "eos_token" in request.roles else "sep_token"]
    texts = (block for document in request.documents() for block in blocks(document, 1 << 16))
    counts = count(texts, str.split, lambda word: (word,))
    for name in request.names:
        counts.pop(name, None)
    backend = _word_level(request, counts, [unknown, separator])
    replaced: list[tuple[str | Regex, str]] = [
        (Regex(r"[\x1c-\x1f]"), " "),  # white space in Python, not in Rust
        (Regex(rf"(?<!\S){re.escape(separator)}(?!\S)"), unknown),
        ("\n", f" {separator} "),
    ]
    backend.normalizer = normalizers.Sequence([normalizers.Replace(*pair) for pair in replaced])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return request.finish(backend, unknown, separator)


def _word_level(request: Request, counts: Mapping[str, int], first: Sequence[str]) -> Tokenizer:
    """Build a lookup table: `first`, then as many of the most frequent tokens as there is room for."""
    request.refuse_ordinary(counts)
    reserved, room = len(request.names), None
    if request.vocab_size is not None:
        room = request.vocab_size - reserved
        if room <= 0:
            raise request.too_small(reserved + 1)
    tokens = dict.fromkeys([*first, *by_frequency(counts)[:room]])
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=first[0]))
