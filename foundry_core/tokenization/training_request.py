"""What a trainer of core is asked for, and what all five have in common: pieces of text, limits, special tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, processors

from foundry_core.errors import TokenizerError
from foundry_core.tokenization.text_counts import blocks, most_frequent

Documents = Callable[[], Iterable[str]]

SPECIAL_TOKEN_ROLES = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")

KIND_KEY = "foundry_tokenizer_type"
"""Where a tokenizer of ours stores which of the five it is."""

TRAINING_PIECE = 4000  # characters; longer text without white space is cut for training only
HANDED = 6 << 20  # characters of parts, as `most_frequent` counts them, that a subword trainer gets


@dataclass(frozen=True)
class Request:
    """What a builder is given: a fresh pass over the documents, the size asked for, the special tokens by role."""

    kind: str
    documents: Documents
    vocab_size: int | None
    roles: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict)  # what the builder wants kept beside the tokenizer

    @property
    def names(self) -> list[str]:
        """Each distinct special token once, always in the same request."""
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
        for block in blocks(document, TRAINING_PIECE // 4):
            for at in range(0, len(block), TRAINING_PIECE):
                text = block[at : at + TRAINING_PIECE]
                for name in self.names:
                    text = text.replace(name, f"{name[0]}\n{name[1:]}")
                yield text


def handed(counts: dict[str, int]) -> dict[str, int]:
    """Return as many of the most frequent parts as a subword trainer gets."""
    return most_frequent(counts, HANDED)


def ambiguous(name: str) -> TokenizerError:
    return TokenizerError(
        f"the special token {name!r} is also an ordinary token of this corpus: choose another spelling"
    )


def with_special_tokens(request: Request, backend: Tokenizer, *in_model: str) -> Tokenizer:
    """Registers the special tokens: those `in_model` keep their ids, the others are appended.

    With a cls_token and a sep_token, encoding a text puts it between the two, as masked models expect it.
    """
    vocabulary = backend.get_vocab()
    for name in request.names:
        if name in vocabulary and name not in in_model:
            raise ambiguous(name)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in request.names])
    cls, sep = request.roles.get("cls_token"), request.roles.get("sep_token")
    if cls is not None and sep is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys((cls, sep))],
        )
    return backend
