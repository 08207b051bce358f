"""Runs as data frames, `foundry compare`, and the page for a co-author."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry_core import open_run, run
from foundry_core.analysis.comparison import Comparison, compare
from foundry_core.analysis.curves import COLOURS
from foundry_core.analysis.folders import find_runs
from foundry_core.analysis.intervals import accuracy_difference, over_seeds, t_quantile
from foundry_core.analysis.page import page
from foundry_core.analysis.tables import as_csv, as_latex
from foundry_core.cli import main
from foundry_core.errors import CheckpointError, UsageError
from foundry_core.evaluation.suites.items import BETTER, Score, SuiteItem
from foundry_core.evaluation.suites.kept import DIGESTS, VERSION, read_averages
from foundry_core.evaluation.suites.results import items_table, regions_table
from foundry_core.evaluation.suites.scoring import ItemResult
from foundry_core.storage.manifest import sealed
from tests.browser import browser, program

GUIDE = Path(__file__).parents[1] / "docs" / "evaluation" / "comparing.md"
ITEMS, STEPS = 40, (10, 20)
PHENOMENA = ("agreement", "islands & gaps")
DIGEST = "d" * 64


def score(folder: Path, suite: str = "toy", *, better: int = 0) -> None:
    """Write results of a suite for a run: two phenomena, of which it gets the first items right."""
    for step in STEPS:
        place = folder / "scores" / f"checkpoint-{step}"
        place.mkdir(parents=True, exist_ok=True)
        right = {name: [at < step + better - 5 * part for at in range(ITEMS)] for part, name in enumerate(PHENOMENA)}
        lines = ["paradigm\tphenomenon\titem\tright\tmargin\tplace"]
        for name, each in right.items():
            lines += [f"{name} 1\t{name}\t{at}\t{int(ok)}\t{0.5 if ok else -0.5}\tx:1" for at, ok in enumerate(each)]
        parts = {
            name: {"accuracy": sum(each) / ITEMS, "items": ITEMS, "interval": [0, 1]} for name, each in right.items()
        }
        whole = sum(map(sum, right.values())) / (2 * ITEMS)
        result = {
            "suite": suite,
            "suite_digest": DIGEST,
            "kind": "pairs",
            "checkpoint": place.name,
            "step": step,
            "words_seen": 100 * step,
            "tokens_seen": 110 * step,
            "measure": "sum",
            "items": 2 * ITEMS,
            "accuracy": whole,
            "macro": whole,
            "interval": [whole - 0.1, whole + 0.1],
            "paradigms": {f"{name} 1": {"phenomenon": name, "ties": 0, **each} for name, each in parts.items()},
            "phenomena": parts,
            "phenomena_macro": whole,
        }
        table = ("\n".join(lines) + "\n").encode()
        (place / f"{suite}.tsv").write_bytes(table)
        result |= {"version": VERSION, "items_sha256": hashlib.sha256(table).hexdigest()}
        (place / f"{suite}.json").write_bytes(sealed(result))


@pytest.fixture(scope="module")
def trained(experiment: Any, corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: gpt2 and lstm with two seeds each, and a bert with one."""
    folder = tmp_path_factory.mktemp("study")
    for at, (architecture, seed) in enumerate([("gpt2", 1), ("gpt2", 2), ("lstm", 1), ("lstm", 2), ("bert", 1)]):
        place = folder / f"{architecture}-{seed}"
        config = experiment(
            architecture,
            folder,
            random_seed=seed,
            experiment_name=f"{architecture}-{seed}",
            data={"test_corpus": str(corpus.test)},
            tokenizer={"vocab_size": 300, "output_dir": str(folder / "tokenizer")},
            training={
                "output_dir": str(place),
                "train_steps": STEPS[-1],
                "evaluate_every_steps": 10,
                "checkpoints": {"every_steps": 10},
                "objective": "masked_lm" if architecture == "bert" else "causal_lm",
            },
            logging={"log_every_steps": 2},
        )
        run(config, quiet=True)
        score(place, better=3 * at)
    return folder


