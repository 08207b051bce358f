"""What a YAML comes to, before anything is trained: parameters, tokens, steps, arithmetic, disk, memory, time.

Trains the tokenizer and encodes the corpora if that has not been done yet (foundry train uses them as they are), builds
the model, measures the memory of a few rows, and times three real steps on a copy that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from typing import Any

from foundry_core.cli.common import add_config_arguments, large_imports, read_config

EXAMPLE = "examples:\n  foundry plan configs/gpt2.yaml\n  foundry plan configs/gpt2.yaml data.batch_size=64 --json"

_TIMED_STEPS = 3
_PROBED_ROWS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--no-timing", action="store_true", help="do not run the steps that the time is estimated from")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)
    facts = _facts(config, timing=not options.no_timing)
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(name, value)}")


def _facts(config: Any, *, timing: bool) -> dict[str, Any]:
    with large_imports():
        from foundry_core.checkpoints.optimizer_state import first_state
        from foundry_core.data.preparation import (
            experiment_corpora,
            experiment_rows,
            experiment_tokenizer,
            experiment_tokens,
        )
        from foundry_core.models.base import create_model
        from foundry_core.models.cost import training_flops
        from foundry_core.registry.hooks import hook_manager
        from foundry_core.training.notifier import Notifier
        from foundry_core.training.trainer import Trainer

    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    model = create_model(config, tokenizer)
    count, footprint = model.get_parameter_count(), model.get_memory_footprint()
    length = config.data.max_sequence_length
    trainer = Trainer(config, model, tokenizer, data, Notifier(hook_manager([])))
    plan = trainer.plan
    # Each optimizer keeps what it keeps: found by asking, not by its name.
    remembered = sum(getattr(value, "nbytes", 0) for value in first_state(model, trainer.optimizer).values())
    checkpoint = footprint.parameters + footprint.buffers + remembered
    keep = config.training.checkpoints.keep
    kept = len(plan.checkpoint_steps) if keep is None else min(len(plan.checkpoint_steps), keep + 1)
    facts: dict[str, Any] = {
        "architecture": config.model.architecture,
        "objective": config.training.objective,
        "device": str(trainer.device),
        "precision": trainer.precision.name,
        "vocabulary": len(tokenizer),
        "parameters": count.total,
        "of_which_embeddings": count.embeddings,
        "corpus_words": plan.words_per_epoch,
        "corpus_tokens": plan.tokens_per_epoch,
        "rows": plan.rows,
        "tokens_per_step": round(plan.samples_per_step * plan.tokens_per_epoch / plan.rows),
        "steps": plan.total_steps,
        "of_which_warm_up": plan.warmup_steps,
        "epochs": round(plan.total_samples / plan.rows, 3),
        "training_tokens": round(plan.total_samples * plan.tokens_per_epoch / plan.rows),
        "flops_per_step": training_flops(model, plan.samples_per_step, length),
        "training_flops": training_flops(model, plan.total_samples, length),
        "checkpoints": list(plan.checkpoint_steps),
        "checkpoints_beyond_the_end": list(plan.unreached_checkpoints),
        "bytes_of_a_checkpoint": checkpoint,
        "disk_bytes": kept * checkpoint,
    }
    resident = footprint.parameters + footprint.buffers + footprint.gradients + remembered
    facts |= _memory(trainer, resident)
    if timing:
        facts |= _time(trainer, plan.total_steps)
    return facts


def _memory(trainer: Any, resident: int) -> dict[str, Any]:
    """Estimated from a few rows: what the whole batch needs may be more than there is."""
    from foundry_core.models.cost import activation_bytes

    data = trainer.config.data
    activations = activation_bytes(
        trainer.model,
        data.batch_size,
        data.max_sequence_length,
        labelled=_share_of_predictions(trainer),
        autocast=trainer.precision.autocast,
    )
    return {"memory_bytes": resident + activations, "of_which_activations": activations}


def _share_of_predictions(trainer: Any) -> float:
    """Labels for each token, in the first rows: a whole batch may be more than there is room for."""
    from foundry_core.data.batches import Batches
    from foundry_core.models.loss import IGNORED

    rows = min(_PROBED_ROWS, trainer.plan.total_samples)
    (batch,) = Batches(trainer.data.train_rows, trainer.order, trainer.collate, rows, 0, rows)
    return float((batch["labels"] != IGNORED).sum() / batch["attention_mask"].sum())


def _time(trainer: Any, steps: int) -> dict[str, Any]:
    """From real steps."""
    batches = trainer.batches()
    seconds = []
    for _ in range(min(_TIMED_STEPS, steps)):
        micro_batches = list(islice(batches, trainer.config.training.gradient_accumulation_steps))
        start = time.perf_counter()
        trainer.take_step(micro_batches)
        seconds.append(time.perf_counter() - start)
    return {"seconds_per_step": min(seconds), "seconds": min(seconds) * steps}


def _shown(name: str, value: Any) -> str:
    from foundry_core.training.console import duration

    if name == "checkpoints":
        steps = ", ".join(map(str, value if len(value) <= 8 else [*value[:5], "...", *value[-2:]]))
        return f"{len(value)}, at steps {steps}"
    if name == "checkpoints_beyond_the_end":
        return ", ".join(value) or "none"
    if name == "seconds":
        return f"{duration(value)} on this machine, evaluations and saving aside"
    if name in ("bytes_of_a_checkpoint", "disk_bytes", "memory_bytes", "of_which_activations"):
        return f"{value / 1e6:,.1f} MB"
    if name in ("flops_per_step", "training_flops"):
        return f"{value:.3g}"
    if name == "seconds_per_step":
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
