"""A small probabilistic grammar of English whose sentences have an exactly known probability.

`foundry quickstart` and the tests draw their corpus from it. Because the grammar is finite and unambiguous, the
probability of a sentence is the product of the probabilities of its rules, and the cross-entropy of a perfect causal
language model (the entropy floor, in nats per token) follows from the rules without sampling.

The grammar is about subject-verb agreement over a distance. With the number n, m in {sg, pl}, both equally likely:

    S      -> NP.n VP.n .
    NP.n   -> Core.n
            | Core.n Preposition NP.m               "the keys to the cabinet"
            | Core.n that NP.m Transitive.m         "the keys that the man sees"
            | Core.n that Transitive.n NP.m         "the man that sees the keys"
            | Core.n that Intransitive.n            "the man that sings"
            | Core.n that Copula.n Adjective        "the man that is tall"
    Core.n -> Determiner.n Noun.n | Determiner.n Adjective Noun.n
    VP.n   -> Intransitive.n | Intransitive.n Adverb | Copula.n Adjective | Transitive.n NP.m

The probabilities of the kinds of NP depend on its place in the sentence (`_PLACES`), which bounds the recursion: a
subject contains at most two further nouns, one inside the modifier of the other. There are no semantics: any noun goes
with any verb, so only the number of the head noun predicts the number of the verb.

The grammar is unambiguous: a noun has at most one modifier, so a modifier belongs to the noun right before it; "that"
opens every relative clause, and the word after it (a verb or a determiner) determines its kind; each relative clause
has exactly one verb, so a verb belongs to the innermost noun that still lacks one; adverbs follow main verbs only; no
word is in two classes, and where a determiner has one form for both numbers, the noun decides.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foundry_core.storage.files import write_file

END_TOKENS_PER_SENTENCE = 1
"""Each sentence in a stream of tokens ends with one end-of-sentence token, which is certain and costs 0 nats."""

_NUMBERS = ("sg", "pl")


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split `"key/keys man/men"` into (singular, plural) pairs."""
    forms = [word.split("/") for word in text.split()]
    return [(singular, plural) for singular, plural in forms]


@dataclass(frozen=True)
class Lexicon:
    """The words of each class, separated by blanks, the most frequent first; inflected words as singular/plural.

    A word may appear in one class only, once; only a determiner may have the same form for both numbers. The default
    singular nouns and adjectives begin with a consonant, because "a" can precede any of them.
    """

    determiners: str = "the/the a/some this/these every/many"
    nouns: str = (
        "man/men dog/dogs girl/girls key/keys child/children friend/friends book/books woman/women teacher/teachers "
        "cat/cats boy/boys house/houses doctor/doctors bird/birds cabinet/cabinets tree/trees farmer/farmers "
        "picture/pictures horse/horses letter/letters singer/singers table/tables baker/bakers flower/flowers"
    )
    transitive: str = (
        "sees/see likes/like knows/know helps/help finds/find watches/watch follows/follow needs/need loves/love "
        "wants/want"
    )
    intransitive: str = (
        "sings/sing sleeps/sleep laughs/laugh waits/wait smiles/smile falls/fall dances/dance shines/shine"
    )
    copulas: str = "is/are"
    adjectives: str = "small new tall big young red kind cold bright strange"
    adverbs: str = "today here again quietly often"
    prepositions: str = "to near with behind beside"

    def preterminals(self) -> dict[str, list[str]]:
        """Return the words of each preterminal of the grammar; an inflected class has one preterminal per number."""
        words = {
            "Adjective": self.adjectives.split(),
            "Adverb": self.adverbs.split(),
            "Preposition": self.prepositions.split(),
        }
        inflected = {
            "Determiner": self.determiners,
            "Noun": self.nouns,
            "Transitive": self.transitive,
            "Intransitive": self.intransitive,
            "Copula": self.copulas,
        }
        for name, text in inflected.items():
            for index, number in enumerate(_NUMBERS):
                words[f"{name}.{number}"] = [pair[index] for pair in _pairs(text)]
        return words


