"""Features of n-grams alone: the formulas of Kneser and Ney, tables that depend on the text alone, counting in runs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foundry_ngram.smoothing import FALLBACK, KneserNey
from foundry_ngram.windows import merged
from transformers import AutoModelForCausalLM

from foundry_core import BaseLanguageModel, ExperimentConfig, FoundryError, create_model, run
from foundry_core.evaluation.generation import continuations
from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs
from foundry_core.models.folder import load_model
from foundry_core.testing.toy_language import ToyLanguage, write_corpus
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
Build = Callable[..., BaseLanguageModel]
Gram = tuple[int, ...]

V, SEPARATOR = 7, 0
GENERATOR = np.random.default_rng(0)
TEXTS: dict[str, list[list[int]]] = {
    # Rows begin in the middle of a document or with the separator, which also stands inside; uneven shares, so that
    # amounts of 1 to 4 and more occur in each order.
    "rows": [
        [int(each) for each in np.minimum(GENERATOR.geometric(0.35, size=size) - 1, V - 1)]
        for size in (40, 31, 2, 25, 33)
    ],
    "tiny": [[0, 1, 2, 1, 2, 3, 0, 1, 2], [2, 1, 2, 4, 0, 0, 5]],
    "one prediction": [[3, 1]],
}


@pytest.fixture
def build(experiment: Experiment, letters: Any, tmp_path: Path, one_thread: None) -> Build:
    def make(order: int = 3, discounts: str = "three", **sections: Any) -> BaseLanguageModel:
        settings = {"ngram": {"order": order, "discounts": discounts}}
        return create_model(experiment("ngram", tmp_path, model=settings, **sections), letters)

    return make


# The formulas, one n-gram at a time.


class ByDefinition:
    """Interpolated Kneser-Ney smoothing with dictionaries, as the papers write it."""

    def __init__(self, rows: Iterable[Sequence[int]], order: int, discounts: str):
        self.order = order
        predictions: list[tuple[Gram, int, bool]] = []  # context, token, whether the row begins with the context
        for row in rows:
            for place in range(1, len(row)):
                start = max(0, place - (order - 1))
                inside = [at for at in range(start, place) if row[at] == SEPARATOR]
                start = max([start, *inside])
                predictions.append((tuple(row[start:place]), row[place], start == 0))
        self.amounts: list[dict[Gram, int]] = [{}]
        for size in range(1, order + 1):
            self.amounts.append(dict(self._amounts(predictions, size)))
        self.discounts = [self._estimated(amounts, discounts) for amounts in self.amounts]

    def _amounts(self, predictions: list[tuple[Gram, int, bool]], size: int) -> Iterator[tuple[Gram, int]]:
        """The counts of the longest n-grams; of others, how many different tokens, or the start of a row, come before.

        Before a separator that begins an n-gram nothing is looked at: these are counted.
        """
        counts: Counter[Gram] = Counter()
        before: dict[Gram, set[object]] = {}
        for context, token, _ in predictions:
            if len(context) < size - 1:
                continue
            gram = (*context[len(context) - size + 1 :], token)
            counts[gram] += 1
            left = context[-size] if len(context) >= size else "nothing"
            before.setdefault(gram, set()).add(left)
        for gram in counts:
            raw = size == self.order or (size > 1 and gram[0] == SEPARATOR)
            yield gram, counts[gram] if raw else len(before[gram])

    def _estimated(self, amounts: dict[Gram, int], discounts: str) -> Callable[[int], float]:
        t = Counter(amounts.values())
        y = t[1] / (t[1] + 2 * t[2]) if t[1] else math.nan
        if discounts == "one":
            return lambda amount: 0.0 if not amount else y if t[1] else FALLBACK["one"][0]
        if t[1] and t[2] and t[3]:
            found = [1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]]
            if min(found) > 0:
                return lambda amount: [0.0, *found][min(amount, 3)]
        return lambda amount: [0.0, *FALLBACK["three"]][min(amount, 3)]

    def __call__(self, context: Gram, token: int) -> float:
        """The probability of a token after a context, which is cut here."""
        starts = [at for at, each in enumerate(context) if each == SEPARATOR]
        context = context[starts[-1] if starts else 0 :][-(self.order - 1) :]
        return self._interpolated(context, token)

    def _interpolated(self, context: Gram, token: int) -> float:
        size = len(context) + 1
        shorter = self._interpolated(context[1:], token) if context else 1 / V
        followers = {each: self.amounts[size].get((*context, each), 0) for each in range(V)}
        total, discount = sum(followers.values()), self.discounts[size]
        if not total:
            return shorter
        left = sum(discount(amount) for amount in followers.values())
        return (followers[token] - discount(followers[token])) / total + left / total * shorter


def filled_up(context: Sequence[int], order: int) -> list[int]:
    """A context as the model has it: cut before its last separator, and filled up."""
    starts = [at for at, each in enumerate(context) if each == SEPARATOR]
    cut = list(context[starts[-1] if starts else 0 :])[-(order - 1) :]
    return [-1] * (order - 1 - len(cut)) + cut


def windows(rows: Iterable[Sequence[int]], order: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """What the model counts of rows."""
    found = [[*filled_up(row[:place], order), row[place]] for row in rows for place in range(1, len(row))]
    return np.array(found, dtype=np.int32).reshape(-1, order)


def table(rows: Iterable[Sequence[int]], order: int) -> tuple[Any, Any]:
    return merged(np.zeros((0, order), dtype=np.int32), np.zeros(0, dtype=np.int64), windows(rows, order))


def some_contexts(order: int) -> list[Gram]:
    """Contexts of every length, seen and not."""
    drawn = np.random.default_rng(1)
    sizes = [size for size in range(1, order) for _ in range(40)]
    return [tuple(int(each) for each in drawn.integers(0, V, size)) for size in sizes]


def largest_difference(found: KneserNey, expected: ByDefinition) -> float:
    contexts = some_contexts(expected.order)
    filled = np.array([filled_up(context, expected.order) for context in contexts])
    slow = np.array([[expected(context, token) for token in range(V)] for context in contexts])
    every, tokens = np.repeat(filled, V, axis=0), np.tile(np.arange(V), len(filled))
    differences = (found.of_all(filled) - slow, found.of(every, tokens).reshape(slow.shape) - slow)
    return max(float(np.abs(each).max()) for each in differences)


@each("text", list(TEXTS))
@each("order", [2, 3, 5])
@each("discounts", ["three", "one"])
def test_probabilities_are_those_of_the_formulas(text: str, order: int, discounts: Any) -> None:
    found = KneserNey(*table(TEXTS[text], order), V, SEPARATOR, discounts)
    expected = ByDefinition(TEXTS[text], order, discounts)
    assert largest_difference(found, expected) < 1e-10


@each("order", [2, 3, 5])
def test_the_chances_of_all_tokens_add_up_to_one(order: int) -> None:
    contexts = np.array([filled_up(each, order) for each in some_contexts(order)])
    for rows in (*TEXTS.values(), []):
        found = KneserNey(*table(rows, order), V, SEPARATOR).of_all(contexts)
        assert found.min() > 0
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)


def test_each_defect_of_the_formulas_is_far_from_them() -> None:
    """What the comparison rests on: each of these is an n-gram model, and none is Kneser and Ney's."""
    rows, order = TEXTS["rows"], 4
    expected = ByDefinition(rows, order, "three")

    class CountsEverywhere(ByDefinition):
        def _amounts(self, predictions: Any, size: int) -> Iterator[tuple[Gram, int]]:
            whole = (each for each in predictions if len(each[0]) >= size - 1)
            return iter(Counter((*context[len(context) - size + 1 :], token) for context, token, _ in whole).items())

    class DiscountsOfTheNextOrder(ByDefinition):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            self.discounts = [*self.discounts[1:], self.discounts[0]]

    defects = [
        CountsEverywhere(rows, order, "three"),
        DiscountsOfTheNextOrder(rows, order, "three"),
        ByDefinition(rows, order, "one"),
        ByDefinition([row[:-1] for row in rows], order, "three"),  # a count lost at the end of each row
        ByDefinition([[each for row in rows for each in row]], order, "three"),  # counts across rows
    ]
    found = KneserNey(*table(rows, order), V, SEPARATOR)
    assert largest_difference(found, expected) < 1e-10
    assert min(largest_difference(found, each) for each in defects) > 1e-3


