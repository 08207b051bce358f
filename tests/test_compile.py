"""`training.compile`: a setting that does something, and leaves the losses where they were."""

import json
import re
from pathlib import Path

import pytest
import torch

from foundry_core import create_model, run
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.training.choices import choose

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
