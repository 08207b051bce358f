"""`data.steps`: what each step does to a text, an account that adds up, digests, matched controls, refusals."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model, load_config
from foundry_core.cli import main
from foundry_core.config.yaml_source import YamlSource
from foundry_core.corpus.account import ByteAccount, StepCount
from foundry_core.corpus.difference import training_text
from foundry_core.corpus.reader import Corpus
from foundry_core.errors import ConfigError, DataError, PluginError
from foundry_core.registry.core_steps import CORE_CORPUS_STEPS
from foundry_core.registry.corpus_step import flat_steps
from tests.each import each

SMALL = {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}}
WORDS = ["a", "the", "cat", "Cat", "dogs", "never", "sat", "can't", "well-known", "été", "1", ".", ",", "'s"]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Corpus]:
    """`changed(text, *steps, documents="line", plugins=())`: a corpus of that text with these steps."""

    def make(text: str, *steps: dict[str, Any], plugins: tuple[str, ...] = (), **data: Any) -> Corpus:
        path = tmp_path / "train.txt"
        path.write_text(text)
        content = {
            "experiment_name": "trial",
            "data": {"training_corpus": str(path), "steps": list(steps), **data},
            "model": SMALL,
            "training": {"output_dir": str(tmp_path / "run"), "train_steps": 1},
            "plugins": list(plugins),
        }
        return training_text(load_config(content))

    return make


@each(
    ("step", "text", "left"),
    [
        ({"drop": {"matching": "a.c"}}, "abc\nacb\nxaxc", "acb"),
        ({"drop": {"matching": "ABC", "ignore_case": True}}, "abc\nacb", "acb"),
        ({"keep": {"matching": "^a"}}, "abc\nbac", "abc"),
        ({"drop": {"words": ["cat", "can't"]}}, "the cat.\ncats\nI can't\ncan t\nCat", "cats\ncan t\nCat"),
        ({"drop": {"words": ["cat"], "ignore_case": True}}, "the CAT.\ncats", "cats"),
        ({"keep": {"only_words": ["a", "cat"]}}, "a cat, a cat!\na cat sat", "a cat, a cat!"),
        ({"replace": {"matching": r"(\w+)self\b", "by": r"\1"}}, "himself or itself", "him or it"),
        ({"replace": {"words": ["he", "she"], "by": r"\1"}}, "he and she hear", r"\1 and \1 hear"),
        ({"replace": {"matching": "a", "by": ""}}, "a\nab", "b"),
        ({"relabel": {"table": {"is": "are", "are": "is"}}}, "he is, they are; IS", "he are, they is; IS"),
        ({"relabel": {"table": {"is": "are"}, "ignore_case": True}}, "Is it, is it", "Are it, are it"),
        ({"relabel": {"table": {"a": "DET"}, "others": "X"}}, "a well-known cat .", "DET X X ."),
        ({"deduplicate": {}}, "a\nb\na\nA\na", "a\nb\nA"),
        ({"deduplicate": {"ignore_case": True}}, "a\nb\nA", "a\nb"),
    ],
)
def test_a_step_does_what_its_name_says(
    step: dict[str, Any], text: str, left: str, changed: Callable[..., Corpus]
) -> None:
    assert list(changed(text, step).documents()) == left.split("\n")


def test_lines_inside_documents_can_be_dropped(changed: Callable[..., Corpus]) -> None:
    text = "one x\ntwo\n\nthree x\n\ntwo\nfour"
    account = ByteAccount()
    corpus = changed(text, {"drop": {"matching": "x", "unit": "line"}}, documents="block")
    assert list(corpus.documents(account)) == ["two", "two\nfour"]
    (count,) = account.steps
    assert (count["documents_dropped"], count["documents_changed"], count["lines_dropped"]) == (1, 1, 2)
    corpus = changed(text, {"deduplicate": {"unit": "line"}}, documents="block")
    assert list(corpus.documents()) == ["one x\ntwo", "three x", "four"]


def random_text(rng: random.Random) -> str:
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(0, 6))) for _ in range(rng.randint(6, 60))]
    return "\n".join(lines) + "\nthe last sat\n"


def random_steps(rng: random.Random) -> list[dict[str, Any]]:
    unit = rng.choice(["document", "line"])
    drops: list[dict[str, Any]] = [
        {"drop": {"matching": rng.choice("acds"), "unit": unit}},
        {"keep": {"words": ["the", "sat"], "ignore_case": True, "unit": unit}},
        {"sample": {"share": 0.8, "seed": rng.randint(0, 9), "unit": unit, "follows": rng.choice(["number", "text"])}},
        {"deduplicate": {"unit": unit}},
    ]
    changes: list[dict[str, Any]] = [
        {"replace": {"matching": "[aé]", "by": rng.choice(["", "aaé", " o "])}},
        {"relabel": {"table": {"cat": "été", "never": "x"}, "others": rng.choice([None, "y"])}},
    ]
    as_many = rng.choice(["lines" if unit == "line" else "documents", "words"])
    drops.append({"control": {"of": drops[0], "as_many": as_many, "among": "all", "seed": rng.randint(0, 9)}})
    return rng.sample([*drops, *changes], k=rng.randint(1, 4))


def test_the_account_adds_up_whatever_the_steps(changed: Callable[..., Corpus]) -> None:
    rng, dropped, grown, refused = random.Random(0), 0, 0, list[str]()
    for _ in range(150):
        text, steps, account = random_text(rng), random_steps(rng), ByteAccount()
        # A control takes its word for a line where a document is one.
        documents = "line" if any("control" in step for step in steps) else rng.choice(["line", "block"])
        corpus = changed(text, *steps, documents=documents)
        try:
            left = list(corpus.documents(account))
        except DataError as error:
            refused.append(str(error))
            continue
        assert account.bytes_in == len(text.encode())
        assert (
            account.bytes_in + account.bytes_added
            == account.bytes_text + account.bytes_separators + account.bytes_skipped
        )
        assert account.bytes_text == sum(len(each.encode()) for each in left)
        assert account.words == sum(len(each.split()) for each in left)
        assert account.documents == len(left)
        counts = [StepCount(**step) for step in account.steps]
        assert sum(count.bytes_removed for count in counts) == account.bytes_skipped
        assert sum(count.bytes_added for count in counts) == account.bytes_added
        assert len(list(corpus.as_read.documents())) - sum(count.documents_dropped for count in counts) == len(left)
        assert list(corpus.documents()) == left
        dropped, grown = dropped + account.bytes_skipped, grown + account.bytes_added
    assert dropped > 1000
    assert grown > 1000
    assert len(refused) < 50
    assert all("leaves nothing of the corpus" in line for line in refused)


def test_a_sample_is_that_of_its_seed_and_share(changed: Callable[..., Corpus]) -> None:
    text = "\n".join(f"line {number}" for number in range(4000))

    def sample(*steps: dict[str, Any], seed: int = 1, **settings: Any) -> set[str]:
        return set(changed(text, *steps, {"sample": {"share": 0.3, "seed": seed, **settings}}).documents())

    assert abs(len(sample()) - 1200) < 4 * (4000 * 0.3 * 0.7) ** 0.5
    assert sample() != sample(seed=2)
    assert sample(follows="text") != sample()
    # What other steps drop before it does not shift the choice.
    assert sample({"drop": {"matching": "7"}}) == {line for line in sample() if "7" not in line}


def test_a_sample_by_text_keeps_or_drops_equal_texts_together(changed: Callable[..., Corpus]) -> None:
    text = "\n".join(f"line {number % 200}" for number in range(1000))
    left = list(changed(text, {"sample": {"share": 0.5, "follows": "text"}}).documents())
    assert 60 < len(set(left)) < 140
    assert all(left.count(each) == 5 for each in set(left))


@each("seed", range(5))
@each("unit", ["document", "line"])
def test_a_control_drops_exactly_as_much_of_other_text(seed: int, unit: str, changed: Callable[..., Corpus]) -> None:
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(500)]
    text = "\n".join(lines)
    drop = {"drop": {"matching": "never", "unit": unit}}
    of_drop = ByteAccount()
    list(changed(text, drop).documents(of_drop))
    assert 0 < of_drop.steps[0]["documents_dropped"] < 400

    def dropped(**settings: Any) -> tuple[dict[str, Any], list[str]]:
        account = ByteAccount()
        left = list(changed(text, {"control": {"of": drop, "seed": seed, **settings}}).documents(account))
        return account.steps[0], left

    many = of_drop.steps[0]["documents_dropped"]
    available = 500 - many
    if many <= available:
        counted, left = dropped(as_many="lines")
        assert counted["documents_dropped"] == many
        assert sum("never" in line for line in left) == many
    counted, left = dropped(as_many="lines", among="all")
    assert counted["documents_dropped"] == many
    assert sum("never" in line for line in left) < many
    words = of_drop.steps[0]["words_removed"]
    counted, left = dropped(as_many="words", among="all")
    assert words - 30 <= counted["words_removed"] <= words


def test_a_control_chooses_without_regard_to_place(changed: Callable[..., Corpus]) -> None:
    text = "\n".join(["x"] * 20 + [f"line {number}" for number in range(80)])
    control = {"of": {"drop": {"matching": "x"}}}
    chosen = [0] * 80
    for seed in range(200):
        left = set(changed(text, {"control": {**control, "seed": seed}}).documents())
        for number in range(80):
            chosen[number] += f"line {number}" not in left
    assert sum(chosen) == 200 * 20
    assert 25 < min(chosen) <= max(chosen) < 80  # 50 expected, with a deviation of 6


def test_a_control_that_cannot_drop_as_much_is_refused(changed: Callable[..., Corpus]) -> None:
    corpus = changed("x 1\nx 2\ny", {"control": {"of": {"drop": {"matching": "x"}}}})
    with pytest.raises(DataError, match=r"^data\.steps\.0\.control: .* 2 texts, .* only 1 others"):
        list(corpus.documents())


def test_a_step_that_leaves_nothing_is_named(changed: Callable[..., Corpus]) -> None:
    corpus = changed("a\nab\nb\n", {"drop": {"matching": "^a$"}}, {"keep": {"matching": "c"}}, {"deduplicate": {}})
    with pytest.raises(DataError, match=r"^data\.steps\.1\.keep: leaves nothing of the corpus: .* last 2 documents"):
        list(corpus.documents())


def test_the_digest_follows_from_all_that_steps_do(changed: Callable[..., Corpus], tmp_path: Path) -> None:
    plain = changed("a\nb\n").digest
    (tmp_path / "train.txt").write_text("a\nb\n")
    assert plain == Corpus.open(tmp_path / "train.txt").digest
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("cat\ndog\n")
    other.write_text("cat\ndog\n")
    variants: list[list[dict[str, Any]]] = [
        [],
        [{"drop": {"matching": "x"}}],
        [{"keep": {"matching": "x"}}],
        [{"drop": {"matching": "y"}}],
        [{"drop": {"matching": "x", "in_place": True}}],
        [{"drop": {"matching": "x"}}, {"deduplicate": {}}],
        [{"deduplicate": {}}, {"drop": {"matching": "x"}}],
        [{"control": {"of": {"drop": {"matching": "x"}}}}],
        [{"control": {"of": {"drop": {"matching": "y"}}}}],
        [{"drop": {"words": str(one)}}],
    ]
    digests = [changed("a\nb\n", *steps).digest for steps in variants]
    assert len({plain, *digests}) == len(variants)
    assert changed("a\nb\n", {"drop": {"words": str(other)}}).digest == digests[-1]
    other.write_text("cat\n")
    assert changed("a\nb\n", {"drop": {"words": str(other)}}).digest != digests[-1]
    assert changed("a\nb\n", {"drop": {"matching": "x", "unit": "document"}}).digest == digests[1]


def test_word_lists_and_tables_can_be_files(changed: Callable[..., Corpus], tmp_path: Path) -> None:
    words, table = tmp_path / "words.txt", tmp_path / "table.tsv"
    words.write_text("cat\n\ncan't\n")
    table.write_text("cat\tdog\nis\tthe same as\n")
    assert list(changed("a cat\nit\nI can't", {"drop": {"words": str(words)}}).documents()) == ["it"]
    assert list(changed("a cat is", {"relabel": {"table": str(table)}}).documents()) == ["a dog the same as"]
    for content, problem in {
        b"two words\n": "words.txt:1: 'two words' is not one word",
        b"\n": "has no words",
        b"\xff": "is not UTF-8",
    }.items():
        words.write_bytes(content)
        with pytest.raises(DataError, match=problem):
            list(changed("a", {"drop": {"words": str(words)}}).documents())
    for text, problem in {"cat\n": "needs two columns", "cat\ta\ncat\tb\n": "stands there twice"}.items():
        table.write_text(text)
        with pytest.raises(DataError, match=problem):
            list(changed("a", {"relabel": {"table": str(table)}}).documents())


# What is refused.

BASE = """\
experiment_name: trial
data:
  training_corpus: train.txt
  documents: {documents}
  steps:
    - {step}
