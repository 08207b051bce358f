"""The examples of docs/evaluation/surprisal.md run on a table that foundry writes."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from foundry_core import run
from foundry_core.cli import main

GUIDE = Path(__file__).parents[1] / "docs" / "evaluation" / "surprisal.md"
MIXED, PYTHON = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def table(experiment, corpus, tmp_path, monkeypatch) -> list[list[str]]:
    """The rows of surprisal.tsv, in a folder with the run that wrote it."""
    monkeypatch.chdir(tmp_path)
    run(experiment("lstm", tmp_path, training={"output_dir": "runs/lstm"}), quiet=True)
    assert main(["surprisal", "runs/lstm", str(corpus.test), "--output", "surprisal.tsv"]) == 0
    header, *rows = [line.split("\t") for line in Path("surprisal.tsv").read_text().splitlines()]
    assert header[:3] == ["document", "sentence", "word"]
    return rows


def test_the_python_example_gives_the_values_of_the_table(table):
    names: dict[str, Any] = {}
    exec(PYTHON, names)
    assert len(names["nats"]) == 7
    assert (names["nats"] > 0).all()


@pytest.mark.long
def test_the_table_goes_into_a_mixed_model(table, capsys):
    pytest.importorskip("pandas")
    pytest.importorskip("statsmodels.formula.api")
    chance = random.Random(1)
    lines = ["subject\tdocument\tword\ttime"]
    for subject in range(8):
        own = chance.gauss(0, 20)
        for row in table:
            time = 250 + own + 10 * float(row[6]) + chance.gauss(0, 1)
            lines.append(f"s{subject}\t{row[0]}\t{row[2]}\t{time:.1f}")
    Path("times.tsv").write_text("\n".join(lines) + "\n")
    names: dict[str, Any] = {}
    exec(MIXED, names)
    assert "surprisal" in capsys.readouterr().out
    assert names["model"].params["surprisal"] == pytest.approx(10, abs=1)
    assert names["model"].pvalues["surprisal"] < 0.001
