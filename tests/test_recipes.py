"""The recipes of configs/ on real text: learning, resuming, generating, opening in transformers.

Needs a folder with train/tinyshakespeare/input.txt: FOUNDRY_TEST_DATA, or shared/data beside the checkout; skipped
without.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from foundry_core import load_config, run
from foundry_core.cli import main
from foundry_core.data.preparation import experiment_corpora
from foundry_core.data.token_file import prepare_tokens
from foundry_core.models.folder import load_model
from foundry_core.tokenization.tokenizer_folder import load_tokenizer

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FOUNDRY_TEST_DATA", ROOT.parent / "shared" / "data"))
TEXT = DATA / "train" / "tinyshakespeare" / "input.txt"
STEPS = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TEXT.is_file(), reason="no tinyshakespeare: set FOUNDRY_TEST_DATA"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shakespeare")
    content = TEXT.read_text()
    cut = content.index("\n\n", int(0.9 * len(content)))
    (folder / "train.txt").write_text(content[:cut])
    (folder / "dev.txt").write_text(content[cut:])
    return folder


def unigram_entropy(ids):
    """Nats per token of the text's own unigram distribution: what a model without context reaches at best."""
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("name", ["gpt2", "bert", "lstm", "gru", "rnn", "bilstm", "mamba", "llama"])
def test_a_recipe_beats_unigrams_resumes_generates_and_opens(name, text, tmp_path, capsys, record_property):
    overrides = [
        f"data.training_corpus={text / 'train.txt'}",
        f"data.test_corpus={text / 'dev.txt'}",
        f"tokenizer.output_dir={tmp_path / 'tokenizer'}",
        f"training.output_dir={tmp_path / 'run'}",
        "training.epochs=null",
        f"training.train_steps={STEPS}",
        "training.evaluate_every_steps=null",
        "training.checkpoints={every_steps: 100}",
    ]
    config = load_config(ROOT / "configs" / f"{name}.yaml", overrides)
    state = run(config, quiet=True)
    assert state.step == STEPS
    reached = [entry["eval_loss"] for entry in state.log if "eval_loss" in entry][-1]

    checkpoint = tmp_path / "run" / f"checkpoint-{STEPS}"
    tokenizer = load_tokenizer(checkpoint)
    test = experiment_corpora(config).test
    assert test is not None
    tokens = prepare_tokens(test, tokenizer, tmp_path / "tokens").tokens
    floor = unigram_entropy(np.asarray(tokens[1:]))
    record_property("test_loss", round(reached, 3))
    record_property("unigram_entropy", round(floor, 3))
    assert reached < floor

    # The last hundred steps again, from the checkpoint before them: the same weights.
    final = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "MANIFEST.json").unlink()
    assert run(config, resume=True, quiet=True).step == STEPS
    assert (checkpoint / "model.safetensors").read_bytes() == final

    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForCausalLM if config.objective.causal else AutoModelForMaskedLM
    ids = torch.tensor([tokenizer("What say you to the king?")["input_ids"]])
    ours, theirs = load_model(checkpoint), auto.from_pretrained(checkpoint).eval()(ids).logits
    torch.testing.assert_close(ours(ids).logits, theirs, atol=1e-5, rtol=1e-5)
    ours.kernels = "reference"
    assert torch.equal(ours(ids).logits, theirs)

    capsys.readouterr()
    code = main(["generate", str(checkpoint), "--prompt", "The king", "--tokens", "10", "--greedy"])
    output = capsys.readouterr()
    if load_model(checkpoint).supports_generation:
        assert code == 0
        assert output.out.startswith("The king")
        assert len(output.out.strip()) > len("The king")
    else:
        assert code == 1
        assert "does not generate" in output.err
