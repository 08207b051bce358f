"""Estimate parameters, tokens, steps, FLOPs, disk, memory and time of a training.

Trains the tokenizer and encodes the corpora if needed (foundry train reuses
both), builds the model, measures the memory of a few rows, and times three
steps on a model that is then discarded.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from typing import Any

from foundry_core.cli.common import add_config_arguments, large_imports, listing, prepare_data, read_config

EXAMPLE = "examples:\n  foundry plan configs/gpt2.yaml\n  foundry plan configs/gpt2.yaml data.batch_size=64 --json"

_TIMED_STEPS = 3
_PROBED_ROWS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--no-timing", action="store_true", help="do not run steps to estimate the time")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)
    facts = _facts(config, timing=not options.no_timing)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        print(listing((name.replace("_", " "), _shown(name, value)) for name, value in facts.items()))


def _facts(config: Any, *, timing: bool) -> dict[str, Any]:
    with large_imports():
        from foundry_core.checkpoints.optimizer_state import first_state
        from foundry_core.models.base import create_model
        from foundry_core.models.cost import training_flops
        from foundry_core.registry.hooks import hook_manager
        from foundry_core.training.notifier import Notifier
        from foundry_core.training.trainer import Trainer

    tokenizer, data = prepare_data(config)
    model = create_model(config, tokenizer)
    count, footprint = model.get_parameter_count(), model.get_memory_footprint()
    length = data.train_rows.length
    trainer = Trainer(config, model, tokenizer, data, Notifier(hook_manager([])))
    plan = trainer.plan
    # What an optimizer remembers is found by asking it: that of a plugin may remember anything.
    remembered = sum(getattr(value, "nbytes", 0) for value in first_state(model, trainer.optimizer).values())
    checkpoint = footprint.parameters + footprint.buffers + remembered
    keep = config.training.checkpoints.keep
    kept = len(plan.checkpoint_steps) if keep is None else min(len(plan.checkpoint_steps), keep + 1)
    activations = _activation_bytes(trainer)
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
        "corpus_digest": data.train.info.corpus_digest,
        "tokenizer_digest": data.train.info.tokenizer_digest,
        "rows": plan.rows,
        "tokens_per_row": plan.tokens_per_row,
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
        "memory_bytes": checkpoint + footprint.gradients + activations,
        "of_which_activations": activations,
    }
    if timing:
        seconds = _step_seconds(trainer)
        facts |= {"seconds_per_step": seconds, "seconds": seconds * plan.total_steps}
    return facts


def _activation_bytes(trainer: Any) -> int:
    """Estimate the activations of a batch from a few rows: there may not be room for a whole one."""
    from foundry_core.data.batches import Batches
    from foundry_core.models.cost import activation_bytes
    from foundry_core.models.loss import IGNORED

    data = trainer.config.data
    rows = min(_PROBED_ROWS, trainer.plan.total_samples)
    (batch,) = Batches(trainer.data.train_rows, trainer.order, trainer.collate, rows, 0, rows)
    labelled = float((batch["labels"] != IGNORED).sum() / batch["attention_mask"].sum())
    sizes = (data.batch_size, trainer.data.train_rows.length)
    return activation_bytes(trainer.model, *sizes, labelled=labelled, autocast=trainer.precision.autocast)


def _step_seconds(trainer: Any) -> float:
    """Return the time of the fastest of a few real steps."""
    batches = trainer.batches()
    seconds = []
    for _ in range(min(_TIMED_STEPS, trainer.plan.total_steps)):
        micro_batches = list(islice(batches, trainer.config.training.gradient_accumulation_steps))
        start = time.perf_counter()
        trainer.take_step(micro_batches)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _shown(name: str, value: Any) -> str:
    from foundry_core.training.console import duration

    if name == "checkpoints":
        steps = ", ".join(map(str, value if len(value) <= 8 else [*value[:5], "...", *value[-2:]]))
        return f"{len(value)}, at steps {steps}"
    if name == "checkpoints_beyond_the_end":
        return ", ".join(value) or "none"
    if name == "seconds":
        return f"{duration(value)} on this machine, without evaluations and saving"
    if "bytes" in name or name == "of_which_activations":
        return f"{value / 1e6:,.1f} MB"
    if "flops" in name or name == "seconds_per_step":
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
