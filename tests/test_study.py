"""Studies: the grid, its names and its refusals; matched widths; cells that run, stop and go on; their conditions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import open_run, run
from foundry_core.analysis.conditions import Condition, check_conditions
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.checkpoints.state import read_state, unchecked_manifest
from foundry_core.cli import main
from foundry_core.errors import ConfigError
from foundry_core.models.cost import parameter_count
from foundry_core.registry.discovery import installed
from foundry_core.registry.loading import get_architecture
from foundry_core.run_folder import LOCK, WEIGHTS
from foundry_core.storage.lock import RunLock
from foundry_core.study.definition import Study, StudySection, read_study
from foundry_core.study.folder import prepare, standing
from foundry_core.testing.toy_language import ToyCorpus
from tests.each import each

GUIDE = Path(__file__).parents[1] / "docs" / "evaluation" / "studies.md"
WIDTHS = {"embedding_size": 32, "hidden_size": 32, "intermediate_hidden_size": 64}
TRANSFORMER = {"layers": 1, **WIDTHS, "attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
GPT2 = {"architecture": "gpt2", "transformer": TRANSFORMER}
BERT = {"architecture": "bert", "transformer": TRANSFORMER}
LSTM = {"architecture": "lstm", "rnn": {"embedding_size": 16, "hidden_size": 16, "num_layers": 1, "dropout": 0.0}}
PAIRS = """paradigm\tphenomenon\tgood\tbad
simple\tnear\tthe dog sleeps .\tthe dog sleep .
simple\tnear\tthe dogs sleep .\tthe dogs sleeps .
attractor\tfar\tthe key to the houses falls .\tthe key to the houses fall .
attractor\tfar\tthe keys to the house fall .\tthe keys to the house falls .
relative\tfar\tthe man that sees the dogs laughs .\tthe man that sees the dogs laugh .
relative\tfar\tthe men that see the dog laugh .\tthe men that see the dog laughs .
"""

Written = Callable[..., Path]


@pytest.fixture
def written(corpus: ToyCorpus, tmp_path: Path) -> Written:
    """`written(grid, base={...}, **keys)`: the YAML of a study of tiny runs; sections of `base` lie over the tiny ones.

    Without seeds unless they are given.
    """

    def write(grid: Any, *, base: Any = (), **keys: Any) -> Path:
        content: dict[str, Any] = {
            "data": {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test), "max_sequence_length": 24},
            "tokenizer": {"tokenizer_type": "word", "vocab_size": 120},
            "model": LSTM,
            "training": {"train_steps": 4, "device": "cpu", "checkpoints": {"every_steps": 2}},
            "logging": {"log_every_steps": 1},
        }
        content["data"] |= {"batch_size": 4, "tokens_per_row": 20}
        for name, section in dict(base).items():
            content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section
        study = {"output_dir": str(tmp_path / "study"), "base": content, "grid": grid, **keys}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return write


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """A suite of six minimal pairs, which is called `tsv-agreement`."""
    path = tmp_path / "agreement.tsv"
    path.write_text(PAIRS)
    return str(path)


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    return str(caught.value).replace(f"{path}:", "").split("\n")


def test_cells_are_all_combinations_named_by_their_values(written: Written) -> None:
    grid = {
        "model": [GPT2, LSTM],
        "training.learning_rate": [1e-3, 2],
        "data.training_corpus": {"small": "corpora/a.txt", "all": "corpora/*.txt"},
    }
    study = read_study(written(grid, seeds=[7, 8]))
    names = [cell.name for cell in study.cells]
    assert len(names) == len(set(names)) == 16
    assert names[0] == "gpt2-learning_rate_0.001-small-seed7"
    assert names[-1] == "lstm-learning_rate_2-all-seed8"
    first, last = study.cells[0].config, study.cells[-1].config
    assert (first.model.architecture, first.training.learning_rate, first.random_seed) == ("gpt2", 1e-3, 7)
    assert (last.model.architecture, last.data.training_corpus, last.random_seed) == ("lstm", "corpora/*.txt", 8)
    assert Path(last.training.output_dir) == study.folder / names[-1]
    others = read_study(written({"data.training_corpus": ["x/one.txt", "x/two.txt"], "training.compile": [True]}))
    assert [cell.name for cell in others.cells] == ["one-compile_true", "two-compile_true"]


def test_seeds_alone_are_a_study(written: Written) -> None:
    path = written({}, seeds=[1, 2])
    path.write_text(path.read_text().replace("grid: {}\n", ""))
    assert [cell.name for cell in read_study(path).cells] == ["seed1", "seed2"]


def test_values_lie_over_the_base_and_models_replace_its_own(written: Written) -> None:
    grid = {
        "model.rnn.hidden_size": [24],  # before the section that it is in
        "model": {"deep": {**LSTM, "rnn": {**LSTM["rnn"], "num_layers": 2}}},  # type: ignore[dict-item]
        "training": {"fast": {"learning_rate": 0.5}},
        "both": {"a": {"data.batch_size": 2, "training.weight_decay": 0.0}},
    }
    (cell,) = read_study(written(grid, base={"model": GPT2})).cells
    assert cell.name == "hidden_size_24-deep-fast-a"
    model = cell.config.resolved()["model"]
    assert (model["architecture"], model["rnn"]["num_layers"], model["rnn"]["hidden_size"]) == ("lstm", 2, 24)
    assert (cell.config.training.learning_rate, cell.config.training.train_steps) == (0.5, 4)
    assert (cell.config.data.batch_size, cell.config.training.weight_decay) == (2, 0.0)


def test_all_cells_compute_with_one_choice_and_share_tokenizers(written: Written) -> None:
    grid = {"model": [GPT2, BERT], "tokenizer.vocab_size": [50, 60]}
    study = read_study(written(grid, base={"training": {"precision": "auto", "kernels": "reference"}}, seeds=[1, 2]))
    chosen = {(c.training.precision, c.training.compile, c.training.kernels) for c in map(config_of, study.cells)}
    assert chosen == {("fp32", False, "reference")}
    folders = {cell.config.tokenizer.output_dir for cell in study.cells}
    by_size = {(cell.config.tokenizer.vocab_size, cell.config.tokenizer.output_dir) for cell in study.cells}
    assert len(folders) == len(by_size) == 2
    assert all(study.folder / "tokenizers" == Path(str(folder)).parent for folder in folders)


def config_of(cell: Any) -> Any:
    return cell.config


@each(
    "grid, keys, key, problem",
    [
        ({"modle": [LSTM]}, {}, "grid.modle", "Did you mean 'model'?"),
        ({"x": {"a": {"tranining.epochs": 1}}}, {}, "grid.x.a.tranining.epochs", "Did you mean 'training'?"),
        ({"model": {}}, {}, "grid.model", "must be a list of values"),
        ({"training.learning_rate": 1e-3}, {}, "grid.training.learning_rate", "must be a list of values"),
        ({"model": [LSTM, LSTM]}, {}, "grid.model", "give the values names of their own"),
        ({"model": {"../up": LSTM}}, {}, "grid.model.../up", "is not a name for a folder"),
        ({"training.output_dir": ["x"]}, {}, "grid.training.output_dir", "is set by the study"),
        ({"model": {"logs": LSTM}}, {}, "grid", "is a file of the study"),
        ({}, {}, "grid", "has no cells"),
        ({"model": [LSTM]}, {"sedes": [1]}, "sedes", "Did you mean 'seeds'?"),
        ({"model": [LSTM]}, {"seeds": [1, 1]}, "seeds", "two values would be called 'seed1'"),
        ({"model": [LSTM]}, {"match": {"parameters": "2M"}}, "match.by", "missing"),
        ({"model": [LSTM]}, {"match": {"parameters": "2M", "by": {"gpt2": "x"}}}, "match.by.gpt2", "is neither"),
        ({"model": [LSTM, GPT2]}, {"match": {"parameters": "2M", "by": {"lstm": "x"}}}, "match.by", "cell gpt2"),
        # A key of an experiment, wrong in it: at the line of the value, and once for all cells that have it.
        ({"model.rnn.hidden_size": [8, 0]}, {"seeds": [1, 2]}, "model.rnn.hidden_size", "(cell hidden_size_0-seed1)"),
        ({"model": {"a": {**LSTM, "rnn": {"hiden_size": 3}}}}, {}, "model.rnn.hiden_size", "Did you mean"),
        ({"training.nothing": [1]}, {}, "training.nothing", "unknown key"),
    ],
)
def test_a_problem_is_refused_at_its_line(
    written: Written, grid: Any, keys: Any, key: str, problem: str, corpus: ToyCorpus
) -> None:
    path = written(grid, **keys)
    lines = path.read_text().splitlines()
    found = [line for line in problems(path) if f" {key}: " in f" {line.partition(' ')[2]}"]
    assert len(found) == 1, problems(path)
    assert problem in found[0]
    number = int(found[0].partition(":")[0])
    if key.startswith(("model", "training")):
        name = key.rpartition(".")[2]
        assert name in lines[number - 1] or lines[number - 1].strip() in ("- 0", "- 1")
        assert number > lines.index("grid:")


def test_a_problem_of_the_base_is_at_its_line_in_its_own_file(written: Written, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"data:\n  training_corpus: {tmp_path}\n  bacth_size: 3\ntraining: {{train_steps: 1}}\n")
    path = written({"model": [LSTM, GPT2]}, seeds=[1, 2])
    content = yaml.safe_load(path.read_text()) | {"base": str(base)}
    path.write_text(yaml.safe_dump(content))
    assert problems(path) == [f"{base}:3: data.bacth_size: unknown key. Did you mean 'batch_size'?"]


def test_suites_are_read_before_anything_is_made(
    written: Written, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.tsv"
    damaged.write_text("good\tbad\nthe dog sleeps .\t\n")
    wrong = {
        "suites.1": ("blimp", "'blimp' is a format, without files of its own: write blimp=PATH"),
        "suites.2": ("not/there", "not/there: no such file or folder"),
        "suites.3": (str(damaged), f"{damaged}:2: has a good sentence, but no bad one."),
        "suites": (pairs, "2 suites are called tsv-agreement"),
    }
    path = written({"model": [LSTM, BERT]}, suites=[pairs, *(suite for suite, _ in wrong.values())])
    number = path.read_text().splitlines().index("- blimp") + 1
    for verb in ("study", "plan"):
        assert main([verb, str(path)]) == 2
        found = [line.split(": ", 2) for line in capsys.readouterr().err.splitlines()]
        assert {key for _, key, _ in found} == wrong.keys()
        assert all(wrong[key][1] in problem for _, key, problem in found)
        assert next(place for place, key, _ in found if key == "suites.1") == f"{path}:{number}"
    assert not (tmp_path / "study").exists()


@each(
    "options, problem",
    [
        (["--json"], "add --list or --check"),
        (["--list", "--check"], "ask one at a time"),
        (["--list", "--cell", "1"], "--cell is for training, and --list trains nothing"),
        (["--check", "--jobs", "1"], "--jobs is for training, and --check trains nothing"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    written: Written, options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(written({"model": [LSTM]})), *options]) == 2
    assert problem in capsys.readouterr().err


def test_a_study_and_an_experiment_are_told_apart(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    path = written({"model": [LSTM]})
    assert main(["validate", str(path)]) == 2
    assert f"foundry study {path}" in capsys.readouterr().err
    path.write_text("output_dir: x\ngrid: {model: [{architecture: lstm}]}\nbase: 3\n")
    assert problems(path) == ["3: base: must be the path of a YAML, or its content"]
    path.write_text("data: {}\n")
    assert main(["study", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}:1: base: missing")
    path.write_text("output_dir: x\nbase: configs/lstm.yaml\ngird: {}\n")
    assert problems(path) == ["3: gird: unknown key. Did you mean 'grid'?"]
    for verb in ("validate", "plan"):
        assert main([verb, str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_widths_are_found_within_one_percent(written: Written) -> None:
    by = {
        "gpt2": ["model.transformer.hidden_size", "model.transformer.intermediate_hidden_size"],
        "bert": "model.transformer.hidden_size",
        "lstm": "model.rnn.hidden_size",
        "fixed": None,
    }
    grid = {"model": {"gpt2": GPT2, "bert": BERT, "lstm": LSTM, "fixed": LSTM}}
    path = written(grid, seeds=[1, 2], match={"parameters": "200k", "by": by})
    study = prepare(read_study(path))
    tokenizers = {cell.config.tokenizer.output_dir for cell in study.cells}
    assert len(tokenizers) == 1
    for cell in study.cells:
        if cell.values["model"] == "fixed":
            assert (cell.matched, cell.parameters) == (None, None)
            continue
        assert cell.parameters is not None
        assert abs(cell.parameters / 200_000 - 1) <= 0.01
        assert run_size(cell.config) == cell.parameters
    sizes = study.cells[0].config.resolved()["model"]["transformer"]
    assert sizes["intermediate_hidden_size"] == 2 * sizes["hidden_size"]
    assert sizes["embedding_size"] == sizes["hidden_size"] != 32
    assert study.cells[0].matched == study.cells[1].matched
    stored = json.loads((study.folder / "cells.json").read_text())["cells"]
    assert [cell["matched"] for cell in stored] == [dict(cell.matched or {}) for cell in study.cells]
    again = prepare(read_study(study.folder))  # its own copy is the same study
    assert [cell.config.resolved() for cell in again.cells] == [cell.config.resolved() for cell in study.cells]


def test_widths_are_found_again_for_another_vocabulary(
    written: Written, corpus: ToyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the dog sleeps .\nthe man sees the dog .\n" * 20)
    data = {"training_corpus": str(text), "test_corpus": None}
    match = {"parameters": "100k", "by": "model.rnn.hidden_size"}
    path = written({"model": [LSTM]}, base={"data": data}, seeds=[1, 2], match=match)
    small = prepare(read_study(path)).cells
    text.write_bytes(corpus.train.read_bytes())
    assert main(["tokenizer", "train", str(tmp_path / "study" / "configs" / "lstm-seed1.yaml"), "--force"]) == 0
    capsys.readouterr()
    large = prepare(read_study(path)).cells
    assert "parameters with its tokenizer as it is now" in capsys.readouterr().err
    assert large[0].matched == large[1].matched != small[0].matched
    for cell in large:
        assert cell.parameters == run_size(cell.config)
        assert abs(run_size(cell.config) / 100_000 - 1) <= 0.01
    shutil.rmtree(tmp_path / "study" / "tokenizers")
    again = prepare(read_study(path)).cells
    assert [cell.matched for cell in again] == [cell.matched for cell in large]
    assert again[0].parameters == run_size(again[0].config)
    assert capsys.readouterr().err == ""


def run_size(config: Any) -> int:
    """The parameters of the model that a cell trains."""
    from foundry_core.models.base import create_model
    from foundry_core.tokenization.tokenizer_folder import load_tokenizer

    tokenizer = load_tokenizer(Path(config.tokenizer.output_dir))
    total = create_model(config, tokenizer).get_parameter_count().total
    assert parameter_count(config, tokenizer) == total
    return total


def test_no_width_within_one_percent_names_the_closest(written: Written, tmp_path: Path) -> None:
    heads = {**GPT2, "transformer": {**TRANSFORMER, "attention_heads": 16}}
    match: dict[str, Any] = {"parameters": "60k", "by": "model.transformer.hidden_size"}
    path = written({"model": [heads]}, match=match)
    with pytest.raises(ConfigError, match=r"match\.by: no model\.transformer\.hidden_size is within 1%") as caught:
        prepare(read_study(path))
    closest = re.search(
        r"the closest is hidden_size (\d+), with ([\d,]+) \(([\d.]+)% (more|fewer)\)", str(caught.value)
    )
    assert closest is not None
    assert int(closest.group(1)) % 16 == 0
    assert not any((tmp_path / "study").glob("gpt2*"))
    # A second key makes up the difference.
    match["by"] = ["model.transformer.hidden_size", "model.transformer.intermediate_hidden_size"]
    (cell,) = prepare(read_study(written({"model": [heads]}, match=match))).cells
    assert cell.parameters is not None
    assert abs(cell.parameters / 60_000 - 1) <= 0.01
    assert cell.matched is not None
    assert cell.matched["model.transformer.hidden_size"] % 16 == 0


@pytest.fixture
def finished(written: Written, one_thread: None) -> Study:
    """A study of four cells, gpt2 and lstm with two seeds, trained."""
    study = prepare(read_study(written({"model": [BERT, LSTM]}, seeds=[1, 2])))
    for cell in study.cells:
        run(cell.config, quiet=True)
    return study


def by_name(conditions: list[Condition]) -> dict[str, Condition]:
    return {each.name: each for each in conditions}


def test_conditions_are_equal_but_for_the_grid(finished: Study, capsys: pytest.CaptureFixture[str]) -> None:
    found = by_name(check_conditions(finished.folder))
    assert all(each.intended for each in found.values())
    assert found["words seen"].equal
    assert found["training text"].equal
    assert found["tokenizer"].equal
    rows = found["rows in their order"].values
    assert rows["bert-seed1"] == rows["lstm-seed1"] != rows["lstm-seed2"] == rows["bert-seed2"]
    assert found["masks"].values["lstm-seed1"] is None
    assert not found["masks"].equal
    assert found["training.objective"].intended
    assert not found["training.objective"].equal
    assert main(["study", str(finished.folder), "--check"]) == 0
    assert "DIFFERS" not in capsys.readouterr().out


def test_a_difference_outside_the_grid_is_reported(
    finished: Study, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.folder
    other = read_study(written({"model": [BERT, LSTM]}, seeds=[1, 2], base={"data": {"batch_size": 3}}))
    path = folder / "lstm-seed1"
    for checkpoint in checkpoints(path):
        shutil.rmtree(checkpoint)
    run(other.cells[2].config, quiet=True)
    found = by_name(check_conditions(folder))
    wrong = {name for name, each in found.items() if not each.intended}
    assert {"data.batch_size", "words seen", "rows in their order"} <= wrong
    assert not wrong & {"tokenizer", "training text", "masks", "model.architecture", "random_seed"}
    assert main(["study", str(folder), "--check"]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if "data.batch_size differs" in line)
    assert line.endswith("; 3: lstm-seed1")


def test_runs_of_no_study_are_compared_for_models_and_seeds(written: Written, one_thread: None) -> None:
    grid = {"model": [BERT, LSTM], "training.mlm_probability": [0.2, 0.3]}
    study = prepare(read_study(written(grid, seeds=[1, 2])))
    (bert, _, other_bert, _, lstm, *_) = study.cells
    for cell in (bert, other_bert, lstm):
        run(cell.config, quiet=True)
    # A causal model does not read how many tokens are hidden.
    runs = by_name(check_conditions([other_bert.folder, lstm.folder]))
    assert all(each.intended for each in runs.values())
    assert runs["training.mlm_probability"].values == {other_bert.name: 0.3, lstm.name: None}
    assert list(runs["steps"].values) == [other_bert.name, lstm.name]
    unintended = {each.name for each in check_conditions([bert.folder, other_bert.folder]) if each.unintended}
    assert unintended == {"masks", "training.mlm_probability"}


def test_the_list_shows_how_far_each_cell_is(
    written: Written, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    path = written({"model": [LSTM]}, seeds=[1, 2, 3], match={"parameters": "50k", "by": "model.rnn.hidden_size"})
    study = prepare(read_study(path))
    run(study.cells[0].config, quiet=True)
    run(study.cells[1].config, quiet=True)
    shutil.rmtree(study.folder / "lstm-seed2" / "checkpoint-4")
    assert main(["study", str(path), "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(cell["number"], cell["name"], cell["state"], cell["step"]) for cell in listed] == [
        (1, "lstm-seed1", "done", 4),
        (2, "lstm-seed2", "begun", 2),
        (3, "lstm-seed3", "new", 0),
    ]
    assert main(["study", str(path), "--cell", "4"]) == 2
    assert "there is no such cell" in capsys.readouterr().err
    # With a longer budget the first is not done any more.
    assert standing(study.cells[0]).state == "done"
    assert standing(study.cells[0].changed({"training.train_steps": 9})).state == "begun"


def test_a_run_that_stopped_early_is_done(written: Written, corpus: ToyCorpus, one_thread: None) -> None:
    early = {"learning_rate": 10.0, "evaluate_every_steps": 1, "early_stopping_patience": 1, "train_steps": 50}
    data = {"validation_corpus": str(corpus.test), "test_corpus": None}
    study = prepare(read_study(written({"model": [LSTM]}, base={"training": early, "data": data})))
    assert run(study.cells[0].config, quiet=True).step < 50
    assert standing(study.cells[0]).state == "done"


def test_the_example_of_the_guide_is_a_study(tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    example, first, grid = examples
    assert StudySection.model_validate(yaml.safe_load(first)).base == "quickstart/lstm.yaml"
    (tmp_path / "x.yaml").write_text(example)
    study = read_study(tmp_path / "x.yaml")
    assert [cell.name for cell in study.cells[:3]] == ["gpt2-seed1", "gpt2-seed2", "bert-seed1"]
    base = {**study.base, "model": LSTM}
    (tmp_path / "y.yaml").write_text(
        yaml.safe_dump({"output_dir": "x", "base": base, **yaml.safe_load(grid)}, sort_keys=False)
    )
    names = [cell.name for cell in read_study(tmp_path / "y.yaml").cells]
    assert names == ["causal-spoken", "causal-written", "masked-spoken", "masked-written"]


COMMAND = [sys.executable, "-m", "foundry_core.cli", "study"]


def begun(path: Path, *options: str) -> subprocess.Popen[bytes]:
    """A study in a process group of its own, as a shell starts it."""
    return subprocess.Popen([*COMMAND, str(path), *options], process_group=0, stderr=subprocess.PIPE)


def until(process: subprocess.Popen[bytes], place: Path) -> None:
    """Wait until a path is there. The study must not end before."""
    while not place.exists():
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        assert place.exists(), process.communicate()[1].decode()


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


def results(study: Path) -> dict[str, Any]:
    """By cell, the digest of the last weights, and the log of all losses."""
    found = {}
    for cell in json.loads((study / "cells.json").read_text())["cells"]:
        last = checkpoints(study / cell["folder"])[-1]
        found[cell["name"]] = (unchecked_manifest(last)["files"][WEIGHTS]["sha256"], read_state(last).log)
    return found


def compared(study: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `foundry compare` finds in a study, but for the time that its runs took."""
    capsys.readouterr()
    assert main(["compare", str(study), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        row.pop("seconds", None)
    return found


@pytest.mark.long
def test_suites_of_a_study_are_in_its_comparison(
    written: Written, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    path = written({"model.rnn.hidden_size": {"narrow": 16, "wide": 32}}, suites=[pairs])
    study = prepare(read_study(path))
    for cell in study.cells:
        run(cell.config, quiet=True)
    assert main(["study", str(path), "--jobs", "2"]) == 0  # trained, so that only scoring is left
    assert capsys.readouterr().out.splitlines()[-1] == f"Next: foundry compare {study.folder}"
    accuracies: dict[str, float] = {}
    for cell in study.cells:
        frame = open_run(cell.folder).scores()
        whole = frame[(frame.level == "suite") & (frame.suite == "tsv-agreement")]
        assert whole.step.tolist() == [0, 2, 4]
        items = open_run(cell.folder).items("tsv-agreement")
        assert items.step.tolist() == [4] * PAIRS.count(" .\t")
        accuracies[cell.name] = whole.accuracy.iloc[-1]
        assert items.right.mean() == pytest.approx(accuracies[cell.name])
    found = compared(study.folder, capsys)
    assert {row["name"]: row["tsv-agreement"]["mean"] for row in found["rows"]} == pytest.approx(accuracies)
    assert all({"tsv-agreement/near", "tsv-agreement/far"} <= row.keys() for row in found["rows"])
    (difference,) = [each for each in found["differences"] if each["figure"] == "tsv-agreement"]
    assert difference["mean"] == pytest.approx(accuracies["narrow"] - accuracies["wide"])


@pytest.mark.long
def test_only_cells_that_miss_results_are_scored_again(written: Written, pairs: str, one_thread: None) -> None:
    path = written({"model.rnn.hidden_size": {"narrow": 16, "wide": 32}}, suites=[pairs])
    study = prepare(read_study(path))
    for cell in study.cells:
        run(cell.config, quiet=True)
        assert main(["evaluate", str(cell.folder), "--suite", pairs, "--all"]) == 0

    def content() -> dict[str, bytes]:
        return {str(file.relative_to(study.folder)): file.read_bytes() for file in files_below(study.folder)}

    before = content()
    assert main(["study", str(path)]) == 0
    assert content() == before  # the log of a cell is written as soon as a process of it is started
    kept = study.folder / "wide" / "scores" / "checkpoint-2" / "tsv-agreement.tsv"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert main(["study", str(path)]) == 0
    after = content()
    assert after.keys() - before.keys() == {"logs/wide.log"}
    assert before.items() <= after.items()
    # Of another suite of that name nothing is there.
    Path(pairs).write_text(PAIRS + PAIRS.splitlines()[1].replace("dog", "cat"))
    assert main(["study", str(path)]) == 0
    assert content().keys() - after.keys() == {"logs/narrow.log"}


@pytest.mark.long
def test_a_cell_of_another_process_is_waited_for(written: Written, one_thread: None) -> None:
    path = written({"model": [LSTM]}, seeds=[1, 2])
    first, second = prepare(read_study(path)).cells
    first.folder.mkdir()
    with RunLock(first.folder):  # as a cell holds it that has outlived its study
        process = begun(path)
        assert process.stderr is not None
        lines = [process.stderr.readline().decode() for _ in range(3)]
        assert lines[0].startswith(f"{first.name}: in use by pid {os.getpid()} on ")
        assert [line.partition(",")[0] for line in lines[1:]] == [f"{second.name}: begins", f"{second.name}: done"]
        assert (standing(second).state, process.poll()) == ("done", None)
    _, errors = process.communicate(timeout=60)
    rest = [line.partition(",")[0] for line in errors.decode().splitlines()]
    assert (process.returncode, rest) == (0, [f"{first.name}: begins", f"{first.name}: done"])


@pytest.mark.long
def test_a_signal_lets_the_cells_save_and_ends_the_study(written: Written, tmp_path: Path) -> None:
    path, folder = written({"training.train_steps": {"long": 10**6, "short": 2}}), tmp_path / "study"
    process = begun(path, "--jobs", "2")
    until(process, folder / "short" / "checkpoint-2" / "MANIFEST.json")
    until(process, folder / "long" / "checkpoint-0" / "MANIFEST.json")
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the cells get it, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert re.search(rb"stopped by SIGTERM with [01] of 2 cells done, nothing is lost", errors)
    log = (folder / "logs" / "long.log").read_text()
    assert re.search(r"stopped by SIG\w+ after step [\d,]+ of 1,000,000: go on from checkpoint-\d+", log)
    assert [standing(cell).state for cell in read_study(path).cells] == ["begun", "done"]


@pytest.mark.long
def test_a_cell_that_fails_leaves_the_others_alone(written: Written, one_thread: None) -> None:
    path = written({"training.learning_rate": {"fails": 0.02, "works": 0.01}})
    study = prepare(read_study(path))
    run(study.cells[1].config, quiet=True)
    (study.cells[0].folder / "checkpoint-2").mkdir(parents=True)  # damaged: there is nothing to resume
    process = begun(path)
    _, errors = process.communicate(timeout=60)
    lines = errors.decode().splitlines()
    assert process.returncode == 7
    assert any(line.startswith("error: fails failed with exit code 6: error: nothing to resume") for line in lines)
    assert "works" not in "".join(lines)  # done, and so skipped


def test_a_plan_has_each_cell_and_the_sum(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    match = {"parameters": "50k", "by": "model.rnn.hidden_size"}
    path = written({"training.train_steps": [3, 5]}, seeds=[1, 2], match=match)
    assert main(["plan", str(path), "--no-timing", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [cell["steps"] for cell in plan["cells"]] == [3, 3, 5, 5]
    assert all(abs(cell["parameters"] / 50_000 - 1) <= 0.01 for cell in plan["cells"])
    assert plan["sum"]["disk_bytes"] == sum(cell["disk_bytes"] for cell in plan["cells"])
    assert main(["plan", str(path), "--no-timing"]) == 0
    shown = capsys.readouterr().out
    assert "\nsum " in shown
    assert "  hidden_size" in shown
    assert main(["plan", str(path), "training.train_steps=3"]) == 2


def test_a_plan_for_several_processes_is_one_for_each_cell(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(written({"training.gradient_accumulation_steps": [2, 4]})), "--no-timing"]
    plans = []
    for processes in ("1", "2"):
        assert main([*command, "--json", "--processes", processes]) == 0
        plans.append(json.loads(capsys.readouterr().out)["cells"])
    assert [[cell["processes"] for cell in cells] for cells in plans] == [[1, 1], [2, 2]]
    assert [[cell["rows_of_a_process_in_a_step"] for cell in cells] for cells in plans] == [[8, 16], [4, 8]]
    assert all(one[key] == two[key] for key in ("steps", "parameters") for one, two in zip(*plans, strict=True))
    assert main([*command, "--processes", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "4 processes cannot divide" in line
    assert "there can be 1, 2. " in line


@pytest.mark.slow
def test_a_study_killed_twice_ends_as_one_left_alone(
    written: Written, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformer = {**TRANSFORMER, "dropout": 0.1}
    grid: dict[str, Any] = {name: {"architecture": name, "transformer": transformer} for name in ("gpt2", "bert")}
    grid["lstm"] = LSTM
    wide = "model.transformer.hidden_size"
    by: dict[str, str | None] = {"gpt2": wide, "bert": wide, "lstm": "model.rnn.hidden_size"}
    if "ngram" in installed():
        grid["ngram"] = {"architecture": "ngram", **next(iter(get_architecture("ngram").examples.values()))}
        by["ngram"] = None
    training = {"train_steps": 60, "checkpoints": {"every_steps": 10}, "evaluate_every_steps": 20}
    keys = {"base": {"training": training}, "seeds": [1, 2], "match": {"parameters": "100k", "by": by}}
    keys["suites"] = [pairs]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in one order, however many processes there are
    path, folder = written({"model": grid}, **keys), tmp_path / "study"
    for place in ("gpt2-seed2/checkpoint-20", "lstm-seed1/checkpoint-10"):
        process = begun(path, "--jobs", "2")
        until(process, folder / place / "MANIFEST.json")
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    assert main(["study", str(path), "--jobs", "2"]) == 0
    assert len(read_study(path).cells) == 2 * len(grid)
    disturbed, its_table = results(folder), compared(folder, capsys)
    folder.rename(tmp_path / "disturbed")
    assert main(["study", str(path)]) == 0
    assert results(folder) == disturbed
    assert compared(folder, capsys) == its_table
    assert [len(row["runs"]) for row in its_table["rows"]] == [2] * len(grid)
    accuracies = [row["tsv-agreement"] for row in its_table["rows"]]
    # Two seeds that have the same value do not have an interval.
    assert all(each["over"] == ("" if each["low"] is None else "seeds") for each in accuracies)
    assert "tsv-agreement" in {difference["figure"] for difference in its_table["differences"]}
    matched = json.loads((folder / "cells.json").read_text())["cells"]
    assert all(abs(cell["parameters"] / 100_000 - 1) <= 0.01 for cell in matched if cell["matched"])
    assert main(["study", str(path), "--check"]) == 0
