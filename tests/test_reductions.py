"""`training.reduction: fast` and `sharded`: what exact comes to, up to rounding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model, load_config
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.errors import ConfigError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.registry.architecture import registered_architectures
from foundry_core.testing.toy_language import ToyCorpus
from tests.divided import in_processes, register_patchy, trained
from tests.each import each

Experiment = Callable[..., ExperimentConfig]

DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "the fused layers of gpt2": (
        "gpt2",
        "tiny",
        {"model": {"transformer": {**DROPOUT, "activation_function": "gelu_new"}}},
    ),
    "gpt2, recomputed in bf16, whose biases are frozen": (
        "gpt2",
        "tiny_untied",
        {"training": {"gradient_checkpointing": True, "precision": "bf16"}},
    ),
    "bert by transformers' layers": (
        "bert",
        "tiny",
        {"training": {"kernels": "reference", "gradient_checkpointing": True}},
    ),
    "bert, in float32": ("bert", "tiny", {}),
    "a tied lstm that carries its state": ("lstm", "tiny_tied", {"data": {"batching": "contiguous"}}),
    "documents apart": ("gpt2", "tiny", {"data": {"isolate_documents": True}}),
    "llama by transformers": ("transformers", "tiny", {}),
    "a parameter that some rows use, and one that none does": ("patchy", "tiny", {}),
    "sgd that goes back to the best weights": (
        "gpt2",
        "tiny",
        {
            "training": {
                "optimizer": "sgd",
                "sgd_momentum": 0.9,
                "learning_rate": 0.5,
                "lr_scheduler": "plateau",
                "plateau_patience": 0,
                "restore_best": "when_lowered",
            }
        },
    ),
    "averaged weights": ("lstm", "tiny", {"training": {"optimizer": "asgd", "learning_rate": 0.5}}),
}


@pytest.fixture
def patchy() -> Iterator[None]:
    register_patchy()
    yield
    del registered_architectures()["patchy"]


@pytest.fixture
def divided(experiment: Experiment, corpus: ToyCorpus, tmp_path: Path) -> Experiment:
    """`divided(kind, reduction, **training)`: a run of 4 micro-batches a step whose last step has one alone."""

    def make(kind: str, reduction: str, **training: Any) -> ExperimentConfig:
        architecture, example, sections = KINDS[kind]
        folder = tmp_path / f"{list(KINDS).index(kind)}-{reduction}"
        base = experiment(architecture, folder, example=example).resolved()["model"]
        layers = {**base.get("transformer", {}), **sections.get("model", {}).get("transformer", {})}
        of_each = {
            "reduction": reduction,
            "gradient_accumulation_steps": 4,
            "evaluate_at": "checkpoints",
            "checkpoints": {"every_steps": 3},
            # 8 rows a step, but for the state that is carried: there a lane is never cut short.
            **({"train_steps": 6} if "data" in sections else {"train_steps": None, "train_tokens": 42 * 23}),
        }
        return experiment(
            architecture,
            folder,
            example=example,
            data={"test_corpus": str(corpus.test), "batch_size": 2, **sections.get("data", {})},
            training=of_each | sections.get("training", {}) | training,
            **({"model": {"transformer": layers}} if layers else {}),
        )

    return make


def losses(log: Any) -> dict[tuple[int, str], float]:
    return {(entry["step"], key): value for entry in log for key, value in entry.items() if key.endswith("loss")}


def weights(config: ExperimentConfig) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(checkpoints(config.training.output_dir)[-1] / "model.safetensors")
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("patchy")
def test_each_reduction_comes_to_what_exact_does(divided: Experiment, tmp_path: Path) -> None:
    """Rows, masks and losses, of training and of evaluations; 6 micro-batches are divided unevenly in the last step."""
    configs = [divided(kind, reduction) for kind in KINDS for reduction in ("fast", "sharded")]
    ends = in_processes(2, tmp_path, [{"config": each.resolved(), "allow": None, "alone": False} for each in configs])
    for number, kind in enumerate(KINDS):
        exact = divided(kind, "exact")
        alone = trained(exact)
        for config, end in zip(configs[2 * number :], ends[2 * number :][:2], strict=False):
            which = f"{kind}, {config.training.reduction}"
            assert (end["step"], end["ledger"]) == (alone.step, alone.ledger), which
            within = 1e-3 if config.training.precision == "bf16" else 2e-6
            assert losses(end["log"]) == pytest.approx(losses(alone.log), abs=within), which
            tight = 1e-6 if config.training.reduction == "fast" and within < 1e-3 else 1e-3
            found, expected = weights(config), weights(exact)
            assert found.keys() == expected.keys()
            for name, each_ in expected.items():
                close = torch.allclose(found[name], each_, rtol=0, atol=tight)
                assert close or name.endswith("key.bias"), f"{which}: {name}"


@pytest.mark.slow
def test_after_fifty_steps_fast_is_within_1e_6_of_exact(divided: Experiment, tmp_path: Path) -> None:
    kinds = ("the fused layers of gpt2", "bert, in float32", "a tied lstm that carries its state")
    steps = {"train_tokens": None, "train_steps": 50}
    configs = [divided(kind, "fast", **steps) for kind in kinds]
    ends = in_processes(4, tmp_path, [{"config": each.resolved(), "allow": None, "alone": False} for each in configs])
    for kind, config, end in zip(kinds, configs, ends, strict=True):
        exact = divided(kind, "exact", **steps)
        alone = trained(exact)
        assert (end["step"], end["ledger"]) == (50, alone.ledger)
        assert losses(end["log"]) == pytest.approx(losses(alone.log), abs=1e-6), kind
        found = weights(config)
        for name, expected in weights(exact).items():
            # The gradient of a key's bias is rounding alone, which AdamW scales up.
            close = torch.allclose(found[name], expected, rtol=0, atol=1e-6)
            assert close or name.endswith("key.bias"), f"{kind}: {name}"


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_any_number_of_processes(
    divided: Experiment, corpus: ToyCorpus, tmp_path: Path
) -> None:
    """On 2, on 1 under exact, on 2 again, it comes to what it does alone; its checkpoints are those of any run."""
    kind = "the fused layers of gpt2"
    steps = {"train_tokens": None, "lr_scheduler": "constant"}
    legs: list[dict[str, Any]] = [
        {"config": divided(kind, how, train_steps=count, **steps).resolved(), "allow": allow, "alone": alone}
        for how, count, allow, alone in (
            ("sharded", 3, None, False),
            ("exact", 6, ["training.reduction", "training.train_steps"], True),
            ("sharded", 9, ["training.reduction", "training.train_steps"], False),
        )
    ]
    folder = divided(kind, "sharded").training.output_dir
    for leg in legs:
        leg["config"]["training"]["output_dir"] = folder
    end = in_processes(2, tmp_path, legs)[-1]
    whole = divided(kind, "exact", train_steps=9, **steps)
    alone = trained(whole)
    assert (end["step"], end["ledger"]) == (9, alone.ledger)
    found = {key: value for key, value in losses(end["log"]).items() if key in losses(alone.log)}
    assert found == pytest.approx(losses(alone.log), abs=2e-6)
    last = checkpoints(folder)[-1]
    opened = AutoModelForCausalLM.from_pretrained(last)
    assert type(opened) is GPT2LMHeadModel
    model = BaseLanguageModel.from_pretrained(last)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(opened(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    report = evaluate_corpus(model, AutoTokenizer.from_pretrained(last), corpus.test)
    assert report.loss == pytest.approx(end["log"][-1]["eval_loss"], abs=1e-6)


def test_the_blocks_to_shard_are_called_where_they_have_hooks(
    experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    """Hooks put their weights together: by core's formulation of the layers too, recomputed or not."""
    ids = torch.arange(22).view(2, 11)
    for architecture, layers in (("gpt2", "model.transformer.h"), ("bert", "model.bert.encoder.layer")):
        for recomputed in (False, True):
            model = create_model(experiment(architecture, tmp_path), letters).train()
            if recomputed:
                model.gradient_checkpointing_enable()
            gradients, called = [], list[Any]()
            for hooked in (False, True):
                blocks = list(model.blocks_to_shard())
                assert blocks == list(model.get_submodule(layers).children())
                for block in blocks if hooked else ():
                    block.register_forward_pre_hook(lambda module, given, called=called: called.append(module))
                model.zero_grad()
                model(ids, labels=ids, return_logits=False).loss.backward()
                gradients.append([parameter.grad for parameter in model.parameters()])
            assert called == blocks
            assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


@each("key, value, problem", [
    ("compile", True, "training.compile: is not supported with reduction: sharded"),
    ("precision", "fp16", "training.precision: fp16 is not supported with reduction: sharded; use bf16"),
    ("suites", ["pairs.jsonl"], "training.suites: one process scores them"),
])  # fmt: skip
def test_sharding_refuses_what_needs_the_whole_model(
    key: str, value: Any, problem: str, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        experiment("gpt2", tmp_path, training={"reduction": "sharded", key: value})
    assert experiment("gpt2", tmp_path, training={"reduction": "sharded"}).training.reduction == "sharded"


def test_the_examples_of_the_page_are_valid(experiment: Experiment, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "training" / "sharding.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(each) for each in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    for example in examples:
        load_config(
            {
                **experiment("gpt2", tmp_path).resolved(),
                "training": {"output_dir": "run", "epochs": 1, **example["training"]},
            }
        )
    assert {each["training"]["reduction"] for each in examples} == {"fast", "sharded"}
