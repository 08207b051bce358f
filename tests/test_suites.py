"""Suites: what makes an item right, averages, results that are kept and reused, and scoring during a run."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, hookimpl, open_run
from foundry_core.cli import main
from foundry_core.evaluation import sentence_scores as sentence_scores_module
from foundry_core.evaluation.suites.items import BETTER, Formula, Operation, Score, SuiteItem
from foundry_core.evaluation.suites.kept import COLUMNS
from foundry_core.evaluation.suites.outcomes import Value, outcome
from foundry_core.evaluation.suites.results import averages
from foundry_core.evaluation.suites.scoring import (
    EncodedSuite,
    ItemResult,
    Measure,
    SuiteScorer,
    SuiteScores,
    regions_of_tokens,
    score_items,
)
from foundry_core.evaluation.suites.unigrams import unigram_scores
from foundry_core.tokenization.encoding import text_ids, token_ends
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from foundry_core.training.run import run
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
ARCHITECTURES = ("gpt2", "lstm", "bert")


def bits(scored: BaseLanguageModel, tokenizer: Any, text: str) -> list[float]:
    """Return the surprisal of each token of a text by the loss of the model, which reads nothing else."""
    (ids,) = text_ids(tokenizer, [text])
    found = []
    with torch.no_grad():
        for place in range(len(ids)):
            if scored.context.objective.causal:
                row = torch.tensor([[tokenizer.eos_token_id, *ids[: place + 1]]])
                given = row
            else:
                row = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
                given = row.clone()
                given[0, place + 1] = tokenizer.mask_token_id
            labels = torch.full_like(row, -100)
            labels[0, place + 1] = row[0, place + 1]
            found.append(float(scored.eval()(given, labels=labels, reduction="sum").loss) / math.log(2))
    return found


def pair(good: str, bad: str, name: str = "1", paradigm: str = "p", phenomenon: str = "") -> SuiteItem:
    return SuiteItem(name, paradigm, {"good": (good,), "bad": (bad,)}, (BETTER,), f"x.txt:{name}", phenomenon)


@each("architecture", ARCHITECTURES)
def test_the_better_of_a_pair_is_the_more_probable_sentence(model, letters, architecture):
    """As a pair, as a formula, and by the mean; a sentence counts with every token."""
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcd", k=chance.randint(2, 6))) for _ in range(16)]
    items = [
        pair(one, other, str(place)) for place, (one, other) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]
    formulas = [SuiteItem(each.name, "p", each.sentences, (BETTER, BETTER), each.place) for each in items]
    scored = model(architecture)
    alone = {text: bits(scored, letters, text) for text in texts}
    cases: list[tuple[list[SuiteItem], Measure, Any]]
    cases = [(items, "sum", sum), (formulas, "sum", sum), (items, "mean", np.mean)]
    for suite, measure, of in cases:
        found = score_items(scored, letters, suite, measure=measure)
        assert found.left_out == []
        assert {result.right for result in found.results} == {True, False}
        for result in found.results:
            good, bad = (of(alone[result.item.sentences[name][0]]) for name in ("good", "bad"))
            assert result.margin == pytest.approx((bad - good) * math.log(2), abs=1e-4)
            assert result.right == (good < bad)


@each("architecture", ARCHITECTURES)
def test_a_formula_compares_regions_as_written_by_hand(model, letters, architecture):
    """(2;a) - (1;b) * 0.5 < (*;a) / (3;a), and an alternative that saves what fails."""
    sentences = {"a": ("abc", "dde", "", "fg"), "b": ("ab", "", "xyz", "q")}
    scored = model(architecture)
    a, b = bits(scored, letters, "abcddefg"), bits(scored, letters, "abxyzq")
    one, other = sum(a[3:6]) - sum(b[:2]) * 0.5, sum(a) / sum(a[6:8])
    left = Operation("-", Score(2, "a"), Operation("*", Score(1, "b"), 0.5))
    right = Operation("/", Score("*", "a"), Score(4, "a"))
    less, more = Operation("<", left, right), Operation(">", left, right)

    def result(*predictions: Formula) -> ItemResult:
        item = SuiteItem("1", "p", sentences, predictions, "x:1", join="")
        return score_items(scored, letters, [item]).results[0]

    assert result(less).right == (one < other) != result(more).right
    assert result(less).margin == pytest.approx((other - one) * math.log(2), abs=1e-4)
    assert (
        result(less).margin
        == -result(more).margin
        == result(Operation("|", less, more)).margin * (1 if one < other else -1)
    )
    assert (result(Operation("|", less, more)).right, result(Operation("&", less, more)).right) == (True, False)
    assert not result(less, more).right
    assert result(less).scores[Score(2, "a")] == pytest.approx(sum(a[3:6]), abs=1e-4)


def test_a_token_is_in_the_region_of_its_last_character():
    """The space before a region is in it; regions without text have no token."""
    contents, text = ("the cat", "", "that", "ran"), "the cat that ran"
    ends = [3, 7, 8, 12, 13, 16]  # the| cat| |that| |ran
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == ["the", " cat", " ", "that", " ", "ran"]
    assert regions_of_tokens(contents, 1, ends).tolist() == [1, 1, 3, 3, 4, 4]
    assert regions_of_tokens(("", "a", "b"), 0, [0, 1, 2]).tolist() == [2, 2, 3]


@each("kind", ["sentencepiece", "wordpiece", "bpe", "character", "word"])
def test_the_ends_of_tokens_divide_the_text(corpus, kind):
    lines = corpus.train.read_text().splitlines()
    tokenizer = train_tokenizer(kind, lambda: iter(lines), 300, default_special_tokens(kind))
    texts = [*lines[:20], "the  dogs é sees", " a"]
    for text, ids, ends in zip(texts, text_ids(tokenizer, texts), token_ends(tokenizer, texts), strict=True):
        assert len(ids) == len(ends)
        assert ends == sorted(ends)
        assert ends[-1] == len(text)
        pieces = [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
        assert all(" " not in piece for piece in pieces)


def test_what_is_tied_is_wrong_however_it_is_written(model, letters):
    alike = {"good": ("abc",), "bad": ("abd",)}
    better, worse = BETTER, Operation(">", Score("*", "good"), Score("*", "bad"))
    forms: list[Formula] = [better, worse, Operation("&", better, better), Operation("|", better, worse)]
    flat = model("lstm", scale=1e-7)
    for form in forms:
        (result,) = score_items(flat, letters, [SuiteItem("1", "p", alike, (form,), "x:1")]).results
        assert (result.right, result.tie) == (False, True)
        near = {Score("*", "good"): Value(10.0, 1e-5), Score("*", "bad"): Value(10.000009, 1e-6)}
        assert outcome(form, near)[:2] == (False, True)
    equal = Operation("=", Score("*", "good"), Score("*", "bad"))
    assert score_items(flat, letters, [SuiteItem("1", "p", alike, (equal,), "x:1")]).results[0].right


def results(*rows: tuple[str, str, str]) -> list[ItemResult]:
    """Return results from (phenomenon, paradigm, one letter for each item: r, w or t)."""
    return [
        ItemResult(pair("a", "b", str(place), paradigm, phenomenon), letter == "r", letter == "t", 1.0)
        for phenomenon, paradigm, letters in rows
        for place, letter in enumerate(letters)
    ]


@each("architecture", ARCHITECTURES)
def test_progress_rises_to_the_whole_suite(model, letters, monkeypatch, architecture):
    monkeypatch.setattr(sentence_scores_module, "PREFIXES", 8)
    alike = {"good": ("abc",), "bad": ("abd",)}
    items = [pair(f"a{one}c", f"b{one}", one) for one in "abcdefgh"]
    items.append(SuiteItem("9", "p", alike, (BETTER, BETTER), "x:9"))
    shares: list[float] = []
    EncodedSuite.of(letters, items).score(model(architecture), letters, progress=shares.append)
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_averages_are_over_items_paradigms_and_phenomena():
    left_out = [(pair("", "a", "9", "gone", "x"), "no tokens"), (pair("", "a", "9", "one", "x"), "no tokens")]
    found = averages(SuiteScores(results(("x", "one", "rrrw"), ("x", "two", "rt"), ("y", "three", "r")), left_out, {}))
    assert (found["items"], found["left_out"], found["ties"]) == (7, 2, 1)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["macro"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert found["phenomena_macro"] == pytest.approx((0.625 + 1) / 2)
    assert {name: each["accuracy"] for name, each in found["phenomena"].items()} == {"x": 0.625, "y": 1.0}
    assert found["phenomena"]["x"]["items"] == 6
    assert found["paradigms"]["gone"] == {"phenomenon": "x", "accuracy": None, "items": 0, "ties": 0, "interval": None}
    # Of four items of which three are right a resample has none right in 0.4 %, at most one in 5 % of all cases.
    assert found["paradigms"]["one"]["interval"] == [0.25, 1.0]
    assert found["paradigms"]["three"]["interval"] == [1.0, 1.0]


def test_an_interval_is_that_of_a_bootstrap_over_items():
    rows = [("x", "one", "r" * 70 + "w" * 30), ("x", "two", "r" * 150 + "w" * 250)]
    found = averages(SuiteScores(results(*rows), [], {}))
    generator = np.random.default_rng(0)
    right = [np.array([letter == "r" for letter in letters]) for _, _, letters in rows]
    draws = [[each[generator.integers(len(each), size=len(each))].mean() for each in right] for _ in range(4000)]
    overall = [(100 * one + 400 * two) / 500 for one, two in draws]
    for interval, values in (
        (found["phenomena"]["x"]["interval"], np.mean(draws, axis=1)),
        (found["macro_interval"], np.mean(draws, axis=1)),
        (found["paradigms"]["two"]["interval"], [two for _, two in draws]),
        (found["interval"], overall),
    ):
        assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.01)


def test_a_scorer_of_a_package_takes_the_place_of_predictions(model, letters, distribution):
    distribution(
        "longer",
        {},
        {"longer.py": "def score(model, tokenizer, items):\n    return [(len(i.name) > 1, 2) for i in items]"},
    )
    suite: Any = SimpleNamespace(
        name="s",
        kind="k",
        digest="d",
        items=[pair("a", "b", "1"), pair("a", "b", "22")],
        descriptor=SimpleNamespace(scorer="longer:score"),
    )
    found = SuiteScorer(suite).scores(model("lstm"), letters)
    assert [(each.right, each.margin) for each in found.results] == [(False, 2.0), (True, 2.0)]


def write_pairs(path: Path, pairs: Sequence[tuple[str, str, str]]) -> None:
    """Write (paradigm, good, bad) as BLiMP does, in two phenomena."""
    lines = [
        {"UID": uid, "linguistics_term": uid[0], "sentence_good": good, "sentence_bad": bad} for uid, good, bad in pairs
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture(scope="session")
def agreement(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minimal pairs of the toy language, in three paradigms of two phenomena."""
    lines = [json.loads(line) for line in corpus.minimal_pairs.read_text().splitlines()][:60]
    names = ("a_one", "a_two", "b_three")
    path = tmp_path_factory.mktemp("suite") / "agreement.jsonl"
    write_pairs(path, [(names[n % 3], each["sentence_good"], each["sentence_bad"]) for n, each in enumerate(lines)])
    return path


