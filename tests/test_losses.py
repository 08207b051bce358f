"""What training optimises besides the cross-entropy: auxiliary terms of a model, and the loss of an objective.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, StepReport, create_model, run
from foundry_core.cli import main
from foundry_core.errors import PluginError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.models.folder import load_model
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.training.console import Console
from foundry_core.training.losses import summed_losses
from tests.conformance.bases import BalancedModel, register
from tests.each import each

Experiment = Callable[..., ExperimentConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def balanced(experiment: Experiment, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """`balanced(**sections)`: an experiment with a model that has an auxiliary term called size."""
    register("balanced", BalancedModel)

    def make(**sections: Any) -> ExperimentConfig:
        return experiment("balanced", tmp_path, **sections)

    return make


def batch(rows: int, length: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random letters, of which some are padded, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 32, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gradients(model: torch.nn.Module) -> torch.Tensor:
    found = [torch.zeros_like(each) if each.grad is None else each.grad for each in model.parameters()]
    model.zero_grad()
    return torch.cat([each.flatten().double() for each in found])


# Auxiliary terms.


def test_terms_are_added_to_the_loss_of_training_alone(balanced: Any, letters: Any) -> None:
    model, rows = create_model(balanced(), letters), batch(4, 9)
    for reduction, times in (("mean", 1), ("none", 1), ("sum", int(model.targets(*labelled(rows))[1].sum()))):
        alone, together = model.eval()(**rows, reduction=reduction), model.train()(**rows, reduction=reduction)
        term = together.auxiliary["size"]
        assert term.item() > 0.001
        torch.testing.assert_close(alone.auxiliary["size"], term)
        torch.testing.assert_close(together.cross_entropy, alone.loss)
        torch.testing.assert_close(together.loss, alone.loss + times * term)
        assert "cross_entropy" not in alone
        assert reduction != "none" or torch.equal(together.token_losses, alone.token_losses)
    nothing = {**rows, "labels": torch.full_like(rows["labels"], -100)}
    for reduction in ("mean", "sum", "none"):
        model(**nothing, reduction=reduction).loss.backward()
        assert not gradients(model).any()
    assert "auxiliary" not in model(rows["input_ids"])


def labelled(rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return rows["labels"], rows["attention_mask"]


@each(
    ("auxiliary", "problem"),
    [
        ({"size": 0.1}, "the auxiliary term size is a float, not a scalar tensor"),
        ({"size": torch.ones(2)}, r"the auxiliary term size is a tensor of shape \(2,\), not a scalar tensor"),
        ({"size/0": torch.tensor(1.0)}, "'size/0' cannot be the name of an auxiliary term: it must be an identifier"),
        ({0: torch.tensor(1.0)}, "0 cannot be the name of an auxiliary term: it must be an identifier"),
    ],
)
def test_a_term_is_a_scalar_tensor_with_a_name(auxiliary: Any, problem: str, balanced: Any, letters: Any) -> None:
    model: BaseLanguageModel = create_model(balanced(), letters)
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(PluginError, match=f"^lm_output: {problem}$"):
        model.lm_output(torch.zeros(2, 3, 12), lambda hidden: hidden @ torch.ones(12, 32), ids, auxiliary=auxiliary)


def test_a_term_weighs_as_the_predictions_of_its_micro_batch(balanced: Any, letters: Any) -> None:
    model = create_model(balanced(), letters).train()
    parts = [batch(1, 6, seed=1), batch(5, 9, seed=2)]
    counts = [int(model.targets(*labelled(part))[1].sum()) for part in parts]
    assert counts[0] != counts[1]
    for part, count in zip(parts, counts, strict=True):
        (model(**part).loss * (count / sum(counts))).backward()
    expected, reported = gradients(model), 0.0
    for part in parts:
        optimised, figures = summed_losses(model, model, part, None)
        (optimised / sum(counts)).backward()
        reported += float(figures["auxiliary/size"]) / sum(counts)
        torch.testing.assert_close(figures["optimised"], figures["loss"] + figures["auxiliary/size"])
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-8)
    means = [model(**part).auxiliary["size"].item() for part in parts]
    assert reported == pytest.approx(sum(c * m for c, m in zip(counts, means, strict=True)) / sum(counts), rel=1e-5)


def test_terms_are_reported_apart_and_change_no_evaluation(balanced: Any, corpus: Any) -> None:
    training = {"train_steps": 3, "precision": "fp32", "gradient_accumulation_steps": 2}
    data = {"test_corpus": str(corpus.test)}
    config = balanced(training=training, data=data, logging={"log_every_steps": 1})
    run(config, quiet=True)
    output = Path(config.training.output_dir)
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    evaluation = steps.pop()
    for step in steps:
        assert step["auxiliary"].keys() == {"size"}
        assert step["optimised_loss"] == pytest.approx(step["loss"] + step["auxiliary"]["size"], rel=1e-5)
    assert steps[0]["loss"] == pytest.approx(4.6, abs=0.3)  # that of guessing among the words, without the term
    last = output / "checkpoint-3"
    alone = evaluate_corpus(load_model(last), load_tokenizer(last), corpus.test)  # type: ignore[arg-type]
    assert (evaluation["kind"], evaluation["loss"]) == ("eval", pytest.approx(alone.loss, rel=1e-6))


def test_terms_are_on_the_terminal_and_in_tensorboard(balanced: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stream = io.StringIO()
    report = StepReport(1, 2, 0.1, 4.5, 0.1, 1.0, 5, 5, 1.0, 1.0, auxiliary={"size": 0.25}, optimised_loss=4.75)
    Console(stream).foundry_step_ended(report)
    assert "loss 4.5000  size 0.2500  lr 1.00e-01" in stream.getvalue()
    run(balanced(training={"train_steps": 1}, logging={"tensorboard": True}), quiet=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/optimised_loss", "auxiliary/size"} <= set(events.Tags()["scalars"])


# The loss of an objective.

LIGHT = """\
from foundry_core import Objective, hookimpl