model: {{architecture: {model}}}
training: {{output_dir: run, train_steps: 1}}
"""
LSTM = "lstm, rnn: {embedding_size: 8, hidden_size: 8, num_layers: 1}"


@each(
    ("step", "key", "problem"),
    [
        ("dorp: {matching: x}", "dorp", "unknown corpus step 'dorp'. Did you mean 'drop'?"),
        ("x", "", "must be one step with its settings"),
        ("{drop: {matching: x}, keep: {matching: x}}", "", "must be one step with its settings"),
        ("drop:", "drop", "is empty"),
        ("drop: {}", "drop", "give exactly one of matching, words, only_words, function: found none"),
        ("drop: {matching: x, words: [y]}", "drop", "found matching and words"),
        ("drop: {matching: '(x'}", "drop.matching", "is not a regular expression of Python"),
        ("drop: {words: none.txt}", "drop.words", "there is no file none.txt"),
        ("drop: {words: [1]}", "drop.words", "1 is not text: put it in quotes"),
        ("drop: {words: [two words]}", "drop.words", "'two words' is not one word"),
        ("drop: {words: []}", "drop.words", "must be a list of words"),
        ("drop: {function: 'os:remove'}", "drop", "os:remove is not of a package under plugins"),
        ("drop: {function: os.remove}", "drop.function", "must be package.module:function"),
        ("drop: {matching: x, in_place: true, unit: line}", "drop.in_place", "not for lines of them"),
        ("replace: {matching: x}", "replace", "needs by"),
        ("replace: {matching: x, by: '\\1'}", "replace", "invalid group reference"),
        ("replace: {matching: x, by: y, in_place: true}", "replace.in_place", "unknown key"),
        ("relabel: {table: [a]}", "relabel.table", "must map words to others"),
        ("relabel: {table: {a: 1}}", "relabel.table", "1 is not text"),
        ("relabel: {table: none.tsv}", "relabel.table", "there is no file none.tsv"),
        ("sample: {share: 0}", "sample.share", "must be greater than 0"),
        ("sample: {share: 0.5, seed: -1}", "sample.seed", "must be greater than or equal to 0"),
        ("control: {as_many: lines}", "control.of", "missing"),
        ("control: {of: {dorp: {}}}", "control.of.dorp", "Did you mean 'drop'?"),
        ("control: {of: {drop: {matching: '('}}}", "control.of.drop.matching", "is not a regular expression"),
        ("control: {of: {replace: {matching: x, by: y}}}", "control.of", "replace drops nothing"),
        ("control: {of: {drop: {matching: x}}, as_many: lines}", "control.as_many", "write documents"),
        ("control: {of: {drop: {matching: x, unit: line}}}", "control.as_many", "write lines"),
        ("control: {of: {drop: {matching: x, in_place: true}}}", "control.of.drop.in_place", "give it to the control"),
        ("control: {of: {control: {of: {drop: {matching: x}}}}}", "control.of", "is a control itself"),
        ("drop: {matching: x, in_place: true}\n    - deduplicate: {}", "deduplicate", "such steps come last"),
    ],
)
def test_a_wrong_step_is_named_by_its_place(step: str, key: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(BASE.format(step=step, documents="block", model=LSTM))
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    line = 7 if "deduplicate" in step else 6
    place = f"{path}:{line}: data.steps.{line - 6}{f'.{key}' if key else ''}: "
    (found,) = [each for each in str(raised.value).splitlines() if each.startswith(place)]
    assert problem in found


def test_steps_are_a_list(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(BASE.format(step="x", documents="line", model=LSTM).replace("- x", "drop: {matching: x}"))
    with pytest.raises(ConfigError, match=r"data\.steps: must be a list of steps"):
        load_config(path)


def test_a_checkpoint_is_read_where_the_word_list_is_not(changed: Callable[..., Corpus]) -> None:
    """Only a YAML file is checked for the files that it names: a model's description is read on other machines."""
    with pytest.raises(DataError, match=r"data\.steps\.0\.drop\.words: gone\.txt: No such file"):
        list(changed("a", {"drop": {"words": "gone.txt"}}).documents())


