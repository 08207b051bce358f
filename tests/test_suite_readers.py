"""Suites: each format is read into items, what is damaged is refused with its line, and a package can add one."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import inspect
import math
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core import ExperimentConfig, create_model
from foundry_core.errors import DataError, FoundryError, PluginError, UsageError
from foundry_core.evaluation.suites.formulas import parse_formula
from foundry_core.evaluation.suites.items import BETTER, Formula, Operation, Score, SuiteItem
from foundry_core.evaluation.suites.reading import LoadedSuite, read_suite
from foundry_core.evaluation.suites.scoring import score_items
from foundry_core.registry import hookspecs
from foundry_core.registry.loading import load_plugin_file
from foundry_core.registry.suite import Suite
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from tests.each import each

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FOUNDRY_TEST_DATA", ROOT.parent / "shared" / "data")) / "eval"
GUIDE = (ROOT / "docs" / "evaluation" / "suites.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"(?m)^`([\w.-]+)`:\n\n```\w*\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedSuite]:
    """`read(spec, files)` writes the files, by name, and reads a suite where they are."""
    monkeypatch.chdir(tmp_path)

    def make(spec: str, files: dict[str, str | bytes]) -> LoadedSuite:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_suite(spec, installed=True)

    return make


# Formulas.

VALUES = {(region, condition): 2.0 * region + (condition == "b") / 3 for region in (1, 2) for condition in "ab"}


def value(formula: Formula) -> Any:
    """What a formula comes to with VALUES, to which a whole sentence adds up."""
    if isinstance(formula, float):
        return formula
    if isinstance(formula, Score):
        whole = sum(number for (_, condition), number in VALUES.items() if condition == formula.condition)
        return whole if formula.region == "*" else VALUES[formula.region, formula.condition]
    left, right = value(formula.left), value(formula.right)
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
        "<": lambda: left < right,
        ">": lambda: left > right,
        "=": lambda: left == right,
        "&": lambda: left and right,
        "|": lambda: left or right,
    }[formula.sign]()


def test_a_formula_comes_to_what_python_makes_of_it() -> None:
    """Python has the same precedence, but for the signs that join comparisons."""
    chance, seen = random.Random(0), set()

    def number(depth: int) -> str:
        if depth == 0 or chance.random() < 0.3:
            return chance.choice(["(1;%a%)", "(2; %a%)", "( 1;%b%)", "(2;%b%)", "(*;%a%)", "3", "0.5", "-1.5"])
        left, right = number(depth - 1), number(depth - 1)
        joined = f"{left} {chance.choice('+-*/')} {right}"
        return chance.choice([joined, joined, f"[{joined}]", f"({joined})"])

    def truth(depth: int) -> str:
        if depth == 0 or chance.random() < 0.3:
            return f"{number(3)} {chance.choice('<>')}{number(3)}"
        joined = f"{truth(depth - 1)} {chance.choice('&|')} {truth(depth - 1)}"
        return chance.choice([joined, f"[{joined}]"])

    for _ in range(1000):
        text = truth(3)
        python = re.sub(r"\(\s*([\d*])\s*;\s*%(\w)%\)", lambda score: repr(value(parse_score(score))), text)
        python = python.replace("[", "(").replace("]", ")").replace("&", " and ").replace("|", " or ")
        formula = parse_formula(text)
        with contextlib.suppress(ZeroDivisionError):
            found, expected = value(formula), eval(python)
            assert found == expected, text
            seen.add(expected)
    assert seen == {True, False}


def parse_score(match: re.Match[str]) -> Score:
    return Score("*" if match[1] == "*" else int(match[1]), match[2])


def test_the_order_of_a_formula_is_kept() -> None:
    a, b = Score(7, "no-obj_no-comma"), Score("*", "b")
    text = "[(7;%no-obj_no-comma%) - (*;%b%)] > 0 & (*;%b%) = 1"
    compared = Operation(">", Operation("-", a, b), 0.0), Operation("=", b, 1.0)
    assert parse_formula(text) == Operation("&", *compared)


@each(
    ("text", "problem"),
    [
        ("", "the end is not a number, a score"),
        ("(5;%a%)", "must compare two numbers"),
        ("(5;%a%) <", "the end is not a number"),
        ("[(5;%a%) < 1", "'[' at character 1 is not closed"),
        ("((5;%a%) < 1]", "'(' at character 1 is not closed"),
        ("(5;%a%) < 1)", "')' at character 12 is not expected here"),
        ("(5;%a%) < 1 (6;%a%)", "what begins at character 13 is not expected here"),
        ("abs((5;%a%)) > 1", "'abs(' at character 1 is not part of a formula"),
        ("(5;%a%) > 1 and (5;%a%) < 2", "'and' at character 13 is not part of"),
        ("__import__('os')", "'__import__(' at character 1 is not part of"),
        ("(5;%a%) >= 1", "'=' at character 10 is not a number"),
        ("1 < (5;%a%) < 2", "'<' at character 13 compares a comparison"),
        ("[(5;%a%) < 1] + 2 > 1", "'+' at character 15 joins numbers only"),
        ("(5;%a%) & (6;%a%)", "'&' at character 9 joins comparisons only"),
        ("(5;a) < 1", "';' at character 3 is not part of"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_a_formula_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        parse_formula(text)
    assert "\n" not in str(raised.value)


# Formats.


def plain(suite: LoadedSuite) -> list[tuple[Any, ...]]:
    return [(item.paradigm, item.name, item.phenomenon, dict(item.sentences)) for item in suite.items]


def of_pair(good: str, bad: str) -> dict[str, tuple[str, ...]]:
    return {"good": (good,), "bad": (bad,)}


def test_each_example_of_the_guide_is_read(read: Callable[..., LoadedSuite]) -> None:
    found = {name: read(name, EXAMPLES) for name in EXAMPLES}
    assert {name: suite.kind for name, suite in found.items()} == {
        "adjuncts.jsonl": "blimp",
        "agreement-across_1_adjective.txt": "zorro",
        "simple_agrmt.txt": "clams",
        "number.json": "syntaxgym",
        "generated.tab": "gulordava",
        "sets.tsv": "tsv",
        "forms.tsv": "tsv",
        "interaction.tsv": "tsv",
    }
    good, bad = "look at this purple thing .", "look at this purple things ."
    zorro = found["agreement-across_1_adjective.txt"]
    assert plain(zorro) == [("agreement-across_1_adjective", "1", "agreement", of_pair(good, bad))]
    assert zorro.items[0].predictions == (BETTER,)
    assert zorro.name == "zorro-agreement-across_1_adjective"
    assert plain(found["simple_agrmt.txt"])[0][3] == of_pair("the author laughs", "the author laugh")
    (number,) = found["number.json"].items
    assert (number.name, number.paradigm, number.phenomenon) == ("1", "number_prep", "agreement")
    assert number.sentences["mismatch"] == ("The author next to the senators", "are")
    second = Operation("<", Score(2, "match"), Score(2, "mismatch"))
    assert number.predictions == (second,)
    (form,) = found["generated.tab"].items
    assert (form.paradigm, form.name, form.phenomenon) == ("generated-L__NOUN_VERB_VERB", "12-2", "generated")
    assert form.sentences["good"] == ("Administrative debtors that virtually would merge", "use")
    assert form.predictions == (Operation("<", Score(2, "good"), Score(2, "bad")),)
    one, two = found["sets.tsv"].items
    assert one.predictions == (BETTER, Operation("<", Score("*", "good"), Score("*", "bad_gender")))
    assert (two.predictions, set(two.sentences)) == ((BETTER,), {"good", "bad"})
    assert found["forms.tsv"].items[0].predictions == form.predictions
    assert found["interaction.tsv"].items[0].paradigm == "npz"


def test_gold_files_are_read_with_the_text_beside_them(read: Callable[..., LoadedSuite]) -> None:
    twelve = "L!NOUN_VERB!Number=Plur!Number=Sing\t12\t2\t2\tVERB\tx\tuse\tuses\tuse\t1\tNOUN\tsome text"
    files = {"a.gold": "2\tis\tare\t0\n1\tsee\tsees\t1\n", "a.text": "the cat is .\nthey see it\n"}
    files |= {"b.gold": twelve, "b.text": "Odd debtors add crimes <eos>"}
    assert plain(read("a.gold", files)) == [
        ("a, 0 attractors", "1", "", {"good": ("the cat", "is"), "bad": ("the cat", "are")}),
        ("a, 1 attractors", "2", "", {"good": ("they", "see"), "bad": ("they", "sees")}),
    ]
    assert plain(read("b.gold", files)) == [
        (
            "generated-L__NOUN_VERB",
            "12-2",
            "generated",
            {"good": ("Odd debtors", "use"), "bad": ("Odd debtors", "uses")},
        )
    ]


def changed(content: str, old: str, new: str) -> str:
    assert old in content
    return content.replace(old, new, 1)


BLIMP = EXAMPLES["adjuncts.jsonl"]
ZORRO = EXAMPLES["agreement-across_1_adjective.txt"]
CLAMS = EXAMPLES["simple_agrmt.txt"]
GYM = EXAMPLES["number.json"]
TAB = EXAMPLES["generated.tab"]
SETS = EXAMPLES["sets.tsv"]
STATED = EXAMPLES["interaction.tsv"]


@each(
    ("spec", "content", "problem"),
    [
        # Cut files.
        ("x.jsonl", BLIMP + BLIMP[:60], "x.jsonl:2: not a minimal pair: Unterminated string"),
        ("x.json", GYM[:200], "x.json:4: not JSON: Expecting value"),
        ("zorro=x.txt", ZORRO + "this one is alone .\n", "x.txt:3: has no partner"),
        ("clams=x.txt", CLAMS + "True\tthe author smiles\n", "x.txt:3: has no partner"),
        ("x.tab", TAB[: TAB.rindex("L__")], "x.tab:2: has no partner: the item needs a wrong form"),
        ("x.tsv", SETS[: SETS.index("\n") + 1], "x.tsv:1: is the last line: there are column names, but no items"),
        # Wrong JSON.
        ("x.json", changed(GYM, '"items":', '"items"'), "x.json:3: not JSON: Expecting ':' delimiter at column"),
        ("x.json", "[1]", "x.json:1: not a test suite of SyntaxGym"),
        ("x.json", changed(GYM, '"metric": "sum"', '"name": "b"'), "x.json:1: the key 'name' occurs 2 times"),
        # Missing keys.
        ("x.jsonl", '{"sentence_good": "a"}', 'x.jsonl:1: not a minimal pair: no key "sentence_bad"'),
        ("x.json", changed(GYM, '"content": "is"', '"x": 1'), 'x.json:5: item 1: match: region 2: no key "content"'),
        ("x.json", changed(GYM, '"predictions"', '"prediction"'), 'x.json:1: "predictions" is missing'),
        ("x.json", changed(GYM, '"item_number": 1, ', ""), 'x.json:3: an item needs an "item_number"'),
        ("x.tab", changed(TAB, "prefix", "prefixes"), "x.tab:1: has no column prefix: .* Did you mean 'prefixes'"),
        # Wrong types.
        ("x.jsonl", changed(BLIMP, '"0"', "[0]"), 'x.jsonl:1: not a minimal pair: "pairID" is list'),
        ("x.json", changed(GYM, '"is"', "3"), 'x.json:5: item 1: match: region 2: "content" is int, not a string'),
        (
            "x.json",
            changed(GYM, '"region_number": 2', '"region_number": "2"'),
            "x.json:5: .* region_number is '2', not 2",
        ),
        ("x.json", changed(GYM, '"metric": "sum"', '"metric": "mean"'), "x.json:1: its metric is 'mean': only sums"),
        # Empty sentences.
        ("x.jsonl", changed(BLIMP, "Who should Derek hug after shocking Richard?", " "), "x.jsonl:1: .*is empty"),
        ("zorro=x.txt", ZORRO + "\nb .\n", "x.txt:3: is empty"),
        ("clams=x.txt", changed(CLAMS, "the author laugh\n", "\n"), "x.txt:2: has no sentence"),
        (
            "x.json",
            re.sub(r'"content": "[^"]*"', '"content": " "', GYM),
            "x.json:4: item 1: the sentence of match is empty",
        ),
        ("x.tsv", changed(SETS, "the girl saw herself", ""), "x.tsv:2: its good is empty"),
        ("x.tsv", changed(SETS, "the girls saw herself", ""), "x.tsv:3: has a good sentence, but no bad one"),
        # Lines out of turn, unequal columns.
        ("clams=x.txt", changed(CLAMS, "False", "True"), "x.txt:2: begins with 'True', not with False and a tab"),
        ("clams=x.txt", changed(CLAMS, "the author laugh\n", "the\tauthor\n"), "x.txt:2: has a second tab"),
        (
            "x.tsv",
            changed(SETS, "\tthe girl saw himself", ""),
            "x.tsv:2: has 3 columns, the line of column names has 4",
        ),
        ("x.tab", changed(TAB, "\tplur", ""), "x.tab:2: has 7 columns, the line of column names has 8"),
        ("x.tab", changed(TAB, "wrong", "correct"), "x.tab:3: is correct, too: x.tab:2 is of the same item"),
        ("x.tab", changed(TAB, "\tuse\t", '\t"use\t'), "x.tab:3: not a row of a table"),
        # Columns and formulas.
        ("x.tsv", changed(SETS, "good", "gut"), "x.tsv:1: the column 'gut' is not known: name the columns good, bad"),
        ("x.tsv", changed(SETS, "bad_gender", "bad"), "x.tsv:1: names the column 'bad' twice"),
        ("x.tsv", changed(STATED, "#prediction", "#Prediction"), "x.tsv:2: the column 'ambiguous' is not known"),
        ("x.tsv", changed(STATED, "%comma%", "%coma%"), "x.tsv:1: .*unknown condition. Did you mean 'comma'"),
        (
            "x.tsv",
            changed(STATED, "(*;%comma%)", "(2;%comma%)"),
            "x.tsv:1: .*unknown region: the sentence has regions 1 to 1",
        ),
        ("x.json", changed(GYM, "%mismatch%", "%mis%"), r"x.json:3: item 1: \(2;%mis%\) has an unknown condition"),
        ("x.json", changed(GYM, "(2;%match%)", "(3;%match%)"), "x.json:3: item 1: .* unknown region: .* 1 to 2"),
        (
            "x.json",
            changed(GYM, "(2;%match%)", "((2;%match%)"),
            r"x.json:2: a prediction: its formula: '\(' at character 1",
        ),
        (
            "x.json",
            changed(GYM, "(2;%match%)", "exp(2)"),
            r"x.json:2: a prediction: its formula: 'exp\(' at character 1",
        ),
        ("x.json", changed(GYM, "(2;%match%) < (2;%mismatch%)", "1 < 2"), "x.json:3: item 1: a prediction compares"),
        # Items and conditions that are there twice.
        ("x.jsonl", BLIMP * 2, "x.jsonl:2: the item 0 of adjunct_island is there twice, first at x.jsonl:1"),
        ("x.jsonl", BLIMP + BLIMP.replace('"0"', '"1"').replace("island_effects", "x"), "x.jsonl:2: the phenomenon of"),
        (
            "x.json",
            changed(GYM, '"mismatch", "r', '"match", "r'),
            "x.json:6: item 1: the condition 'match' is there twice",
        ),
        ("x.tsv", changed(SETS, "\n2\t", "\n1\t"), "x.tsv:3: the item 1 of x is there twice, first at x.tsv:2"),
        # Other bytes, nothing.
        ("x.jsonl", BLIMP.encode() + b'{"sentence_good": "\xe9"}', "x.jsonl:2: byte .* is not UTF-8"),
        ("x.json", GYM.encode().replace(b"senators", b"s\xe9nateurs"), "x.json:5: byte .* is not UTF-8"),
        ("zorro=x.txt", ZORRO.encode("utf-16"), "x.txt:1: byte 0 .*UTF-16"),
        ("x.tsv", SETS.encode().replace(b"girl", b"g\0rl", 1), "x.tsv:2: byte .* is NUL"),
        ("x.jsonl", "", "x.jsonl: does not contain a minimal pair"),
        ("x.json", "\n", "x.json: is empty"),
        ("zorro=x.txt", "", "x.txt: is empty"),
        ("x.tsv", "", "x.tsv: is empty"),
        ("x.tab", TAB[: TAB.index("\n")], "x.tab: does not contain an item"),
        ("x.gold", "2\tis\tare\t0\n", "x.text: no such file"),
    ],
)
def test_damage_is_refused_in_one_line_with_its_place(
    spec: str, content: str | bytes, problem: str, read: Callable[..., LoadedSuite]
) -> None:
    with pytest.raises(DataError, match=f"^{problem}") as raised:
        read(spec, {spec.rpartition("=")[2]: content})
    assert "\n" not in str(raised.value)


# What a spec names.


def test_a_file_a_folder_and_a_glob_are_one_suite_each(
    read: Callable[..., LoadedSuite], capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, str | bytes] = {
        "clams/en/vp.txt": CLAMS,
        "clams/fr/vp.txt": CLAMS,
        "clams/fr/long.txt": CLAMS,
        "clams/README.txt": "about it",
    }
    folder = read("clams", files)
    assert (folder.name, folder.kind, len(folder.files)) == ("clams", "clams", 3)
    assert [item.paradigm for item in folder.items] == ["en/vp", "long", "fr/vp"]
    assert capsys.readouterr().err == ""
    (read_one,) = read("clams/fr/l*.txt", {}).items
    assert (read_one.paradigm, read_one.place) == ("long", "clams/fr/long.txt:1")
    alone, named = read("clams/fr/vp.txt", {}), read("my own=clams=clams/fr/vp.txt", {})
    assert (alone.name, named.name, named.digest) == ("clams-vp", "my_own", alone.digest)
    read("clams", {"clams/notes.pdf": "x"})
    assert capsys.readouterr().err == "warning: clams: not read: clams/notes.pdf\n"


@each(
    ("spec", "problem"),
    [
        (
            "blmp",
            "there is no suite, file or folder 'blmp'. Did you mean 'blimp'.? Suites: .*; formats: blimp, clams, ",
        ),
        ("blimp", "'blimp' is a format, without files of its own: write blimp=PATH"),
        ("mine=zoro=a.txt", "there is no suite or format 'mine', and no file mine=zoro=a.txt"),
        ("zoro=a.txt", "there is no suite or format 'zoro', and no file zoro=a.txt. Did you mean 'zorro'"),
        (
            "text.txt",
            "text.txt is not recognised as one of its formats, clams, zorro: write clams=text.txt, if it is that",
        ),
        ("mixed", r"mixed has files of several formats, blimp \(1, mixed/a.jsonl\), syntaxgym \(1, mixed/b.json\)"),
        ("none", r"none has no file of a suite \(.gold, .json, .*write KIND=none"),
    ],
)
def test_what_a_spec_cannot_name_is_one_line(spec: str, problem: str, read: Callable[..., LoadedSuite]) -> None:
    files = {"a.txt": ZORRO, "text.txt": "It was a dark night.\nNobody saw the cat.\n", "none/x.pdf": "x"}
    files |= {"mixed/a.jsonl": BLIMP, "mixed/b.json": GYM}
    with pytest.raises(UsageError, match=f"^{problem}") as raised:
        read(spec, files)
    assert "\n" not in str(raised.value)


def test_a_missing_or_an_empty_place_is_named(read: Callable[..., LoadedSuite], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="^data/x.jsonl: no such file or folder"):
        read("data/x.jsonl", {})
    with pytest.raises(DataError, match=r"^\*.jsonl: no such file or folder"):
        read("*.jsonl", {})
    with pytest.raises(DataError, match="^empty: the folder has no files"):
        read("empty", {})
    with pytest.raises(DataError, match="^b: has no file of the format tsv: .tsv"):
        read("tsv=b", {"b/a.jsonl": BLIMP})


def test_the_digest_is_that_of_the_items(read: Callable[..., LoadedSuite]) -> None:
    first = read("x.jsonl", {"x.jsonl": BLIMP}).digest
    same: dict[str, str | bytes] = {"y/z.jsonl.gz": gzip.compress(f"\n{BLIMP}".encode()), "y/README.md": "x"}
    assert read("y", same).digest == first
    for old, new in {"Derek": "Dirk", "adjunct_island": "a", "island_effects": "b", '"0"': '"1"'}.items():
        assert read("x.jsonl", {"x.jsonl": changed(BLIMP, old, new)}).digest != first
    stated = read("x.tsv", {"x.tsv": STATED}).digest
    assert read("x.tsv", {"x.tsv": changed(STATED, ") > (", ") < (")}).digest != stated


# Packages.

SLASHES = """\
from foundry_core import BETTER, Suite, SuiteItem, hookimpl

