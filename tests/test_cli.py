"""The command line, from a YAML to scores and text, and what it says when something is wrong."""

import argparse
import importlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.cli import VERBS, main
from foundry_core.cli.common import number
from foundry_core.devices import memory_of
from foundry_core.testing.toy_language import write_corpus
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest
from tests.each import each

SIZES = {"rnn": {"embedding_size": 12, "hidden_size": 16, "num_layers": 1}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus, a YAML and a finished run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_corpus(folder, train_sentences=200, test_sentences=30, seed=5, pairs_each=4)
    content = {
        "experiment_name": "cli",
        "data": {
            "training_corpus": str(corpus.train),
            "test_corpus": str(corpus.test),
            "max_sequence_length": 16,
            "batch_size": 8,
        },
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 200},
        "model": {"architecture": "lstm", **SIZES},
        "training": {"output_dir": str(folder / "run"), "learning_rate": 5e-3, "train_steps": 6},
        "logging": {"log_every_steps": 2},
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(folder / "x.yaml"), "--quiet"]) == 0
    return folder


def test_training_says_where_the_result_is(trained, tmp_path, capsys):
    assert main(["train", str(trained / "x.yaml"), f"training.output_dir={tmp_path}"]) == 0
    captured = capsys.readouterr()
    assert f"{tmp_path}/checkpoint-6" in captured.out
    lines = captured.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step") and "left" in line] == ["2/6", "4/6", "6/6"]
    assert "tokens/s" in lines[1]
    assert any("test loss" in line and "bits per byte" in line for line in lines)


