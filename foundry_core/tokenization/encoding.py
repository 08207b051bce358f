"""Documents to token ids, the id that ends a document, and what a saved tokenizer adds around a text.

A window of text goes in, a stream of ids comes out: nothing is done document by document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain, compress
from operator import not_
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES
from foundry_core.tokenization.parts import END, MARK, BackendState, Ids, PartEncoder, joined_ids, plain_backend
from foundry_core.tokenization.text_counts import UNIT, blocks
from foundry_core.tokenization.tokenizer_folder import KIND_KEY, MODEL_INPUTS, SENTENCEPIECE_KIND

Window: TypeAlias = tuple[list[str], bool]
"""Texts of about a megabyte together, and whether the last of them ends a document, as all others do."""

_END = END.to_bytes(4, sys.byteorder)
_BETWEEN = 2 * MARK


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id that ends a document in the token stream: eos_token's, or sep_token's if there is no eos_token."""
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    raise TokenizerError("the tokenizer has neither an eos_token nor a sep_token to end a document with: add one")


def as_trained(tokenizer: PreTrainedTokenizerFast, *, framed: bool) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint, a copy that adds around a text what its model was trained to see there.

    Its bos_token and eos_token are those of config.json: what opens a document in training, and the separator, which
    ends it. Scorers prepend bos: a `<s>` that was never trained would spoil the first prediction.

    Args:
        framed: Whether rows are framed, so that a text stands between cls_token, which opens it, and sep_token.
            Otherwise nothing is added, and the separator opens it.
    """
    saved = deepcopy(tokenizer)
    saved.model_input_names = list(MODEL_INPUTS)
    backend, cls, sep = saved.backend_tokenizer, saved.cls_token, saved.sep_token
    backend.post_processor = None
    saved.bos_token = saved.eos_token = saved.convert_ids_to_tokens(separator_id(saved))
    if framed:
        saved.bos_token = cls
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys((cls, sep))],
        )
    return saved


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Return the token ids of each text as training reads a document: special tokens in the text stay text."""
    return [ids.tolist() for ids in DocumentEncoder(tokenizer).encode(texts)]