def test_a_chain_within_its_reach_is_learnt_to_its_entropy() -> None:
    """Text in which each token depends on the two before it: what is lost is what estimating from a sample loses."""
    drawn, tokens = np.random.default_rng(3), 12
    chances = drawn.dirichlet(np.full(tokens, 0.3), size=(tokens, tokens))
    text, bounds = [0, 0], chances.cumsum(axis=2)
    for chance in drawn.random(120_000):
        text.append(min(int(np.searchsorted(bounds[text[-2], text[-1]], chance)), tokens - 1))
    ids = np.array(text, dtype=np.int32)
    for order, most in ((3, 0.02), (5, 0.12)):
        every = np.lib.stride_tricks.sliding_window_view(ids, order)
        counted, new = every[:100_000], every[100_000:]
        empty = np.zeros((0, order), dtype=np.int32), np.zeros(0, dtype=np.int64)
        found = KneserNey(*merged(*empty, counted), tokens, None)
        loss = -np.log(found.of(new[:, :-1].astype(np.int64), new[:, -1].astype(np.int64))).mean()
        floor = -np.log(chances[new[:, -3], new[:, -2], new[:, -1]]).mean()
        assert floor < loss < floor + most, order


# Tables.


def test_a_table_depends_on_what_is_counted_alone() -> None:
    every = windows(TEXTS["rows"], 4)
    drawn = np.random.default_rng(2)
    whole = table(TEXTS["rows"], 4)
    counts = Counter(map(tuple, every.tolist()))
    assert dict(zip(map(tuple, whole[0].tolist()), whole[1].tolist(), strict=True)) == counts
    for _ in range(5):
        found = np.zeros((0, 4), dtype=np.int32), np.zeros(0, dtype=np.int64)
        for part in np.array_split(drawn.permutation(every), 7):
            found = merged(*found, part)
        assert all(np.array_equal(one, other) for one, other in zip(found, whole, strict=True))