def test_evaluate_repeats_the_figure_of_training(trained, capsys):
    assert main(["evaluate", str(trained / "run"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["corpus"]
    records = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert figures["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)


def test_minimal_pairs_are_scored_by_paradigm(trained, capsys):
    assert main(["evaluate", str(trained / "run"), "--pairs", str(trained / "minimal_pairs.jsonl"), "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [(entry["name"], entry["pairs"]) for entry in pairs] == [
        (f"agreement_{attractors}_attractors", 4) for attractors in (0, 1, 2)
    ]
    assert all(0 <= entry["accuracy"] <= 1 for entry in pairs)


def test_a_tie_counts_as_wrong(trained, tmp_path, capsys):
    same = {"sentence_good": "the man is old .", "sentence_bad": "the man is old ."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(same) + "\n")
    assert main(["evaluate", str(trained / "run"), "--pairs", str(tmp_path / "pairs.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["accuracy"] == 0


def test_generation_goes_on_from_the_prompt_and_follows_its_seed(trained, capsys):
    def texts(*options):
        assert main(["generate", str(trained / "run"), "--prompt", "the man", "--tokens", "6", *options]) == 0
        return capsys.readouterr().out.splitlines()

    first = texts("--samples", "3", "--seed", "5")
    assert len(first) == 3
    assert all(text.startswith("the man") for text in first)
    assert first == texts("--samples", "3", "--seed", "5") != texts("--samples", "3", "--seed", "6")
    assert texts("--greedy") == texts("--greedy", "--seed", "9")


def test_a_prompt_that_is_not_read_as_written_is_told(trained, capsys):
    assert main(["generate", str(trained / "run"), "--prompt", "the zygote is", "--tokens", "3", "--greedy"]) == 0
    assert "does not know 1 of the 3 tokens of the prompt" in capsys.readouterr().err


def test_unknown_tokens_are_reported_with_every_figure(trained, tmp_path, capsys):
    text, pairs = tmp_path / "text.txt", tmp_path / "pairs.jsonl"
    text.write_text("the man is the man\nthe zygote is the man\n")
    pairs.write_text(
        json.dumps({"sentence_good": "the zygote is the man", "sentence_bad": "the zygote are the man"}) + "\n"
    )
    test, run = f"data.test_corpus={text}", str(trained / "run")

    def said(*command):
        assert main([*command]) == 0
        captured = capsys.readouterr()
        return captured.out + captured.err

    prepared = said("data", "prepare", str(trained / "x.yaml"), test)
    assert [line.split()[-1] for line in prepared.splitlines() if "unknown" in line] == ["1", "10.00%"]
    plan = json.loads(said("plan", str(trained / "x.yaml"), test, "--no-timing", "--json"))
    assert (plan["unknown_share"], plan["unknown_share_of_test"]) == (0, 0.1)
    figures = json.loads(said("evaluate", run, "--corpus", str(text), "--json"))["corpus"]
    assert (figures["unknown_share"], figures["bits_per_byte"]) == (0.1, None)
    assert "bits per byte  not given: 10.00% of the tokens are unknown" in said("evaluate", run, "--corpus", str(text))
    assert said("evaluate", run, "--pairs", str(pairs)).split()[-1] == "20.00%"
    assert json.loads(said("evaluate", run, "--pairs", str(pairs), "--json"))["pairs"][0]["unknown_share"] == 0.2
    ended = said("train", str(trained / "x.yaml"), test, f"training.output_dir={tmp_path / 'run'}")
    assert re.search(r"test loss .*unknown tokens 10.00%", ended)
    few = said("train", str(trained / "x.yaml"), "tokenizer.vocab_size=60", f"training.output_dir={tmp_path / 'few'}")
    assert float(few.split("unknown_share ")[1].split()[0]) > 0.01


def test_a_changed_version_of_the_plugin_is_one_line(trained, tmp_path, capsys):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained / "run" / "checkpoint-6" / name, tmp_path / name)
    config = json.loads((tmp_path / "config.json").read_bytes())
    now = config["foundry"]["plugin"]["version"]
    for verb in (["evaluate"], ["generate", "--tokens", "2"]):
        config["foundry"]["plugin"]["version"] = "0.0.1"
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert main([*verb, str(tmp_path)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"plugin was foundry-rnn 0.0.1, is foundry-rnn {now}" in line
        config["foundry"]["plugin"]["version"] = now
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert main([*verb, str(tmp_path)]) == 0
        assert capsys.readouterr().err == ""


def test_lengths_that_do_not_apply_are_not_warned_of(trained, tmp_path, capsys):
    """transformers compares every text with the length of a row, which bounds neither an LSTM nor a tokenizer."""
    logger, lines = logging.getLogger("transformers"), io.StringIO()
    handler = logging.StreamHandler(lines)
    logger.addHandler(handler)
    try:
        long = " ".join(["the man is old ."] * 20)
        (tmp_path / "long.jsonl").write_text(json.dumps({"sentence_good": long, "sentence_bad": long + " is"}) + "\n")
        assert main(["evaluate", str(trained / "run"), "--pairs", str(tmp_path / "long.jsonl")]) == 0
        assert main(["generate", str(trained / "run"), "--prompt", long, "--tokens", "40"]) == 0
        own = f"tokenizer.output_dir={tmp_path / 'tokenizer'}"
        assert main(["tokenizer", "train", str(trained / "x.yaml"), "data.max_sequence_length=4", own]) == 0
    finally:
        logger.removeHandler(handler)
    assert lines.getvalue() == ""
    assert "transformers" not in capsys.readouterr().err


def test_only_a_recurrent_model_generates_beyond_its_rows(trained, tmp_path, capsys):
    ten = "the man is old . the man is old ."
    assert main(["generate", str(trained / "run"), "--prompt", ten, "--tokens", "20", "--greedy"]) == 0
    assert "at most" not in capsys.readouterr().err
    assert main(["generate", str(trained / "run"), "--prompt", f"{ten} {ten}", "--greedy"]) == 0
    run = tmp_path / "gpt2"
    sizes = "{layers: 1, embedding_size: 16, hidden_size: 16, intermediate_hidden_size: 32, attention_heads: 2}"
    model = f"model={{architecture: gpt2, transformer: {sizes}}}"
    assert main(["train", str(trained / "x.yaml"), model, f"training.output_dir={run}", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", ten, "--tokens", "20", "--greedy"]) == 0
    assert "at most 5 tokens are added: the model was trained on 16" in capsys.readouterr().err
    assert main(["generate", str(run), "--samples", "20"]) == 0
    output = capsys.readouterr()
    assert (output.out.count("\n"), output.err) == (20, "")
    assert main(["generate", str(run), "--prompt", f"{ten} {ten}"]) == 2
    assert "the prompt has 21 tokens; the model was trained on 16" in capsys.readouterr().err


def test_settings_may_come_after_options(trained, tmp_path, capsys):
    command = ["train", str(trained / "x.yaml"), "--quiet", f"training.output_dir={tmp_path}", "training.train_steps=1"]
    assert main(command) == 0
    assert (tmp_path / "checkpoint-1").is_dir()
    with pytest.raises(SystemExit):
        main(["evaluate", "--suite", str(trained / "pairs.jsonl"), str(trained / "run")])
    assert "required: CHECKPOINT: name it before --suite and --pairs" in capsys.readouterr().err
    for wrong in (["train", str(trained / "x.yaml"), "--quit"], ["plugins", "list", "stray"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
        assert f"unknown argument: {wrong[-1]}" in capsys.readouterr().err


@pytest.mark.long
def test_a_model_from_a_file_is_scored_with_that_file(trained, tmp_path, capsys):
    (tmp_path / "bigram.py").write_text(
        "from torch import nn\n"
        "from foundry_core import BaseLanguageModel, ModelConfig, register_architecture\n"
        "@register_architecture('bigram', config=ModelConfig)\n"
        "class Bigram(BaseLanguageModel):\n"
        "    def __init__(self, config, context):\n"
        "        super().__init__(config, context)\n"
        "        self.table = nn.Embedding(context.vocab_size, context.vocab_size)\n"
        "    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):\n"
        "        hidden = self.table(input_ids)\n"
        "        return self.lm_output(hidden, lambda x: x, labels, attention_mask=attention_mask, **kwargs)\n"
        "    def get_input_embeddings(self):\n        return self.table\n"
        "    def resize_token_embeddings(self, new_num_tokens):\n        raise NotImplementedError\n"
    )
    plugin, run = ["--plugin", str(tmp_path / "bigram.py")], f"training.output_dir={tmp_path / 'run'}"

    def foundry(*lines):
        """A process that carries out commands, one after the other; the last code is its own."""
        program = f"import sys\nfrom foundry_core.cli import main\nprint(*map(main, {lines!r}), file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return done.stderr.splitlines()

    trains = ["train", str(trained / "x.yaml"), "model={architecture: bigram}", run, "--quiet", *plugin]
    assert foundry(trains) == ["0"]
    bare = ["evaluate", str(tmp_path / "run")]
    refusal, codes = foundry(bare, [*bare, *plugin])
    assert codes == "6 0"
    assert "this model cannot be built here" in refusal
    assert "Unknown architecture: 'bigram'" in refusal


def test_a_damaged_checkpoint_is_reported_and_not_scored(trained, tmp_path, capsys):
    assert main(["train", str(trained / "x.yaml"), f"training.output_dir={tmp_path}", "--quiet"]) == 0
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["evaluate", str(tmp_path / "checkpoint-6")]) == 6
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert "warning: checkpoint-6 is passed over" in captured.err
    assert json.loads(captured.out)["checkpoint"].endswith("checkpoint-0")


def test_plan_agrees_with_the_run_it_plans(trained, tmp_path, capsys):
    assert main(["plan", str(trained / "x.yaml"), f"training.output_dir={tmp_path / 'planned'}", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    record = json.loads((trained / "run" / "run.json").read_bytes())
    assert plan["parameters"] == record["parameters"]
    assert plan["steps"] == record["plan"]["total_steps"] == 6
    assert plan["checkpoints"] == record["plan"]["checkpoint_steps"]
    assert plan["tokens_per_row"] == record["plan"]["tokens_per_row"] == 14
    assert plan["tokenizer_digest"] == tokenizer_digest(load_tokenizer(tmp_path / "planned" / "tokenizer"))
    last = trained / "run" / "checkpoint-6"
    weights, state = ((path).stat().st_size for path in (last / "model.safetensors", optimizer_file(last)))
    assert plan["bytes_of_a_checkpoint"] == pytest.approx(weights + state, rel=0.1)
    kept = len(list((trained / "run").glob("checkpoint-*")))
    assert plan["disk_bytes"] == pytest.approx(kept * weights + 2 * state, rel=0.1)
    assert plan["seconds"] > 0
    assert plan["memory_bytes"] > 4 * plan["parameters"] * 4
    assert plan["of_which_activations"] > 8 * 16 * 16 * 4
    assert plan["training_flops"] == pytest.approx(6 * plan["flops_per_step"])
    assert not list((tmp_path / "planned").glob("checkpoint-*"))


def test_plan_says_memory_where_the_whole_batch_is_not_run(trained, tmp_path, capsys):
    command = ["plan", str(trained / "x.yaml"), f"training.output_dir={tmp_path}", "--no-timing", "--json"]
    plans = []
    for rows in (8, 1_000_000):
        assert main([*command, f"data.batch_size={rows}"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert "seconds" not in plans[0]
    small, large = (plan["of_which_activations"] for plan in plans)
    assert large == pytest.approx(125_000 * small, rel=0.15)
    matrices = plans[0]["parameters"] - plans[0]["of_which_embeddings"]
    assert plans[0]["flops_per_step"] == pytest.approx(6 * 8 * 15 * matrices, rel=0.1)  # biases aside


NOT_UTF8 = "caf\udce9"  # as Python passes on the byte E9


@each(
    ("arguments", "code"),
    [
        *((["train", "{x}", f"{key}={NOT_UTF8}"], 2) for key in ("training.output_dir", "experiment_name", "data")),
        *((["train", "{x}", f"data.training_corpus={NOT_UTF8}"], 2), (["validate", "{x}", f"plugins=[{NOT_UTF8}]"], 2)),
        *((["validate", NOT_UTF8], 2), (["validate", "{x}", f"{NOT_UTF8}=1"], 2), (["validate", "a\0b"], 2)),
        *((["generate", "{run}", "--prompt", NOT_UTF8], 2), (["init", "lstm", "--name", NOT_UTF8], 2)),
        *((["evaluate", "{run}", "--pairs", NOT_UTF8], 4), (["evaluate", "{run}", "--corpus", NOT_UTF8], 4)),
        *((["evaluate", f"{{tmp}}/{NOT_UTF8}"], 6), (["generate", f"{{tmp}}/{NOT_UTF8}"], 6)),
        *((["verify", NOT_UTF8], 6), (["plugins", "show", NOT_UTF8], 3), (["new-plugin", NOT_UTF8], 2)),
        *((["generate", "{run}", "--seed", str(2**64)], 2), (["quickstart", "{tmp}/q", "--seed", str(2**63)], 2)),
        *((["train", "{x}", f"random_seed={2**64}"], 2), (["train", "{x}", f"seeds.masking={2**64}"], 2)),
        *((["verify", "~nosuchuser/run"], 2), (["evaluate", "{run}", "--pairs=~nosuchuser/x"], 2)),
        (["train", "{zero}", "training.output_dir={tmp}/run", "tokenizer.tokenizer_type=wordpiece"], 4),
    ],
)
def test_an_odd_argument_is_one_line(trained, tmp_path, capsys, arguments, code):
    shutil.copytree(trained / "run", tmp_path / NOT_UTF8)
    settings = yaml.safe_load((trained / "x.yaml").read_text())
    (tmp_path / "zero.txt").write_text("\u200b\n" * 40)  # wordpiece drops characters without width
    settings["data"]["training_corpus"] = str(tmp_path / "zero.txt")
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(settings))
    places = {"x": trained / "x.yaml", "run": trained / "run", "tmp": tmp_path, "zero": tmp_path / "zero.yaml"}
    capsys.readouterr()
    try:
        found: object = main([argument.format(**places) for argument in arguments])
    except SystemExit as stop:  # argparse's own
        found = stop.code
    errors = capsys.readouterr().err
    assert (found, len(errors.splitlines())) == (code, 1), errors


@each("verb", ["evaluate", "generate", "verify", "validate", "init", "migrate", "new-plugin", "schema"])
def test_the_home_folder_is_found_in_every_path_option(trained, tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "here")
    (tmp_path / "empty.py").write_text("")
    commands = {
        "evaluate": ["~/here/run", "--pairs=~/here/minimal_pairs.jsonl", "--corpus=~/here/test.txt"],
        "generate": ["~/here/run", "--tokens=1", "--plugin=~/empty.py"],
        "verify": ["~/here/run"],
        "validate": ["~/here/x.yaml"],
        "init": ["lstm", "--output=~/new.yaml"],
        "migrate": ["~/here/x.yaml"],
        "new-plugin": ["zzz", "--dir=~/here"],
        "schema": ["--plugin=~/empty.py"],
    }
    code = 2 if verb == "migrate" else 0  # its file is found, and is not old
    assert main([verb, *commands[verb]]) == code, capsys.readouterr().err
    assert not (tmp_path / "~").exists()


_LINES = """
import sys
from foundry_core.cli import main
line = []
for word in [*sys.argv[1:], ";"]:
    if word == ";":
        sys.stderr.write(f"ended with {main(line)}\\n")
        line = []
    else:
        line.append(word)
"""


@pytest.mark.long
def test_what_a_locale_cannot_print_is_escaped(trained, tmp_path):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    settings = yaml.safe_load((trained / "x.yaml").read_text()) | {"experiment_name": "b\u00fccher"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))

    def foundry(*lines):
        """A process that carries out several commands: stdout, and what each prints to stderr, with its code."""
        words = [word for line in lines for word in (*line, ";")][:-1]
        command = [sys.executable, "-c", _LINES, *words]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=True)
        *said, rest = re.split(rb"ended with (\d)\n", done.stderr)
        assert rest == b""
        return done.stdout, said[::2], [int(code) for code in said[1::2]]

    shutil.copy(tmp_path / "x.yaml", tmp_path / "b\u00fccher.yaml")
    output, _, codes = foundry(["validate", "b\u00fccher.yaml".encode()])
    assert (codes, output.partition(b":")[0]) == ([0], rb"b\udcc3\udcbccher.yaml")
    _, errors, codes = foundry(
        ["generate", trained / "run", "--prompt", "\u00fcber".encode(), "--tokens", "2"],
        ["train", "x.yaml", "training.output_dir=run", "training.train_steps=1"],
        ["train", "x.yaml", "training.output_dir=b\u00fccher".encode()],
    )
    assert (codes, len(errors[2].splitlines())) == ([0, 0, 2], 1)
    output, _, codes = foundry(["init", "lstm", "--name", "b\u00fccher".encode()])
    assert codes == [0]
    assert "experiment_name: b\u00fccher" in output.decode("utf-8")


def test_plan_says_what_each_of_several_processes_needs(trained, tmp_path, capsys):
    accumulation = "training.gradient_accumulation_steps=4"
    command = ["plan", str(trained / "x.yaml"), f"training.output_dir={tmp_path}", "--no-timing", accumulation]
    plans = []
    for processes in ("1", "2", "4"):
        assert main([*command, "--json", "--processes", processes]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert [plan["processes"] for plan in plans] == [1, 2, 4]
    assert [plan["rows_of_a_process_in_a_step"] for plan in plans] == [32, 16, 8]
    assert all(plan["processes_that_fit"] == [1, 2, 4] for plan in plans)
    # One process holds a sum beside the gradient, for its tree of two by two; several exchange two gradients' room.
    gradient = 4 * plans[0]["parameters"]
    assert [plan["memory_bytes"] - plans[0]["memory_bytes"] for plan in plans] == [0, gradient, gradient]
    alike = ("steps", "training_tokens", "tokens_per_step", "training_flops", "bytes_of_a_checkpoint")
    assert all(plan[name] == plans[0][name] for plan in plans for name in alike)
    assert main([*command, "--json", "--processes", "2", "training.reduction=sharded"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_bytes"] < plans[1]["memory_bytes"]
    assert main([*command, "--processes", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 processes cannot divide" in line
    assert "there can be 1, 2, 4" in line


@pytest.mark.long
def test_plan_times_parts_of_a_step_that_would_take_long(trained, tmp_path, capsys):
    def planned(*settings):
        began = time.process_time()
        assert main(["plan", str(trained / "x.yaml"), f"training.output_dir={tmp_path}", "--json", *settings]) == 0
        assert time.process_time() - began < 10
        captured = capsys.readouterr()
        plan = json.loads(captured.out)
        too_large = plan["memory_bytes"] > memory_of(torch.device("cpu"))
        assert ("warning: a step needs about" in captured.err) == too_large
        return plan["seconds_per_step"]

    usual = planned()
    for setting, longer in (
        ("data.batch_size=1000000", 125_000),
        ("data.max_sequence_length=1000000", 62_500),
        ("training.gradient_accumulation_steps=100000", 100_000),
    ):
        assert planned(setting) > longer / 30 * usual, setting


def test_data_prepare_accounts_for_every_byte(trained, tmp_path, capsys):
    assert main(["data", "prepare", str(trained / "x.yaml"), f"training.output_dir={tmp_path}"]) == 0
    rows = [line.replace(",", "").split() for line in capsys.readouterr().out.splitlines() if line.startswith("bytes")]
    size, text, separators, skipped = (int(training) for *_, training, _ in rows)
    assert size == (trained / "train.txt").stat().st_size == text + separators + skipped


def test_a_tokenizer_is_trained_then_found_unchanged(trained, tmp_path, capsys):
    command = ["tokenizer", "train", str(trained / "x.yaml"), f"tokenizer.output_dir={tmp_path / 'tok'}"]
    assert main(command) == 0
    stamp = (tmp_path / "tok" / "tokenizer.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "tok" / "tokenizer.json").stat().st_mtime_ns == stamp
    assert main([*command, "tokenizer.vocab_size=60"]) == 5
    assert main([*command, "tokenizer.vocab_size=60", "--force"]) == 0
    assert (tmp_path / "tok" / "tokenizer.json").stat().st_mtime_ns != stamp


@each(
    ("arguments", "code", "says"),
    [
        ("{x} --resume", 0, "trained 6 steps"),  # it is finished, and is left as it is
        ("{x} --resume auto", 0, "trained 6 steps"),
        ("--resume=auto {x}", 0, "trained 6 steps"),
        ("--resume {x} logging.log_every_steps=3", 0, "trained 6 steps"),
        ("{x} --resume training.learning_rate=1e-3 --quiet", 6, "training.learning_rate was 0.005, is 0.001"),
        ("{x} --resume auto training.learning_rate=1e-3", 6, "training.learning_rate was 0.005, is 0.001"),
        ("{x} --resume=never", 2, "--resume: invalid choice: 'never'"),
    ],
)
def test_resume_takes_auto_and_nothing_else_that_follows(trained, capsys, arguments, code, says):
    command = ["train", *arguments.format(x=trained / "x.yaml").split()]
    with pytest.raises(SystemExit) as stop:
        sys.exit(main(command))
    ended = stop.value.code
    captured = capsys.readouterr()
    assert ended == code, captured.err
    assert says in (captured.err if code else captured.out)


@each(
    ("arguments", "code", "says"),
    [
        (["train", "{x}"], 6, "--resume"),
        (["train", "{x}", "data.training_corpus=nowhere.txt", "training.output_dir={tmp}"], 4, "nowhere.txt"),
        (["train", "{x}", "training.learning_rate=fast"], 2, "command line"),
        (["train", "missing.yaml"], 2, "missing.yaml"),
        (["evaluate", "{tmp}/none"], 6, "no such folder"),
        (["evaluate", "{tmp}"], 6, "neither a checkpoint nor a run"),
        (["evaluate", "{parent}"], 6, "name one, such as {run}"),
        (["verify", "{run}/checkpoint-0"], 6, "is a checkpoint: name its run, {run}"),
        (["seen", "{run}/checkpoint-0", "--step", "1"], 6, "is a checkpoint: name its run, {run}"),
        (["compare", "{run}/checkpoint-0"], 6, "is a checkpoint: name its run, {run}"),
        (["evaluate", "{run}", "--pairs", "{x}"], 4, "not a minimal pair"),
        (["train", "{x}", "--allow", "data"], 2, "--resume"),
        (["evaluate", "{run}", "--device", "cuda"], 2, "--device: "),
    ],
)
def test_an_error_of_the_user_is_one_line_with_its_exit_code(trained, tmp_path, capsys, arguments, code, says):
    places = {"x": trained / "x.yaml", "tmp": tmp_path, "run": trained / "run", "parent": trained}
    capsys.readouterr()
    assert main([argument.format(**places) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert says.format(**places) in captured.err
    assert "Traceback" not in captured.err


def numeric_options(parser):
    """Yield name and type of each option that is a number, those of the verbs below included."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in filter(lambda one: isinstance(one, argparse.ArgumentParser), action.choices.values()):
                yield from numeric_options(inner)
        checked = getattr(action.type, "__qualname__", "").startswith(f"{number.__name__}.")
        if checked or (isinstance(action.default, int | float) and not isinstance(action.default, bool)):
            yield action.option_strings[0], action.type


def test_no_option_takes_what_is_not_a_number_of_its_range(trained, capsys):
    found = []
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"foundry_core.cli.{verb.replace('-', '_')}").configure(parser)
        found += numeric_options(parser)
    assert {"--tokens", "--temperature", "--top-k", "--samples", "--seed"} <= {name for name, _ in found}
    for _, kind in found:
        for text in ("nan", "-nan", "inf", "-inf", "Infinity", "1e999", "-1", str(2**64), "", "x"):
            with pytest.raises(argparse.ArgumentTypeError, match="is not a (whole )?number from"):
                kind(text)
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(trained / "run"), "--temperature", "nan"])
    assert stop.value.code == 2
    assert "--temperature: 'nan' is not a number from 0.001 to 1,000" in capsys.readouterr().err


def test_debug_shows_where(tmp_path, capsys):
    for arguments in (["--debug", "evaluate", str(tmp_path)], ["evaluate", str(tmp_path), "--debug"]):
        assert main(arguments) == 6
        assert "Traceback" in capsys.readouterr().err


SUBVERBS = ["tokenizer train", "data prepare", "plugins list", "plugins show", "plugins doctor"]


@each("verb", [*VERBS, *SUBVERBS])
def test_each_verb_has_help_with_an_example_in_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert f"foundry {verb}" in output.split("example", 1)[1]
    assert len(output) > 300
    assert [line for line in output.splitlines() if len(line) > 80] == []


def test_help_names_every_verb_and_shows_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f"\n    {verb} " in output for verb in VERBS)
    assert "foundry train" in output
    assert [line for line in output.splitlines() if len(line) > 80] == []


@pytest.mark.long
def test_objects_of_large_imports_are_not_collected_again():
    code = (
        "import gc, sys\n"
        "from foundry_core.cli.common import large_imports\n"
        "with large_imports(): import torch; inside = gc.isenabled()\n"
        "assert not inside and gc.isenabled()\n"
        "print(gc.get_freeze_count())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) > 100_000


@pytest.mark.long
def test_a_closed_pipe_is_not_an_error():
    code = "import sys; from foundry_core.cli import main; sys.exit(main(['schema']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_tensorboard_gets_the_names_people_expect(trained, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert (
        main(
            ["train", str(trained / "x.yaml"), f"training.output_dir={tmp_path}", "logging.tensorboard=true", "--quiet"]
        )
        == 0
    )
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "eval/loss",
        "eval/perplexity",
        *(f"{group}/{unit}_seen" for group in ("train", "eval") for unit in ("tokens", "words", "bytes")),
        "eval/perplexity_per_word",
    }
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


@pytest.mark.long
def test_a_terminal_gets_a_progress_bar(trained, tmp_path):
    import os
    import pty

    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "foundry_core.cli",
        "train",
        str(trained / "x.yaml"),
        f"training.output_dir={tmp_path}",
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the other end is closed: Linux says EIO
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    assert b"6/6" in shown
    assert "━".encode() in shown
    assert Path(tmp_path / "checkpoint-6").is_dir()
