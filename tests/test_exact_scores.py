"""Scores without training: a model that predicts the toy language with its own probabilities gets the exact values."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foundry_core import (
    BaseLanguageModel,
    BuildContext,
    ExperimentConfig,
    ModelConfig,
    ModelOutput,
    create_model,
    load_config,
    register_architecture,
)
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.evaluation.minimal_pairs import Pair, read_pairs, score_pairs
from foundry_core.evaluation.surprisal import token_scores
from foundry_core.evaluation.words import text_words, word_beginnings, word_surprisal
from foundry_core.testing.toy_language import ToyCorpus, ToyLanguage
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer

EXACT = 1e-9
IMPOSSIBLE = -1e4  # nats: e to this is 0 in float64
LANGUAGE = ToyLanguage()
END = ""
Stacks = dict[tuple[str, ...], float]
"""What may follow a prefix of a sentence: symbols to be derived, with their probability."""


@cache
def following(prefix: tuple[str, ...]) -> dict[str, tuple[float, Stacks]]:
    """Return each word that can follow, END after a whole sentence, with its probability and what may come after."""
    waiting: list[tuple[tuple[str, ...], float]] = [(("S",), 1.0)]
    if prefix:
        waiting = list(following(prefix[:-1])[prefix[-1]][1].items())
    found: dict[str, Stacks] = defaultdict(lambda: defaultdict(float))
    while waiting:
        stack, chance = waiting.pop()
        top, rest = (stack[0], stack[1:]) if stack else (END, ())
        if top in LANGUAGE.rules:
            waiting += [((*right, *rest), chance * share) for share, right in LANGUAGE.rules[top]]
        else:
            found[top][rest] += chance
    totals = {word: math.fsum(stacks.values()) for word, stacks in found.items()}
    return {
        word: (totals[word], {stack: chance / totals[word] for stack, chance in stacks.items()})
        for word, stacks in found.items()
    }


class ExactModel(BaseLanguageModel[ModelConfig]):
    """A language itself, in float64. A text that is not in it is followed by anything.

    names: What the tokens stand for, END for the separator. following: The chance of each name that can follow others.
    """

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.output_layer = nn.Linear(context.vocab_size, context.vocab_size, bias=False, dtype=torch.float64)
        nn.init.eye_(self.output_layer.weight)
        self.names: dict[int, str] = {}
        self.following: Callable[[tuple[str, ...]], Mapping[str, float]] = lambda prefix: {}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        size = self.context.vocab_size
        chances_BTV = torch.full((*input_ids.shape, size), IMPOSSIBLE, dtype=torch.float64)
        number = {name: token for token, name in self.names.items()}
        for row, ids in enumerate(input_ids.tolist()):
            prefix: tuple[str, ...] | None = ()
            for place, token in enumerate(ids):
                name = self.names.get(token)
                if name == END:
                    prefix = ()
                elif prefix is not None:
                    prefix = (*prefix, name) if name and name in self.following(prefix) else None
                if prefix is None:
                    chances_BTV[row, place] = -math.log(size)
                    continue
                for word, chance in self.following(prefix).items():
                    chances_BTV[row, place, number[word]] = math.log(chance)
        return self.lm_output(chances_BTV, self.output_layer, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.output_layer

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        raise NotImplementedError


@pytest.fixture
def build(corpus: ToyCorpus, tmp_path: Path) -> Callable[..., tuple[ExactModel, Any]]:
    """`build(kind, text, names)`: a model of a language, and a tokenizer of a kind with a token for each name."""
    register_architecture("exact", config=ModelConfig)(ExactModel)

    def make(kind: str, text: str, names: Iterable[str]) -> tuple[ExactModel, Any]:
        tokenizer = train_tokenizer(kind, lambda: iter([text]), None, default_special_tokens(kind))
        config = load_config(
            {
                "experiment_name": "exact",
                "data": {"training_corpus": str(corpus.train), "max_sequence_length": 1024},
                "tokenizer": {"tokenizer_type": kind},
                "model": {"architecture": "exact"},
                "training": {"output_dir": str(tmp_path / "run"), "train_steps": 1, "device": "cpu"},
            }
        )
        model = create_model(config, tokenizer)
        assert isinstance(model, ExactModel)
        model.names = {tokenizer.convert_tokens_to_ids(name): name for name in names} | {tokenizer.eos_token_id: END}
        return model, tokenizer

    return make


@pytest.fixture
def exact(build: Callable[..., tuple[ExactModel, Any]]) -> tuple[ExactModel, Any]:
    """The model of the toy language, and a tokenizer whose tokens are its words."""
    model, tokenizer = build("word", " ".join(LANGUAGE.vocabulary), LANGUAGE.vocabulary)
    model.following = lambda prefix: {word: chance for word, (chance, _) in following(prefix).items()}
    return model, tokenizer


def test_surprisal_and_entropy_are_those_of_the_grammar(exact, corpus):
    model, tokenizer = exact
    sentences = corpus.test.read_text().splitlines()
    words = text_words(tokenizer, sentences)
    scores = token_scores(model, tokenizer, [each.ids for each in words])
    assert word_beginnings(tokenizer, model.context.vocab_size) is None
    for sentence, text, found in zip(sentences, words, scores, strict=True):
        for boundary in ("leading", "trailing"):
            total = word_surprisal(text, found, boundary).sum()
            assert total == pytest.approx(-LANGUAGE.log_probability(sentence), abs=EXACT)
        prefix: tuple[str, ...] = ()
        for place, word in enumerate(sentence.split(" ")):
            chances = [chance for chance, _ in following(prefix).values()]
            assert math.fsum(chances) == pytest.approx(1, abs=EXACT)
            own = following(prefix)[word][0]
            assert found.surprisal[place] == pytest.approx(-math.log(own), abs=EXACT)
            entropy = -math.fsum(chance * math.log(chance) for chance in chances)
            assert found.entropy[place] == pytest.approx(entropy, abs=EXACT)
            least, most = (1 + sum(chance > own * share for chance in chances) for share in (1 + EXACT, 1 - EXACT))
            assert least <= found.rank[place] <= most  # singular and plural are equally likely
            prefix = (*prefix, word)
    # By hand: a sentence begins with a determiner, "the" in both numbers, the others in one of two.
    shares = [share / sum(1 / (rank + 2) for rank in range(4)) for share in (1 / 2, 1 / 3, 1 / 4, 1 / 5)]
    first = -shares[0] * math.log(shares[0]) - sum(share * math.log(share / 2) for share in shares[1:])
    assert {round(found.entropy[0] - first, 9) for found in scores} == {0}


def test_loss_and_perplexity_of_a_corpus_are_its_floor(exact, corpus):
    model, tokenizer = exact
    report = evaluate_corpus(model, tokenizer, corpus.test)
    sentences = corpus.test.read_text().splitlines()
    assert report.loss == pytest.approx(corpus.test_floor, abs=EXACT)
    assert report.perplexity == pytest.approx(math.exp(corpus.test_floor), abs=EXACT)
    assert report.perplexity_per_word == pytest.approx(math.exp(corpus.test_floor), abs=EXACT)
    bits = -math.fsum(map(LANGUAGE.log_probability, sentences)) / math.log(2)
    assert report.bits_per_byte == pytest.approx(bits / sum(map(len, sentences)), abs=EXACT)


def test_accuracy_is_what_the_grammar_prefers(exact, corpus):
    model, tokenizer = exact
    scores = score_pairs(model, tokenizer, read_pairs(corpus.minimal_pairs))
    assert [(score.accuracy, score.ties) for score in scores] == [(1, 0)] * 3
    (first, *_) = map(json.loads, corpus.minimal_pairs.read_text().splitlines())
    with pytest.raises(ValueError, match="not a sentence"):
        LANGUAGE.log_probability(first["sentence_bad"])
    sentences = sorted(set(corpus.test.read_text().splitlines()))
    pairs = [Pair(one, other, "both", "x:1") for one in sentences for other in sentences if one != other]
    (both,) = score_pairs(model, tokenizer, pairs[:200])
    chances = {sentence: LANGUAGE.log_probability(sentence) for sentence in sentences}
    right = sum(chances[pair.good] - chances[pair.bad] > 1e-3 for pair in pairs[:200])
    assert (both.accuracy, both.ties) == (right / 200, 0)


LETTERS = {"a": 0.7, "b": 0.3}
ENDS = {1: 0.3, 2: 0.6, 3: 1.0}
"""The chance that a word ends after so many letters."""
LAST = 0.25
"""The chance that a text ends where a word does."""
SPELLED = ["".join(letters) for length in ENDS for letters in product(LETTERS, repeat=length)]


def spelling(prefix: tuple[str, ...]) -> dict[str, float]:
    """Return each letter, space or END that can follow in texts of words that are drawn one by one."""
    length = len("".join(prefix).rpartition(" ")[2])
    ends = ENDS.get(length, 0.0)
    found = {END: ends * LAST, " ": ends * (1 - LAST)} | {letter: (1 - ends) * each for letter, each in LETTERS.items()}
    return {name: chance for name, chance in found.items() if chance}


def chance_of(word: str) -> float:
    """Return the probability of a word, whatever is before and after it."""
    goes_on = math.prod(1 - ENDS[length] for length in range(1, len(word)))
    return math.prod(LETTERS[letter] for letter in word) * goes_on * ENDS[len(word)]


def test_only_with_trailing_boundaries_do_words_sum_to_one(build):
    """After the first word, the end of the text is one more of what may follow."""
    model, tokenizer = build("character", "ab ba", (*LETTERS, " "))
    model.following = spelling
    begins = word_beginnings(tokenizer, model.context.vocab_size)
    assert begins is not None
    assert math.fsum(map(chance_of, SPELLED)) == pytest.approx(1, abs=EXACT)
    for place, frame in enumerate(("{}", "{} b", "a {} b", "ab {}", "ab abb {}")):
        words = text_words(tokenizer, [frame.format(word) for word in SPELLED])
        scores = token_scores(model, tokenizer, [each.ids for each in words], beginnings=begins)
        number = frame.split(" ").index("{}")
        sums = {}
        for boundary in ("leading", "trailing"):
            surprisals = [word_surprisal(*each, boundary)[number] for each in zip(words, scores, strict=True)]
            sums[boundary] = math.fsum(math.exp(-each) for each in surprisals)
        goes_on = 1 - LAST if number else 1.0
        assert surprisals == pytest.approx([-math.log(goes_on * chance_of(word)) for word in SPELLED], abs=EXACT)
        assert sums["trailing"] + (1 - goes_on) == pytest.approx(1, abs=EXACT)
        # By hand: a letter, (1 - 0.3) of words go on to a second, (1 - 0.3) * (1 - 0.6) to a third; before all but the
        # first word a space, after "a", "ab" and "abb".
        space = (1.0, 1.0, 0.3 * 0.75, 0.6 * 0.75, 0.75)[place]
        assert sums["leading"] == pytest.approx(space * (1 + 0.7 + 0.28), abs=EXACT)
    assert sums["leading"] + LAST > 1
