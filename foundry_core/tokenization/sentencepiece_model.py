"""A sentencepiece model that somebody else has trained: its fields, and a `tokenizers` backend with the same ids.

`foundry` encodes with the sentencepiece library itself. The backend is for whoever opens a checkpoint with
transformers; `differences` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL
from foundry_core.tokenization.text_counts import SPACE

PLAIN = (
    *("the cat sat on the mat.", "Two  spaces,   three, and a tab\there", " leading and trailing ", "", " ", "   "),
    *('It\'s 1,234.50 (approx.) - e.g. "quoted" & <tagged> [x] {y} #z @w a_b c/d\\e', "ALL CAPS mixedCase"),
    *("a <unk> b", "the </s> and <s><pad>", "<0x41> is <0x4", "http://www.example.com/a?b=c&d=e#f"),
)
"""Texts of ASCII, which any conversion must encode as the library does."""
ODD = (
    *(
        "caf\u00e9 na\u00efve Gr\u00f6\u00dfe",
        "cafe\u0301 nai\u0308ve",
        "\ufb01ne \uff21\uff22\uff23 \u00bd \u2460 \u2122",
    ),
    *("a\u00a0b\u2009c\u3000d\u200be\ufefff\u00adg", "a\nb\r\nc\u2028d\x0be\x0cf\x85g", "\u2581x\u2581", "\ufffd \x7f"),
    *("\u5317\u4eac\u5927\u5b66", "\u304c\u304b\u3099 \u30ac\uff76\uff9e", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab"),
    *("\u05e9\u05c1\u05dc\u05d5\u05dd", "\u0643\u0650\u062a\u0627\u0628", "\u0939\u093f\u0928\u094d\u0926\u0940"),
    *(
        "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
        "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    ),
    *("\ufb01\u0301 \u00bd\u0301 x\u0323\u0301 \u1e9b\u0323", "\U0001d400\U0001d401 \u2126 \u212b \ufdfa \U0010ffff"),
)
"""Texts of other characters: compositions, compatibility forms, white space, scripts, marks, emoji."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protobuf message as (number, value): an int or bytes. Raises ValueError for other bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(data) or shift > 63:
                raise ValueError("a number does not end")
            value |= (data[place] & 0x7F) << shift
            shift += 7
            place += 1
            if data[place - 1] < 0x80:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        sizes = {1: 8, 5: 4}
        size = varint() if key & 7 == 2 else sizes.get(key & 7, -1)
        if not 0 <= size <= len(data) - place:
            raise ValueError("a field does not end")
        place += size
        yield key >> 3, data[place - size : place]


@dataclass(frozen=True)
class _Model:
    """What decides how a model encodes. kinds: the type of each piece, by its id."""

    kinds: tuple[int, ...]
    algorithm: int
    byte_fallback: bool
    space_is_suffix: bool
    charsmap: bytes
    adds_prefix: bool
    removes_spaces: bool
    escapes_spaces: bool

    @classmethod
    def read(cls, content: bytes) -> _Model:
        """Read the file of a model. Raises ValueError for other bytes."""
        fields = list(_fields(content))
        kinds = tuple(int(dict(_fields(value)).get(3, _NORMAL)) for number, value in fields if number == 1)
        trainer, normalizer = (_message(fields, number) for number in (2, 3))
        return cls(
            kinds,
            algorithm=trainer.get(3, _UNIGRAM),
            byte_fallback=bool(trainer.get(35, 0)),
            space_is_suffix=bool(trainer.get(24, 0)),
            charsmap=normalizer.get(2, b""),
            adds_prefix=bool(normalizer.get(3, 1)),
            removes_spaces=bool(normalizer.get(4, 1)),
            escapes_spaces=bool(normalizer.get(5, 1)),
        )

    @property
    def not_convertible(self) -> str | None:
        """What there is no equivalent for in `tokenizers`."""
        if self.algorithm not in (_UNIGRAM, _BPE):
            return "it is neither a unigram nor a bpe model"
        if self.space_is_suffix:
            return "its spaces are at the ends of words (treat_whitespace_as_suffix)"
        if not self.escapes_spaces:
            return "its spaces are not marked (escape_whitespaces is false)"
        if _UNUSED in self.kinds:
            return "it has unused pieces"
        if self.algorithm == _BPE and _USER_DEFINED in self.kinds:
            return "it has user-defined symbols, which a bpe model of tokenizers cannot set apart"
        return None


def _message(fields: Iterable[tuple[int, Any]], number: int) -> dict[int, Any]:
    return dict(_fields(b"".join(value for found, value in fields if found == number)))


