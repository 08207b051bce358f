"""Runs that die, and what a run comes to: interrupted must equal uninterrupted, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from foundry_core import BaseLanguageModel, ExperimentConfig, run
from foundry_core.checkpoints.checkpoint import checkpoints, optimizer_file

TIMES = ("tokens_per_second", "seconds_left", "data_wait", "communication")
"""What a report holds that differs between equal runs."""


def die() -> NoReturn:
    """End this process at once, without any clean-up."""
    os._exit(9)


def killed(training: Callable[[], object]) -> None:
    """Train in a forked child that must end by `die`."""
    child = os.fork()
    if child == 0:
        try:
            training()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def killed_before(config: ExperimentConfig, forward_pass: int) -> None:
    """Carry out a run that dies when it begins a forward pass of training, counted from 1."""

    def training() -> None:
        passes = 0

        def count(module: torch.nn.Module, inputs: Any) -> None:
            nonlocal passes
            passes += isinstance(module, BaseLanguageModel) and module.training
            if passes == forward_pass:
                die()

        register_module_forward_pre_hook(count)
        run(config, quiet=True)

    killed(training)


def outcome(config: ExperimentConfig) -> dict[str, Any]:
    """Return what equal runs have in common: their reports, and the files of the last checkpoint."""
    folder = Path(config.training.output_dir)
    last = checkpoints(folder)[-1]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": last.name,
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": optimizer_file(last).read_bytes(),
        "state": json.loads((last / "trainer_state.json").read_bytes()),
        "reports": [{key: value for key, value in each.items() if key not in TIMES} for each in records],
    }
