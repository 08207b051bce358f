"""Estimate parameters, tokens, steps, FLOPs, disk, memory and time of a training.

Trains the tokenizer and encodes the corpora if needed (foundry train reuses
both), builds the model, measures the memory of a few rows, and times three
steps on a model that is then discarded. If these would take long, or there is
no memory for them, it times parts of a step and estimates the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

from foundry_core.cli.common import add_config_arguments, large_imports, listing, prepare_data, read_config
from foundry_core.errors import warn

EXAMPLE = "examples:\n  foundry plan configs/gpt2.yaml\n  foundry plan configs/gpt2.yaml data.batch_size=64 --json"

_TIMED_STEPS = 3
_PROBED_ROWS = 64
_PROBED_TOKENS = 2**20
_MOST_SECONDS = 5.0


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
        reasons = facts.pop("reasons")
        print(
            listing(
                (name.replace("_", " "), _shown(name, value) + (f" ({reasons[name]})" if name in reasons else ""))
                for name, value in facts.items()
            )
        )


def _facts(config: Any, *, timing: bool) -> dict[str, Any]:
    with large_imports():
        from foundry_core.checkpoints.optimizer_state import first_state
        from foundry_core.devices import memory_of
        from foundry_core.models.base import create_model
        from foundry_core.models.cost import training_flops
        from foundry_core.registry.hooks import hook_manager
        from foundry_core.training.choices import choose
        from foundry_core.training.notifier import Notifier
        from foundry_core.training.saving import KEPT_STATES
        from foundry_core.training.trainer import Trainer

    tokenizer, data = prepare_data(config)
    model = create_model(config, tokenizer)
    count, footprint = model.get_parameter_count(), model.get_memory_footprint()
    length = data.train_rows.length
    choices = choose(config, model, tokenizer, data, trial=False)
    trainer = Trainer(config, model, tokenizer, data, Notifier(hook_manager([])), choices)
    plan = trainer.plan
    # What an optimizer remembers is found by asking it: that of a plugin may remember anything.
    remembered = sum(getattr(value, "nbytes", 0) for value in first_state(model, trainer.optimizer).values())
    checkpoint = footprint.parameters + footprint.buffers + remembered
    schedule = config.training.checkpoints
    kept = len(plan.checkpoint_steps) if schedule.keep is None else min(len(plan.checkpoint_steps), schedule.keep + 1)
    states = min(kept, KEPT_STATES[schedule.keep_optimizer] or kept)
    activations = _activation_bytes(trainer)
    facts: dict[str, Any] = {
        "architecture": config.model.architecture,
        "objective": config.training.objective,
        "device": str(trainer.device),
        **choices.values,
        "reasons": dict(choices.reasons),
        "vocabulary": len(tokenizer),
        "parameters": count.total,
        "of_which_embeddings": count.embeddings,
        "corpus_words": plan.words_per_epoch,
        "corpus_tokens": plan.tokens_per_epoch,
        "unknown_share": data.train.info.unknown_share,
        "unknown_share_of_test": data.test.info.unknown_share if data.test is not None else None,
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
        "disk_bytes": kept * (checkpoint - remembered) + states * remembered,
        "memory_bytes": checkpoint + footprint.gradients + activations,
        "of_which_activations": activations,
    }
    memory = memory_of(trainer.device)
    if facts["memory_bytes"] > memory:
        warn(
            f"a step needs about {facts['memory_bytes'] / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB: "
            "lower data.batch_size and raise training.gradient_accumulation_steps by the same factor, or lower "
            "data.max_sequence_length"
        )
    if timing:
        seconds = _step_seconds(trainer, activations, memory - facts["memory_bytes"] + activations)
        facts |= {"seconds_per_step": seconds, "seconds": seconds * plan.total_steps}
    return facts


def _activation_bytes(trainer: Any) -> int:
    """Estimate the activations of a batch from a few rows: there may not be room for a whole one."""
    from foundry_core.data.batches import Batches
    from foundry_core.models.cost import activation_bytes
    from foundry_core.models.loss import IGNORED

    data = trainer.config.data
    rows = max(1, min(_PROBED_ROWS, trainer.plan.total_samples, _PROBED_TOKENS // data.max_sequence_length))
    (batch,) = Batches(trainer.data.train_rows, trainer.order, trainer.collate, rows, 0, rows)
    labelled = float((batch["labels"] != IGNORED).sum() / batch["attention_mask"].sum())
    sizes = (data.batch_size, trainer.data.train_rows.length)
    return activation_bytes(trainer.model, *sizes, labelled=labelled, autocast=trainer.precision.autocast)


def _step_seconds(trainer: Any, activations: int, room: int) -> float:
    """Return the time of the fastest of a few real steps, or an estimate from parts of one that would take long.

    Args:
        activations: The bytes that a whole micro-batch keeps.
        room: The bytes that there are for them.
    """
    from foundry_core.models.cost import plain_rows, training_flops

    passes = trainer.config.training.gradient_accumulation_steps
    rows, length = trainer.config.data.batch_size, trainer.config.data.max_sequence_length
    # Every part would be compiled by itself, which takes longer than all of them.
    trainer.forward = trainer.model
    whole, seconds = max(training_flops(trainer.model, rows, length), 1), 0.0
    start = deepcopy(trainer.state)
    for part_rows, part_length in _parts(rows, length):
        # A part keeps less than its share of the tokens: a quarter of the room is left for what is not kept.
        if seconds and activations * part_rows * part_length > rows * length * room / 4:
            break
        batch = [plain_rows(trainer.model, part_rows, part_length)]
        taken = [_timed(trainer, batch) for _ in range(1 if seconds else 2)]  # the first one sets things up
        share = training_flops(trainer.model, part_rows, part_length) / whole
        seconds = taken[-1] * passes / share
        if seconds * _TIMED_STEPS <= _MOST_SECONDS or taken[-1] > _MOST_SECONDS / 10:
            break
    trainer.state = start
    if seconds * _TIMED_STEPS > _MOST_SECONDS or activations > room:
        return seconds
    batches = trainer.batches()
    steps = range(min(_TIMED_STEPS, trainer.plan.total_steps))
    return min(_timed(trainer, list(islice(batches, passes))) for _ in steps)


def _parts(rows: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield ever larger parts of a micro-batch of (rows, length) tokens, up to the whole."""
    part_rows, part_length = 1, min(length, 256)
    yield part_rows, part_length
    while (part_rows, part_length) != (rows, length):
        if part_length < length:
            part_length = min(4 * part_length, length)
        else:
            part_rows = min(4 * part_rows, rows)
        yield part_rows, part_length


def _timed(trainer: Any, micro_batches: list[Any]) -> float:
    start = time.perf_counter()
    trainer.take_step(micro_batches)
    return time.perf_counter() - start


def _shown(name: str, value: Any) -> str:
    from foundry_core.training.console import duration, share

    if name.startswith("unknown_share"):
        return "no test corpus" if value is None else share(value)
    if name == "compile":
        return "on" if value else "off"
    if name == "checkpoints":
        steps = ", ".join(map(str, value if len(value) <= 8 else [*value[:5], "...", *value[-2:]]))
        return f"{len(value)}, at steps {steps}"
    if name == "checkpoints_beyond_the_end":
        return ", ".join(value) or "none"
    if name == "seconds":
        return f"{duration(value)} on this machine, without compiling, evaluations and saving"
    if "bytes" in name or name == "of_which_activations":
        return f"{value / 1e6:,.1f} MB"
    if "flops" in name or name == "seconds_per_step":
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
