"""The promises of training: what is saved when, what changes nothing, what is refused."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from foundry_core import create_model, hookimpl, load_config, run
from foundry_core.checkpoints.checkpoint import checkpoints, optimizer_file
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import CheckpointError, TokenizerError, TrainingError, UsageError
from foundry_core.models.folder import load_model
from foundry_core.testing.toy_language import write_corpus
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.training.plan import RunPlan
from tests.interruption import die, killed

MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"rnn": {"embedding_size": 12, "hidden_size": 16, "num_layers": 1, "dropout": 0.1}},
    "gpt2": {
        "transformer": {
            "layers": 1,
            "embedding_size": 16,
            "hidden_size": 16,
            "intermediate_hidden_size": 32,
            "attention_heads": 2,
        }
    },
    "bert": {
        "transformer": {
            "layers": 1,
            "embedding_size": 16,
            "hidden_size": 16,
            "intermediate_hidden_size": 32,
            "attention_heads": 2,
        }
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("corpus"), train_sentences=200, test_sentences=40, seed=3, pairs_each=5)


@pytest.fixture
def experiment(corpus, tmp_path):
    """A tiny experiment; keywords replace or add keys of `training`, overrides anything else."""

    def build(name="run", architecture="lstm", overrides=(), **training):
        content: dict[str, Any] = {
            "experiment_name": name,
            "data": {
                "training_corpus": str(corpus.train),
                "test_corpus": str(corpus.test),
                "max_sequence_length": 16,
                "batch_size": 8,
            },
            "tokenizer": {"tokenizer_type": "word", "vocab_size": 200},
            "model": {"architecture": architecture, **MODELS[architecture]},
            "training": {"output_dir": str(tmp_path / name), "learning_rate": 5e-3, "device": "cpu", **training},
            "logging": {"log_every_steps": 1},
        }
        if not {"epochs", "train_steps", "train_tokens", "train_words", "train_bytes"} & set(training):
            content["training"]["train_steps"] = 6
        return load_config(content, overrides)

    return build


def weights(config, step):
    return load((Path(config.training.output_dir) / f"checkpoint-{step}" / "model.safetensors").read_bytes())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def metrics(config, kind="train"):
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def interrupted(config, step):
    """Train in another process that dies, without any clean-up, when it has logged `step`."""

    class Die:
        @hookimpl
        def foundry_step_ended(self, report):
            if report.step == step:
                die()

    killed(partial(run, config, extra_observers=[Die()], quiet=True))


def test_checkpoints_are_at_step_0_on_schedule_and_at_the_end(experiment):
    config = experiment(train_steps=7, checkpoints={"every_steps": 3, "steps": [5]})
    run(config, quiet=True)
    assert [folder.name for folder in checkpoints(config.training.output_dir)] == [
        "checkpoint-0",
        "checkpoint-3",
        "checkpoint-5",
        "checkpoint-6",
        "checkpoint-7",
    ]


def test_checkpoint_0_is_the_untrained_model(experiment):
    config = experiment(train_steps=2)
    run(config, quiet=True)
    folder = Path(config.training.output_dir) / "checkpoint-0"
    fresh = create_model(config, load_tokenizer(folder))
    assert same(dict(fresh.state_dict()), dict(load_model(folder).state_dict()))
    assert not same(weights(config, 0), weights(config, 2))


@pytest.mark.parametrize("architecture", ["lstm", "gpt2", "bert"])
def test_a_checkpoint_opens_in_transformers_with_equal_logits(experiment, architecture):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    config = experiment(architecture=architecture, train_steps=2)
    run(config, quiet=True)
    folder = Path(config.training.output_dir) / "checkpoint-2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the man is old .", return_tensors="pt")["input_ids"]
    auto = AutoModelForCausalLM if config.objective.causal else AutoModelForMaskedLM
    assert torch.equal(auto.from_pretrained(folder).eval()(ids).logits, load_model(folder)(ids).logits)


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "stop", "extra"),
    [
        ("lstm", 3, {}),
        ("gpt2", 3, {"gradient_accumulation_steps": 2}),
        ("bert", 5, {"num_workers": 2}),
        ("lstm", 5, {"lr_scheduler": "plateau", "evaluate_every_steps": 1, "plateau_patience": 0}),
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(experiment, architecture, stop, extra):
    settings = {"architecture": architecture, "epochs": 1.5, "checkpoints": {"every_steps": 2}, **extra}
    whole, broken = experiment("whole", **settings), experiment("broken", **settings)
    end = run(whole, quiet=True)
    interrupted(broken, stop)
    resumed = run(broken, resume=True, quiet=True)
    assert same(weights(whole, end.step), weights(broken, end.step))
    assert (resumed.ledger, resumed.tokens_seen, resumed.samples) == (end.ledger, end.tokens_seen, end.samples)
    exact = ("step", "loss", "learning_rate", "grad_norm", "tokens_seen", "words_seen")
    assert [[r[k] for k in exact] for r in metrics(whole)] == [[r[k] for k in exact] for r in metrics(broken)]
    assert metrics(whole, "eval") == metrics(broken, "eval")
    optimizers = [
        load(optimizer_file(Path(c.training.output_dir) / f"checkpoint-{end.step}").read_bytes())
        for c in (whole, broken)
    ]
    assert same(*optimizers)
    assert any(bool((value != 0).any()) for value in optimizers[0].values())


def test_splitting_a_batch_changes_nothing_but_rounding(experiment):
    model = {"overrides": ["model.rnn.dropout=0.0"]}
    whole = experiment("whole", train_steps=4, **model)
    split = experiment(
        "split", train_steps=4, gradient_accumulation_steps=4, overrides=["model.rnn.dropout=0.0", "data.batch_size=2"]
    )
    run(whole, quiet=True)
    run(split, quiet=True)
    for key, value in weights(whole, 4).items():
        torch.testing.assert_close(weights(split, 4)[key], value, rtol=1e-4, atol=1e-6)
    assert [r["tokens_seen"] for r in metrics(whole)] == [r["tokens_seen"] for r in metrics(split)]


def test_a_micro_batch_with_fewer_predictions_weighs_less(experiment):
    # The whole epoch is one step: seven rows of 16 tokens and a tail of another length, in batches of one row.
    short = ["model.rnn.dropout=0.0", "data.max_sequence_length=64"]
    one = experiment("one", epochs=1, overrides=[*short, "data.batch_size=64"])
    many = experiment("many", epochs=1, gradient_accumulation_steps=64, overrides=[*short, "data.batch_size=1"])
    run(one, quiet=True)
    run(many, quiet=True)
    assert metrics(one)[0]["loss"] == pytest.approx(metrics(many)[0]["loss"], rel=1e-6)
    assert metrics(one)[0]["grad_norm"] == pytest.approx(metrics(many)[0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("architecture", ["lstm", "bert"])
@pytest.mark.long
def test_saving_and_evaluating_do_not_change_the_weights(experiment, architecture):
    """Never is at the beginning and at the end alone; the batches of a step are two, between which nothing is saved."""
    outcomes = []
    frequencies: dict[str, dict[str, Any]] = {
        "never": {},
        "rarely": {"checkpoints": {"every_steps": 4}},
        "often": {"checkpoints": {"every_steps": 1}, "evaluate_every_steps": 1},
        "all the time, keeping one": {"checkpoints": {"ephemeral_minutes": 1e-9, "keep": 1}},
    }
    for name, when in frequencies.items():
        config = experiment(name, architecture, train_steps=6, gradient_accumulation_steps=2, **when)
        state = run(config, quiet=True)
        folder = Path(config.training.output_dir) / "checkpoint-6"
        files = [path.read_bytes() for path in (folder / "model.safetensors", optimizer_file(folder))]
        outcomes.append((files, state.ledger, [(r["loss"], r["grad_norm"]) for r in metrics(config)]))
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])


@pytest.mark.parametrize("architecture", MODELS)
def test_unequal_micro_batches_have_the_gradient_of_the_batch(experiment, architecture):
    """A step of plain gradient descent so large that the weights it leaves are the gradient, to seven figures."""
    rate, gradients = 1e4, []
    dropout = [f"model.{'rnn' if architecture == 'lstm' else 'transformer'}.dropout=0"]
    dropout += [] if architecture == "lstm" else ["model.transformer.attention_dropout=0"]
    for size, passes in ((24, 1), (8, 3), (1, 24)):
        config = experiment(
            f"in {passes}",
            architecture,
            epochs=1,
            gradient_accumulation_steps=passes,
            optimizer="sgd",
            learning_rate=rate,
            weight_decay=0,
            lr_scheduler="constant",
            max_grad_norm=None,
            overrides=[*dropout, "data.max_sequence_length=96", f"data.batch_size={size}"],
        )
        state = run(config, quiet=True)
        assert state.step == 1
        assert state.samples % 8 == 3  # rows in the last of three micro-batches, one of them a short one
        before, after = weights(config, 0), weights(config, 1)
        gradients.append(torch.cat([(before[name] - after[name]).double().flatten() / rate for name in sorted(before)]))
    whole, *split = gradients
    assert whole.norm() > 0.01
    for gradient in split:
        assert (gradient - whole).norm() / whole.norm() < 1e-5


def test_workers_change_nothing(experiment):
    alone, helped = experiment("alone", "bert"), experiment("helped", "bert", num_workers=2)
    run(alone, quiet=True)
    run(helped, quiet=True)
    assert same(weights(alone, 6), weights(helped, 6))


def test_equal_seeds_give_equal_runs_and_each_varies_its_stream(experiment):
    results = {}
    for name, overrides in {
        "first": [],
        "again": [],
        "order": ["seeds.data_order=7"],
        "initial": ["seeds.initialisation=7"],
        "dropout": ["seeds.dropout=7"],
    }.items():
        config = experiment(name, train_steps=3, overrides=overrides)
        state = run(config, quiet=True)
        results[name] = (weights(config, 3), weights(config, 0), state.ledger)
    first = results["first"]
    assert same(first[0], results["again"][0])
    assert first[2] == results["again"][2] == results["initial"][2] == results["dropout"][2] != results["order"][2]
    assert same(first[1], results["order"][1])
    assert same(first[1], results["dropout"][1])
    assert not same(first[1], results["initial"][1])
    assert not same(first[0], results["dropout"][0])


@pytest.mark.long
def test_other_hash_seeds_give_the_same_run_and_tokenizer(experiment):
    """Sets and dictionaries of text have another order in each process; nothing that is kept may follow it."""
    kept = (
        "model.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    overrides = ["tokenizer.tokenizer_type=sentencepiece", "tokenizer.vocab_size=300"]
    overrides.append("training.checkpoints.keep_optimizer=all")
    here, there = (experiment(name, "bert", train_steps=3, overrides=overrides) for name in ("here", "there"))
    run(here, quiet=True)
    code = "import json, sys, torch\nfrom foundry_core import load_config, run\ntorch.set_num_threads(1)\n"
    code += "run(load_config(json.load(sys.stdin)), quiet=True)\n"
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    settings = json.dumps(there.resolved()).encode()
    subprocess.run([sys.executable, "-c", code], input=settings, env=environment, check=True)
    for file in kept:
        one, other = (Path(c.training.output_dir) / "checkpoint-3" / file for c in (here, there))
        assert one.read_bytes() == other.read_bytes(), file


def test_the_data_order_does_not_depend_on_the_architecture(experiment):
    ledgers = {
        run(experiment(name, name, overrides=["tokenizer.tokenizer_type=word"]), quiet=True).ledger
        for name in ("lstm", "gpt2")
    }
    assert len(ledgers) == 1


def test_an_epoch_uses_every_token_once_and_its_tail(experiment):
    config = experiment(epochs=2)
    state = run(config, quiet=True)
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    rows = len(data.train_rows)
    assert rows % config.data.batch_size != 0
    assert state.step == math.ceil(2 * rows / 8)
    assert state.tokens_seen == 2 * (data.train.info.tokens - 1)
    assert state.words_seen == 2 * data.train.info.words
    assert state.epoch == 2.0


@pytest.mark.parametrize(
    ("budget", "share"),
    [({"epochs": 0.5}, 0.5), ({"train_tokens": "1k"}, None), ({"train_words": "1k"}, None)],
)
def test_a_budget_in_tokens_or_words_ends_before_it_is_exceeded(experiment, budget, share):
    config = experiment(**budget)
    state = run(config, quiet=True)
    if share is not None:
        assert state.epoch == pytest.approx(share, abs=0.01)
        return
    key = "tokens_seen" if "train_tokens" in budget else "words_seen"
    assert 1000 - 2 * 16 < getattr(state, key) <= 1000


def test_milestones_and_logarithmic_schedules_are_what_they_say(experiment):
    config = experiment(
        train_steps=20, checkpoints={"log_base": 2, "milestones": {"words": [500], "tokens": [1000, "10M"]}}
    )
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    plan = RunPlan.of(config, data)
    tokens_per_step = 8 * plan.tokens_per_epoch / plan.rows
    words_per_step = 8 * plan.words_per_epoch / plan.rows
    expected = {0, 1, 2, 4, 8, 16, 20, math.floor(500 / words_per_step), math.floor(1000 / tokens_per_step)}
    assert set(plan.checkpoint_steps) == expected


def test_warm_up_and_totals_are_in_optimizer_steps(experiment):
    config = experiment(train_steps=8, gradient_accumulation_steps=4, warmup_ratio=0.25)
    state = run(config, quiet=True)
    assert state.step == 8
    assert state.samples == 8 * 4 * 8
    rates = [record["learning_rate"] for record in metrics(config)]
    np.testing.assert_allclose(rates[:3], [2.5e-3, 5e-3, 5e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] > 0


def test_a_loss_that_is_not_finite_stops_before_the_update(experiment):
    config = experiment(learning_rate=1e30, max_grad_norm=None, optimizer="sgd")
    with pytest.raises(TrainingError, match=r"before the update of step 3: loss nan, .* samples 16 to 23\. Lower"):
        run(config, quiet=True)
    assert [record["step"] for record in metrics(config)] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in metrics(config))


@pytest.mark.parametrize("extra", [{"checkpoints": {"every_steps": 1, "keep": 1}}, {"evaluate_every_steps": 1}])
def test_weights_that_became_infinite_are_not_saved(experiment, extra):
    config = experiment(learning_rate=1e30, max_grad_norm=None, optimizer="sgd", **extra)
    says = r"after the update of step 2, which is not saved: recurrent\.\w+ is not finite; samples 8 to 15\. Lower"
    with pytest.raises(TrainingError, match=says):
        run(config, quiet=True)
    last = checkpoints(config.training.output_dir)[-1]
    assert last.name == ("checkpoint-1" if "checkpoints" in extra else "checkpoint-0")
    assert all(parameter.isfinite().all() for parameter in load_model(last).parameters())


def test_an_observer_can_neither_change_training_nor_stop_it(experiment, capsys):
    class Noisy:
        @hookimpl
        def foundry_step_ended(self, report):
            torch.manual_seed(report.step)
            torch.rand(7)
            np.random.seed(1)
            if report.step == 2:
                raise RuntimeError("no more")

        @hookimpl
        def foundry_evaluated(self, report):
            torch.rand(3)

    quiet, noisy = experiment("quiet"), experiment("noisy")
    run(quiet, quiet=True)
    run(noisy, extra_observers=[Noisy()], quiet=True)
    assert same(weights(quiet, 6), weights(noisy, 6))
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if "no more" in line and "muted" in line]) == 1


def test_a_folder_with_checkpoints_is_not_trained_over(experiment):
    config = experiment(train_steps=2)
    run(config, quiet=True)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: go on with --resume"):
        run(config, quiet=True)


def test_resuming_into_nothing_is_refused(experiment):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(experiment(), resume=True, quiet=True)


def test_resuming_with_other_settings_is_refused_unless_allowed(experiment):
    run(experiment(train_steps=2), quiet=True)
    changed = experiment(train_steps=4, learning_rate=1e-3)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.005, is 0.001.*train_steps was 2, is 4"):
        run(changed, resume=True, quiet=True)
    state = run(changed, resume=True, quiet=True, allowed_changes=["training.learning_rate", "training.train_steps"])
    assert state.step == 4


def test_what_changes_no_weight_may_differ_on_resuming(experiment):
    run(experiment(train_steps=2), quiet=True)
    config = experiment(
        train_steps=2, checkpoints={"every_steps": 1}, num_workers=1, overrides=["logging.log_every_steps=2"]
    )
    assert run(config, resume=True, quiet=True).step == 2


def test_resuming_on_another_corpus_is_refused(experiment, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("the man is old .\n" * 300)
    shared = tmp_path / "shared-tokenizer"
    overrides = [f"data.training_corpus={text}", f"tokenizer.output_dir={shared}"]
    run(experiment(train_steps=2, overrides=overrides), quiet=True)
    text.write_text("the man is young .\n" * 300)
    config = experiment(train_steps=3, overrides=[*overrides[:1], f"tokenizer.output_dir={shared}-2"])
    with pytest.raises(CheckpointError, match=r"output_dir|data: "):
        run(config, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="data: "):
        run(config, resume=True, quiet=True, allowed_changes=["tokenizer", "training.train_steps"])


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(experiment, capsys):
    config = experiment(train_steps=4, checkpoints={"every_steps": 2})
    run(config, quiet=True)
    reference = weights(config, 4)
    damaged = Path(config.training.output_dir) / "checkpoint-4" / "model.safetensors"
    raw = bytearray(damaged.read_bytes())
    raw[-3] ^= 1
    damaged.write_bytes(raw)
    run(config, resume=True, quiet=True)
    assert "checkpoint-4 is passed over" in capsys.readouterr().err
    assert same(weights(config, 4), reference)


def test_keep_leaves_the_newest_and_step_0(experiment):
    config = experiment(train_steps=6, checkpoints={"every_steps": 1, "keep": 2})
    run(config, quiet=True)
    names = [folder.name for folder in checkpoints(config.training.output_dir)]
    assert names == ["checkpoint-0", "checkpoint-5", "checkpoint-6"]


def test_of_the_ephemeral_checkpoints_only_the_newest_stays(experiment):
    config = experiment(train_steps=5, checkpoints={"steps": [2], "ephemeral_minutes": 1e-9})
    run(config, quiet=True)
    names = [folder.name for folder in checkpoints(config.training.output_dir)]
    assert names == ["checkpoint-0", "checkpoint-2", "checkpoint-5"]


def test_evaluation_says_loss_perplexity_and_bits_per_byte(experiment, corpus, tmp_path):
    known = set(corpus.train.read_text().split())
    sentences = [line for line in corpus.test.read_text().splitlines() if known.issuperset(line.split())]
    (tmp_path / "known.txt").write_text("".join(f"{line}\n" for line in sentences))
    test_corpus = f"data.test_corpus={tmp_path / 'known.txt'}"
    config = experiment(train_steps=4, evaluate_every_steps=2, overrides=[test_corpus])
    run(config, quiet=True)
    records = metrics(config, "eval")
    assert [record["step"] for record in records] == [2, 4]
    assert records[0]["tokens"] == sum(len(line.split()) + 1 for line in sentences)
    assert records[0]["perplexity"] == pytest.approx(math.exp(records[0]["loss"]))
    nats = records[0]["loss"] * records[0]["tokens"]
    assert records[0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(line) for line in sentences))


def test_the_tokenizer_never_sees_the_test_corpus(experiment, tmp_path):
    held_out = tmp_path / "dev.txt"
    held_out.write_text("zygote zygote zygote .\n")
    config = experiment(train_steps=1, overrides=[f"data.test_corpus={held_out}"])
    run(config, quiet=True)
    tokenizer = load_tokenizer(Path(config.training.output_dir) / "tokenizer")
    assert "zygote" not in tokenizer.get_vocab()


def test_a_tokenizer_made_from_other_inputs_is_not_used_silently(experiment, tmp_path):
    shared = f"tokenizer.output_dir={tmp_path / 'shared'}"
    run(experiment("one", train_steps=1, overrides=[shared]), quiet=True)
    with pytest.raises(TokenizerError, match=r"vocab_size was 200, is 90.*--force"):
        run(experiment("two", train_steps=1, overrides=[shared, "tokenizer.vocab_size=90"]), quiet=True)


def test_fp16_on_a_cpu_is_refused_and_bf16_stays_near_fp32(experiment):
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        run(experiment("half", precision="fp16"), quiet=True)
    full, brain = experiment("full", "gpt2"), experiment("brain", "gpt2", precision="bf16")
    run(full, quiet=True)
    run(brain, quiet=True)
    a, b = metrics(full)[-1]["loss"], metrics(brain)[-1]["loss"]
    assert a != b
    assert a == pytest.approx(b, abs=0.05)
    assert all(value.dtype == torch.float32 for value in weights(brain, 6).values())


def test_what_a_run_resolved_is_on_record(experiment):
    config = experiment(train_steps=1)
    run(config, quiet=True)
    folder = Path(config.training.output_dir)
    record = json.loads((folder / "run.json").read_bytes())
    assert record["precision"] == "fp32"
    assert record["versions"]["torch"] == torch.__version__
    assert load_config(folder / "config.yaml") == config
    state = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_bytes())
    assert state["global_step"] == 1
    assert state["num_input_tokens_seen"] == 8 * 14


@pytest.mark.long
def test_a_run_in_use_is_refused_until_its_process_ends(experiment):
    config = experiment(train_steps=1)
    code = (
        "import os, sys\nfrom foundry_core.storage.lock import RunLock\n"
        f"lock = RunLock({config.training.output_dir!r})\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    from foundry_core.storage.files import StorageError

    with pytest.raises(StorageError, match=rf"in use by pid {holder.pid} on .*started"):
        run(config, quiet=True)
    holder.kill()
    holder.wait()
    assert run(config, quiet=True).step == 1