@pytest.fixture(scope="module")
def comparison(trained: Path) -> Comparison:
    return compare(find_runs([trained]), "study")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the runs, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def edit(path: Path, **values: Any) -> None:
    """Replace values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_result(path: Path, **values: Any) -> None:
    """Replace values of the results of a suite."""
    path.write_bytes(sealed(read_averages(path) | values))


@pytest.mark.long
def test_a_run_opens_as_data_frames_and_imports_no_torch(trained: Path) -> None:
    program = f"""
import sys
from foundry_core import open_run
run = open_run({str(trained / "lstm-1")!r})
frames = run.metrics(), run.evaluations(), run.checkpoints(), run.scores(), run.items("toy")
assert "torch" not in sys.modules and "transformers" not in sys.modules
metrics, evaluations, checkpoints, scores, items = frames
assert metrics.step.tolist() == list(range(2, 21, 2)) and metrics.seconds.is_monotonic_increasing
assert metrics.tokens_seen.iloc[-1] == run.tokens and metrics.flops.iloc[-1] == run.flops > 0
assert evaluations[["step", "corpus"]].values.tolist() == [[10, "test"], [20, "test"]]
assert evaluations.seconds.tolist() == metrics.seconds[metrics.step.isin([10, 20])].tolist()
assert checkpoints.step.tolist() == [0, 10, 20] and checkpoints.words_seen.iloc[-1] == run.words
assert scores.query("level == 'suite' and step == 20").accuracy.item() == (26 + 21) / 80
assert items.step.unique().tolist() == [20] and items.right.sum() == 26 + 21
assert (run.architecture, run.seed, run.step, run.finished) == ("lstm", 1, 20, True)
"""
    (example,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    program += example.replace("runs/gpt2", str(trained / "gpt2-1")).replace("blimp-data", "toy")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_damage_is_named_with_its_file_and_line(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "lstm-1", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"kind": "train", "st')  # a crash tore the last line
    assert open_run(tmp_path / "run").step == 20
    metrics.write_bytes(whole.replace(b'"kind": "train", "step": 4,', b'"kind": "train", "step": "4",'))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: not a report"):
        _ = open_run(tmp_path / "run").steps
    metrics.write_bytes(whole)
    items = tmp_path / "run" / "scores" / "checkpoint-20" / "toy.tsv"
    whole = items.read_bytes()
    items.write_bytes(whole.replace(b"\t1\t0.5", b"\t0\t0.5", 1))
    with pytest.raises(CheckpointError, match=r"toy\.tsv is damaged: its sha256"):
        open_run(tmp_path / "run").item_rows("toy")
    with pytest.raises(UsageError, match="no results of a suite 'blimp'.*it has: toy"):
        open_run(tmp_path / "run").item_rows("blimp")
    averages = items.with_suffix(".json")
    averages.write_bytes(averages.read_bytes().replace(b'"accuracy"', b'"Accuracy"', 1))
    with pytest.raises(CheckpointError, match=r"toy\.json is damaged: its sha256"):
        _ = open_run(tmp_path / "run").scored
    with pytest.raises(CheckpointError, match="is not a run: it has no config"):
        open_run(tmp_path)


def test_results_of_another_version_are_left_out(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_result(copied / "lstm-1" / "scores" / "checkpoint-10" / "toy.json", version=VERSION - 1)
    assert {row["step"] for row in open_run(copied / "lstm-1").scored} == {20}
    assert "toy.json is left out: another version" in capsys.readouterr().err


def test_items_and_regions_have_the_names_of_their_suite(copied: Path) -> None:
    """Quotes in a name are doubled in the file, and read back."""
    name, region = 'the "key"', Score(2, 'with "to"')
    item = SuiteItem(name, "p", {"good": ("a",), "bad": ("b",)}, (BETTER,), "x:1")
    place = copied / "lstm-1" / "scores" / "checkpoint-20"
    result = ItemResult(item, right=True, tie=False, margin=0.5, scores={region: 2.5, Score("*", "bad"): 3.0})
    tables = {".tsv": items_table([result]), ".regions.tsv": regions_table([result])}
    for suffix, table in tables.items():
        assert table is not None
        (place / f"toy{suffix}").write_bytes(table)
    digests = {
        kind: hashlib.sha256(table or b"").hexdigest()
        for kind, table in zip(DIGESTS.values(), tables.values(), strict=True)
    }
    edit_result(place / "toy.json", **digests)
    opened = open_run(copied / "lstm-1")
    (found,) = opened.item_rows("toy")
    assert (found["item"], found["right"], found["margin"], found["step"]) == (name, True, 0.5, 20)
    frame = opened.regions("toy")
    assert frame[["item", "condition", "region", "surprisal"]].values.tolist() == [
        [name, 'with "to"', "2", 2.5],
        [name, "bad", "*", 3.0],
    ]
    with pytest.raises(UsageError, match="has no surprisals of regions"):
        opened.regions("toy", "checkpoint-10")


def test_runs_that_differ_only_in_the_seed_are_one_row(trained: Path, comparison: Comparison) -> None:
    assert [(row.name, row.seeds) for row in comparison.rows] == [("bert", [1]), ("gpt2", [1, 2]), ("lstm", [1, 2])]
    losses = [open_run(trained / f"lstm-{seed}").evaluated[-1]["loss"] for seed in (1, 2)]
    estimate = comparison.rows[2].figures["loss"]
    half = 12.7062 * abs(losses[0] - losses[1]) / 2  # t for one degree of freedom times the standard error
    assert estimate.mean == pytest.approx(sum(losses) / 2)
    assert estimate.spread == pytest.approx(half, rel=1e-5)
    bert = comparison.rows[0].figures
    assert "bits_per_byte" not in bert
    assert bert["toy"].over == "items"
    assert bert["toy"].low == pytest.approx(bert["toy"].mean - 0.1)
    assert {row.figures["tokens"].mean for row in comparison.rows} == {open_run(trained / "bert-1").tokens}
    assert comparison.settings["model.architecture"] == ("bert", "gpt2", "lstm")
    assert not [key for key in comparison.settings if key.startswith(("random_seed", "experiment", "training.output"))]


def test_the_t_interval_has_the_quantiles_of_the_tables() -> None:
    found = [round(t_quantile(freedom), 3) for freedom in (1, 2, 3, 4, 9, 10, 30, 120)]
    assert found == [12.706, 4.303, 3.182, 2.776, 2.262, 2.228, 2.042, 1.980]
    assert over_seeds([3.0]).low is None
    assert over_seeds([1.0, 1.0]).low is None  # every seed has all items right


def test_the_bootstrap_draws_items_and_seeds_in_pairs() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random((1, 2000)) < 0.8, rng.random((1, 2000)) < 0.76
    estimate, p = accuracy_difference(first, second, paired=True)
    error = (first.astype(float) - second).std() / 2000**0.5
    assert estimate.spread == pytest.approx(1.96 * error, rel=0.06)
    assert (estimate.over, p < 0.05) == ("items", True)
    # Seeds that differ much more than the rows do: in pairs that cancels out.
    seeds = np.array([[at < level for at in range(1000)] for level in (500, 600, 700, 800)])
    shifted = np.roll(seeds, 20, axis=1) | seeds
    paired, _ = accuracy_difference(shifted, seeds, paired=True)
    apart, _ = accuracy_difference(shifted, seeds, paired=False)
    assert paired.mean == apart.mean == pytest.approx(0.02)
    assert paired.low is not None
    assert apart.low is not None
    assert 0 < paired.low < 0.02
    assert apart.low < -0.05
    same, p = accuracy_difference(seeds, seeds, paired=True)
    assert (same.low, same.high, p) == (0, 0, 1)
    assert paired.over == "seeds and items"
    mixed, _ = accuracy_difference(seeds[:1], seeds, paired=False)
    assert (mixed.over, mixed.count) == ("items, and seeds of one", 1)


def test_rows_are_compared_where_a_comparison_means_something(comparison: Comparison) -> None:
    found = {(each.figure, each.first, each.second): each for each in comparison.differences}
    assert ("loss", "gpt2", "lstm") in found
    assert ("loss", "bert", "gpt2") not in found  # the loss of another task, and a single seed
    difference = found["toy", "gpt2", "lstm"]
    assert difference.estimate.mean == pytest.approx(-6 / 40)
    assert difference.estimate.over == "seeds and items"
    assert any("different questions" in note for note in comparison.notes)


def test_different_suites_of_one_name_are_not_compared(copied: Path) -> None:
    for place in (copied / "lstm-1", copied / "lstm-2"):
        edit_result(place / "scores" / "checkpoint-20" / "toy.json", suite_digest="e" * 64)
    comparison = compare(find_runs([copied]))
    pairs = {(each.first, each.second) for each in comparison.differences if each.figure == "toy"}
    assert pairs == {("bert", "gpt2")}
    assert "toy" in comparison.rows[2].figures
    (note,) = (each for each in comparison.notes if each.startswith("Different suites are called toy"))
    assert "eeeeeeeeeeee: lstm-1, lstm-2." in note
    edit_result(copied / "lstm-1" / "scores" / "checkpoint-20" / "toy.json", suite_digest=DIGEST)
    assert "toy" not in compare(find_runs([copied])).rows[2].figures  # no mean over two suites


def test_each_of_the_seeds_tells_runs_apart(copied: Path) -> None:
    for name in ("gpt2", "lstm"):
        config = copied / f"{name}-2" / "config.yaml"
        text = config.read_text().replace("random_seed: 2", "random_seed: 1")
        config.write_text(re.sub(r"initialisation: \w+", "initialisation: 5", text))
    shutil.copytree(copied / "bert-1", copied / "bert-again")
    comparison = compare(find_runs([copied]))
    bert, gpt2, lstm = comparison.rows
    assert gpt2.seeds == lstm.seeds == [1, "random_seed 1, seeds.initialisation 5"]
    found = {(each.figure, each.first): each.estimate.count for each in comparison.differences}
    assert found["loss", "gpt2"] == found["toy", "gpt2"] == 2
    assert (len(bert.runs), bert.figures["toy"].over) == (1, "items")  # a copy is not a second seed
    assert any("bert-again, because" in note for note in comparison.notes)


def test_suites_of_training_are_read_without_checkpoints(copied: Path) -> None:
    report = {"kind": "suite", "suite": "toy", "accuracy": 0.5, "macro": 0.25, "items": 80, "interval": [0.375, 0.625]}
    report |= {"phenomena": {PHENOMENA[0]: 0.75, PHENOMENA[1]: 0.5}, "tokens_seen": 1500, "words_seen": 1400}
    with (copied / "lstm-1" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(report | {"step": step}) + "\n" for step in (15, 20, 25))
    opened = open_run(copied / "lstm-1")
    whole = [row for row in opened.scored if row["level"] == "suite"]
    kept = [(row["step"], row["checkpoint"]) for row in whole]
    assert kept == [(10, "checkpoint-10"), (15, None), (20, "checkpoint-20"), (25, None)]
    assert [whole[1][key] for key in ("accuracy", "macro", "low", "words_seen")] == [0.5, 0.25, 0.375, 1400]
    assert opened.item_rows("toy")[0]["step"] == 20
    shutil.rmtree(copied / "lstm-1" / "scores")
    comparison = compare(find_runs([copied / "lstm-1", copied / "gpt2-1"]))
    assert comparison.rows[0].figures["toy macro"].mean == 0.25
    assert not any(each.figure == "toy" for each in comparison.differences)  # there are no items


def test_losses_on_different_texts_are_not_compared(copied: Path) -> None:
    for seed in (1, 2):
        record = copied / f"lstm-{seed}" / "run.json"
        corpora = json.loads(record.read_text())["corpora"]
        corpora["test_corpus"]["digest"] = "f" * 64
        edit(record, corpora=corpora)
    comparison = compare(find_runs([copied]))
    assert {each.figure for each in comparison.differences} == {"toy"}
    assert any("not of one text" in note and "test ffffffffffff: lstm-1, lstm-2" in note for note in comparison.notes)


def test_a_run_that_was_not_scored_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "lstm-2" / "scores")
    comparison = compare(find_runs([copied]))
    assert "toy" not in comparison.rows[2].figures
    assert any(note.startswith("Not scored on toy: lstm-2.") for note in comparison.notes)


def test_an_accuracy_without_variation_has_no_interval(copied: Path) -> None:
    edit_result(copied / "bert-1" / "scores" / "checkpoint-20" / "toy.json", accuracy=1.0, interval=[1.0, 1.0])
    assert compare(find_runs([copied / "bert-1"])).rows[0].figures["toy"].over == ""


def test_a_page_has_the_colours_of_the_pictures(comparison: Comparison) -> None:
    found = page(comparison)
    assert all(f"--c{at}: {colour};" in found for at, colour in enumerate(COLOURS))


def test_what_is_not_equal_and_not_meant_is_reported(trained: Path, tmp_path: Path) -> None:
    assert all(each.equal or each.intended for each in compare(find_runs([trained])).conditions)
    for name in ("gpt2-1", "lstm-1"):
        shutil.copytree(trained / name, tmp_path / name)
    metrics = tmp_path / "lstm-1" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines() if '"step": 20' not in line))
    shutil.rmtree(tmp_path / "lstm-1" / "checkpoint-20")
    state = tmp_path / "lstm-1" / "checkpoint-10" / "trainer_state.json"
    state.write_text(re.sub(r'"words_seen": \d+', '"words_seen": 1', state.read_text()))
    comparison = compare(find_runs([tmp_path]))
    assert "words seen" in {each.name for each in comparison.conditions if not each.equal and not each.intended}
    assert any(note.startswith("Not trained to the end") for note in comparison.notes)


def test_a_setting_can_be_declared_to_vary(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (copied / "gpt2-2").glob("checkpoint-*/config.json"):
        path.write_text(re.sub(r'"learning_rate": [\d.e-]+', '"learning_rate": 0.125', path.read_text()))
    runs = [str(copied / "gpt2-1"), str(copied / "gpt2-2")]
    wrong = {}
    for varied in ((), ("--varied", "training.learning_rate")):
        assert main(["compare", *runs, "--json", *varied]) == 0
        conditions = json.loads(capsys.readouterr().out)["conditions"]
        wrong[varied] = {each["name"] for each in conditions if not each["equal"] and not each["intended"]}
    before, after = wrong.values()
    assert before - after == {"training.learning_rate"}
    assert main(["compare", *runs, "--varied", "training.nothing"]) == 2
    assert "none of the runs has such a setting" in capsys.readouterr().err


def test_tables_have_every_figure_for_a_paper(comparison: Comparison) -> None:
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(as_csv(comparison)))}
    for row in comparison.rows:
        for name, estimate in row.figures.items():
            assert float(rows[row.name][name]) == estimate.mean
            assert (rows[row.name][f"{name}_low"] == "") == (estimate.low is None)
    assert rows["bert"]["bits_per_byte"] == ""
    latex = as_latex(comparison)
    assert r"islands \& gaps" in latex
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    figures = len(comparison.overall)
    assert [line.count(" & ") for line in lines] == [figures] * 4 + [len(comparison.rows)] * 4


def test_macro_averages_stand_beside_the_one_over_items(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    macro = {"macro": 0.25, "macro_interval": [0.125, 0.5], "phenomena_macro": 0.375}
    edit_result(copied / "bert-1" / "scores" / "checkpoint-20" / "toy.json", **macro)
    comparison = compare(find_runs([copied]))
    bert = comparison.rows[0].figures
    assert (bert["toy macro"].mean, bert["toy macro"].low, bert["toy macro"].high) == (0.25, 0.125, 0.5)
    assert bert["toy phenomena"].mean == 0.375
    (row,) = (row for row in csv.DictReader(io.StringIO(as_csv(comparison))) if row["row"] == "bert")
    assert (row["toy macro"], row["toy macro_low"], row["toy phenomena"]) == ("0.25", "0.125", "0.375")
    assert r"$25.0 \pm 18.8$" in as_latex(comparison)
    assert "25.0<span" in page(comparison)
    assert "mean of the phenomena" in page(comparison)
    monkeypatch.chdir(copied)
    assert main(["compare", "bert-1"]) == 0
    printed = capsys.readouterr().out
    assert "toy, macro" in printed
    assert "25.0 ± 18.8" in printed
    assert re.search(r"mean of the phenomena +37\.5", printed)
    for columns in (60, 90, 200):  # a table that is too wide becomes several
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["compare", "."]) == 0
        tables = capsys.readouterr().out.partition("\n\nThe ")[0].partition("\n\npage")[0].split("\n\n")
        assert all(len(line) <= columns for each in tables for line in each.splitlines())
        assert [each.splitlines()[0].count("toy") for each in tables if each.startswith("model")][-1] == 2
        assert len([each for each in tables if each.startswith("model")]) == {60: 3, 90: 2, 200: 1}[columns]


HOSTILE = "</script><img src=x onerror=alert(1)>"


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the text of its data."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        if self.names[-1:] == ["script"] and not self.data:
            self.data = data


@pytest.fixture(scope="module")
def hostile(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs with names that are HTML, and a suite that is."""
    folder = tmp_path_factory.mktemp("hostile")
    for path in sorted(trained.glob("*-*")):
        shutil.copytree(path, folder / path.name)
        config = folder / path.name / "config.yaml"
        config.write_text(config.read_text().replace("architecture: lstm", f'architecture: "{HOSTILE}"'))
        for file in (folder / path.name / "scores").glob("*/toy.json"):
            text = json.dumps(read_averages(file)).replace("islands & gaps", HOSTILE.replace("/", r"\/"))
            file.write_bytes(sealed(json.loads(text)))
    return folder


