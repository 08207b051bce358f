"""Scores without training: a model that predicts the toy language with its own probabilities gets the exact values."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from functools import cache
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
    """The toy language itself, in float64. A text that is not in it is followed by anything."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.output_layer = nn.Linear(context.vocab_size, context.vocab_size, bias=False, dtype=torch.float64)
        nn.init.eye_(self.output_layer.weight)
        self.names: dict[int, str] = {}

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
                    prefix = (*prefix, name) if name in following(prefix) else None
                if prefix is None:
                    chances_BTV[row, place] = -math.log(size)
                    continue
                for word, (chance, _) in following(prefix).items():
                    chances_BTV[row, place, number[word]] = math.log(chance)
        return self.lm_output(chances_BTV, self.output_layer, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.output_layer

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        raise NotImplementedError


@pytest.fixture
def exact(corpus: ToyCorpus, tmp_path: Path) -> tuple[ExactModel, Any]:
    """The model, and a tokenizer whose tokens are the words of the language."""
    register_architecture("exact", config=ModelConfig)(ExactModel)
    words = list(LANGUAGE.vocabulary)
    tokenizer = train_tokenizer("word", lambda: iter([" ".join(words)]), None, default_special_tokens("word"))
    config = load_config(
        {
            "experiment_name": "exact",
            "data": {"training_corpus": str(corpus.train), "max_sequence_length": 1024},
            "tokenizer": {"tokenizer_type": "word"},
            "model": {"architecture": "exact"},
            "training": {"output_dir": str(tmp_path / "run"), "train_steps": 1, "device": "cpu"},
        }
    )
    model = create_model(config, tokenizer)
    assert isinstance(model, ExactModel)
    model.names = {tokenizer.convert_tokens_to_ids(word): word for word in words} | {tokenizer.eos_token_id: END}
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
