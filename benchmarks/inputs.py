"""The inputs of the benchmarks, made here: text, sizes of models, configurations. Nothing is downloaded.

The same arguments give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ONSETS = "b c d f g h k l m n p r s t v w br ch cl dr fl gr pl pr qu sh sl sp st str th tr wh".split()  # noqa: SIM905
_VOWELS = "a e i o u ai ea ee ie oa oo ou".split()  # noqa: SIM905
_CODAS = ["", "", "", *"b ck d ft g l ll m n nd ng nt p r rd rn s ss st t th x".split()]  # noqa: SIM905


def lexicon(words: int, seed: int = 0) -> list[str]:
    """Return distinct words that can be pronounced, the frequent ones short."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = dict.fromkeys(["the", "of", "and", "to", "a", "in", "is", "it", "that", "was"])
    while len(found) < words:
        syllables = 1 if len(found) < 1500 else 2 if len(found) < 40_000 else 3
        for _ in range(1000):
            parts = []
            for _ in range(syllables):
                parts += [_pick(generator, _ONSETS), _pick(generator, _VOWELS), _pick(generator, _CODAS)]
            found["".join(parts)] = None
    return list(found)[:words]


def _pick(generator: np.random.Generator, items: list[str]) -> str:
    return items[int(generator.integers(len(items)))]


def prose(size: int, words: int = 30_000, seed: int = 0) -> str:
    """Return about `size` bytes of prose-like lines: words by Zipf's law, sentences, capitals, figures, marks.

    Text that is long enough begins with every word of the lexicon once, so that a vocabulary of words can be filled.
    """
    generator, known = np.random.default_rng(seed), lexicon(words)
    weights = 1 / (np.arange(len(known)) + 2.7) ** 1.07
    edges = np.cumsum(weights / weights.sum())
    lines, length = [], 0
    if size > 12 * words:
        lines = [" ".join(known[start : start + 20]) + "." for start in range(0, len(known), 20)]
        length = sum(map(len, lines))
    while length < size:
        ranks = np.minimum(np.searchsorted(edges, generator.random(20_000)), len(known) - 1)
        lengths = generator.integers(5, 26, 2000)
        marks = generator.integers(0, 12, 2000)
        start = 0
        for count, mark in zip(lengths.tolist(), marks.tolist(), strict=True):
            chosen = [known[rank] for rank in ranks[start : start + count].tolist()]
            if not chosen:
                break
            start += count
            lines.append(_sentence(chosen, mark))
            length += len(lines[-1]) + 1
    return "\n".join(lines)[:size].rpartition("\n")[0] + "\n"


def _sentence(words: list[str], mark: int) -> str:
    words[0] = words[0].capitalize()
    middle = len(words) // 2
    if mark < 4:
        words[middle] += ","
    elif mark == 4:
        words[middle] = str(17 * len(words) + len(words[0]))
    elif mark == 5:
        words[middle] = words[middle].title() + "'s"
    return " ".join(words) + ("?" if mark == 6 else "!" if mark == 7 else ".")


def new_words(size: int, seed: int = 0) -> str:
    """Return about `size` bytes of text in which new words keep appearing (Heaps' law).

    Words are drawn by Zipf's law over an unbounded vocabulary.
    """
    generator = np.random.default_rng(seed)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
    blocks, length = [], 0
    while length < size:
        ranks = (generator.zipf(1.25, 20_000) % 10**9).tolist()
        lines = [b" ".join(_spelt(rank, letters) for rank in ranks[i : i + 20]) for i in range(0, len(ranks), 20)]
        blocks.append(b" .\n".join(lines) + b" .\n")
        length += len(blocks[-1])
    return b"".join(blocks)[:size].rpartition(b"\n")[0].decode() + "\n"


def _spelt(rank: int, letters: NDArray[np.uint8]) -> bytes:
    """Spell a rank: short for frequent words, and unique."""
    spelling = bytearray()
    rank += 26
    while rank:
        rank, digit = divmod(rank, 26)
        spelling.append(letters[digit])
    return bytes(spelling)


TEXTS: dict[str, Callable[[int], str]] = {"prose": prose, "new words": new_words}