@each(
    ("name", "change", "what"),
    [
        ("ngrams", lambda each: each.clamp(min=40), "ids that are not in the vocabulary"),
        ("ngrams", lambda each: each.flip(0), "not in their order"),
        ("ngrams", lambda each: torch.where(torch.tensor([0, 1, 0]).bool(), -1, each).int(), "a gap"),
        ("counts", lambda each: each - each, "a count below 1"),
    ],
)
def test_a_damaged_table_is_refused(build: Build, tmp_path: Path, name: str, change: Any, what: str) -> None:
    model = build()
    model.count(torch.randint(1, 27, (4, 20), generator=torch.Generator().manual_seed(0)))
    model.state_dict()
    setattr(model, name, change(getattr(model, name)))
    model.save_pretrained(tmp_path / "saved")
    opened = load_model(tmp_path / "saved")
    with pytest.raises(FoundryError, match=rf"^the counts of this ngram are damaged: .*{what}"):
        opened(torch.tensor([[1, 2]]))


def test_forgotten_tokens_take_their_n_grams_along(build: Build) -> None:
    model = build(2)
    model.count(torch.tensor([[5, 6, 31, 5, 7]]))
    model.resize_token_embeddings(31)
    assert model.ngrams.tolist() == [[5, 6], [5, 7]]
    chances_TV = model(torch.tensor([[5, 6]])).logits[0].exp()
    assert chances_TV.shape == (2, 31)
    assert chances_TV.sum(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)


# Runs.