@hookimpl
def foundry_objectives():
    like = {"collator": None, "same_interface_as": "causal_lm", "loss": "foundry_mine:make"}
    return [Objective(name="mine", summary="of a test", causal=True, layout="overlap", **like)]

def make(config):
    import torch.nn.functional as F
    BODY
"""
MINE = "the loss of the objective mine, foundry_mine:make,"


@pytest.fixture
def trained(
    install: Callable[..., None], experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`trained(body)`: what `foundry train` prints about an objective whose loss has this body."""

    def train(body: str, code: int = PluginError.exit_code, architecture: str = "lstm") -> str:
        light = LIGHT.replace("BODY", body)
        install("foundry-mine", extensions={"mine": "foundry_mine"}, modules={"foundry_mine": light})
        training = {"objective": "mine", "train_steps": 2, "precision": "fp32"}
        config = experiment(architecture, tmp_path, training=training, plugins=["foundry_mine"])
        (tmp_path / "x.yaml").write_text(json.dumps(config.resolved()))
        assert main(["train", str(tmp_path / "x.yaml"), "--quiet", "logging.log_every_steps=1"]) == code
        return capsys.readouterr().err.strip()

    return train


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("return None", "is a NoneType, not a function of logits, labels and the batch"),
        ("return lambda logits, labels, batch: 1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("return lambda logits, labels, batch: None", "returned NoneType, not a loss for each of "),
        (
            "return lambda logits, labels, batch: F.cross_entropy(logits, labels)",
            "returned (), not a loss for each of ",
        ),
    ],
)
def test_a_loss_that_breaks_a_rule_is_one_line(body: str, problem: str, trained: Callable[..., str]) -> None:
    assert trained(body).startswith(f"error: {MINE} {problem}")


@pytest.mark.parametrize("architecture", ["lstm", "gpt2"])
def test_the_cross_entropy_as_a_loss_trains_the_same_model(
    architecture: str, trained: Callable[..., str], experiment: Experiment, tmp_path: Path
) -> None:
    body = "return lambda logits, labels, batch: 2 * F.cross_entropy(logits, labels, reduction='none')"
    trained(body, code=0, architecture=architecture)
    plain = experiment(
        architecture,
        tmp_path / "plain",
        training={"train_steps": 2, "precision": "fp32"},
        tokenizer={"output_dir": str(tmp_path / "run" / "tokenizer")},
        logging={"log_every_steps": 1},
    )
    run(plain, quiet=True)
    lines = [(tmp_path / path / "run" / "metrics.jsonl").read_text().splitlines() for path in ("", "plain")]
    for own, core in zip(*([json.loads(line) for line in part] for part in lines), strict=True):
        assert own["loss"] == pytest.approx(core["loss"], rel=1e-5)
        assert own["optimised_loss"] == pytest.approx(2 * own["loss"], rel=1e-6)
        assert own["grad_norm"] == pytest.approx(2 * core["grad_norm"], rel=1e-4)
        assert core["optimised_loss"] is None
        assert core["auxiliary"] == {}