# The probabilities of the kinds of noun phrase in each place. A subject has 0, 1 or 2 nouns after its head with
# probabilities of about 0.62, 0.24 and 0.14; as half of those nouns have the other number, about 19 % of the sentences
# have one attractor and 3.5 % have two. "embedded" is the subject of an object relative clause inside the subject: it
# takes no relative clause, because people do not understand double centre embedding either.
_PLACES: Mapping[str, tuple[float, float, float, float, float, float]] = {
    # no modifier, then "to NP", "that NP sees", "that sees NP", "that sings", "that is tall"
    "subject": (0.54, 0.18, 0.12, 0.08, 0.05, 0.03),
    "inner": (0.58, 0.18, 0.10, 0.08, 0.04, 0.02),
    "embedded": (0.62, 0.38, 0.0, 0.0, 0.0, 0.0),
    "object": (0.78, 0.10, 0.05, 0.03, 0.03, 0.01),
    "plain": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}
_ADJECTIVE = 0.2  # the probability of an adjective before a noun
_INTRANSITIVE, _WITH_ADVERB, _COPULAR, _TRANSITIVE = 0.28, 0.10, 0.24, 0.38  # the verb phrases

Rule = tuple[float, tuple[str, ...]]
"""The probability of a rule, given its left side, and its right side. A symbol without rules is a word."""


def _zipf(words: list[str]) -> list[Rule]:
    """Return one rule per word, with probabilities proportional to 1 / (rank + 1), rank = 1, 2, ... (Mandelbrot)."""
    weights = [1 / (rank + 1) for rank in range(1, len(words) + 1)]
    total = math.fsum(weights)
    return [(weight / total, (word,)) for weight, word in zip(weights, words, strict=True)]


def _noun_phrase(number: str, place: str) -> list[Rule]:
    core = f"Core.{number}"
    none, preposition, object_relative, transitive, intransitive, copular = _PLACES[place]
    after, embedded = ("inner", "embedded") if place == "subject" else ("plain", "plain")
    rules: list[Rule] = [
        (none, (core,)),
        (intransitive, (core, "that", f"Intransitive.{number}")),
        (copular, (core, "that", f"Copula.{number}", "Adjective")),
    ]
    for other in _NUMBERS:
        rules += [
            (preposition / 2, (core, "Preposition", f"NP.{other}.{after}")),
            (object_relative / 2, (core, "that", f"NP.{other}.{embedded}", f"Transitive.{other}")),
            (transitive / 2, (core, "that", f"Transitive.{number}", f"NP.{other}.{after}")),
        ]
    return [rule for rule in rules if rule[0] > 0]