def write_text(path: Path, text: str, *, json_lines: bool = False) -> Path:
    """Write a corpus, one document a line, as text or as JSON lines."""
    if json_lines:
        text = "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Size:
    """A model with its batch, optimizer and data, the same for every contender.

    length: positions in a row. steps: optimizer steps in a round. dropout: everywhere.
    """

    name: str
    architecture: str
    model: dict[str, Any]
    tokenizer: str
    vocabulary: int
    length: int
    batch: int
    steps: int
    dropout: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def masked(self) -> bool:
        """Check whether the objective is masked_lm."""
        return self.architecture == "bert"

    @property
    def recurrent(self) -> bool:
        """Check whether the model is a recurrent one."""
        return "rnn" in self.model

    @property
    def log_every(self) -> int:
        """How often a run logs: by default every 10 steps."""
        return 10 if self.steps % 10 == 0 else 1

    @property
    def warm_up(self) -> int:
        """Return the number of steps that are taken before anything is measured."""
        return max(2, self.log_every)

    @property
    def tokens(self) -> int:
        """Return the tokens that a step counts for: those that are predicted; of a masked model all."""
        return self.batch * (self.length if self.masked else self.length - 1)

    def shrunk(self) -> Size:
        """Return a model of seconds for a smoke run."""
        changes: dict[str, Any] = {"hidden_size": 32, "embedding_size": 32}
        if not self.recurrent:
            changes |= {"layers": 2, "intermediate_hidden_size": 128, "attention_heads": 2}
        model = {section: {**sizes, **changes} for section, sizes in self.model.items()}
        few: dict[str, Any] = {
            "vocabulary": min(self.vocabulary, 300),
            "length": min(self.length, 32),
            "batch": min(self.batch, 4),
        }
        return replace(self, model=model, steps=2, **few)

    def config(self, folder: Path) -> dict[str, Any]:
        """Return the configuration of our run of it; everything that is not here has its default."""
        training = {"learning_rate": 5e-4, "weight_decay": 0.0, "lr_scheduler": "constant", **self.training}
        if self.masked:
            training |= {"objective": "masked_lm", "mlm_probability": 0.15}
        return {
            "experiment_name": self.name.replace(" ", "-"),
            "data": {
                "training_corpus": str(folder / "corpus.txt"),
                "max_sequence_length": self.length,
                "tokens_per_row": self.length - (2 if self.masked else 1),
                "batch_size": self.batch,
            },
            "tokenizer": {
                "tokenizer_type": self.tokenizer,
                "vocab_size": self.vocabulary,
                "output_dir": str(folder / "tokenizer"),
            },
            "model": {"architecture": self.architecture, **self.model},
            "training": {"output_dir": str(folder / "run"), "train_steps": 100_000, **training},
            "logging": {"log_every_steps": self.log_every},
        }


def _transformer(layers: int, width: int, heads: int, *, activation: str, dropout: float = 0.0) -> dict[str, Any]:
    sizes = {"layers": layers, "embedding_size": width, "hidden_size": width, "intermediate_hidden_size": 4 * width}
    more = {"attention_heads": heads, "activation_function": activation}
    return {"transformer": {**sizes, **more, "dropout": dropout, "attention_dropout": dropout}}


def _recurrent(name: str, architecture: str, units: int, steps: int) -> Size:
    model = {"rnn": {"embedding_size": units, "hidden_size": units, "num_layers": 2, "dropout": 0.0}}
    training = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.25}
    return Size(name, architecture, model, "word", 10_000, 36, 20, steps, training=training)


def _bert(name: str, dropout: float) -> Size:
    model = _transformer(6, 384, 6, activation="gelu", dropout=dropout)
    return Size(name, "bert", model, "word", 16_000, 128, 16, 1, dropout=dropout)


_new = "gelu_new"
SIZES = {
    size.name: size
    for size in (
        Size("gpt2 tiny", "gpt2", _transformer(4, 128, 4, activation=_new), "character", 65, 64, 12, 20),
        Size("gpt2 small", "gpt2", _transformer(6, 384, 6, activation=_new), "word", 16_000, 256, 8, 1),
        Size("gpt2 base", "gpt2", _transformer(12, 768, 12, activation=_new), "word", 50_000, 256, 2, 1),
        _bert("bert small, dropout 0", 0.0),
        _bert("bert small, dropout 0.1", 0.1),
        _recurrent("lstm 2x200", "lstm", 200, 10),
        _recurrent("lstm 2x650", "lstm", 650, 3),
        _recurrent("gru 2x650", "gru", 650, 3),
        _recurrent("rnn 2x650", "rnn", 650, 5),
    )
}
"""The sizes that the limits are stated for. A recurrent row holds 35 steps, as in pytorch/examples, and a target."""


def small_gpt2(name: str, layers: int, width: int) -> Size:
    """Return a GPT-2 as people train on ten million words."""
    return Size(name, "gpt2", _transformer(layers, width, 4, activation=_new), "word", 8_000, 128, 8, 1)
