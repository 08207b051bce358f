"""Documents to token ids, and the id that ends a document.

Costs, measured on two shared cores with 8000 tokens: 3 to 4 MB/s in a first pass over English, 5 to 8 when all words
have been seen, because each distinct word is encoded once and looked up afterwards.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES
from foundry_core.tokenization.text_counts import UNIT, blocks
from foundry_core.tokenization.training_request import KIND_KEY


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a document in the token stream: eos_token's, or sep_token's when there is no eos_token."""
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    raise TokenizerError(
        "the tokenizer has neither an eos_token nor a sep_token to end a document with: add one of them"
    )


class DocumentEncoder:
    """Documents to token ids: those of `tokenizer(document, add_special_tokens=False)`, but special tokens stay text.

    A document is cut before every space or newline that follows a non-space. For the five types of this module no token
    reaches over such a cut, so that the ids of the parts are the ids of the whole, and each distinct part is encoded
    once. A tokenizer of another origin, or one with tokens added later, gets whole documents.
    """

    WINDOW = 1 << 20  # characters of text taken at a time
    REMEMBERED = 2 << 20  # characters of distinct parts whose ids are remembered: about 50 MB

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        kind = tokenizer.init_kwargs.get(KIND_KEY)
        # An added token that is not special is found in the text, and may hold a space.
        self._cuts = kind in CORE_TOKENIZER_TYPES and all(token["special"] for token in state["added_tokens"])
        self.lead = ""
        if self._cuts and kind == "sentencepiece":
            # The space before a document belongs to its first part alone, so the document brings it along.
            self.lead = " "
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
            text = self.lead + document if document else document
            done = 0
            for window in blocks(text, self.WINDOW) if self._cuts else (text,):
                done += len(window)
                size += len(window) + 1
                batch.append((UNIT.findall(window) if self._cuts else [window], done == len(text)))
                if size >= self.WINDOW:
                    yield batch
                    batch, size = [], 0
        yield batch

    def _known_after(self, wanted: set[str]) -> dict[str, bytes]:
        """The ids of parts as bytes, with those of all `wanted` ones among them."""
        missing = [part for part in wanted if part not in self._known]
        self._held += sum(map(len, missing))
        if self._held > self.REMEMBERED:
            self._known.clear()
            missing = list(wanted)
            self._held = sum(map(len, missing))
        encodings = self._backend.encode_batch_fast(missing, add_special_tokens=False)
        for part, encoding in zip(missing, encodings, strict=True):
            self._known[part] = array("I", encoding.ids).tobytes()
        return self._known