def _opened(content: bytes) -> Any:
    """Return the library's processor. Raises ValueError for bytes that are not a model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def processor(tokenizer: Any) -> Any:
    """Return what encodes for a tokenizer that was given as a sentencepiece model."""
    content = getattr(tokenizer, "foundry_files", {}).get(SENTENCEPIECE_MODEL)
    if content is None:
        raise TokenizerError(f"the tokenizer has no {SENTENCEPIECE_MODEL}, which it encodes with: put the file back")
    try:
        found = _opened(content)
    except ValueError as error:
        raise TokenizerError(f"{SENTENCEPIECE_MODEL} of the tokenizer is damaged: {error}") from error
    if found.vocab_size() > len(tokenizer):
        raise TokenizerError(f"{SENTENCEPIECE_MODEL} of the tokenizer has more pieces than its tokenizer.json")
    return found


def piece_starts(library: Any, text: str) -> list[int]:
    """Return where each piece of a text begins in it, in characters.

    Args:
        library: What `processor` returns.
        text: The text.
    """
    raw = np.frombuffer(text.encode(), np.uint8)
    # Pieces begin at bytes; those that continue a character do not count.
    before = np.concatenate([[0], np.cumsum(raw & 0xC0 != 0x80)])
    encoded = _fields(bytes(library.encode(text, out_type="serialized_proto")))
    begins = [dict(_fields(piece)).get(4, 0) for number, piece in encoded if number == 2]
    found: list[int] = before[begins].tolist()
    return found


def convert(content: bytes) -> tuple[Tokenizer, dict[str, str]]:
    """Return a backend with the ids of a model, and the special tokens that the model declares, by role.

    Raises:
        ValueError: The bytes are not a model, or there is nothing like it in `tokenizers`.
    """
    model, pieces = _Model.read(content), _opened(content)
    if model.not_convertible is not None:
        raise ValueError(model.not_convertible)
    if len(model.kinds) != pieces.vocab_size():
        raise ValueError("its pieces cannot be counted")
    names = [pieces.id_to_piece(number) for number in range(len(model.kinds))]
    if len(set(names)) < len(names):
        raise ValueError("two of its pieces are spelt alike")
    unknown = pieces.unk_id()
    if model.algorithm == _UNIGRAM:
        scored = list(zip(names, _scores(model, pieces), strict=True))
        backend = Tokenizer(models.Unigram(scored, unknown, byte_fallback=model.byte_fallback))
        # The model would find "</s>" in the text like any other piece: such text is cut in two.
        not_text = [name for name, kind in zip(names, model.kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
        starts = [_first_part(name, set(names)) for name in not_text if len(name) > 1]
        starts += ["<(?=0x[0-9A-F]{2}>)"] * (_BYTE in model.kinds)
        if starts:
            backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(starts)), "merged_with_previous")
    else:
        vocabulary = {name: number for number, name in enumerate(names)}
        merges = list(_merges(vocabulary, model, pieces))
        settings: dict[str, Any] = {"unk_token": names[unknown], "fuse_unk": True}
        backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=model.byte_fallback, **settings))
    backend.normalizer = normalizers.Sequence(_normalizers(model))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if model.adds_prefix else steps)
    ids = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "pad_token": pieces.pad_id()}
    ids["unk_token"] = unknown
    return backend, {role: names[number] for role, number in ids.items() if number >= 0}


def _first_part(name: str, pieces: Container[str]) -> str:
    """Return a pattern of the start of a name where it is in the text. Unknown characters that meet are one token."""
    known = (cut for cut in range(1, len(name)) if name[cut - 1] in pieces or name[cut] in pieces)
    cut = next(known, 1)
    return f"{re.escape(name[:cut])}(?={re.escape(name[cut:])})"


def _scores(model: _Model, pieces: Any) -> list[float]:
    """Return the scores of the pieces; user-defined symbols get those that the library gives them on encoding."""
    scores = [pieces.get_score(number) for number in range(len(model.kinds))]
    best = max((score for score, kind in zip(scores, model.kinds, strict=True) if kind == _NORMAL), default=0.0)
    for number, kind in enumerate(model.kinds):
        if kind == _USER_DEFINED:
            scores[number] = len(pieces.id_to_piece(number)) * best - 0.1
    return scores


def _merges(vocabulary: Mapping[str, int], model: _Model, pieces: Any) -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces that makes up a piece, the best first."""
    ordinary = {name for name, number in vocabulary.items() if model.kinds[number] == _NORMAL}
    for name in sorted(ordinary, key=lambda name: (-pieces.get_score(vocabulary[name]), vocabulary[name])):
        pairs = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
        found = [pair for pair in pairs if pair[0] in ordinary and pair[1] in ordinary]
        yield from sorted(found, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _normalizers(model: _Model) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.removes_spaces:
        steps += [normalizers.Replace(Regex(f"^ +|[ {SPACE}]+$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.adds_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def differences(content: bytes, backend: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Return the texts that a backend does not encode as the library does."""
    pieces, chosen = _opened(content), list(texts)
    asked = Tokenizer.from_str(backend.to_str())
    asked.encode_special_tokens = True
    theirs = pieces.encode(chosen, out_type=int, num_threads=1)
    ours = asked.encode_batch(chosen, add_special_tokens=False)
    return [text for text, ids, found in zip(chosen, theirs, ours, strict=True) if list(ids) != found.ids]
