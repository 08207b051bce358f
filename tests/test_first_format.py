"""Checkpoints written before the modules of core moved into packages still open, and training goes on from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from foundry_core import BaseLanguageModel, load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.errors import CheckpointError

STORED = Path(__file__).parent / "fixtures" / "first_format"
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
LOGITS = {
    "lstm": [-0.04262961819767952, 0.03651706874370575, -0.00212656706571579, 0.012378807179629803],
    "bert": [-0.006953965872526169, 0.15785762667655945, 0.0989542305469513, -0.23244459927082062],
}
"""The first logits after the prompt, as the code that wrote the checkpoints gave them."""


@pytest.mark.parametrize(("architecture", "auto"), [("lstm", AutoModelForCausalLM), ("bert", AutoModelForMaskedLM)])
def test_an_old_checkpoint_opens_with_its_logits(architecture: str, auto: Any) -> None:
    folder = STORED / architecture / "checkpoint-3"
    for model in (BaseLanguageModel.from_pretrained(folder), auto.from_pretrained(folder, trust_remote_code=True)):
        with torch.no_grad():
            logits = model.eval()(PROMPT).logits[0, -1, :4]
        torch.testing.assert_close(logits, torch.tensor(LOGITS[architecture]), rtol=0, atol=1e-6)


@pytest.mark.long
def test_the_module_in_an_old_checkpoint_still_imports() -> None:
    """In a process that has not imported the plugin, where the auto class runs that module."""
    program = f"""
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(STORED / "lstm" / "checkpoint-3")!r}, trust_remote_code=True)
print(*model(torch.tensor({PROMPT.tolist()})).logits[0, -1, :4].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [float(each) for each in done.stdout.split()] == pytest.approx(LOGITS["lstm"], abs=1e-6)


CAUSAL = (
    "data.tokens_per_row=15",
    "tokenizer.special_tokens={mask_token: null, cls_token: null, sep_token: null}",
)
"""What causal models had in the first format: longer rows, and a tokenizer without the tokens of masked models."""


@pytest.mark.parametrize(("architecture", "overrides"), [("lstm", CAUSAL), ("bert", ())])
def test_training_goes_on_from_an_old_checkpoint(
    architecture: str, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / architecture, tmp_path / "runs" / architecture)
    monkeypatch.chdir(tmp_path)
    if overrides:
        with pytest.raises(CheckpointError, match="data.tokens_per_row was 15, is 14; its tokenizer is another one"):
            run(load_config(f"{architecture}.yaml"), resume=True, quiet=True)
        shutil.rmtree(tmp_path / "runs" / architecture / "tokenizer")
    config = load_config(f"{architecture}.yaml", ["training.train_steps=5", *overrides])
    state = run(config, resume=True, allowed_changes=["training.train_steps"], quiet=True)
    assert (state.step, state.precision, state.compile, state.kernels) == (5, "fp32", False, "reference")


APART = STORED.with_name("state_apart")
"""A run whose optimizer's state stands beside its checkpoint, as the first version that did so wrote it."""


def test_training_goes_on_from_a_state_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(APART, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "lstm", tmp_path / "runs" / "lstm")
    monkeypatch.chdir(tmp_path)
    config = load_config("lstm.yaml", ["training.train_steps=5"])
    assert run(config, resume=True, allowed_changes=["training.train_steps"], quiet=True).step == 5
    whole, problems = verify_run("runs/lstm")
    assert problems == []
    assert [(one.folder.name, one.resumable) for one in whole] == [("checkpoint-3", True), ("checkpoint-5", True)]


def test_an_old_state_stays_in_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "bert", tmp_path / "runs" / "bert")
    monkeypatch.chdir(tmp_path)
    config = load_config("bert.yaml", ["training.train_steps=7", "training.checkpoints.every_steps=1"])
    run(config, resume=True, allowed_changes=["training.train_steps"], quiet=True)
    whole, problems = verify_run("runs/bert")
    assert problems == []
    assert [one.resumable for one in whole] == [True, False, False, True, True]
    assert sorted(path.name for path in Path("runs/bert").glob("optimizer-*")) == ["optimizer-6", "optimizer-7"]
