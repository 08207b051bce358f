"""`foundry quickstart`: what it leaves behind, and the figures it promises."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch

from foundry_core import load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.cli.quickstart import quickstart
from foundry_core.errors import UsageError

pytestmark = pytest.mark.long

FOLDER = "a: b # c"


@pytest.fixture(autouse=True, scope="module")
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small quickstart in a folder whose name YAML would misread; its place, figures, and what it printed."""
    place = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as table:
        patch.chdir(place)
        with redirect_stderr(io.StringIO()) as errors:
            results = quickstart(FOLDER, share=0.01)
    return place, results, table.getvalue(), errors.getvalue()


def test_it_leaves_a_table_a_page_and_yamls_that_train_again(made, monkeypatch):
    place, results, table, err = made
    monkeypatch.chdir(place)
    assert err.count("also stand in data.training_corpus") == 1
    for name, figures in results.items():
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert f"{figures['test_loss']:.3f}" in line
        assert line.split()[-3:] == [f"{accuracy:.1%}" for accuracy in figures["agreement"]]
    assert set(results) == {"gpt2", "bert", "lstm"}
    assert "agreement, 1 attractor<" in (place / FOLDER / "comparison.html").read_text()
    text_seen = [verify_run(place / FOLDER / "runs" / name)[0][-1].text_seen for name in results]
    assert len(set(text_seen)) == 1
    config = load_config(f"{FOLDER}/lstm.yaml", ["training.output_dir=again", "training.train_tokens=1k"])
    assert run(config, quiet=True).step > 0


def test_a_folder_whose_name_yaml_would_misread_is_quoted(made):
    assert load_config(made[0] / FOLDER / "gpt2.yaml").training.output_dir == f"{FOLDER}/runs/gpt2"


def test_it_can_be_repeated_and_touches_no_other_folder(made, tmp_path):
    shutil.copytree(made[0] / FOLDER, tmp_path / "qs")
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