def _grammar(lexicon: Lexicon) -> dict[str, tuple[Rule, ...]]:
    """Return all rules by their left side; the probabilities of each left side sum to 1."""
    rules: dict[str, list[Rule]] = {symbol: _zipf(words) for symbol, words in lexicon.preterminals().items()}
    rules["S"] = [(1 / 2, (f"NP.{number}.subject", f"VP.{number}", ".")) for number in _NUMBERS]
    for number in _NUMBERS:
        rules[f"Core.{number}"] = [
            (1 - _ADJECTIVE, (f"Determiner.{number}", f"Noun.{number}")),
            (_ADJECTIVE, (f"Determiner.{number}", "Adjective", f"Noun.{number}")),
        ]
        for place in _PLACES:
            rules[f"NP.{number}.{place}"] = _noun_phrase(number, place)
        rules[f"VP.{number}"] = [
            (_INTRANSITIVE, (f"Intransitive.{number}",)),
            (_WITH_ADVERB, (f"Intransitive.{number}", "Adverb")),
            (_COPULAR, (f"Copula.{number}", "Adjective")),
            *((_TRANSITIVE / 2, (f"Transitive.{number}", f"NP.{other}.object")) for other in _NUMBERS),
        ]
    return {symbol: tuple(alternatives) for symbol, alternatives in rules.items()}


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in one word, the number of the main verb: `good` is in the language, `bad` is not."""

    good: str
    bad: str
    attractors: int
    """Nouns between the head of the subject and the main verb, all of the opposite number to the subject."""


@dataclass(frozen=True)
class ToyLanguage:
    """The language, with the default words unless a lexicon is given.

    A sentence consists of lower-case words separated by one space; the last is ".".
    """

    lexicon: Lexicon = Lexicon()

    @cached_property
    def rules(self) -> Mapping[str, tuple[Rule, ...]]:
        """The rules by their left side; the start symbol is "S", and no symbol derives itself."""
        return _grammar(self.lexicon)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of the language, sorted."""
        rights = (word for rules in self.rules.values() for _, right in rules for word in right)
        return tuple(sorted({word for word in rights if word not in self.rules}))

    @cached_property
    def _choices(self) -> dict[str, tuple[list[float], list[tuple[str, ...]]]]:
        """The cumulative probabilities of the rules of each symbol, and their right sides.

        The last sum is left out, so that a draw cannot fall past the end if rounding leaves it below 1.
        """
        return {
            symbol: (list(itertools.accumulate(rule[0] for rule in rules[:-1])), [right for _, right in rules])
            for symbol, rules in self.rules.items()
        }

    @cached_property
    def _word_probabilities(self) -> dict[str, dict[str, float]]:
        """The probabilities of the words of each preterminal, for fast look-up during parsing."""
        return {
            symbol: {word: probability for probability, (word,) in self.rules[symbol]}
            for symbol in self.lexicon.preterminals()
        }

    def _draw_rule(self, symbol: str, rng: random.Random) -> tuple[str, ...]:
        cumulative, rights = self._choices[symbol]
        return rights[bisect.bisect_right(cumulative, rng.random())]

    def _draw_words(self, symbol: str, rng: random.Random) -> list[str]:
        words: list[str] = []
        stack = [symbol]
        while stack:
            top = stack.pop()
            if top in self.rules:
                stack.extend(reversed(self._draw_rule(top, rng)))
            else:
                words.append(top)
        return words

    def sentence(self, rng: random.Random) -> str:
        """Draw one sentence from the distribution of the language."""
        return " ".join(self._draw_words("S", rng))

    def sentences(self, count: int, seed: int) -> Iterator[str]:
        """Draw `count` independent sentences; a seed gives the same sentences on every platform."""
        rng = random.Random(seed)
        for _ in range(count):
            yield self.sentence(rng)

    def log_probability(self, sentence: str) -> float:
        """Compute ln P(sentence) in nats with the inside algorithm. Raises ValueError if it is not in the language."""
        words = sentence.split(" ")
        memo: dict[tuple[str, int], dict[int, float]] = {}

        def inside(symbol: str, start: int) -> dict[int, float]:
            """Return the probability that `symbol` derives words[start:end], for each possible end."""
            if start == len(words):
                return {}
            if symbol in self._word_probabilities:
                probability = self._word_probabilities[symbol].get(words[start], 0.0)
                return {start + 1: probability} if probability else {}
            if symbol not in self.rules:
                return {start + 1: 1.0} if words[start] == symbol else {}
            if (symbol, start) not in memo:
                result = memo[symbol, start] = defaultdict(float)
                for probability, right in self.rules[symbol]:
                    partial = {start: probability}
                    for part in right:
                        extended: dict[int, float] = defaultdict(float)
                        for middle, before in partial.items():
                            for end, after in inside(part, middle).items():
                                extended[end] += before * after
                        partial = extended
                    for end, derived in partial.items():
                        result[end] += derived
            return memo[symbol, start]

        probability = inside("S", 0).get(len(words))
        if probability is None:
            raise ValueError(f"not a sentence of the toy language: {sentence!r}")
        return math.log(probability)

    def _expectation(self, of_rule: Callable[[float, tuple[str, ...]], float]) -> float:
        """Compute the exact expected sum of `of_rule(probability, right side)` over the rules of a derivation."""
        memo: dict[str, float] = {}

        def expected(symbol: str) -> float:
            if symbol not in self.rules:
                return 0.0
            if symbol not in memo:
                memo[symbol] = math.fsum(
                    probability * (of_rule(probability, right) + math.fsum(map(expected, right)))
                    for probability, right in self.rules[symbol]
                )
            return memo[symbol]

        return expected("S")

    @cached_property
    def entropy_per_sentence(self) -> float:
        """H(sentence) in nats. No sentence has two derivations, so it is the entropy of the derivations."""
        return self._expectation(lambda probability, _: -math.log(probability))

    @cached_property
    def tokens_per_sentence(self) -> float:
        """The expected number of words of a sentence, including ".", plus its end-of-sentence token."""
        return END_TOKENS_PER_SENTENCE + self._expectation(
            lambda _, right: sum(symbol not in self.rules for symbol in right)
        )

    @property
    def entropy_per_token(self) -> float:
        """The floor in nats per token of a stream of independent sentences, each followed by one end token."""
        return self.entropy_per_sentence / self.tokens_per_sentence

    def minimal_pairs(
        self, attractors: int, count: int, seed: int, *, exclude: Collection[str] = frozenset()
    ) -> list[MinimalPair]:
        """Draw `count` distinct pairs with 0, 1 or 2 nouns (attractors) between subject head and main verb.

        All of those nouns have the opposite number to the subject. With 0 attractors no noun intervenes, but a short
        relative clause may ("the man that sings is tall"). The pairs follow the distribution of the language, without
        repetitions and without the good sentences in `exclude`, preferably a set.

        Raises ValueError if too few pairs are found.
        """
        number_of = {noun: index for pair in _pairs(self.lexicon.nouns) for index, noun in enumerate(pair)}
        verbs = _pairs(f"{self.lexicon.transitive} {self.lexicon.intransitive} {self.lexicon.copulas}")
        other_form = dict(verbs) | {plural: singular for singular, plural in verbs}
        rng = random.Random(seed)
        pairs: dict[str, MinimalPair] = {}
        for _ in range(1000 * (count + 10)):
            if len(pairs) >= count:
                break
            subject, *rest = (self._draw_words(symbol, rng) for symbol in self._draw_rule("S", rng))
            head, *between = (number_of[word] for word in subject if word in number_of)
            if len(between) != attractors or head in between:
                continue
            verb, *tail = itertools.chain.from_iterable(rest)
            good = " ".join([*subject, verb, *tail])
            if good not in exclude:
                pairs[good] = MinimalPair(good, " ".join([*subject, other_form[verb], *tail]), attractors)
        if len(pairs) < count:
            raise ValueError(
                f"asked for {count} minimal pairs with {attractors} attractors, found {len(pairs)} that are distinct"
            )
        return list(pairs.values())