@pytest.fixture(scope="session")
def trained(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints at steps 0, 3 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    run(experiment("lstm", folder, training={"train_steps": 6, "checkpoints": {"every_steps": 3}}), quiet=True)
    return folder / "run"


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Run `foundry evaluate` with suites and return the results of each suite on each checkpoint, in one list."""

    def call(*arguments: str | Path) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        return [result for of in json.loads(capsys.readouterr().out)["suites"] for result in of]

    return call


def test_all_checkpoints_are_scored_as_each_is_alone(own_run, agreement, evaluate):
    together = evaluate(own_run, "--suite", agreement, "--all")
    assert [each["step"] for each in together] == [0, 3, 6]
    files = {path: path.read_bytes() for path in sorted((own_run / "scores").rglob("*.*"))}
    assert len(files) == len(set(files.values())) == 6
    shutil.rmtree(own_run / "scores")
    alone = [evaluate(own_run / each["checkpoint"], "--suite", agreement)[0] for each in together]
    assert alone == together
    assert {path: path.read_bytes() for path in files} == files
    opened = [row for row in open_run(own_run).scored if row["level"] == "suite"]
    assert [(row["step"], row["accuracy"]) for row in opened] == [(each["step"], each["accuracy"]) for each in together]
    (table,) = (own_run / "scores" / "checkpoint-6").glob("*.tsv")
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert tuple(lines[0]) == COLUMNS[".tsv"]
    right = [line[3] for line in lines[1:]]
    assert right.count("1") / len(right) == together[2]["accuracy"]
    assert all((float(line[4]) > 0) == (line[3] == "1") for line in lines[1:])


def test_results_are_reused_while_nothing_has_changed(experiment, own_run, agreement, tmp_path, evaluate):
    suite = tmp_path / "suite.jsonl"
    shutil.copy(agreement, suite)
    call = (own_run, "--suite", suite, "--all")
    first = evaluate(*call)
    assert [each.pop("reused") for each in first] == [False] * 3

    def again() -> list[bool]:
        found = evaluate(*call)
        reused = [each.pop("reused") for each in found]
        assert found == first
        return reused

    assert again() == [True] * 3
    weights = own_run / "checkpoint-0" / "model.safetensors"
    weights.rename(own_run / "aside")
    assert evaluate(weights.parent, "--suite", suite)[0]["reused"]
    (own_run / "aside").rename(weights)
    stored = sorted((own_run / "scores").rglob("*.json"))
    tables = sorted((own_run / "scores").rglob("*.tsv"))
    stored[0].write_bytes(stored[0].read_bytes()[:-40])
    tables[1].write_bytes(tables[1].read_bytes().replace(b"\t1\t", b"\t0\t", 1))
    stored[2].write_bytes(stored[2].read_bytes().replace(b'"ties": 0', b'"ties": 1', 1))
    assert again() == [False] * 3
    tables[0].unlink()
    assert again() == [False, True, True]
    # Another text is another suite, under the same name.
    lines = suite.read_text().splitlines()
    suite.write_text("\n".join(lines[:-1]) + "\n")
    shorter = evaluate(*call)
    assert [(each["reused"], each["items"]) for each in shorter] == [(False, len(lines) - 1)] * 3
    # Other weights under the same name are another checkpoint.
    schedule = {"train_steps": 6, "checkpoints": {"every_steps": 3}}
    run(experiment("lstm", tmp_path / "other", training=schedule, random_seed=7), quiet=True)
    shutil.rmtree(own_run / "checkpoint-3")
    shutil.copytree(tmp_path / "other" / "run" / "checkpoint-3", own_run / "checkpoint-3")
    assert [each["reused"] for each in evaluate(*call)] == [True, False, True]


def test_a_suite_that_replaces_another_of_its_name_warns_once(own_run, agreement, tmp_path, capsys):
    lines = agreement.read_text().splitlines(keepends=True)
    for folder, part in (("a", lines), ("b", lines[:-1])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text("".join(part))
    warnings = []
    for folder in ("a", "a", "b", "b"):
        assert main(["evaluate", str(own_run), "--suite", str(tmp_path / folder), "--all"]) == 0
        warnings.append(capsys.readouterr().err)
    assert [text.count("\n") for text in warnings] == [0, 0, 1, 0]
    assert f"results of another suite called blimp-x ({len(lines)} items) are replaced" in warnings[2]
    named = [f"{folder}=blimp={tmp_path / folder}" for folder in ("a", "b")]
    assert main(["evaluate", str(own_run), "--suite", *named]) == 0
    assert {path.name for path in (own_run / "scores" / "checkpoint-6").glob("?.json")} == {"a.json", "b.json"}


def test_surprisals_of_regions_are_kept_beside_the_items(own_run, tmp_path, evaluate):
    """All regions of the sentences that are compared; a suite of pairs has none, also under the same name."""
    (tmp_path / "forms.tsv").write_text("item\tprefix\tgood\tbad\n1\tthe cat\tsees\tsee\n2\tthe cats\tsee\tsees\n")
    call = (own_run, "--suite", tmp_path / "forms.tsv")
    assert not evaluate(*call)[0]["reused"]
    (table,) = (own_run / "scores").rglob("*.regions.tsv")
    header, *lines = (line.split("\t") for line in table.read_text().splitlines())
    assert tuple(header) == COLUMNS[".regions.tsv"]
    assert [line[:4] for line in lines] == [
        ["forms", item, condition, region] for item in "12" for condition in ("good", "bad") for region in "12"
    ]
    checkpoint = own_run / table.parent.name
    opened, tokenizer = BaseLanguageModel.from_pretrained(checkpoint), load_tokenizer(checkpoint)
    for place, text in enumerate(("the cat sees", "the cat see", "the cats see", "the cats sees")):
        *before, last = bits(opened, tokenizer, text)
        assert [float(line[4]) for line in lines[2 * place :][:2]] == pytest.approx([sum(before), last], abs=1e-4)
    assert evaluate(*call)[0]["reused"]
    table.write_text(table.read_text().replace("forms", "other", 1))
    assert not evaluate(*call)[0]["reused"]
    (tmp_path / "forms.tsv").write_text("good\tbad\nthe cat sees\tthe cat see\n")
    evaluate(*call)
    assert not table.exists()


def test_a_measure_by_unigrams_takes_them_from_the_training_text(own_run, agreement, evaluate):
    folder = own_run / "checkpoint-6"
    opened, tokenizer = BaseLanguageModel.from_pretrained(folder), load_tokenizer(folder)
    unigrams = unigram_scores(folder, opened, tokenizer)
    ids = [
        number
        for text in text_ids(tokenizer, Path(str(opened.config.data.training_corpus)).read_text().splitlines())
        for number in text
    ]
    counts = np.bincount(ids, minlength=opened.context.vocab_size) + 1
    assert unigrams == pytest.approx(np.log(counts / counts.sum()))
    item = pair("the cat sees the dog", "the cat see the dog")
    ours = {
        measure: score_items(opened, tokenizer, [item], measure=measure, unigrams=unigrams).results[0].margin
        for measure in ("sum", "pmi", "slor")
    }
    good, bad = (
        sum(unigrams[i] for i in text_ids(tokenizer, [item.sentences[name][0]])[0]) for name in ("good", "bad")
    )
    assert ours["pmi"] == pytest.approx(ours["sum"] - good + bad)
    assert ours["slor"] == pytest.approx(ours["pmi"] / 5)
    evaluate(folder, "--suite", agreement)
    (slor,) = evaluate(folder, "--suite", agreement, "--measure", "slor")
    assert [row["measure"] for row in open_run(own_run).scored if row["level"] == "suite"] == ["sum", "slor"]
    assert slor["reused"] is False


def test_options_that_mean_nothing_together_are_refused(own_run, agreement, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    shutil.copy(agreement, tmp_path / "other" / agreement.name)
    for arguments, problem in (
        (["--all"], "--all is for suites"),
        (["--measure", "mean"], "--measure is for suites"),
        (["--suite", str(agreement), "--pairs", str(agreement)], "--suite is for itself"),
        (["--suite", str(agreement), str(tmp_path / "other" / agreement.name)], "name one, as in NAME=blimp=PATH"),
    ):
        assert main(["evaluate", str(own_run), *arguments]) == 2
        assert problem in capsys.readouterr().err
    assert main(["evaluate", str(own_run / "checkpoint-3"), "--suite", str(agreement), "--all"]) == 6
    assert f"is a checkpoint: name its run, {own_run}" in capsys.readouterr().err


def test_the_answer_has_a_row_for_each_checkpoint_and_phenomenon(own_run, agreement, capsys):
    assert main(["evaluate", str(own_run), "--suite", str(agreement), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "sum of the log-probabilities of the tokens" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("checkpoint-")] == [
        "checkpoint-0",
        "checkpoint-3",
        "checkpoint-6",
    ]
    assert "phenomenon, by step" in shown
    assert main(["evaluate", str(own_run), "--suite", str(agreement)]) == 0
    assert "1 of 1 results" in capsys.readouterr().out


def test_suites_during_training_change_no_weight(experiment, agreement, corpus, tmp_path, evaluate):
    """Nor does killing such a run; what is kept is what `foundry evaluate` finds."""
    dropout = {"rnn": {"embedding_size": 24, "hidden_size": 32, "num_layers": 2, "dropout": 0.3}}
    schedule = {"train_steps": 6, "checkpoints": {"every_steps": 3}, "evaluate_every_steps": 2}

    def config(name: str, **more: Any) -> ExperimentConfig:
        settings = (
            schedule | more if "suites" in more else {k: v for k, v in schedule.items() if k != "evaluate_every_steps"}
        )
        made: ExperimentConfig = experiment("lstm", tmp_path / name, model=dropout, training=settings)
        return made

    plain, scored, killed = config("plain"), *(config(name, suites=[str(agreement)]) for name in ("scored", "killed"))
    reports: list[Any] = []

    class Watching:
        @hookimpl
        def foundry_suite_scored(self, report: Any) -> None:
            reports.append(report)

    run(plain, quiet=True)
    run(scored, quiet=True, extra_observers=[Watching()])
    folders = {name: tmp_path / name / "run" for name in ("plain", "scored", "killed")}
    shutil.copytree(folders["scored"], folders["killed"])
    shutil.rmtree(folders["killed"] / "checkpoint-6")
    run(killed, quiet=True, resume=True)
    weights = {name: (folder / "checkpoint-6" / "model.safetensors").read_bytes() for name, folder in folders.items()}
    assert weights["plain"] == weights["scored"] == weights["killed"]
    lines = {
        name: [
            each
            for each in map(json.loads, (folders[name] / "metrics.jsonl").read_text().splitlines())
            if each["kind"] == "suite"
        ]
        for name in folders
    }
    assert lines["plain"] == []
    assert lines["scored"] == lines["killed"]
    assert [each["step"] for each in lines["scored"]] == [2, 4, 6] == [each.step for each in reports]
    assert reports[-1].words_seen == lines["scored"][-1]["words_seen"] > 0
    assert reports[-1].phenomena.keys() == {"a", "b"}
    kept = {path: path.read_bytes() for path in (folders["scored"] / "scores").rglob("*.*")}
    assert {path.parent.name for path in kept} == {"checkpoint-6"}
    shutil.rmtree(folders["scored"] / "scores")  # as if it had been killed between the checkpoint and its results
    run(scored, quiet=True, resume=True)
    assert {path: path.read_bytes() for path in (folders["scored"] / "scores").rglob("*.*")} == kept
    found = evaluate(folders["scored"], "--suite", agreement, "--all")
    assert [each["reused"] for each in found] == [False, False, True]
    for key in ("accuracy", "suite_digest"):
        assert found[-1][key] == lines["scored"][-1][key]
    shutil.rmtree(folders["scored"] / "scores")
    evaluate(folders["scored"], "--suite", agreement, "--all")
    assert {path: path.read_bytes() for path in kept} == kept
