"""What masked_lm hides: whole words as each tokenizer marks them, and a share that changes over a run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foundry_core import ExperimentConfig, MaskedLMDataCollator, create_model
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import ConfigError, UsageError
from foundry_core.tokenization.encoding import text_ids
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from foundry_core.training.notifier import Notifier
from foundry_core.training.trainer import Trainer
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
WORDS = ["the", "cat", "sees", "a", "dog", "and", "another", "river", "under", "houses", "quickly", "running"]
WORDS += ["unbelievable", "extraordinarily"]
SIZES = {"sentencepiece": 290, "wordpiece": 80, "bpe": 300, "character": None, "word": 40}
GIVEN = ("bpe with a suffix", "bpe with a prefix")


def lines(count: int, *, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(WORDS, k=rng.randint(1, 24)) for _ in range(count)]


def given_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that somebody else has trained: pieces that end a word, or continue one, are marked."""
    marks: dict[str, Any] = (
        {"end_of_word_suffix": "</w>"} if kind.endswith("suffix") else {"continuing_subword_prefix": "@@"}
    )
    backend = Tokenizer(models.BPE(unk_token="<unk>", **marks))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<mask>", "<pad>"], show_progress=False, **marks
    )
    backend.train_from_iterator([" ".join(line) for line in lines(200)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>", pad_token="<pad>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    texts = [" ".join(line) for line in lines(200)]
    found: dict[str, Any] = {
        kind: train_tokenizer(kind, lambda: iter(texts), size, default_special_tokens(kind))
        for kind, size in SIZES.items()
    }
    return found | {kind: given_tokenizer(kind) for kind in GIVEN}


def word_sizes(kind: str, tokenizer: Any, words: list[str]) -> list[int]:
    """The numbers of tokens of what has to be hidden together: each word by itself, and spaces that are tokens."""
    lead = " " if kind == "bpe" else ""
    sizes = [len(ids) for ids in text_ids(tokenizer, [words[0], *(lead + word for word in words[1:])])]
    return (
        [size for pair in zip(sizes, [1] * len(sizes), strict=True) for size in pair][:-1]
        if kind == "character"
        else sizes
    )


def features(rows: list[Any], *, epoch: int = 0, first: int = 0) -> list[dict[str, Any]]:
    return [{"input_ids": row, "epoch": epoch, "row": first + number} for number, row in enumerate(rows)]


@each("kind", [*SIZES, *GIVEN])
def test_the_tokens_of_a_word_are_hidden_together(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    some = lines(300, seed=1)
    rows = text_ids(tokenizer, [" ".join(line) for line in some])
    labels = MaskedLMDataCollator(tokenizer, mlm_probability=0.3, masking="whole_word")(features(rows))["labels"]
    hidden_words = total = longest = 0
    for line, row, found in zip(some, rows, labels != -100, strict=True):
        sizes = word_sizes(kind, tokenizer, line)
        assert sum(sizes) == len(row)
        parts = [part.tolist() for part in np.split(found[: len(row)].numpy(), np.cumsum(sizes)[:-1])]
        assert all(all(part) or not any(part) for part in parts)
        assert any(map(any, parts))
        hidden_words, total = hidden_words + sum(map(any, parts)), total + len(parts)
        longest = max(longest, *map(len, parts))
    assert 0.2 < hidden_words / total < 0.5
    assert longest > 2 or kind == "word"


@each("kind, share", [("bpe", 0.15), ("wordpiece", 0.4), ("character", 0.15), ("sentencepiece", 0.8)])
def test_whole_words_keep_the_share_of_tokens(kind: str, share: float, tokenizers: dict[str, Any]) -> None:
    tokenizer, rng = tokenizers[kind], random.Random(2)
    rows = [ids[:128] for ids in text_ids(tokenizer, [" ".join(rng.choices(WORDS, k=150)) for _ in range(400)])]
    collate = MaskedLMDataCollator(tokenizer, mlm_probability=share, masking="whole_word")
    found = (collate(features(rows))["labels"] != -100).double().mean(dim=1)
    assert abs(found.mean() - share) < 4 * found.std() / math.sqrt(len(rows))
    # A word more or less, and no word of a row is left out in favour of others.
    assert (found - share).abs().max() < 0.2


def test_every_word_is_hidden_equally_often(tokenizers: dict[str, Any]) -> None:
    """Whatever its length and place: a long one that does not fit any more is not passed over for a short one."""
    tokenizer = tokenizers["wordpiece"]
    words = ["unbelievable", "a", "extraordinarily", "the", "cat", "houses", "dog", "river"] * 3
    (row,), sizes = text_ids(tokenizer, [" ".join(words)]), word_sizes("wordpiece", tokenizer, words)
    collate = MaskedLMDataCollator(tokenizer, mlm_probability=0.5, masking="whole_word")
    hidden = (collate(features([row] * 4000))["labels"] != -100).double().mean(dim=0)
    of_words = hidden[torch.tensor([0, *np.cumsum(sizes)[:-1]])]
    assert (of_words - of_words.mean()).abs().max() < 0.05


@each("side", ["left", "right"])
@each("kind", ["bpe", "character", "wordpiece"])
def test_whole_words_follow_seed_epoch_and_row_in_any_batch(
    side: str, kind: str, tokenizers: dict[str, Any], letters: Any
) -> None:
    tokenizer = tokenizers[kind]
    rows = text_ids(tokenizer, [" ".join(line) for line in lines(12, seed=3)])
    collate = MaskedLMDataCollator(tokenizer, masking="whole_word", seed=7)
    before = tokenizer.padding_side
    try:
        tokenizer.padding_side = side
        collate = MaskedLMDataCollator(tokenizer, masking="whole_word", seed=7)
    finally:
        tokenizer.padding_side = before
    given = features(rows, epoch=2, first=50)
    together = collate(given)
    for number, row in enumerate(rows):
        real = together["attention_mask"][number].bool()
        alone = collate(given[number : number + 1])
        assert torch.equal(alone["labels"][0], together["labels"][number][real])
        assert torch.equal(alone["input_ids"][0], together["input_ids"][number][real])
        assert len(row) == int(real.sum())
    other = collate(features(rows, epoch=3, first=50))
    assert not torch.equal(other["labels"], together["labels"])


def test_a_share_that_changes_is_linear_in_the_position(letters: Any) -> None:
    """Of training; without the positions of a run it is that at the end, in every row."""
    row = np.setdiff1d(np.arange(24), letters.all_special_ids)[:20]
    given = [{"input_ids": row, "epoch": 0, "row": number, "position": number} for number in range(10_000)]
    growing = MaskedLMDataCollator(letters, mlm_probability=(0.2, 0.6), samples=10_000)(given)["labels"] != -100
    for part, expected in enumerate((0.25, 0.35, 0.45, 0.55)):
        found = growing[2500 * part : 2500 * (part + 1)].double().mean()
        assert found == pytest.approx(expected, abs=0.006)
    assert growing[:200].sum(dim=1).double().mean() == pytest.approx(4, abs=0.15)
    at_the_end = MaskedLMDataCollator(letters, mlm_probability=(0.2, 0.6))(given)
    fixed = MaskedLMDataCollator(letters, mlm_probability=0.6)(given)
    assert torch.equal(at_the_end["labels"], fixed["labels"])
    with pytest.raises(UsageError, match="needs the position of each row$"):
        MaskedLMDataCollator(letters, mlm_probability=(0.2, 0.6), samples=10)(
            [{"input_ids": row, "epoch": 0, "row": 0}]
        )


def test_a_trainer_masks_by_position_and_evaluates_at_the_end(
    experiment: Experiment, corpus: Any, tmp_path: Path
) -> None:
    """From wherever it goes on, with and without workers, and the same share in every evaluation."""
    training = {"mlm_probability": [0.9, 0.1], "train_steps": 60}
    data = {"test_corpus": str(corpus.test)}
    config = experiment("bert", tmp_path, data=data, training=training)
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    rows = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora), corpora)
    notifier = Notifier(config.chosen.plugins.manager)
    trainer = Trainer(config, create_model(config, tokenizer), tokenizer, rows, notifier)
    batches = list(trainer.batches())

    special = torch.tensor(tokenizer.all_special_ids)

    def share(some: list[dict[str, torch.Tensor]]) -> float:
        hidden = torch.cat([batch["labels"].flatten() != -100 for batch in some])
        shown = torch.cat([batch["input_ids"].flatten() for batch in some])
        return int(hidden.sum()) / int((hidden | ~torch.isin(shown, special)).sum())

    assert share(batches[:20]) == pytest.approx(0.9 - 0.8 / 6, abs=0.05)
    assert share(batches[-20:]) == pytest.approx(0.1 + 0.8 / 6, abs=0.05)
    trainer.state.samples = 100
    again = list(trainer.batches())
    assert len(again) == 35
    assert all(torch.equal(one["labels"], other["labels"]) for one, other in zip(again, batches[25:], strict=True))
    some = [{"input_ids": rows.train_rows.row(row), "epoch": 0, "row": row, "position": 0} for row in range(60)]
    assert share([trainer.collate(some)]) == pytest.approx(0.1, abs=0.03)


@each("training, problem", [
    ({"mlm_probability": [0.1]}, "mlm_probability: must be a share, or two"),
    ({"mlm_probability": [0.1, 1.5]}, "mlm_probability: must be less than 1, not 1.5"),
    ({"mlm_probability": 0}, "mlm_probability: must be greater than 0, not 0"),
    ({"mlm_probability": "most"}, "mlm_probability: must be a number, or a list of two, not 'most'"),
    ({"masking": "words"}, "masking: is 'words', must be 'token' or 'whole_word'"),
])  # fmt: skip
def test_a_share_or_a_unit_that_is_wrong_is_refused_once(
    training: dict[str, Any], problem: str, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment("bert", tmp_path, training=training)
    assert len(refused.value.problems) == 1
    assert f"training.{problem}" in str(refused.value)


@each("training", [{"masking": "whole_word"}, {"mlm_probability": [0.3, 0.1]}])
def test_a_causal_objective_refuses_what_only_masking_reads(
    training: dict[str, Any], experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"training.{next(iter(training))}: causal_lm does not mask"):
        experiment("gpt2", tmp_path, training=training)