@hookimpl
def foundry_suites():
    return [
        Suite("mine", "pairs of a package", reader="foundry_slashes:read", data="data/items.slashes"),
        Suite("of_core", "in a format of core", reader="blimp", data="data", suffixes=(".jsonl",)),
        Suite("slashes", "lines with a slash", reader=f"{__name__}:read", suffixes=(".slashes",)),
        Suite("jsonl_too", "of a test", f"{__name__}:read", (".jsonl",), recognise=f"{__name__}:begins_with_plus"),
        Suite("wrong", "of a test", reader=f"{__name__}:wrong", suffixes=(".wrong",)),
        Suite("lost", "of a test", reader=f"{__name__}:read", data="nowhere"),
    ]


def read(path):
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        good, bad = line.split("/")
        yield SuiteItem(str(number), path.stem, {"good": (good,), "bad": (bad,)}, (BETTER,), f"{path}:{number}")


def begins_with_plus(path):
    return path.read_text("utf-8").startswith("+")


def wrong(path):
    yield SuiteItem("1", path.stem, {"good": ("a",)}, (BETTER,), f"{path}:1")
"""


@pytest.fixture
def slashes(distribution: Callable[..., Path]) -> Path:
    """A package with suites, which no YAML names."""
    files = {"foundry_slashes/__init__.py": SLASHES, "foundry_slashes/data/items.slashes": "a b/a c\n"}
    files["foundry_slashes/data/pairs.jsonl"] = BLIMP
    return distribution("foundry-slashes", {"foundry.plugins": {"slashes": "foundry_slashes"}}, files)


@pytest.mark.usefixtures("slashes")
def test_a_suite_of_a_package_is_found_by_name(read: Callable[..., LoadedSuite]) -> None:
    mine = read("mine", {})
    assert (mine.name, mine.kind, plain(mine)) == ("mine", "mine", [("items", "1", "", of_pair("a b", "a c"))])
    of_core = read("of_core", {})
    assert (of_core.name, len(of_core.items), of_core.descriptor.reader) == ("of_core", 1, "blimp")
    assert read("slashes=x", {"x": "d/e"}).items[0].sentences == of_pair("d", "e")
    assert read("mine", {"mine/x.tsv": SETS}).kind == "tsv"  # a package that is not active does not take a path's name
    assert read("mine=", {}).digest == mine.digest
    with pytest.raises(DataError, match="the suite 'lost' of foundry-slashes 1.0: its data are missing"):
        read("lost", {})
    with pytest.raises(UsageError, match="^there is no suite, file or folder 'of_core'"):
        read_suite("of_core")  # as a YAML names it, which does not name the package


@pytest.mark.usefixtures("slashes")
def test_an_active_package_recognises_its_files(read: Callable[..., LoadedSuite]) -> None:
    read("mine", {})
    active = [sys.modules["foundry_slashes"]]
    Path("x.slashes").write_text("d/e")
    assert read_suite("x.slashes", active).kind == "slashes"
    Path("x.jsonl").write_text(BLIMP)
    assert read_suite("x.jsonl", active).kind == "blimp"
    Path("y.jsonl").write_text("+e/f")
    assert read_suite("y.jsonl", active).kind == "jsonl_too"
    Path("mine").mkdir()
    with pytest.raises(
        UsageError, match=r"^'mine' is a suite of foundry-slashes 1.0 and a path here: write mine= or ./"
    ):
        read_suite("mine", active)


@pytest.mark.usefixtures("slashes")
def test_a_reader_that_fails_is_one_line(read: Callable[..., LoadedSuite]) -> None:
    with pytest.raises(
        PluginError, match="^the reader of the suite 'slashes' of foundry-slashes 1.0, on x, fails: Value"
    ):
        read("slashes=x", {"x": "no slash"})
    with pytest.raises(DataError, match="^x:2: byte 0xff is not UTF-8"):
        read("slashes=x", {"x": b"a/b\n\xff/b"})
    with pytest.raises(DataError, match=r"^x:1: \(\*;%bad%\) has an unknown condition"):
        read("wrong=x", {"x": "a/b"})
    with pytest.raises(DataError, match="^x: does not contain an item"):
        read("slashes=x", {"x": ""})


def test_the_example_of_the_hook_reads_its_format(tmp_path: Path, distribution: Callable[..., Path]) -> None:
    documentation = inspect.cleandoc(hookspecs.foundry_suites.__doc__ or "")
    _, *parts = re.split(r"(?m)^# ([\w/]+\.(?:py|yaml))\n", documentation)
    files = dict(zip(parts[::2], parts[1::2], strict=True))
    distribution("foundry-slashes", {"foundry.plugins": {"example": "foundry_slashes"}}, files)
    path = tmp_path / "x.slashes"
    path.write_text("a b / a c\n")
    active = [importlib.import_module("foundry_slashes")]
    assert read_suite(str(path), active).items[0].sentences == of_pair("a b", "a c")
    path.write_text("a b / a c\nd e\n")
    with pytest.raises(FoundryError, match=r"x.slashes:2: not two sentences"):
        read_suite(f"slashes={path}", active)


def test_a_file_of_plugin_offers_a_suite_with_its_data(tmp_path: Path) -> None:
    (tmp_path / "my_suite.py").write_text(SLASHES.replace("foundry_slashes:", "my_suite:"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.slashes").write_text("a/b\n")
    module = load_plugin_file(tmp_path / "my_suite.py")
    assert read_suite("mine", [module]).items[0].sentences == of_pair("a", "b")


@each(
    ("fields", "problem"),
    [
        ({"reader": "no_colon"}, "its reader is 'no_colon', not an import string"),
        ({"scorer": "x"}, "its scorer is 'x', not an import string"),
        ({"suffixes": ".txt"}, "its suffixes is '.txt', not a tuple"),
        ({"suffixes": ("*.txt",)}, r"its suffixes is '\*.txt', not one such as \".jsonl\""),
        ({"data": "../data"}, "its data is '../data', not a path inside the package"),
        ({"name": "a=b"}, "its name is 'a=b', not a name without"),
    ],
)
def test_a_descriptor_that_cannot_work_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        Suite(**({"name": "mine", "summary": "of a test"} | fields))


# The suites themselves.


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no suites: set FOUNDRY_TEST_DATA")
def test_every_file_of_the_published_suites_is_scored(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    suites = {name: read_suite(str(DATA / name)) for name in ("blimp", "zorro", "clams", "syntaxgym")}
    assert {name: (suite.kind, len(suite.files)) for name, suite in suites.items()} == {
        "blimp": ("blimp", 24),
        "zorro": ("zorro", 8),
        "clams": ("clams", 11),
        "syntaxgym": ("syntaxgym", 12),
    }
    counts = {name: len(suite.items) for name, suite in suites.items()}
    assert counts == {"blimp": 24_000, "zorro": 16_000, "clams": 5_160, "syntaxgym": 287}
    read = {path for suite in suites.values() for path in suite.files}
    assert read == {path for path in DATA.rglob("*.*") if path.is_file() and path.suffix != ".md"}
    assert len({item.phenomenon for item in suites["blimp"].items}) == 12
    garden = [item for item in suites["syntaxgym"].items if item.paradigm == "npz_obj"]
    assert garden[0].sentences["no-obj_no-comma"][:4] == ("As the criminal", "shot", "", "the woman")
    # A few items of each file, with a tokenizer of their own text.
    by_file: dict[str, list[SuiteItem]] = {}
    for suite in suites.values():
        for item in suite.items:
            by_file.setdefault(item.place.rpartition(":")[0], []).append(item)
    assert set(by_file) == set(map(str, read))
    items = [item for of in by_file.values() for item in of[:3]]
    texts = [item.join.join(filter(None, each)) for item in items for each in item.sentences.values()]
    tokenizer = train_tokenizer("bpe", lambda: iter(texts), 400, default_special_tokens("bpe"))
    for architecture in ("gpt2", "lstm"):
        model = create_model(experiment(architecture, tmp_path, data={"max_sequence_length": 256}), tokenizer)
        found = score_items(model, tokenizer, items)
        assert (len(found.results), found.left_out) == (len(items), [])
        assert all(math.isfinite(result.margin) for result in found.results)
        assert all(bool(result.scores) != (result.item.predictions == (BETTER,)) for result in found.results)