def test_every_core_step_is_in_the_schema_and_only_those(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert all(f'"{name}"' in printed for name in CORE_CORPUS_STEPS)


DOCUMENTATION = (Path(__file__).parents[1] / "docs" / "training" / "steps.md").read_text(encoding="utf-8")


def test_every_example_of_the_documentation_is_valid(package: Callable[..., None], tmp_path: Path) -> None:
    package()
    named = set[str]()
    for text in re.findall(r"(?s)```yaml\n(.*?)```", DOCUMENTATION):
        example = YamlSource.parse(text, "steps.md").data
        content = {
            "experiment_name": "trial",
            "model": SMALL,
            **example,
            "data": {"training_corpus": "train.txt", **example["data"]},
            "training": {"output_dir": str(tmp_path / "run"), "train_steps": 1, **example.get("training", {})},
        }
        named |= {name for name, _ in flat_steps(load_config(content).data.steps)}
    assert named == set(CORE_CORPUS_STEPS)


# Packages.

PACKAGE = """\
from foundry_core import ConfigSection, CorpusStep, DroppingSettings, hookimpl
from pydantic import Field

class Lexicon(DroppingSettings):
    lexicon: str = Field(description="a file")

@hookimpl
def foundry_corpus_steps():
    return [
        CorpusStep("shout", "in capitals", "foundry_mine.work:shout"),
        CorpusStep("odd", "every other document", "foundry_mine.work:odd", drops=True),
        CorpusStep("known", "by a file", "foundry_mine.work:known", Lexicon, drops=True, files=("lexicon",)),
        CorpusStep("wrong", "of a test", "foundry_mine.work:wrong", drops=True),
    ]
"""
WORK = """\
def shout(settings):
    return lambda text, number: text.upper()

def odd(settings):
    return lambda text, number: text if number % 2 else None

def known(settings):
    words = set(open(settings.lexicon).read().split())
    return lambda text, number: text if words & set(text.split()) else None

def wrong(settings):
    return lambda text, number: {"number": 5, "change": text + "!", "fail": text}[text] if text != "nul" else "\\0"

def short(text):
    return len(text) < 4

def reversed_text(text):
    return text[::-1]
"""


@pytest.fixture
def package(distribution: Callable[..., Path]) -> Callable[..., None]:
    """`package(version="1.0")`: a package that offers steps, and functions for core's."""

    def install(version: str = "1.0", folder: Path | None = None) -> None:
        files = {"foundry_mine/__init__.py": PACKAGE, "foundry_mine/work.py": WORK}
        distribution("foundry-mine", {"foundry.plugins": {"mine": "foundry_mine"}}, files, version=version)

    return install


def test_a_package_offers_steps_and_functions(
    package: Callable[..., None], changed: Callable[..., Corpus], tmp_path: Path
) -> None:
    package()
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("cat")
    for step, left in (
        ({"shout": {}}, ["A CAT", "DOG", "THE DOG"]),
        ({"odd": {}}, ["dog"]),
        ({"known": {"lexicon": str(lexicon)}}, ["a cat"]),
        ({"drop": {"function": "foundry_mine.work:short"}}, ["a cat", "the dog"]),
        ({"replace": {"function": "foundry_mine.work:reversed_text"}}, ["tac a", "god", "god eht"]),
        ({"control": {"of": {"keep": {"function": "foundry_mine.work:short"}}, "among": "all", "seed": 4}}, None),
    ):
        corpus = changed("a cat\ndog\nthe dog", step, plugins=("foundry_mine",))
        found = list(corpus.documents())
        assert found == left or (left is None and len(found) == 1)
        assert corpus.steps is not None
        (identity,) = [each.inner.identity if each.inner else each.identity for each in corpus.steps.steps]
        assert identity["owner"] == "foundry-mine 1.0"
    before = changed("a", {"known": {"lexicon": str(lexicon)}}, plugins=("foundry_mine",)).digest
    lexicon.write_text("cat dog")
    assert changed("a", {"known": {"lexicon": str(lexicon)}}, plugins=("foundry_mine",)).digest != before


def test_a_step_of_a_package_that_fails_is_its_error(
    package: Callable[..., None], changed: Callable[..., Corpus]
) -> None:
    package()
    for text, problem in {
        "number": "returned a int, not a text or None",
        "change": "changed a text, although it is declared to drop only",
        "other": "fails: KeyError: 'other'",
    }.items():
        corpus = changed(f"fail\n{text}", {"wrong": {}}, plugins=("foundry_mine",))
        with pytest.raises(PluginError) as raised:
            list(corpus.documents())
        assert f"data.steps.0.wrong: the corpus step wrong of foundry-mine 1.0 {problem}" in str(raised.value)


def test_a_model_is_read_without_the_package_of_its_steps(
    package: Callable[..., None],
    experiment: Callable[..., ExperimentConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package()
    steps = [{"odd": {}}, {"replace": {"function": "foundry_mine.work:reversed_text"}}]
    config = experiment("lstm", tmp_path, data={"steps": steps}, plugins=["foundry_mine"])
    assert config.providers == {"corpus step": "foundry-mine 1.0"}
    model = create_model(config)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "foundry-mine")
    opened = BaseLanguageModel.from_pretrained(tmp_path / "model")
    assert opened.config.data.steps == ()
    for weight, same in zip(opened.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_another_release_of_a_package_is_another_corpus(
    package: Callable[..., None], changed: Callable[..., Corpus]
) -> None:
    digests = []
    for version in ("1.0", "1.1"):
        package(version)
        digests.append(changed("a\nb", {"odd": {}}, plugins=("foundry_mine",)).digest)
    assert len(set(digests)) == 2


def test_steps_are_counted_as_plain_data() -> None:
    assert ByteAccount().plain() == {
        name: value for name, value in asdict(ByteAccount()).items() if name not in ("steps", "bytes_added")
    }


# The checks of `foundry check`.

UNFIT = """\
import random
from foundry_core import CorpusStep, hookimpl

@hookimpl
def foundry_corpus_steps():
    return [
        CorpusStep(name, "of a test", f"foundry_unfit:{name}", drops=True) for name in ("drawn", "hashed", "shared")
    ] + [CorpusStep("longer", "of a test", "foundry_unfit:longer", drops=True),
         CorpusStep("fails", "of a test", "foundry_unfit:fails", drops=True)]

def drawn(settings):
    return lambda text, number: text if random.random() < 0.5 else None

def hashed(settings):
    return lambda text, number: text if hash(text) % 2 else None

seen = set()

def shared(settings):
    seen.clear()

    def change(text, number):
        new = text not in seen
        seen.add(text)
        return text if new else None

    return change

def longer(settings):
    return lambda text, number: text + "." if "cat" in text else text

def fails(settings):
    return lambda text, number: text if text.split()[1] else None
"""


def failed_checks(name: str, *options: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    main(["check", name, "--kind", "step", "--json", *options])
    return {row["check"] for row in json.loads(capsys.readouterr().out) if row["outcome"] == "failed"}


@pytest.mark.long
def test_core_steps_pass_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    for name, settings in {
        "relabel": ["table={the: a}"],
        "sample": ["share=0.5"],
        "deduplicate": [],
        "control": ["of={drop: {matching: cat}}"],
    }.items():
        assert failed_checks(name, *(["--settings", *settings] if settings else []), capsys=capsys) == set()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("drawn", "same-again"),
        ("hashed", "same-again"),
        ("shared", "own-pass"),
        ("longer", "drops"),
        ("fails", "runs"),
    ],
)
def test_a_step_that_breaks_a_rule_fails_its_check(
    name: str, check: str, distribution: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    requires = ["Requires-Dist: model-foundry>=0.1,<0.2"]
    points = {"foundry.plugins": {"unfit": "foundry_unfit"}}
    distribution("foundry-unfit", points, {"foundry_unfit.py": UNFIT}, headers=requires)
    assert check in failed_checks(name, "--only", check, capsys=capsys)
