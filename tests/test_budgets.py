"""Budgets and schedules: never more than promised, in every unit, whatever the order of the rows."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from foundry_core import ExperimentConfig, load_config
from foundry_core.cli import main
from foundry_core.data.order import SampleOrder, StreamSizes
from foundry_core.data.preparation import ExperimentData
from foundry_core.data.rows import Rows
from foundry_core.data.token_file import TokenFile, TokenInfo
from foundry_core.errors import UsageError
from foundry_core.training.plan import UNITS, RunPlan, rows_within, tokens_in
from foundry_core.training.run import run

GUIDE = Path(__file__).parents[1] / "docs" / "training" / "budgets.md"
BUDGETS = {"train_words": "words", "train_tokens": "tokens", "train_bytes": "bytes", "epochs": "epochs"}
TRIALS = 300


def data_of(tokens: int, per_row: int, words: int, text_bytes: int) -> ExperimentData:
    """The training data of a corpus of that size."""
    stream: Any = np.zeros(tokens + 1, dtype=np.uint16)
    info = TokenInfo(
        format=2,
        digest="",
        corpus_digest="",
        tokenizer_digest="",
        separator_id=0,
        dtype="<u2",
        tokens=tokens + 1,
        documents=1,
        unknown=0,
        words=words,
        text_bytes=text_bytes,
        line_ends=1,
        account={},
        tokens_sha256="",
        documents_sha256="",
    )
    rows = Rows(stream, "overlap", per_row)
    return ExperimentData(TokenFile(stream, stream, info), rows, SampleOrder(len(rows), 0), None, None)


def amount_of(draw: random.Random, unit: str, epoch: int) -> float:
    """An amount from next to nothing to a few epochs, often a whole number of them."""
    epochs = draw.choice([draw.uniform(0, 0.1), draw.uniform(0, 3), draw.randint(1, 4)])
    return max(round(epochs, draw.randint(1, 6)), 1e-6) if unit == "epochs" else max(1, int(epochs * epoch))


def schedule_of(draw: random.Random, sizes: dict[str, int]) -> dict[str, Any]:
    milestones = {
        unit: [amount_of(draw, unit, sizes.get(unit, 1)) for _ in range(draw.randint(0, 3))] for unit in UNITS
    }
    schedule: dict[str, Any] = {"milestones": milestones, "steps": [draw.randint(0, 50) for _ in range(3)]}
    if draw.random() < 0.5:
        schedule["every_steps"] = draw.randint(1, 20)
    if draw.random() < 0.5:
        schedule["log_base"] = draw.choice([1.01, 1.5, 2.0, 10.0])
    return schedule


def experiment_of(draw: random.Random, key: str, amount: float, schedule: dict[str, Any]) -> ExperimentConfig:
    return load_config(
        {
            "experiment_name": "x",
            "data": {"training_corpus": "a", "test_corpus": "b", "batch_size": draw.randint(1, 16)},
            "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
            "training": {
                "output_dir": "r",
                key: amount,
                "gradient_accumulation_steps": draw.randint(1, 3),
                "checkpoints": schedule,
                "evaluate_at": schedule,
            },
        }
    )


def trials() -> Iterator[tuple[random.Random, dict[str, int], ExperimentData, str, float, ExperimentConfig]]:
    for seed in range(TRIALS):
        draw = random.Random(seed)
        tokens, per_row = draw.randint(1, 2000), draw.randint(1, 40)
        sizes = {"tokens": tokens, "words": draw.randint(1, 2 * tokens), "bytes": draw.randint(1, 9 * tokens)}
        data = data_of(tokens, per_row, sizes["words"], sizes["bytes"])
        key, unit = draw.choice([*BUDGETS.items(), ("train_steps", "steps")])
        amount = draw.randint(1, 60) if unit == "steps" else amount_of(draw, unit, sizes.get(unit, 1))
        yield draw, sizes, data, key, amount, experiment_of(draw, key, amount, schedule_of(draw, sizes))


def seen(plan: RunPlan, data: ExperimentData, rows: int, unit: str, seed: int) -> float:
    """What a run counts after so many rows, in the order of a seed."""
    taken = SampleOrder(plan.rows, seed).at(np.arange(rows))[1]
    tokens = int(data.train_rows.stream_tokens(taken).sum())
    counts = {"tokens": tokens, "words": plan.words_after(tokens), "bytes": plan.bytes_after(tokens)}
    return rows / plan.rows if unit == "epochs" else counts[unit]


@pytest.mark.long
def test_no_budget_or_milestone_is_ever_exceeded() -> None:
    refused = met = 0
    for draw, sizes, data, key, amount, config in trials():
        stream = StreamSizes(len(data.train_rows), int(data.train_rows.stream_tokens(0)), *sizes.values())
        if key in BUDGETS and not rows_within(stream, amount, BUDGETS[key]):
            refused += 1
            with pytest.raises(UsageError, match="less than a row holds"):
                RunPlan.of(config, data)
            continue
        plan = RunPlan.of(config, data)
        # Anything between the seeds: the short row of an epoch comes first, last, or not at all.
        seed, per_step = draw.randrange(2**32), plan.samples_per_step
        if unit := BUDGETS.get(key):
            assert seen(plan, data, plan.total_samples, unit, seed) <= plan.budget[unit] <= amount
            assert rows_within(plan, amount, unit) == plan.total_samples
        assert (plan.total_steps - 1) * per_step < plan.total_samples <= plan.total_steps * per_step
        assert plan.evaluation_steps == plan.checkpoint_steps
        assert list(plan.checkpoint_steps) == sorted({0, plan.total_steps, *plan.checkpoint_steps})
        assert (plan.checkpoint_steps[0], plan.checkpoint_steps[-1]) == (0, plan.total_steps)
        for each in plan.milestones:
            if each.unit == "steps":
                assert each.step == (each.amount if each.amount <= plan.total_steps else None)
                continue
            rows = min(plan.total_samples, (each.step or 0) * per_step)
            if each.step is None:
                # The run ends a whole step before the amount is used up.
                assert rows_within(plan, each.amount, each.unit) >= plan.total_samples + per_step
                continue
            met += 1
            assert plan.checkpoint_due(each.step)
            assert seen(plan, data, rows, each.unit, seed) <= each.amount
            # It is the last such step: with one more, rows in some order hold more.
            assert rows_within(plan, each.amount, each.unit) < rows + per_step
    assert refused > TRIALS // 30
    assert met > TRIALS


def test_rows_are_counted_down_to_the_last_token() -> None:
    """Rows that an amount has room for hold no more than it, and one row more could hold more."""
    for seed in range(TRIALS):
        draw = random.Random(seed)
        tokens, per_row = draw.randint(1, 300), draw.randint(1, 30)
        stream = StreamSizes(
            -(-tokens // per_row), min(per_row, tokens), tokens, draw.randint(1, 600), draw.randint(1, 900)
        )
        for unit, epoch in (("tokens", tokens), ("words", stream.words_per_epoch), ("bytes", stream.bytes_per_epoch)):
            amount = draw.randint(1, 4 * epoch)
            rows = rows_within(stream, amount, unit)
            held, more = (Fraction(tokens_in(stream, count) * epoch, tokens) for count in (rows, rows + 1))
            assert held <= amount < more
    # What was written, not the binary number next to it, which is a little less.
    assert rows_within(StreamSizes(100, 1, 100, 100, 100), 0.29, "epochs") == 29


def test_a_budget_that_holds_no_row_says_what_one_holds() -> None:
    data = data_of(100, 10, 50, 400)
    for key, least in (("train_tokens", 10), ("train_words", 5), ("train_bytes", 40), ("epochs", 0.1)):
        config = experiment_of(random.Random(0), key, least / 2 if key == "epochs" else least - 1, {})
        with pytest.raises(UsageError, match=rf"training\.{key}: .* less than a row holds.*: give at least {least}$"):
            RunPlan.of(config, data)
        assert RunPlan.of(experiment_of(random.Random(0), key, least, {}), data).total_samples == 1


def test_after_another_batch_size_no_milestone_is_exceeded() -> None:
    """A run that continues with larger steps: what came before is where it was, what follows is counted from here."""
    data = data_of(1000, 10, 500, 4000)
    schedule = {"milestones": {"tokens": [100, 215, 500, 900]}}
    asked = experiment_of(random.Random(0), "train_tokens", 1000, schedule).resolved()
    config = load_config(asked, ["data.batch_size=7", "training.gradient_accumulation_steps=1"])
    plan = RunPlan.of(config, data).scheduled(config, step=10, samples=30)
    # 3 rows of 10 tokens in each of the first ten steps, then 7.
    assert [each.step for each in plan.milestones] == [3, 7, 12, None]
    rows = [30 + 7 * (step - 10) if step > 10 else 3 * step for step in (3, 7, 12)]
    assert all(10 * taken <= amount for taken, amount in zip(rows, (100, 215, 500), strict=True))


@pytest.mark.parametrize(
    "budget", [{"train_words": 700}, {"train_tokens": 900}, {"train_bytes": 4000}, {"epochs": 0.3}]
)
def test_what_is_reported_is_within_the_budget(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, budget: dict[str, float]
) -> None:
    """At the start, in the metrics and at the end; the budget is used up to less than two rows."""
    config = experiment("lstm", tmp_path, training={"train_steps": None, **budget}, logging={"log_every_steps": 1})
    state = run(config, quiet=True)
    folder = Path(config.training.output_dir)
    plan = json.loads((folder / "run.json").read_text())["plan"]
    ((key, amount),) = budget.items()
    unit = BUDGETS[key]
    end = {"epochs": state.epoch, "steps": state.step, "tokens": state.tokens_seen, "words": state.words_seen}
    end["bytes"] = state.bytes_seen
    assert all(end[each] <= plan["budget"][each] for each in end)
    row = plan["budget"][unit] / plan["total_samples"]
    assert amount - 2 * row <= end[unit] <= plan["budget"][unit] <= amount
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert {each: last[f"{each}_seen"] for each in ("tokens", "words", "bytes")} == {
        each: end[each] for each in ("tokens", "words", "bytes")
    }


def test_plan_and_train_print_the_budget_in_each_unit(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = {"train_steps": None, "train_words": 700, "checkpoints": {"milestones": {"words": [300]}}}
    config = experiment("lstm", tmp_path, training=schedule)
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config.resolved()))
    assert main(["plan", str(path), "--no-timing", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["plan", str(path), "--no-timing"]) == 0
    assert f"300 words at {plan['milestones']['300 words']}" in capsys.readouterr().out
    assert main(["train", str(path)]) == 0
    captured = capsys.readouterr()
    units = {unit: plan[f"training_{unit}"] for unit in ("tokens", "words", "bytes")}
    expected = ", ".join(f"{amount:,} {unit}" for unit, amount in units.items())
    assert f"{plan['steps']} steps, {plan['epochs']:,} epochs, {expected}; " in captured.err.splitlines()[0]
    assert 600 < units["words"] <= 700
    end = re.search(
        r"trained (\d+) steps, [\d.]+ epochs, ([\d,]+) tokens, ([\d,]+) words, ([\d,]+) bytes: ", captured.out
    )
    assert end is not None
    assert int(end[1]) == plan["steps"]
    assert all(int(end[2 + at].replace(",", "")) <= amount for at, amount in enumerate(units.values()))


def laid_over(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in added.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


def test_each_example_of_the_guide_is_valid() -> None:
    base = {
        "experiment_name": "guide",
        "data": {"training_corpus": "corpora/train.txt", "test_corpus": "corpora/test.txt"},
        "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
        "training": {"output_dir": "runs/guide"},
    }
    blocks = re.findall(r"^```yaml\n(.+?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        whole = laid_over(base, yaml.safe_load(block))
        if not {"train_steps", *BUDGETS} & whole["training"].keys():
            whole["training"]["epochs"] = 1
        load_config(whole)
