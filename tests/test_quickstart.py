"""`foundry quickstart`: what it leaves behind, and the figures it promises."""

import json

import pytest
import torch

from foundry_core import load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.cli.quickstart import quickstart
from foundry_core.errors import UsageError

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_it_leaves_a_table_a_page_and_yamls_that_train_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = quickstart("qs", share=0.01)
    table, err = capsys.readouterr()
    assert err.count("also stand in data.training_corpus") == 1
    for name, figures in results.items():
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert f"{figures['test_loss']:.3f}" in line
    assert set(results) == {"gpt2", "bert", "lstm"}
    assert (tmp_path / "qs" / "comparison.html").stat().st_size > 10_000
    text_seen = [verify_run(tmp_path / "qs" / "runs" / name)[0][-1].text_seen for name in results]
    assert len(set(text_seen)) == 1
    config = load_config("qs/lstm.yaml", ["training.output_dir=again", "training.train_tokens=1k"])
    assert run(config, quiet=True).step > 0


def test_a_folder_whose_name_yaml_would_misread_is_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart("a: b # c", share=0.01)
    assert load_config("a: b # c/gpt2.yaml").training.output_dir == "a: b # c/runs/gpt2"


def test_it_can_be_repeated_and_touches_no_other_folder(tmp_path, capsys):
    quickstart(tmp_path / "qs", share=0.01)
    own = tmp_path / "qs" / "runs" / "own"
    own.mkdir()
    quickstart(tmp_path / "qs", share=0.01)
    assert own.is_dir()
    yaml = tmp_path / "qs" / "lstm.yaml"
    yaml.write_text(yaml.read_text().replace("num_layers: 1", "num_layers: 2"))
    runs = sorted((tmp_path / "qs" / "runs").rglob("*"))
    with pytest.raises(UsageError, match=r"lstm\.yaml was changed since quickstart wrote it: move it away"):
        quickstart(tmp_path / "qs", share=0.01)
    assert sorted((tmp_path / "qs" / "runs").rglob("*")) == runs
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="name another folder"):
        quickstart(tmp_path / "mine")
    assert main(["quickstart", str(tmp_path / "mine")]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_promised_figures_are_reached(tmp_path, record_property):
    results = quickstart(tmp_path / "qs")
    record_property("results", json.dumps(results))
    for name in ("gpt2", "lstm"):
        assert results[name]["test_loss"] < 1.05 * results[name]["test_floor"]
    assert all(figures["agreement"][0] > 0.95 for figures in results.values())
