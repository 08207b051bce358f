"""A whole package of a third party: an objective, an optimizer, a tokenizer type, an observer and a command at work.

The package lies in tests/example_plugin; test_packaging installs it with pip. Here it stands on the path with the
metadata that an installer would leave. No line of core knows it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from foundry_core import ExperimentConfig, create_model, get_data_collator, load_config, run
from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.cli import main
from foundry_core.data.batches import Batches
from foundry_core.data.order import SampleOrder
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.data.rows import Rows
from foundry_core.errors import CheckpointError, ConfigError, FoundryError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.models.folder import load_model
from foundry_core.registry.discovery import read_packages
from foundry_core.tokenization.encoding import DocumentEncoder
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from foundry_core.training.losses import objective_loss
from foundry_core.training.optimizers import build_optimizer
from tests import interruption
from tests.each import each

PACKAGE = Path(__file__).parent / "example_plugin"
SIZES = {
    "bert": {
        "transformer": {
            "layers": 1,
            "embedding_size": 16,
            "hidden_size": 16,
            "intermediate_hidden_size": 32,
            "attention_heads": 2,
            "dropout": 0.2,
        }
    },
    "lstm": {"rnn": {"embedding_size": 12, "hidden_size": 16, "num_layers": 1, "dropout": 0.2}},
}
SPANS: dict[str, Any] = {"objective": "span_corruption", "objective_settings": {"hidden_share": 0.3, "mean_span": 2}}
LION: dict[str, Any] = {"optimizer": "lion", "optimizer_settings": {"beta2": 0.98}, "learning_rate": 1e-3}

pytestmark = pytest.mark.usefixtures("one_thread", "installed")


@pytest.fixture
def installed(distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, installed; gives the folder with its metadata."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(str(PACKAGE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "foundry_example"]:
        monkeypatch.delitem(sys.modules, name)
    requires = [f"Requires-Dist: {each}" for each in project["dependencies"]]
    return distribution(project["name"], project["entry-points"], version=project["version"], headers=requires)


@pytest.fixture
def written(corpus: Any, tmp_path: Path) -> Callable[..., Path]:
    """`written(name, architecture, plugins=..., **training)`: the YAML of a tiny experiment that uses everything."""

    def write(
        name: str = "run", architecture: str = "bert", plugins: Any = ("foundry_example",), **training: Any
    ) -> Path:
        content = {
            "experiment_name": name,
            "data": {
                "training_corpus": str(corpus.train),
                "test_corpus": str(corpus.test),
                "max_sequence_length": 48,
                "batch_size": 8,
            },
            "tokenizer": {"tokenizer_type": "bytes", "vocab_size": 270, "output_dir": str(tmp_path / "bytes")},
            "model": {"architecture": architecture, **SIZES[architecture]},
            "training": {
                "output_dir": str(tmp_path / name),
                "train_steps": 6,
                "device": "cpu",
                **SPANS,
                **LION,
                **training,
            },
            "logging": {"log_every_steps": 1},
            "plugins": list(plugins),
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


# Reading the YAML.


@pytest.mark.long
def test_its_names_and_settings_are_checked_without_torch(written: Callable[..., Path], installed: Path) -> None:
    program = (
        "import sys\nfrom foundry_core.cli import main\n"
        f"code = main(['validate', {str(written())!r}])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'foundry_example.lion'}\n"
        "sys.exit(code or ' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{PACKAGE}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid; bert, span_corruption, train_steps 6" in done.stdout


@each(
    ("overrides", "problem"),
    [
        (
            ["training.optimizer=lyon"],
            "optimizer: unknown optimizer 'lyon'. Did you mean 'lion'? Available: adamw, asgd, lion, muon, sgd",
        ),
        (
            ["training.objective=span_corrupton"],
            "objective: unknown objective 'span_corrupton'. Did you mean 'span_corruption'? "
            "Available: causal_lm, distilled_lm, masked_lm, smoothed_lm, span_corruption",
        ),
        (
            ["tokenizer.tokenizer_type=byte"],
            "tokenizer_type: unknown tokenizer type 'byte'. Did you mean 'bytes'? "
            "Available: bpe, bytes, character, sentencepiece, word, wordpiece",
        ),
        (
            ["training.optimizer_settings.beta3=0.9"],
            "training.optimizer_settings.beta3: unknown key. Did you mean 'beta",
        ),
        (["training.optimizer_settings.beta1=1"], "training.optimizer_settings.beta1: must be less than 1, not 1"),
        (["training.objective_settings.mean_span=0.5"], "mean_span: must be greater than or equal to 1, not 0.5"),
        (["training.optimizer_settings=fast"], "training.optimizer_settings: must be a section, not 'fast'"),
        (
            ["training.optimizer=adamw"],
            "training.optimizer_settings: adamw has none: remove this section",
        ),
        (["tokenizer.special_tokens.mask_token=null"], "special_tokens.mask_token: span_corruption needs a mask_token"),
        (
            ["model.architecture=gpt2"],
            "training.objective: gpt2 with these settings cannot be trained with span_corruption; it accepts causal_lm",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(written: Callable[..., Path], overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(), overrides)
    (line,) = str(raised.value).splitlines()
    assert problem in line


def test_installed_is_not_active(written: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(plugins=()))
    problems = [problem.message.partition("'")[0] + problem.key for problem in raised.value.problems]
    assert sorted(problems) == [
        "unknown objective training.objective",
        "unknown optimizer training.optimizer",
        "unknown tokenizer type tokenizer.tokenizer_type",
    ]
    assert "foundry_example" not in sys.modules


def test_settings_left_out_are_recorded_as_the_packages_defaults(written: Callable[..., Path]) -> None:
    config = load_config(written(), ["training.optimizer_settings=null", "training.objective_settings=null"])
    resolved = config.resolved()
    assert resolved["training"]["optimizer_settings"] == {"beta1": 0.9, "beta2": 0.99}
    assert resolved["training"]["objective_settings"] == {"hidden_share": 0.15, "mean_span": 3.0}
    again = load_config(resolved)
    assert again == config
    assert again.providers == dict.fromkeys(("objective", "optimizer", "tokenizer type"), "foundry-example 0.1.0")


@pytest.mark.parametrize(
    ("architecture", "settings"), [("bert", {}), ("lstm", {}), ("lstm", {"model.rnn.bidirectional": "true"})]
)
def test_a_masked_architecture_accepts_an_unknown_objective(
    written: Callable[..., Path], architecture: str, settings: dict[str, str]
) -> None:
    config = load_config(written("run", architecture), [f"{key}={value}" for key, value in settings.items()])
    assert config.objective.name == "span_corruption"
    assert "span_corruption" not in config.capabilities.objectives


# What is hidden.


@pytest.fixture
def config(written: Callable[..., Path]) -> ExperimentConfig:
    return load_config(written())


def rows_of(tokenizer: Any, count: int = 40) -> list[dict[str, Any]]:
    text = "the man who saw the dogs is old . "
    ids = tokenizer(text)["input_ids"]
    return [{"input_ids": np.array(ids[: 10 + row % 25]), "epoch": 2, "row": row} for row in range(count)]


def test_spans_become_mask_tokens_and_are_predicted_in_place(config: ExperimentConfig, letters: Any) -> None:
    rows = rows_of(letters)
    batch = get_data_collator(config, letters)(rows)
    masked, hidden = batch["input_ids"].numpy(), batch["labels"].numpy() != -100
    special = np.array(letters.all_special_ids)
    shares, lengths = [], []
    for row, ids, labels, places in zip(rows, masked, batch["labels"].numpy(), hidden, strict=True):
        original = row["input_ids"]
        count = len(original)
        assert places.any()
        assert not places[count:].any()
        assert (ids[:count][places[:count]] == letters.mask_token_id).all()
        assert (labels[places] == original[places[:count]]).all()
        assert (ids[:count][~places[:count]] == original[~places[:count]]).all()
        assert not places[:count][np.isin(original, special)].any()
        shares.append(places.sum() / (~np.isin(original, special)).sum())
        ordinary = places[:count][~np.isin(original, special)]  # a span reaches over a separator, which stays
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ordinary.astype(int), [0]])))
        lengths += (edges[1::2] - edges[::2]).tolist()
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)
    assert np.mean(lengths) == pytest.approx(2, abs=0.2)
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([len(row["input_ids"]) for row in rows]))


def test_what_is_hidden_is_a_function_of_seed_epoch_and_row(config: ExperimentConfig, letters: Any) -> None:
    rows = rows_of(letters)
    collate = get_data_collator(config, letters)
    together = collate(rows)["labels"]
    torch.manual_seed(1)
    np.random.seed(1)
    for index in (3, 17, 39):
        alone = collate([rows[index]])["labels"][0]
        assert torch.equal(alone, together[index, : len(alone)])
    for change in ({"epoch": 3}, {"row": 1000}):
        assert not torch.equal(collate([{**row, **change} for row in rows])["labels"], together)
    other = load_config(config.resolved(), ["seeds.masking=9"])
    assert not torch.equal(get_data_collator(other, letters)(rows)["labels"], together)


def test_workers_prepare_the_same_batches(config: ExperimentConfig) -> None:
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    rows = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora)).train_rows
    assert isinstance(rows, Rows)
    order, collate = SampleOrder(len(rows), 5), get_data_collator(config, tokenizer)
    alone, helped = (list(Batches(rows, order, collate, 8, 0, 100, workers)) for workers in (0, 2))
    assert len(alone) == 13
    for ours, theirs in zip(alone, helped, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_on_noise_the_loss_stays_at_what_can_be_known(config: ExperimentConfig, letters: Any) -> None:
    """Fresh uniform tokens: a hidden one is a guess, ln V. A collator that lets one through goes far under it."""
    model = create_model(load_config(config.resolved(), ["model.transformer.dropout=0.0"]), letters).train()
    collate, ordinary = get_data_collator(config, letters), np.setdiff1d(np.arange(32), letters.all_special_ids)
    optimizer, chance, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), np.random.default_rng(0), []
    for step in range(120):
        drawn = chance.choice(ordinary, (16, 16))
        batch = collate([{"input_ids": ids, "epoch": 0, "row": 16 * step + i} for i, ids in enumerate(drawn)])
        loss = model(**batch, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.log(len(ordinary)) - 0.15 < np.mean(losses[-20:]) < math.log(32) + 0.3


# The losses.

LOSSES: dict[str, Any] = {"architecture": "lstm", "optimizer_settings": {"beta2": 0.98}, "precision": "fp32"}


def reports(config: ExperimentConfig) -> list[dict[str, Any]]:
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_smoothed_targets_are_optimised_and_reported_apart(written: Callable[..., Path]) -> None:
    share = {"objective": "smoothed_lm", "objective_settings": {"smoothing": 0.2}}
    smoothed = load_config(written("smoothed", **LOSSES, **share))
    plain = load_config(written("plain", **LOSSES, objective="causal_lm", objective_settings=None))
    for config in (smoothed, plain):
        run(config, quiet=True)
    (ours, *_, evaluated), (core, *_) = reports(smoothed), reports(plain)
    assert ours["loss"] == pytest.approx(core["loss"], rel=1e-5)
    assert ours["optimised_loss"] != ours["loss"]
    logits, labels = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    loss = objective_loss(smoothed)
    assert loss is not None
    expected = 0.8 * torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected -= 0.2 * logits.log_softmax(dim=-1).mean(dim=-1)
    torch.testing.assert_close(loss(logits, labels, {}), expected)
    last = Path(smoothed.training.output_dir) / "checkpoint-6"
    again = evaluate_corpus(load_model(last), load_tokenizer(last), str(smoothed.data.test_corpus))  # type: ignore[arg-type]
    assert evaluated["loss"] == pytest.approx(again.loss, rel=1e-6)


@pytest.mark.long
def test_a_student_of_itself_diverges_by_nothing_and_resumes(written: Callable[..., Path]) -> None:
    teacher = load_config(written("teacher", **LOSSES, objective="causal_lm", objective_settings=None))
    run(teacher, quiet=True)
    lessons = {"teacher": str(Path(teacher.training.output_dir) / "checkpoint-0"), "weight": 1.0}
    itself = load_config(
        written("itself", **LOSSES, objective="distilled_lm", objective_settings=lessons),
        ["model.rnn.dropout=0.0"],
    )
    run(itself, quiet=True)
    assert reports(itself)[0]["optimised_loss"] == pytest.approx(0, abs=1e-6)
    assert reports(itself)[0]["loss"] > 4
    lessons = {"teacher": str(Path(teacher.training.output_dir) / "checkpoint-6"), "weight": 0.5}
    student = {**LOSSES, "objective": "distilled_lm", "objective_settings": lessons, "evaluate_every_steps": 3}
    alone, broken = (
        load_config(written(name, **student, checkpoints={"every_steps": 2})) for name in ("alone", "broken")
    )
    run(alone, quiet=True)
    interruption.killed_before(broken, 4)
    run(broken, resume=True, quiet=True)
    assert outcome(broken) == outcome(alone)


# The optimizer.


def test_lion_follows_the_sign_of_its_momentum_and_cores_decay(config: ExperimentConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(3, 2), torch.nn.Linear(2, 2))
    settings = load_config(config.resolved(), ["training.weight_decay=0.5", "training.learning_rate=0.1"])
    optimizer = build_optimizer(model, settings.training, settings.optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for gradient in (1.0, -20.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    # First against +1; then the momentum 0.02 weighs 0.9 and the gradient -20 weighs 0.1: the sign is -1.
    embedding, weight, bias = (parameter.detach() for parameter in model.parameters())
    torch.testing.assert_close(embedding, before[0])
    torch.testing.assert_close(bias, before[2])
    torch.testing.assert_close(weight, (before[1] * 0.95 - 0.1) * 0.95 + 0.1)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SIZES["bert"]),
    "lstm": ("lstm", SIZES["lstm"]),
    "mamba": ("mamba", {"mamba": {"hidden_size": 16, "num_layers": 1, "state_size": 4}}),
    "mamba of transformers": (
        "transformers",
        {"transformers": {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}},
    ),
}


@each("name", MODELS)
def test_muon_orthogonalises_matrices_and_nothing_else(
    name: str, experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path
) -> None:
    architecture, sizes = MODELS[name]
    training = {"optimizer": "muon", "learning_rate": 0.1, "weight_decay": 0.0, "objective": None}
    config = experiment(architecture, tmp_path, example="", model=sizes, training=training, plugins=["foundry_example"])
    model = create_model(config, letters)
    optimizer, generator = build_optimizer(model, config.training, config.optimizer), torch.Generator().manual_seed(0)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    orthogonalised = set()
    for key, parameter in model.named_parameters():
        moved = (before[key] - parameter.detach()) / 0.1
        assert parameter.grad is not None
        if torch.allclose(moved, parameter.grad.sign(), atol=1e-3):  # Adam's first step
            continue
        values = torch.linalg.svdvals(moved) / (0.2 * max(moved.shape) ** 0.5)
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3, key
        orthogonalised.add(key)
    layers = ("query", "key", "value", "dense", "weight_ih", "weight_hh", "in_proj", "x_proj", "dt_proj", "step_proj")
    matrices = {key for key in before if "bias" not in key and any(part in key for part in (*layers, "out_proj"))}
    assert orthogonalised == matrices


def test_a_run_with_muon_resumes_exactly(written: Callable[..., Path]) -> None:
    muon = {"optimizer": "muon", "optimizer_settings": {"momentum": 0.9}, "evaluate_every_steps": 3}
    alone, broken = (load_config(written(name, **muon, checkpoints={"every_steps": 2})) for name in ("alone", "broken"))
    run(alone, quiet=True)
    interruption.killed_before(broken, 4)
    run(broken, resume=True, quiet=True)
    assert outcome(broken) == outcome(alone)


def test_plan_counts_what_this_optimizer_keeps(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written()
    assert main(["train", str(path), "--quiet"]) == 0
    capsys.readouterr()
    plans = {}
    for name, overrides in {
        "lion": [],
        "adamw": ["training.optimizer=adamw", "training.optimizer_settings=null"],
        "sgd": ["training.optimizer=sgd", "training.optimizer_settings=null"],
    }.items():
        assert main(["plan", str(path), *overrides, "--json"]) == 0
        plans[name] = json.loads(capsys.readouterr().out)
    weights = 4 * plans["lion"]["parameters"]
    kept = {name: plan["bytes_of_a_checkpoint"] - plans["sgd"]["bytes_of_a_checkpoint"] for name, plan in plans.items()}
    assert kept["lion"] == weights
    assert kept["adamw"] == pytest.approx(2 * weights, rel=0.01)
    resident = {name: plan["memory_bytes"] - plan["of_which_activations"] for name, plan in plans.items()}
    assert resident["adamw"] - resident["lion"] == pytest.approx(weights, rel=0.01)
    assert resident["lion"] - resident["sgd"] == weights
    last = Path(load_config(path).training.output_dir) / "checkpoint-6"
    files = [path.stat().st_size for path in (last / "model.safetensors", optimizer_file(last))]
    assert plans["lion"]["bytes_of_a_checkpoint"] == pytest.approx(sum(files), rel=0.1)


# The tokenizer.

TEXTS = [
    "",
    "the man is old .",
    "naïve\u2028 \t日本語\n\n",
    "<0x41> and <s>, </s>\x00",
    "\U0001f469\u200d\U0001f680 e\u0301",
]


def bytes_tokenizer(config: ExperimentConfig, vocab_size: int | None = 270) -> Any:
    return train_tokenizer(config.tokenizer_type, lambda: TEXTS, vocab_size, config.special_tokens)


def test_bytes_are_ids_and_every_text_comes_back(config: ExperimentConfig, tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(config)
    tokenizer.save_pretrained(tmp_path / "saved")
    for text, ids in zip(TEXTS, DocumentEncoder(load_tokenizer(tmp_path / "saved")).encode(TEXTS), strict=True):
        assert ids.tolist() == list(text.encode())
        assert tokenizer.decode(ids.tolist()) == text
    assert len(tokenizer) == 256 + len(set(config.special_tokens.values()))
    # The special tokens that core's types have by default, because the descriptor names no others.
    assert config.special_tokens == default_special_tokens("bpe")


def test_a_vocabulary_too_small_for_bytes_is_one_line(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "train", str(written()), "tokenizer.vocab_size=200"]) != 0
    error = capsys.readouterr().err
    assert error.startswith("error: vocab_size 200 is too small for bytes")
    assert "261" in error
    assert error.count("\n") == 1


# Whole runs.


def outcome(config: ExperimentConfig) -> dict[str, Any]:
    """Return what equal runs have in common, and what the observer has written."""
    best = Path(config.training.output_dir) / "best.json"
    return interruption.outcome(config) | {"best": json.loads(best.read_text())}


@pytest.mark.parametrize("architecture", ["bert", "lstm"])
@pytest.mark.long
def test_a_killed_run_resumes_exactly_whatever_the_workers(written: Callable[..., Path], architecture: str) -> None:
    schedule = {"checkpoints": {"every_steps": 2}, "evaluate_every_steps": 3}
    alone = load_config(written("alone", architecture, **schedule))
    broken = load_config(written("broken", architecture, num_workers=2, **schedule))
    assert run(alone, quiet=True).step == 6
    interruption.killed_before(broken, 6)
    assert run(broken, resume=True, quiet=True).step == 6
    expected = outcome(alone)
    assert outcome(broken) == expected
    assert any(expected["optimizer"][-200:])
    assert expected["best"]["loss"] == min(each["loss"] for each in expected["reports"] if each["kind"] == "eval")


@pytest.mark.parametrize("architecture", ["bert", "lstm"])
def test_a_checkpoint_opens_in_the_auto_class_of_the_objective(
    written: Callable[..., Path], architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    path = written("run", architecture)
    assert main(["train", str(path), "--quiet"]) == 0
    config = load_config(path)
    capsys.readouterr()
    assert main(["evaluate", config.training.output_dir, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["corpus"]
    last = outcome(config)["reports"][-1]
    assert (last["kind"], last["step"], last["loss"]) == ("eval", 6, pytest.approx(figures["loss"], rel=1e-6))
    assert figures["bits_per_byte"] is None
    folder = Path(config.training.output_dir) / "checkpoint-6"
    opened = getattr(transformers, config.objective.auto_class).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the man is old .", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 18)
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, load_model(folder)(ids).logits)


def test_a_run_resumes_with_another_plugin_version_only_if_asked(
    written: Callable[..., Path], installed: Path, distribution: Callable[..., Path]
) -> None:
    config = load_config(written(train_steps=1))
    run(config, quiet=True)
    for file in installed.glob("*.dist-info/METADATA"):
        file.write_text(file.read_text().replace("0.1.0", "0.2.0"))
    read_packages.cache_clear()
    changed = load_config(written(train_steps=2))
    with pytest.raises(CheckpointError) as raised:
        run(changed, resume=True, quiet=True, allowed_changes=["training.train_steps"])
    assert "the plugin of the optimizer was foundry-example 0.1.0, is foundry-example 0.2.0" in str(raised.value)
    state = run(changed, resume=True, quiet=True, allowed_changes=["training.train_steps", "plugin"])
    assert state.step == 2


def test_without_the_package_its_checkpoint_says_what_is_missing(written: Callable[..., Path], installed: Path) -> None:
    config = load_config(written("run", "lstm", train_steps=1))
    run(config, quiet=True)
    for information in installed.glob("*.dist-info"):
        shutil.rmtree(information)
    read_packages.cache_clear()
    line = r"cannot be built here.*no installed package declares the module.* pip install foundry-example==0\.1\.0\Z"
    with pytest.raises(FoundryError, match=line):
        load_model(Path(config.training.output_dir) / "checkpoint-1")


# The command.


def test_help_lists_the_command_without_importing_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"\n    spans +of foundry-example 0\.1\.0\n", capsys.readouterr().out)
    assert "foundry_example" not in sys.modules


def test_the_command_works_and_has_help_with_an_example(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["spans", "--help"])
    assert stop.value.code == 0
    assert "foundry spans experiment.yaml" in capsys.readouterr().out.split("example", 1)[1]
    assert main(["spans", str(written()), "the man is old .", "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 2
    assert all(line.count("<mask>") in (4, 5) for line in lines)
    assert all(line.startswith("<s> ") and line.endswith(" </s>") for line in lines)


# The checks.


@pytest.mark.long
@each("name", ["span_corruption", "smoothed_lm", "lion", "muon", "bytes", "foundry_example"])
def test_what_it_adds_passes_its_checks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", name]) == 0, capsys.readouterr().out
