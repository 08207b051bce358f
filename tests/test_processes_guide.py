"""The examples of docs/training/processes.md are valid, and its table is what is refused and what is not."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from foundry_core import load_config
from foundry_core.cli.train import configure
from foundry_core.errors import UsageError
from foundry_core.training.division import check_division

GUIDE = (Path(__file__).parents[1] / "docs" / "training" / "processes.md").read_text(encoding="utf-8")
BASE: dict[str, Any] = {
    "experiment_name": "guide",
    "data": {"training_corpus": "train.txt", "max_sequence_length": 16, "batch_size": 2},
    "tokenizer": {"tokenizer_type": "word", "vocab_size": 30},
    "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
    "training": {"output_dir": "runs/guide", "epochs": 1},
}


def config_with(given: dict[str, Any]) -> Any:
    return load_config({key: {**each, **given.get(key, {})} if key in given else each for key, each in BASE.items()})


def test_the_yaml_fits_the_processes_that_it_names() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    config = config_with(yaml.safe_load(example))
    (named,) = re.findall(r"# 64 rows in a step, on (.+) processes", example)
    assert config.data.batch_size * config.training.gradient_accumulation_steps == 64
    for processes in map(int, re.findall(r"\d+", named)):
        check_division(config, processes)


def test_the_commands_are_those_of_the_command_line() -> None:
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in shell.splitlines() if line]
    assert len(commands) == 4
    for words in commands:
        verb = words[words.index("foundry_core.cli" if words[0] == "torchrun" else "foundry") + 1 :]
        assert verb[0] == "train"
        parser = argparse.ArgumentParser()
        configure(parser)
        assert parser.parse_args(verb[1:]).config == "my.yaml"


def test_the_table_is_what_is_refused_and_what_is_not() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d, ]+) \| ([\d, ]+) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 6
    for micro_batches, *named in rows:
        for reduction, fitting in zip(("exact", "fast"), named, strict=True):
            settings = {"gradient_accumulation_steps": int(micro_batches), "reduction": reduction}
            config = config_with({"training": settings})
            found = []
            for processes in range(1, 14):
                try:
                    check_division(config, processes)
                except UsageError:
                    continue
                found.append(processes)
            assert ", ".join(map(str, found)) == fitting