def test_a_run_counts_each_row_once_and_saves_the_counts(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints hold the counts so far; a second epoch adds nothing, however the steps are divided."""
    training = {"checkpoints": {"every_steps": 5}, "train_steps": None, "epochs": 1}
    once = experiment("ngram", tmp_path / "once", training={**training, "output_dir": str(tmp_path / "once")})
    state = run(once, quiet=True)
    saved = sorted((tmp_path / "once").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    totals = [int(load_model(folder).counts.sum()) for folder in saved]
    assert totals[0] == 0
    assert totals == sorted(totals)
    assert totals[-1] == state.tokens_seen  # each token but the first separator, which is not among these
    again = {"epochs": 2, "gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "twice")}
    twice = experiment("ngram", tmp_path / "twice", training={**training, **again}, data={"batch_size": 3})
    last = run(twice, quiet=True).step
    found = [load_model(folder).state_dict() for folder in (saved[-1], tmp_path / "twice" / f"checkpoint-{last}")]
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    assert "ngram is trained by counting: of 2 epochs, it counts the first" in capsys.readouterr().err


def test_the_loss_of_a_step_is_that_before_it_is_counted(experiment: Experiment, tmp_path: Path) -> None:
    config = experiment("ngram", tmp_path, logging={"log_every_steps": 1}, training={"train_steps": 40})
    state = run(config, quiet=True)
    losses = {entry["step"]: entry["loss"] for entry in state.log if "loss" in entry}
    assert list(losses) == [*range(1, 17), *range(18, 33, 2), *range(36, 41, 4)]
    vocabulary = len(load_tokenizer(tmp_path / "run" / "tokenizer"))
    assert losses[1] == pytest.approx(math.log(vocabulary), abs=1e-9)
    assert losses[40] < 0.75 * losses[1]


def test_counts_go_on_in_another_run_that_starts_from_them(experiment: Experiment, tmp_path: Path) -> None:
    first = experiment("ngram", tmp_path / "first", training={"output_dir": str(tmp_path / "first"), "train_steps": 4})
    run(first, quiet=True)
    start = tmp_path / "first" / "checkpoint-4"
    training = {"output_dir": str(tmp_path / "second"), "train_steps": 4, "start_from": str(start)}
    run(experiment("ngram", tmp_path / "second", training=training), quiet=True)
    before, after = (load_model(each).counts for each in (start, tmp_path / "second" / "checkpoint-4"))
    assert torch.equal(2 * before, after)


def test_rows_that_continue_are_counted_as_one_text(experiment: Experiment, tmp_path: Path) -> None:
    """Only the beginning of each lane has a shorter context, and what follows a separator."""
    data = {"batching": "contiguous", "batch_size": 1, "max_sequence_length": 9}
    training = {"train_steps": None, "epochs": 1}
    config = experiment("ngram", tmp_path, data=data, training=training)
    state = run(config, quiet=True)
    model = load_model(tmp_path / "run" / f"checkpoint-{state.step}")
    separator = model.context.special_ids["bos_token_id"]
    begun = model.ngrams[:, 0] == -1
    assert bool((model.ngrams[begun, 1] == separator).all())
    assert int(model.counts.sum()) == state.tokens_seen


def test_what_counting_cannot_do_is_refused_with_its_line(experiment: Experiment, tmp_path: Path) -> None:
    held_out = {"restore_best": "at_end", "evaluate_every_steps": 5}
    with pytest.raises(FoundryError, match=r"training\.restore_best: ngram is trained by counting"):
        _ = experiment("ngram", tmp_path, training=held_out).capabilities
    with pytest.raises(FoundryError, match=r"training\.compile: ngram does not support it"):
        _ = experiment("ngram", tmp_path, training={"compile": True}).capabilities
    with pytest.raises(FoundryError, match="^ngram is trained by counting: there are no passes to profile$"):
        run(experiment("ngram", tmp_path), profile=3, quiet=True)


@pytest.mark.long
def test_a_trained_model_is_scored_and_opened_as_any_other(experiment: Experiment, tmp_path: Path) -> None:
    """The floor is that of the grammar, most of whose dependencies are within the reach of four tokens."""
    corpus = write_corpus(tmp_path / "corpus", train_sentences=20_000, test_sentences=1_000, seed=1, pairs_each=200)
    data = {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test), "max_sequence_length": 64}
    sections = {"model": {"ngram": {"order": 5}}, "training": {"train_steps": None, "epochs": 1}}
    sections["tokenizer"] = {"vocab_size": 200}
    state = run(experiment("ngram", tmp_path, data=data, **sections), quiet=True)
    (loss,) = (entry["eval_loss"] for entry in state.log if "eval_loss" in entry and entry["step"] == state.step)
    assert corpus.test_floor < loss < corpus.test_floor + 0.36
    folder = tmp_path / "run" / f"checkpoint-{state.step}"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    agreement = [paradigm.accuracy for paradigm in score_pairs(model, tokenizer, read_pairs(corpus.minimal_pairs))]
    assert agreement[0] > 0.9  # no noun between
    assert agreement[2] < agreement[0]
    (text,) = continuations(model, tokenizer, "the", tokens=12)
    assert set(text.split()) <= set(ToyLanguage().vocabulary)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("the man sees the dog .")["input_ids"]])
    assert torch.equal(theirs(ids).logits, model(ids).logits)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert (again.model.counts.dtype, again(ids).logits.dtype) == (torch.int64, torch.bfloat16)


@pytest.mark.long
def test_the_descriptor_is_light() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'foundry_ngram.model'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, foundry_ngram; assert not {heavy}"], check=True, timeout=60)
