"""The benchmarks: a smoke run measures every row, and losses agree where the work is said to be equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.extrapolation import CLUSTERS, MODELS, efficiency, markdown
from benchmarks.inputs import SIZES, TEXTS
from benchmarks.measuring import Ratio, Row
from benchmarks.report import table
from benchmarks.scaling import Line

ROOT = Path(__file__).parents[1]


def smoke_run(output: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", *arguments, "--quick", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results: dict[str, Any] = json.loads(output.read_text())
    return results


@pytest.mark.long
def test_losses_of_equal_work_agree_in_the_json(tmp_path: Path) -> None:
    results = smoke_run(tmp_path / "x.json", "train", "--sizes", "gpt2 tiny", "--no-compile", "--no-bf16")
    curves = {name: each.get("losses") for name, each in results["train"]["gpt2 tiny"]["contenders"].items()}
    ours, theirs = curves["foundry"], curves["transformers"]
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(1, 7))
    assert all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(ours, theirs, strict=True)), (ours, theirs)
    assert ours[0][1] > ours[-1][1]
    rows = {row["against"]: row for row in results["rows"]}
    assert rows["transformers"]["result"]["rounds"] == 2
    assert rows["nanoGPT"]["note"] == "no checkout with model.py was named"
    assert rows["nanoGPT, compiled"]["verdict"] == "not measured"


@pytest.mark.slow
def test_a_smoke_run_measures_every_row(tmp_path: Path) -> None:
    results = smoke_run(tmp_path / "x.json", "--no-compile", "--no-bf16")
    found = [row for row in results["rows"] if row["result"] is None]
    optional = ("nanoGPT", "plain loop", "minicons", "run_clm", "Trainer script", "transformers, best settings")
    assert [row for row in found if not row["against"].startswith(optional)] == []
    parts = {"train", "memory", "prepare", "score", "save", "start", "grow", "scale", "extrapolated"}
    assert {row["part"] for row in results["rows"]} == parts
    assert set(results["train"]) == set(SIZES)
    for size in ("bert small, dropout 0", "gpt2 base"):
        apart = results["train"][size]["largest_loss_difference"]
        assert apart.get("transformers, our masks", apart["transformers"]) < 1e-4, size


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_text_of_the_benchmarks_is_the_same_each_time(name: str) -> None:
    text = TEXTS[name](50_000)
    assert text == TEXTS[name](50_000)
    assert 50_000 <= len(text) + 2000 <= 54_000


def test_a_row_states_the_limit_that_it_reaches() -> None:
    ratio = Ratio.of([2.0, 3.0, 4.0], [1.0, 2.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.5, 2.0)
    fast = [Row("train", "x", "y", ratio, *limits).verdict for limits in ((1.5, 2.0), (1.5, 2.1), (2.1, 3.0))]
    assert fast == ["aim", "at least", "below"]
    small = [
        Row("save", "x", "y", ratio, *limits, lower=True).verdict for limits in ((2.5, 2.0), (2.5, 1.9), (1.2, 0.9))
    ]
    assert small == ["aim", "at least", "below"]
    missing = Row("train", "x", "y", None, 1.5, note="no checkout")
    assert missing.verdict == "not measured"
    assert "no checkout" in table([missing])


def test_a_fit_recovers_latency_and_bandwidth_of_an_exchange() -> None:
    sizes = [2**12, 2**16, 2**20, 2**24]
    line = Line.fitted({size: 1e-4 + 1.5 * size / 2e9 for size in sizes}, processes=4)
    assert line.latency == pytest.approx(1e-4)
    assert line.bandwidth == pytest.approx(2e9)
    assert line.seconds(2**20, 4) == pytest.approx(1e-4 + 1.5 * 2**20 / 2e9)


def test_efficiency_falls_with_gpus_and_with_slower_links() -> None:
    for model in MODELS:
        machine, others, cluster = (efficiency(model, CLUSTERS[number]) for number in (0, 1, 3))
        assert 1 >= machine.fast >= machine.exact_by_machine >= others.exact_by_machine > 0
        assert machine.exact == pytest.approx(machine.exact_by_machine, abs=0.01)  # one machine: the same traffic
        assert cluster.exact < cluster.exact_by_machine < machine.exact


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    assert markdown() in (ROOT / "docs" / "training" / "scaling.md").read_text(encoding="utf-8")