@dataclass(frozen=True)
class ToyCorpus:
    """The files that `write_corpus` wrote, and the loss of a perfect model."""

    train: Path
    test: Path
    minimal_pairs: Path
    test_floor: float
    """Nats per token, end tokens included, that a perfect model reaches on the text of `test`."""
    entropy_per_token: float
    """The same for the language as a whole: the limit of `test_floor` as the test text grows."""


def write_corpus(
    folder: Path, *, train_sentences: int, test_sentences: int, seed: int, pairs_each: int = 300
) -> ToyCorpus:
    """Write train.txt, test.txt (one sentence per line) and minimal_pairs.jsonl into `folder`, creating it if needed.

    minimal_pairs.jsonl has `pairs_each` lines for each of 0, 1 and 2 attractors, with the fields of BLiMP
    (Warstadt et al. 2020) that a scorer needs. Test and training text are independent samples, so test sentences may
    repeat training sentences. Good sentences with attractors never occur in train.txt; those without are not filtered,
    because only sentences with rare words would remain.
    """
    if test_sentences < 1:
        raise ValueError(f"test_sentences must be at least 1, not {test_sentences}")
    language = ToyLanguage()
    seeds = random.Random(seed)
    train_seed, test_seed, pairs_seed = (seeds.getrandbits(64) for _ in range(3))
    train = list(language.sentences(train_sentences, train_seed))
    test = list(language.sentences(test_sentences, test_seed))
    seen = frozenset(train)
    lines = [
        json.dumps(
            {
                "sentence_good": pair.good,
                "sentence_bad": pair.bad,
                "attractors": attractors,
                "UID": f"agreement_{attractors}_attractors",
                "linguistics_term": f"agreement, {attractors} attractor{'' if attractors == 1 else 's'}",
            }
        )
        for attractors, exclude in enumerate((frozenset[str](), seen, seen))
        for pair in language.minimal_pairs(attractors, pairs_each, pairs_seed, exclude=exclude)
    ]
    contents = {"train.txt": train, "test.txt": test, "minimal_pairs.jsonl": lines}
    for name, content in contents.items():
        write_file(folder / name, "".join(f"{line}\n" for line in content).encode())
    nats = -math.fsum(map(language.log_probability, test))
    tokens = sum(len(sentence.split()) + END_TOKENS_PER_SENTENCE for sentence in test)
    return ToyCorpus(
        train=folder / "train.txt",
        test=folder / "test.txt",
        minimal_pairs=folder / "minimal_pairs.jsonl",
        test_floor=nats / tokens,
        entropy_per_token=language.entropy_per_token,
    )
