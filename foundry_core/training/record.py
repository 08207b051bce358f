"""The record of a run at its start: run.json, config.yaml and the facts for observers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from foundry_core.checkpoints.compatibility import versions
from foundry_core.checkpoints.optimizer_state import optimizer_tensors
from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.folder import stored_tensors
from foundry_core.models.shards import whole
from foundry_core.processes import World
from foundry_core.registry.reports import RunInfo
from foundry_core.run_folder import CONFIG, RECORD
from foundry_core.storage.files import write_file
from foundry_core.training.plan import RunPlan


def write_record(
    config: ExperimentConfig,
    facts: Mapping[str, Any],
    plan: RunPlan,
    corpora: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> None:
    """Write run.json and the resolved configuration.

    Args:
        facts: What the run computes with, as in `RunInfo`.
        corpora: Files that were read and those that were not.
        reasons: Why the run computes with what it does.
    """
    folder = Path(config.training.output_dir)
    environment = {"host": platform.node(), "pid": os.getpid(), "versions": dict(versions()), **facts}
    read = {"plan": plan.described, "corpora": dict(corpora)}
    begun = {"reasons": dict(reasons), "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
    write_file(folder / RECORD, (json.dumps(environment | read | begun, indent=1) + "\n").encode())
    text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    write_file(folder / CONFIG, text.encode())


def check_beginning(
    world: World,
    config: ExperimentConfig,
    model: BaseLanguageModel,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
) -> None:
    """Check that the processes of a run begin alike, before the first step.

    Raises:
        UsageError: They differ in the version of a library, the configuration, the data, the position or the weights.
    """
    if world.size == 1:
        return
    weights = hashlib.sha256()
    for tensors in (stored_tensors(model), optimizer_tensors(model, optimizer)):
        for name, tensor in sorted(tensors.items()):
            weights.update(name.encode())
            weights.update(whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    described = json.dumps(config.resolved(), sort_keys=True, default=str)
    world.check_same(
        {
            **{f"the version of {name}": version for name, version in versions().items()},
            "the configuration": hashlib.sha256(described.encode()).hexdigest()[:12],
            **{name: digest[:12] for name, digest in state.data.items()},
            "the position in the data": f"step {state.step}, {state.ledger[:12]}",
            "the weights": weights.hexdigest()[:12],
        }
    )


def run_info(config: ExperimentConfig, facts: Mapping[str, Any], plan: RunPlan, state: TrainState) -> RunInfo:
    """Return what observers learn about a run at its start."""
    return RunInfo(
        experiment_name=config.experiment_name,
        output_dir=Path(config.training.output_dir),
        config=config.resolved(),
        total_steps=plan.total_steps,
        first_step=state.step,
        facts=facts,
        wandb_run_id=state.wandb_run_id,
        budget=plan.budget,
    )