def test_a_name_in_a_page_is_text_whatever_it_looks_like(hostile: Path) -> None:
    comparison = compare(find_runs([hostile]), "@data@ <b>")
    found = Elements(page(comparison))
    assert found.names.count("script") == 2
    assert not {"img", "b"} & set(found.names)
    data = json.loads(found.data)
    assert HOSTILE in data["rows"]
    assert HOSTILE in {chart["title"] for chart in data["charts"]}


@pytest.mark.long
def test_the_command_prints_the_table_and_writes_the_page(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(trained), "--output", "out", "--csv", "t.csv", "--latex", "t.tex"]) == 0
    printed = capsys.readouterr().out
    assert "islands & gaps" in printed
    assert printed.endswith("page: out/comparison.html\n")
    written = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    figures = ("train", "test-loss", "test-bits_per_byte", "test-perplexity_per_word", "toy")
    curves = {f"{name}-by-{axis}" for name in figures for axis in ("words", "tokens", "flops", "seconds")}
    pictures = {f"curves/{name}.{kind}" for name in curves for kind in ("png", "svg")}
    assert written == {"comparison.html", "table.csv", "table.tex"} | pictures
    assert Path("t.csv").read_text() == Path("out/table.csv").read_text()
    assert main(["compare", str(trained / "gpt2-1"), "--json"]) == 0  # the only run of its row
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["loss"]["mean"] == open_run(trained / "gpt2-1").evaluated[-1]["loss"]
    Path("paper.tex").write_text("\\documentclass{article}")
    for arguments, code in ((["--latex", "paper.tex", str(trained)], 2), (["nowhere"], 6), ([str(tmp_path)], 6)):
        assert main(["compare", *arguments]) == code
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["compare", str(trained), "--csv", "t.csv"]) == 0  # its own file is written again
    capsys.readouterr()
    for name in ("table.csv", "curves/toy-by-seconds.svg"):  # the last one: those before it are recognised as its own
        kept = Path("out", name).read_bytes()
        Path("out", name).write_bytes(b"my own")
        assert main(["compare", str(trained), "--output", "out"]) == 2
        assert f"out/{name} was not written by foundry compare" in capsys.readouterr().err
        assert Path("out", name).read_bytes() == b"my own"
        Path("out", name).write_bytes(kept)


