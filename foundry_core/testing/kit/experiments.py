"""Checks of whole experiments: killed and resumed, and divided between two processes.

Forked children carry them out: processes as real as those of a run, which need not import torch again.
"""

from __future__ import annotations

import json
import os
import random
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.ma  # noqa: F401 - numpy imports it for `unique`; like the next, before forking, not in each child
import rich.progress  # noqa: F401 - a run shows its progress
import torch
from safetensors.torch import load
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from foundry_core.checkpoints.checkpoint import optimizer_file
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import EndedElsewhereError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.run_folder import WEIGHTS, checkpoint_name
from foundry_core.storage.files import write_file
from foundry_core.systems import RENDEZVOUS
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import NonconformanceError, check, listed, require, unless_counting
from foundry_core.testing.kit.processes import die, forked, killed, within_this_machine
from foundry_core.training.run import run

_STEPS, _KILLED_AFTER, _MICRO_BATCHES = 8, 4, 2
_DIVIDED_STEPS, _DIVIDED_MICRO_BATCHES = 3, 4
"""Divide a step so that each of two processes has one after another."""


@check(
    "integration",
    "exact-resume",
    scope="objective",
    after=("save-load",),
    fix="Everything that training changes must be a parameter or, in a model that is trained by counting, a persistent "
    "buffer, and random numbers must come from torch's generator, which is seeded before every micro-batch. Keep no "
    "counters, caches or generators on the model.",
)
def exact_resume(case: Case) -> None:
    """A run of 8 steps with dropout that is killed after the fourth and resumed ends with the same weights, optimizer
    state, losses and ledger as an uninterrupted run, bit for bit.
    """
    with TemporaryDirectory(dir=case.folder) as folder:
        alone, resumed = (
            _experiment(case, Path(folder), name, _STEPS, _MICRO_BATCHES, checkpoints={"steps": [_KILLED_AFTER - 1]})
            for name in ("alone", "resumed")
        )
        killed(lambda: _run_until_killed(resumed))
        forked(lambda: _run(alone), lambda: _run(resumed, resume=True))
        expected, found = _left_by(alone), _left_by(resumed)
    for what in expected:
        require(found[what] == expected[what], f"after a kill, {what} differ from those of an uninterrupted run")


def _experiment(
    case: Case, folder: Path, name: str, steps: int, micro_batches: int, **training: Any
) -> ExperimentConfig:
    """Return a run with dropout that evaluates every third step, in a folder of its own for the check."""
    lines = random.Random(0)
    text = "".join(f"{''.join(lines.choices(string.ascii_lowercase, k=30))}\n" for _ in range(30))
    write_file(case.folder / "train.txt", text.encode())
    write_file(case.folder / "test.txt", text[::-1][: len(text) // 10].encode())
    return case.config_with(
        model=case.settings_with_dropout(0.2).model_dump(),
        data={
            "batch_size": 2,
            "max_sequence_length": min(12, case.length),
            "test_corpus": str(case.folder / "test.txt"),
        },
        tokenizer={"output_dir": str(folder / f"tokenizer-{name}")},
        training={
            "output_dir": str(folder / name),
            "train_steps": steps,
            "gradient_accumulation_steps": micro_batches,
            "learning_rate": 0.01,
            "evaluate_every_steps": 3,
            **training,
        },
        logging={"log_every_steps": 1},
    )


def _run_until_killed(config: ExperimentConfig) -> None:
    passes = 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal passes
        passes += isinstance(module, BaseLanguageModel) and module.training
        if passes == _KILLED_AFTER * _MICRO_BATCHES + 2:  # in the middle of a step
            die()

    register_module_forward_pre_hook(count)
    run(config, quiet=True)


def _run(config: ExperimentConfig, *, resume: bool = False) -> bytes:
    run(config, resume=resume, quiet=True)
    return b""


def _left_by(config: ExperimentConfig) -> dict[str, Any]:
    """Return what a run has left at its end, by what it is called in a failure."""
    last = Path(config.training.output_dir) / checkpoint_name(config.training.train_steps or 0)
    state = json.loads((last / "trainer_state.json").read_bytes())
    return {
        "weights": (last / WEIGHTS).read_bytes(),
        "optimizer states": optimizer_file(last).read_bytes(),
        "losses": state["log_history"],
        "rows read": state["foundry"]["ledger"],
    }


@check(
    "integration",
    "two-processes",
    scope="objective",
    after=("exact-resume",),
    needs=unless_counting("one process counts"),
    fix="The processes of a run divide the micro-batches of a step, and exchange gradients but no buffers. So a "
    "forward pass may depend on the parameters, its own micro-batch and torch's global generator, which is seeded "
    "before every micro-batch: not on `random`, numpy or a generator of your own, on earlier calls, on the rank or on "
    "the environment. It leaves nothing behind, not even in a persistent buffer: no count, no state, no running "
    "statistics. Normalise each token by itself, as nn.LayerNorm does.",
)
def two_processes(case: Case) -> None:
    """A run of 3 steps with dropout whose micro-batches are divided between two processes ends with the same weights,
    buffers, optimizer state and losses, also of the evaluations, as in one process, bit for bit.
    """
    with TemporaryDirectory(dir=case.folder) as folder:
        alone, divided = (
            _experiment(case, Path(folder), name, _DIVIDED_STEPS, _DIVIDED_MICRO_BATCHES) for name in ("one", "two")
        )
        forked(
            lambda: _run(alone), *(lambda rank=rank: _run_one_of_two(divided, Path(folder), rank) for rank in (0, 1))
        )
        expected, found = _left_by(alone), _left_by(divided)
    other = [what for what in expected if found[what] != expected[what]]
    if other:
        what = _other_tensors(case, found["weights"], expected["weights"]) if other[0] == "weights" else other[0]
        since = _first_other(found["losses"], expected["losses"])
        raise NonconformanceError(f"training in two processes gives other {what}{since}")


def _other_tensors(case: Case, found: bytes, expected: bytes) -> str:
    """Return which tensors two files of weights differ in: buffers alone if any do, which can be why weights differ."""
    tensors = load(found)
    names = sorted(name for name, values in load(expected).items() if not torch.equal(tensors[name], values))
    left = [name for name, _ in case.model().to_transformers().named_buffers() if name in names]
    return f"buffers: {listed(left)}" if left else f"weights: {listed(names)}"


def _first_other(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    """Return where the losses of two runs begin to differ, to be appended to a sentence."""
    for one, other in zip(found, expected, strict=True):
        for key, value in other.items():
            if one[key] != value:
                return f"; {key} after step {other['step']} is {one[key]:.7g}, in one process {value:.7g}"
    return ""


def _run_one_of_two(config: ExperimentConfig, folder: Path, rank: int) -> bytes:
    """Carry out a run as one of the processes that `foundry train --processes 2` starts."""
    within_this_machine()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(number) for name, number in place.items()})
    os.environ[RENDEZVOUS] = (folder / "rendezvous").as_uri()
    os.dup2(os.pipe()[0], 0)  # a run stops when its launcher has closed the other end
    try:
        return _run(config)
    except EndedElsewhereError:  # the other process says why
        return b""