def token_ends(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return with which character, counted from 1, each token of `text_ids` ends.

    Of the tokens that a character is spelt with, each ends with that character.
    """
    if tokenizer.init_kwargs.get(KIND_KEY) == SENTENCEPIECE_KIND:
        from foundry_core.tokenization.sentencepiece_model import processor

        found = processor(tokenizer).encode(list(texts), out_type="immutable_proto", num_threads=1)
        return [[piece.end for piece in each.pieces] for each in found]
    # A post-processor may move the beginnings and the ends of tokens.
    backend = plain_backend(BackendState(tokenizer.backend_tokenizer.to_str()).text(post_processor=None))
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    return [[end for _, end in encoding.offsets] for encoding in encodings]


class DocumentEncoder:
    """Encodes as `tokenizer(document, add_special_tokens=False)` does, but special tokens in the text stay text.

    A document is cut before every space or newline that follows a non-space. In core's five types no token reaches over
    such a cut, so each distinct part is encoded once and looked up afterwards; a character is looked up in a table. A
    tokenizer of another origin, or one with tokens added later, gets whole documents. One that was given as a
    sentencepiece model is encoded by that library itself.
    """

    WINDOW = 1 << 20  # characters of text taken at a time, however long a document is
    REMEMBERED = 2 << 20  # characters of distinct parts whose ids are remembered: about 50 MB

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        state = BackendState(tokenizer.backend_tokenizer.to_str())
        kind = tokenizer.init_kwargs.get(KIND_KEY)
        self._pieces: Any = None
        if kind == SENTENCEPIECE_KIND:
            from foundry_core.tokenization.sentencepiece_model import processor  # with the library, only where needed

            self._pieces = processor(tokenizer)
        # An added token that is not special is found in the text, and may contain a space.
        self._cuts = kind in CORE_TOKENIZER_TYPES and all(token["special"] for token in state.parts["added_tokens"])
        self.lead = ""
        if self._cuts and kind == "sentencepiece":
            # The space before a document belongs to its first part alone: it is part of the text, not prepended.
            self.lead = " "
            steps = state.parts["normalizer"]["normalizers"]
            steps[:] = [step for step in steps if step["type"] != "Prepend"]
        self._backend = plain_backend(state.text())
        self._codes: NDArray[np.int64] | None = None
        self._parts: PartEncoder | None = None
        if self._cuts and kind == "character":
            self._codes = np.full(sys.maxunicode + 1, -1, np.int64)
        elif self._cuts:
            self._parts = PartEncoder(kind, state, self._backend)
        self._known = {"": _END}
        self._held = 0

    @property
    def predicts_newlines(self) -> bool:
        """Check whether a newline inside a document leaves a trace in its ids; not where white space is lost."""
        newline, space = self.encode(["a\na", "a a"])
        return not np.array_equal(newline, space)

    def encode(self, documents: Iterable[str]) -> Iterator[Ids]:
        """Yield a uint32 array for each document, in order, without added special tokens."""
        begun: list[Ids] = []
        for ids in map(self.stream, self.windows(documents)):
            *ended, rest = np.split(ids, np.flatnonzero(ids == END) + 1)
            for part in ended:
                yield np.concatenate([*begun, part[:-1]])
                begun = []
            begun.append(rest)

    def starts(self, documents: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return for each document where its tokens begin in it, in characters; they are those that `encode` returns.

        The tokens that share a character all begin at it.
        """
        if self._codes is not None:
            return [np.arange(len(text)) for text in documents]
        texts, sizes = list[str](), list[int]()
        for document in documents:
            text = self.lead + document if document else document
            cut = list(blocks(text, self.WINDOW >> 4)) if self._cuts else [text]
            texts += cut
            sizes.append(len(cut))
        found, place, joined = iter(self._spans(texts)), iter(texts), list[NDArray[np.int64]]()
        for size in sizes:
            parts, first = [], -len(self.lead)
            for _ in range(size):
                parts.append(np.maximum(np.array(next(found), dtype=np.int64) + first, 0))
                first += len(next(place))
            joined.append(np.concatenate(parts))
        return joined

    def _spans(self, texts: list[str]) -> Iterator[list[int]]:
        """Yield where the tokens of each text begin."""
        if self._pieces is not None:
            from foundry_core.tokenization.sentencepiece_model import piece_starts

            yield from (piece_starts(self._pieces, text) for text in texts)
        else:
            for encoding in self._backend.encode_batch(texts, add_special_tokens=False):
                yield [start for start, _ in encoding.offsets]

    def windows(self, documents: Iterable[str]) -> Iterator[Window]:
        """Yield the texts in windows, from which `stream` makes ids one by one, in any process."""
        texts: list[str] = []
        size = 0
        for document in documents:
            text = self.lead + document if document else document
            if size + len(text) < self.WINDOW:
                texts.append(text)
                size += len(text) + 1
                continue
            *begun, last = blocks(text, self.WINDOW) if self._cuts else (text,)
            for window in begun:
                yield [*texts, window], False
                texts, size = [], 0
            yield [*texts, last], True
            texts, size = [], 0
        if texts:
            yield texts, True

    def stream(self, window: Window) -> Ids:
        """Return the ids of a window, END behind each document."""
        texts, ended = window
        if self._codes is not None:
            ids = self._looked_up("".join(texts))
            ends = np.cumsum([len(text) for text in texts])
            return np.insert(ids, ends if ended else ends[:-1], END)
        if self._pieces is not None:
            lists = self._pieces.encode(texts, out_type=int, num_threads=1)
            return np.fromiter(chain.from_iterable((*ids, END) for ids in lists), np.uint32)
        if self._parts is None:
            return joined_ids(self._backend, texts, END)
        found = self._plain_parts(texts)
        if found is None:
            parts = [part for text in texts for part in (*UNIT.findall(text), "")]
            found = self._found(parts[:-1]) or []
        return np.frombuffer(b"".join(found) + (_END if ended else b""), np.uint32)

    def _looked_up(self, text: str) -> Ids:
        """Return the ids of characters."""
        assert self._codes is not None
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._codes[codes]
        if len(ids) and ids.min() < 0:
            new = np.unique(codes[ids < 0])
            found = joined_ids(self._backend, list(map(chr, new)), END).reshape(len(new), 2)  # an id and END
            self._codes[new] = found[:, 0]
            ids = self._codes[codes]
        return ids.astype(np.uint32)

    def _plain_parts(self, texts: list[str]) -> list[bytes] | None:
        """Return the ids of each part, and END between two texts; None where white space makes cuts less simple."""
        text = _BETWEEN.join(texts)
        if not all(texts) or text.count(MARK) > 2 * (len(texts) - 1):
            return None
        text = text.replace(" ", f"{MARK} ").replace("\n", f"{MARK}\n")
        # Before a text that begins with a space there is one marker too many.
        return self._found(text.replace(3 * MARK, _BETWEEN).removeprefix(MARK).split(MARK), plain=True)

    def _found(self, parts: list[str], *, plain: bool = False) -> list[bytes] | None:
        """Return the ids of each part; with `plain`, None where one that ends with white space is followed by more."""
        found = list(map(self._known.get, parts))
        holes = list(compress(range(len(parts)), map(not_, found)))
        missing = {parts[hole] for hole in holes}
        spaces = {part for part in missing if part[-1].isspace()}
        if plain and spaces and any(parts[hole] in spaces and parts[hole + 1 : hole + 2] > [""] for hole in holes):
            return None
        assert self._parts is not None
        new = self._parts.encode(missing)
        for hole in holes:
            found[hole] = new[parts[hole]]
        for part in spaces:  # never remembered, so that they are noticed in every window
            del new[part]
        self._held += sum(map(len, new))
        if self._held > self.REMEMBERED:
            self._known = {"": _END}
            self._held = sum(map(len, new))
        self._known |= new
        return found  # type: ignore[return-value]
