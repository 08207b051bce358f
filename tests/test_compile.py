"""`training.compile`: a setting that does something, and leaves the losses where they were."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from foundry_core import create_model, run
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.checkpoints.state import read_state
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.training.choices import choose
from tests.interruption import outcome

pytestmark = pytest.mark.slow


def losses(config):
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "lstm"])
def test_compiled_training_has_the_losses_of_eager_training(architecture, experiment, tmp_path, one_thread):
    def trained(name, compiled):
        training = {"output_dir": str(tmp_path / name), "train_steps": 4, "compile": compiled}
        config = experiment(architecture, tmp_path, training=training, logging={"log_every_steps": 1})
        torch._dynamo.reset()
        before = torch._dynamo.utils.counters["frames"]["ok"]
        run(config, quiet=True)
        return losses(config), torch._dynamo.utils.counters["frames"]["ok"] - before

    eager, frames = trained("eager", False)
    assert frames == 0
    compiled, frames = trained("compiled", True)
    assert frames > 0
    assert compiled == pytest.approx(eager, abs=1e-4)


def test_two_processes_that_compile_have_the_bits_of_one(experiment, tmp_path):
    training = {"train_steps": 4, "gradient_accumulation_steps": 4, "compile": True}
    found = []
    for processes in ("1", "2"):
        config = experiment("gpt2", tmp_path / processes, training=training)
        file = tmp_path / f"{processes}.yaml"
        file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
        command = [sys.executable, "-m", "foundry_core.cli", "train", str(file), "--quiet", "--processes", processes]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=400)
        found.append(outcome(config))
        assert read_state(checkpoints(config.training.output_dir)[-1]).compile is True
    assert found[0] == found[1]


def test_a_long_run_compiles_only_if_a_trial_repays_it(experiment, tmp_path, one_thread):
    config = experiment("lstm", tmp_path, training={"train_steps": 10**8})
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    model = create_model(config, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choices = choose(config, model, tokenizer, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    took = re.search(r"a pass took (\S+) s compiled and (\S+) s otherwise", choices.reasons["compile"])
    assert took, choices.reasons["compile"]
    assert choices.compile == (float(took[1]) < 0.95 * float(took[2]))
