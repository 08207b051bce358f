"""The toy language: its exact figures, its unambiguity, its minimal pairs and the corpus written from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import statistics
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from foundry_core.testing import toy_language
from foundry_core.testing.toy_language import Lexicon, ToyLanguage, write_corpus
from tests.each import each

LANGUAGE = ToyLanguage()
SAMPLES = 50_000

# One word for each class, so that every sentence can be listed: each shape of sentence of the full language is there.
SMALL = ToyLanguage(
    Lexicon(
        determiners="the/the",
        nouns="key/keys",
        transitive="sees/see",
        intransitive="sings/sing",
        copulas="is/are",
        adjectives="tall",
        adverbs="today",
        prepositions="to",
    )
)


@pytest.fixture(scope="module")
def samples() -> list[str]:
    return list(LANGUAGE.sentences(SAMPLES, seed=5))


@pytest.fixture(scope="module")
def derivations() -> list[tuple[float, str]]:
    """Probability and sentence of every derivation of the small language, listed from its rules."""

    @cache
    def derive(symbol: str) -> list[tuple[float, str]]:
        if symbol not in SMALL.rules:
            return [(1.0, symbol)]
        return [
            (probability * math.prod(p for p, _ in parts), " ".join(words for _, words in parts))
            for probability, right in SMALL.rules[symbol]
            for parts in itertools.product(*map(derive, right))
        ]

    return derive("S")


@cache
def nouns_and_verbs(lexicon: Lexicon) -> tuple[dict[str, str], dict[str, str]]:
    """The number of each form of a noun, and the other form of each form of a verb."""
    nouns: dict[str, str] = {}
    verbs: dict[str, str] = {}
    for pair in lexicon.nouns.split():
        singular, plural = pair.split("/")
        nouns |= {singular: "singular", plural: "plural"}
    for pair in f"{lexicon.transitive} {lexicon.intransitive} {lexicon.copulas}".split():
        singular, plural = pair.split("/")
        verbs |= {singular: plural, plural: singular}
    return nouns, verbs


def read(sentence: str, lexicon: Lexicon = LANGUAGE.lexicon) -> tuple[int, str, list[str]]:
    """Position of the main verb, number of the head of the subject, numbers of the nouns between the two.

    It knows nothing of the rules: each "that" is owed one verb, and the main verb is the first that no "that" is owed.
    """
    nouns, verbs = nouns_and_verbs(lexicon)
    owed, numbers = 0, []
    for position, word in enumerate(sentence.split()):
        if word in nouns:
            numbers.append(nouns[word])
        elif word == "that":
            owed += 1
        elif word in verbs:
            if owed == 0:
                return position, numbers[0], numbers[1:]
            owed -= 1
    raise AssertionError(f"no main verb: {sentence}")


def attractors_of(sentence: str) -> int:
    _, head, between = read(sentence)
    return sum(number != head for number in between)


def count_derivations(language: ToyLanguage, sentence: str) -> int:
    """The number of derivations, by trying every way to split the words among the symbols of a rule."""
    words = sentence.split()

    @cache
    def symbol(name: str, start: int, end: int) -> int:
        if name not in language.rules:
            return int(end == start + 1 and words[start] == name)
        return sum(sequence(right, start, end) for _, right in language.rules[name])

    @cache
    def sequence(right: tuple[str, ...], start: int, end: int) -> int:
        if len(right) == 1:
            return symbol(right[0], start, end)
        # each of the symbols that follow takes at least one word
        middles = range(start + 1, end - len(right) + 2)
        return sum(symbol(right[0], start, middle) * sequence(right[1:], middle, end) for middle in middles)

    return symbol("S", 0, len(words))


def test_the_probabilities_of_each_left_side_sum_to_one() -> None:
    for symbol, rules in LANGUAGE.rules.items():
        assert math.fsum(probability for probability, _ in rules) == pytest.approx(1, abs=1e-12), symbol
        assert all(probability > 0 for probability, _ in rules), symbol


def test_no_sentence_of_the_language_has_two_derivations(derivations: list[tuple[float, str]]) -> None:
    # This proves it for the full language too. Put the one word of the small language in the place of each word of a
    # sentence: as a word has one class, and no more numbers than the word in its place (next test), two derivations of
    # the sentence would become two different derivations of the result.
    assert len({sentence for _, sentence in derivations}) == len(derivations) > 10_000


def test_a_word_has_one_class_and_only_the_has_two_numbers() -> None:
    places: dict[str, list[str]] = {}
    for preterminal, words in LANGUAGE.lexicon.preterminals().items():
        for word in words:
            places.setdefault(word, []).append(preterminal)
    assert places.pop("the") == ["Determiner.sg", "Determiner.pl"]
    assert {word: classes for word, classes in places.items() if len(classes) > 1} == {}
    assert not places.keys() & {"that", "."}


@pytest.mark.long
def test_an_independent_parser_derives_each_sentence_once(samples: list[str]) -> None:
    assert {count_derivations(LANGUAGE, sentence) for sentence in samples[:200]} == {1}
    assert count_derivations(LANGUAGE, "the dog that the man sees sing .") == 0


def test_the_probabilities_of_all_sentences_sum_to_one(derivations: list[tuple[float, str]]) -> None:
    assert math.fsum(probability for probability, _ in derivations) == pytest.approx(1, abs=1e-12)
    for probability, sentence in derivations[:: len(derivations) // 2000]:
        assert SMALL.log_probability(sentence) == pytest.approx(math.log(probability), abs=1e-9)


def test_entropy_and_length_are_those_of_all_sentences_listed(derivations: list[tuple[float, str]]) -> None:
    entropy = -math.fsum(p * math.log(p) for p, _ in derivations)
    tokens = math.fsum(p * (len(sentence.split()) + 1) for p, sentence in derivations)
    assert SMALL.entropy_per_sentence == pytest.approx(entropy, rel=1e-10)
    assert SMALL.tokens_per_sentence == pytest.approx(tokens, rel=1e-10)
    assert SMALL.entropy_per_token == pytest.approx(entropy / tokens, rel=1e-10)


@pytest.mark.long
def test_the_mean_surprisal_of_samples_is_the_entropy(samples: list[str]) -> None:
    of_each = {sentence: -LANGUAGE.log_probability(sentence) for sentence in set(samples)}
    surprisals = [of_each[sentence] for sentence in samples]
    standard_error = statistics.stdev(surprisals) / math.sqrt(SAMPLES)
    assert standard_error < 0.05
    assert abs(statistics.fmean(surprisals) - LANGUAGE.entropy_per_sentence) < 4 * standard_error


def test_the_mean_length_of_samples_is_tokens_per_sentence(samples: list[str]) -> None:
    lengths = [len(sentence.split()) + 1 for sentence in samples]
    standard_error = statistics.stdev(lengths) / math.sqrt(SAMPLES)
    assert abs(statistics.fmean(lengths) - LANGUAGE.tokens_per_sentence) < 4 * standard_error


def test_words_are_drawn_with_their_probabilities(samples: list[str]) -> None:
    nouns = Counter(word for sentence in samples for word in sentence.split())
    for number, words in (("sg", ("man", "flower")), ("pl", ("men", "flowers"))):
        rules = LANGUAGE.rules[f"Noun.{number}"]
        total = sum(nouns[right[0]] for _, right in rules)
        for probability, (word,) in (rules[0], rules[-1]):
            assert word in words
            assert abs(nouns[word] - total * probability) < 4 * math.sqrt(total * probability)


def test_the_language_has_the_intended_size(samples: list[str]) -> None:
    assert 80 <= len(LANGUAGE.vocabulary) <= 150
    assert {word for sentence in samples for word in sentence.split()} == set(LANGUAGE.vocabulary)
    assert 7 <= LANGUAGE.tokens_per_sentence - 1 <= 10
    assert max(len(sentence.split()) for sentence in samples) <= 24


def test_attractors_are_as_frequent_as_intended(samples: list[str]) -> None:
    shares = {attractors: count / SAMPLES for attractors, count in Counter(map(attractors_of, samples)).items()}
    assert shares.keys() == {0, 1, 2}
    assert 0.15 < shares[1] < 0.20
    assert 0.03 < shares[2] < 0.06


@each(
    "sentence",
    [
        "the keys to the cabinet are new .",
        "the keys that the man sees are new .",
        "the man that sees the keys is new .",
        "every dog that sings sees these small cats .",
        "some girls that are tall sing today .",
    ],
)
def test_sentences_of_english_are_in_the_language(sentence: str) -> None:
    assert -60 < LANGUAGE.log_probability(sentence) < -10


@each(
    "sentence",
    [
        "the keys to the cabinet is new .",
        "the keys that the man see are new .",
        "the man that see the keys is new .",
        "the girls that sings are new .",
        "the girls that is tall sing .",
        "the man sees the keys that falls .",
        "these dog sings .",
        "every dogs sing .",
        "the dog sings",
        "the dog sings . .",
        "the  dog sings .",
        "The dog sings .",
        "the dog sees .",
        "the dog sings the cat .",
        "the unicorn sings .",
        "S",
        "",
    ],
)
def test_a_corrupted_sentence_has_no_probability(sentence: str) -> None:
    with pytest.raises(ValueError, match="not a sentence"):
        LANGUAGE.log_probability(sentence)


def test_no_sentence_continues_after_a_verb_of_the_wrong_number(derivations: list[tuple[float, str]]) -> None:
    _, other_form = nouns_and_verbs(SMALL.lexicon)
    prefixes = {
        tuple(words[:end]) for _, sentence in derivations if (words := sentence.split()) for end in range(len(words))
    }
    for _, sentence in derivations:
        words = sentence.split()
        main, _, _ = read(sentence, SMALL.lexicon)
        assert (*words[:main], words[main]) in prefixes
        assert (*words[:main], other_form[words[main]]) not in prefixes, sentence


@pytest.mark.parametrize("attractors", [0, 1, 2])
def test_a_minimal_pair_differs_only_in_the_main_verbs_number(attractors: int) -> None:
    pairs = LANGUAGE.minimal_pairs(attractors, 300, seed=3)
    assert len({pair.good for pair in pairs}) == 300
    heads: Counter[str] = Counter()
    _, other_form = nouns_and_verbs(LANGUAGE.lexicon)
    for pair in pairs:
        good, bad = pair.good.split(), pair.bad.split()
        main, head, between = read(pair.good)
        assert len(good) == len(bad)
        assert [index for index, (one, other) in enumerate(zip(good, bad, strict=True)) if one != other] == [main]
        assert bad[main] == other_form[good[main]]
        assert len(between) == pair.attractors == attractors
        assert head not in between
        assert math.isfinite(LANGUAGE.log_probability(pair.good))
        with pytest.raises(ValueError, match="not a sentence"):
            LANGUAGE.log_probability(pair.bad)
        heads[head] += 1
    # neither number is the better guess: 4 standard errors of 300 fair draws
    assert abs(heads["singular"] - 150) < 35


def test_minimal_pairs_leave_out_what_is_excluded() -> None:
    first = [pair.good for pair in LANGUAGE.minimal_pairs(1, 20, seed=3)]
    again = [pair.good for pair in LANGUAGE.minimal_pairs(1, 20, seed=3, exclude=frozenset(first[::2]))]
    assert again[:10] == first[1::2]
    assert len(again) == 20
    assert not set(again) & set(first[::2])


def test_minimal_pairs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="3 attractors, found 0"):
        LANGUAGE.minimal_pairs(3, 1, seed=0)


def test_a_seed_gives_the_same_sentences_everywhere() -> None:
    text = "\n".join(LANGUAGE.sentences(1000, seed=0))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "587360e3c05de8914031a365758a25c4a8a839eab3bdf688beae668abaf71bf9"
    )
    assert text != "\n".join(LANGUAGE.sentences(1000, seed=1))
    rng = random.Random(0)
    assert text == "\n".join(LANGUAGE.sentence(rng) for _ in range(1000))


def test_write_corpus_writes_samples_and_their_floor(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "new" / "folder", train_sentences=500, test_sentences=2000, seed=4, pairs_each=10)
    train, test = corpus.train.read_text().splitlines(), corpus.test.read_text().splitlines()
    assert (len(train), len(test)) == (500, 2000)
    assert train != test[:500]
    surprisals = [-LANGUAGE.log_probability(sentence) for sentence in test]
    assert corpus.test_floor == pytest.approx(sum(surprisals) / sum(len(s.split()) + 1 for s in test), rel=1e-12)
    assert corpus.entropy_per_token == LANGUAGE.entropy_per_token
    assert corpus.test_floor == pytest.approx(corpus.entropy_per_token, rel=0.03)
    assert all(math.isfinite(LANGUAGE.log_probability(sentence)) for sentence in train)


def test_write_corpus_writes_minimal_pairs_with_blimps_fields(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, train_sentences=10, test_sentences=10, seed=4, pairs_each=25)
    records = [json.loads(line) for line in corpus.minimal_pairs.read_text().splitlines()]
    assert Counter(record["UID"] for record in records) == {f"agreement_{n}_attractors": 25 for n in range(3)}
    for record in records:
        assert record.keys() == {"sentence_good", "sentence_bad", "attractors", "UID", "linguistics_term"}
        assert attractors_of(record["sentence_good"]) == record["attractors"]
        assert record["UID"] == f"agreement_{record['attractors']}_attractors"


def test_sentences_with_attractors_are_not_in_the_training_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in a language this small, pairs that are not filtered do occur in the training text, as those of 0 attractors show
    monkeypatch.setattr(toy_language, "ToyLanguage", lambda: SMALL)
    corpus = write_corpus(tmp_path, train_sentences=2000, test_sentences=1, seed=4, pairs_each=30)
    train = set(corpus.train.read_text().splitlines())
    seen: Counter[int] = Counter()
    for line in corpus.minimal_pairs.read_text().splitlines():
        record = json.loads(line)
        seen[record["attractors"]] += record["sentence_good"] in train
    assert seen[0] > 10
    assert seen[1] == seen[2] == 0


def test_write_corpus_gives_the_same_bytes_for_a_seed(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> list[bytes]:
        corpus = write_corpus(tmp_path / name, train_sentences=50, test_sentences=50, seed=seed, pairs_each=5)
        return [path.read_bytes() for path in (corpus.train, corpus.test, corpus.minimal_pairs)]

    first, again, other = contents("a", 1), contents("b", 1), contents("c", 2)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert not any(b"\r" in content for content in first)


def test_an_empty_test_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_corpus(tmp_path, train_sentences=1, test_sentences=0, seed=0)