@pytest.mark.long
@pytest.mark.skipif(program() is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_without_errors(hostile: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(compare(find_runs([hostile]), "study")))
    with browser(tmp_path / "profile") as shown:
        for width in (1280, 400):
            for dark in (False, True):
                shown.open(path, width=width, dark=dark)
                assert shown.value("document.documentElement.scrollWidth") <= width
                assert shown.value("document.querySelectorAll('figure svg .line').length") > 5
        colour = "getComputedStyle(document.body).backgroundColor"
        assert shown.value(colour) == "rgb(21, 24, 28)"
        shown.open(path, width=700, dark=True, media="print")
        assert shown.value(colour) == "rgb(255, 255, 255)"
        shown.open(path, width=1280)
        names = "[...document.querySelectorAll('table.sortable tbody')[0].rows].map(row => row.cells[0].textContent)"
        click = "[...document.querySelectorAll('th button')].find(each => each.textContent === 'loss').click()"
        shown.value(click)
        up = shown.value(names)
        shown.value(click)
        assert shown.value(names) == up[::-1]
        shown.value("document.getElementById('charts').scrollIntoView()")
        box = shown.value(
            "(({left, top, width}) => ({left, top, width}))(document.querySelector('svg').getBoundingClientRect())"
        )
        shown.point_at(box["left"] + box["width"] / 2, box["top"] + 60)
        assert "words seen" in shown.value("document.querySelector('.tip:not([hidden])').textContent")
        assert shown.messages == []
        assert set(shown.requests) <= {path.as_uri(), "data:,"}


@pytest.mark.long
@pytest.mark.skipif(program() is None, reason="no Chromium is installed")
def test_a_printed_page_is_legible_and_not_cut(copied: Path, tmp_path: Path) -> None:
    """With as many columns as eight models need."""
    for architecture in ("gru", "rnn", "mamba", "gpt2-wide-and-deep", "opt"):
        shutil.copytree(copied / "lstm-1", copied / f"{architecture}-1")
        config = copied / f"{architecture}-1" / "config.yaml"
        config.write_text(config.read_text().replace("architecture: lstm", f"architecture: {architecture}"))
    comparison = compare(find_runs([copied]), "study")
    assert len(comparison.rows) == 8
    path = tmp_path / "page.html"
    path.write_text(page(comparison))
    with browser(tmp_path / "profile") as shown:
        paper = 680  # the pixels between the margins of A4
        shown.open(path, width=paper, media="print")
        assert shown.value("document.documentElement.scrollWidth") <= paper
        shown.value("dispatchEvent(new Event('beforeprint'))")
        size = "parseFloat(getComputedStyle(document.querySelector('svg text')).fontSize)"
        scale = "(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)(document.querySelector('svg'))"
        assert shown.value(f"{size} * {scale}") > 10
        row = "[...document.querySelectorAll('tbody tr')].find(row => row.textContent.startsWith('{}'))"
        for start, display in (("model.architectureintended", "none"), ("training text", "table-row")):
            assert shown.value(f"getComputedStyle({row.format(start)}).display") == display


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((Path(__file__).parents[1] / "examples" / "first_study.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for at, cell in enumerate(cells, start=1):
        exec(compile(cell, f"cell {at}", "exec"), names)
    assert len(names["comparison"].rows) == 2
    assert Path("comparison.html").stat().st_size > 20_000
