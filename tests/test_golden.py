"""Fifty steps of each architecture on the toy corpus: the losses that are on record.

A change here means that training computes something else than it did. When that is on purpose, write the record anew
and say why in the changelog:

    python -m tests.test_golden
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import StepReport, hookimpl, load_config, run
from foundry_core.checkpoints.compatibility import versions
from foundry_core.registry.loading import get_architecture
from foundry_core.testing.toy_language import write_corpus
from tests.each import each

RECORD = Path(__file__).with_name("golden_losses.json")
STEPS = 50
KINDS = ["gpt2", "bert", "lstm", "gru", "rnn", "mamba", "transformers"]


def processor() -> str:
    """Return what the last bits of a sum depend on beside the versions."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{next(iter(names), 'unknown')}, {torch.backends.cpu.get_cpu_capability()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def circumstances() -> dict[str, str]:
    known = versions()
    return {name: known[name] for name in ("torch", "transformers")} | {"processor": processor()}


class Losses:
    def __init__(self) -> None:
        self.of_step: list[float] = []

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        self.of_step.append(report.loss)


def losses(architecture: str, folder: Path) -> list[float]:
    torch.set_num_threads(1)
    corpus = write_corpus(folder / "corpus", train_sentences=400, test_sentences=10, seed=11, pairs_each=2)
    descriptor = get_architecture(architecture)
    content: dict[str, Any] = {
        "experiment_name": "golden",
        "data": {"training_corpus": str(corpus.train), "max_sequence_length": 24, "batch_size": 8},
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 120},
        "model": {"architecture": architecture, **descriptor.examples["tiny"]},
        "training": {
            "output_dir": str(folder / architecture),
            "train_steps": STEPS,
            "learning_rate": 3e-3,
            "warmup_ratio": 0.1,
            "device": "cpu",
            "kernels": "reference",
        },
        "logging": {"log_every_steps": 1},
    }
    heard = Losses()
    run(load_config(content), extra_observers=[heard], quiet=True)
    return heard.of_step


@pytest.mark.long
@each("architecture", KINDS)
def test_training_computes_what_is_on_record(architecture: str, on_disk: Path, one_thread: None) -> None:
    """Exactly where the record was made with the same versions on the same processor, to 1e-4 elsewhere."""
    record = json.loads(RECORD.read_bytes())
    expected = record["losses"][architecture]
    found = losses(architecture, on_disk / architecture)
    assert expected[-1] < expected[0] - 0.5
    if record["made_with"] == circumstances():
        assert found == expected
    assert found == pytest.approx(expected, rel=1e-4)


def write_record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {architecture: losses(architecture, Path(folder) / architecture) for architecture in KINDS}
    record = {"made_with": circumstances(), "losses": found}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    write_record()
    sys.exit()
