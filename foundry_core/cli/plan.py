"""Estimate parameters, tokens, steps, FLOPs, disk, memory and time of a training.

Trains the tokenizer and encodes the corpora if needed (foundry train reuses
both), builds the model, measures the memory of a few rows, and times three
steps on a model that is then discarded. If these would take long, or there is
no memory for them, it times parts of a step and estimates the rest.

Of a study (foundry study) it prints a row for each cell, and the sum.

With --measure it prints a table instead: parameters, memory, the largest batch
that fits and tokens/s of the YAML, or of architectures at their base size, from
a few real steps of each on this machine. Each takes about 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from foundry_core.cli.common import (
    add_config_arguments,
    hanging,
    large_imports,
    listing,
    load_plugins,
    number,
    path_argument,
    prepare_data,
    read_config,
    shown_fact,
    table,
)
from foundry_core.cli.study_plan import names_a_study, print_study_plan
from foundry_core.errors import UsageError, warn

EXAMPLE = """\
examples:
  foundry plan configs/gpt2.yaml
  foundry plan configs/gpt2.yaml data.batch_size=64 --json
  foundry plan configs/gpt2.yaml --processes 4
  foundry plan study.yaml
  foundry plan configs/gpt2.yaml --measure
  foundry plan --measure
  foundry plan --measure gpt2 lstm data.batch_size=4"""

_TIMED_STEPS = 3
_PROBED_ROWS = 64
_PROBED_TOKENS = 2**20
_MOST_SECONDS = 5.0

_BASE_VOCABULARY, _BASE_LENGTH, _BASE_ROWS = 32_000, 128, 16
_ROW_SECONDS, _MOST_STEPS = 12.0, 10
# At its peak a step held 1.1 (LSTM), 1.6 (GPT-2) and 1.9 times (Mamba) the activations that it keeps.
_USABLE, _PEAK = 0.9, 2


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, required=False)
    what = "measure the YAML; with names, or without a YAML, architectures at their base size (all that have one)"
    parser.add_argument("--measure", nargs="*", metavar="ARCH", help=what)
    parser.add_argument("--processes", type=number(int, 1, 1024), default=1, metavar="N", help="plan for N processes")
    parser.add_argument("--no-timing", action="store_true", help="do not run steps to estimate the time")
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> None:
    names = [name for name in options.measure or () if "=" not in name]
    options.overrides += [setting for setting in options.measure or () if "=" in setting]
    # argparse leaves a YAML that follows an option to the overrides, as it need not be there.
    if options.config is None and options.overrides and "=" not in options.overrides[0]:
        options.config = path_argument(options.overrides.pop(0))
    if options.measure is not None:
        _print_measured(options, names)
        return
    if options.config is None:
        raise UsageError("give a YAML, or --measure for architectures at their base size (see foundry plan --help)")
    facts_of = partial(_facts, timing=not options.no_timing, processes=options.processes)
    if names_a_study(options):
        print_study_plan(options.config, facts_of, as_json=options.json)
        return
    facts = facts_of(read_config(options))
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    reasons = facts.pop("reasons")
    print(
        listing(
            (name.replace("_", " "), shown_fact(name, value) + (f" ({reasons[name]})" if name in reasons else ""))
            for name, value in facts.items()
        )
    )


def _facts(config: Any, *, timing: bool, processes: int = 1) -> dict[str, Any]:
    """Return what a run will be, with the time that it takes if that is asked for."""
    facts, trainer = planned(config, processes)
    memory, needed, activations = facts.pop("memory"), facts["memory_bytes"], facts["of_which_activations"]
    sharing = processes if facts["device"] == "cpu" else 1  # each GPU has memory of its own
    if sharing * needed > memory:
        warn(
            f"a step needs about {sharing * needed / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB: lower "
            "data.batch_size and raise training.gradient_accumulation_steps by the same factor, or lower "
            "data.max_sequence_length"
        )
    if timing:
        # Communication aside: GPUs compute side by side, processes on a CPU share the cores that were timed.
        seconds = _step_seconds(trainer, activations, memory - needed + activations) * sharing / processes
        facts |= {"seconds_per_step": seconds, "seconds": seconds * trainer.plan.total_steps}
    return facts


def planned(config: Any, processes: int = 1) -> tuple[dict[str, Any], Any]:
    """Return what a run will be, with the `memory` of its device, and its trainer before the first step."""
    with large_imports():
        from foundry_core.checkpoints.optimizer_state import first_state
        from foundry_core.devices import memory_of
        from foundry_core.models.base import create_model
        from foundry_core.models.cost import training_flops
        from foundry_core.registry.hooks import hook_manager
        from foundry_core.training.choices import choose
        from foundry_core.training.counting import trainer_of
        from foundry_core.training.division import check_division, described, memory_held
        from foundry_core.training.notifier import Notifier
        from foundry_core.training.saving import KEPT_STATES

    check_division(config, processes)
    tokenizer, data = prepare_data(config)
    model = create_model(config, tokenizer)
    count, footprint, length = model.get_parameter_count(), model.get_memory_footprint(), data.train_rows.length
    choices = choose(config, model, tokenizer, data, trial=False)
    trainer = trainer_of(config)(config, model, tokenizer, data, Notifier(hook_manager([])), choices)
    plan = trainer.plan
    # What an optimizer remembers is found by asking it: that of a plugin may remember anything.
    remembered = sum(getattr(value, "nbytes", 0) for value in first_state(model, trainer.optimizer).values())
    copies = (config.training.optimizer == "asgd") + (config.training.restore_best != "never")
    remembered += copies * (footprint.parameters + footprint.buffers)
    checkpoint = footprint.parameters + footprint.buffers + remembered
    schedule = config.training.checkpoints
    last = plan.checkpoint_steps if schedule.keep is None else plan.checkpoint_steps[-schedule.keep :]
    kept = len({0, *last, *plan.kept_steps})
    states = min(kept, KEPT_STATES[schedule.keep_optimizer] or kept)
    activations = _activation_bytes(trainer)
    facts: dict[str, Any] = {
        "architecture": config.model.architecture,
        "objective": config.training.objective,
        "positions": None if config.capabilities.unbounded_length else getattr(model, "max_positions", length),
        "device": str(trainer.device),
        **choices.values,
        "reasons": dict(choices.reasons),
        "vocabulary": len(tokenizer),
        "parameters": count.total,
        "of_which_embeddings": count.embeddings,
        "corpus_words": plan.words_per_epoch,
        "corpus_tokens": plan.tokens_per_epoch,
        "corpus_bytes": plan.bytes_per_epoch,
        "unknown_share": data.train.info.unknown_share,
        "unknown_share_of_validation": data.validation.info.unknown_share if data.validation is not None else None,
        "unknown_share_of_test": data.test.info.unknown_share if data.test is not None else None,
        "corpus_digest": data.train.info.corpus_digest,
        "tokenizer_digest": data.train.info.tokenizer_digest,
        "rows": plan.rows,
        "tokens_per_row": plan.tokens_per_row,
        "tokens_per_step": round(plan.samples_per_step * plan.tokens_per_epoch / plan.rows),
        "steps": plan.total_steps,
        "of_which_warm_up": plan.warmup_steps,
        **described(config, processes),
        "epochs": round(plan.budget["epochs"], 3),
        **({"passes": passes} if (passes := _passes(trainer)) else {}),
        "training_tokens": plan.budget["tokens"],
        "training_words": plan.budget["words"],
        "training_bytes": plan.budget["bytes"],
        "flops_per_step": training_flops(model, plan.samples_per_step, length),
        "training_flops": training_flops(model, plan.total_samples, length),
        "checkpoints": list(plan.checkpoint_steps),
        "checkpoints_beyond_the_end": list(plan.unreached_checkpoints),
        "milestones": {str(each): each.step for each in plan.milestones if each.step is not None},
        "evaluations": list(plan.evaluation_steps),
        "evaluations_beyond_the_end": list(plan.unreached_evaluations),
        "bytes_of_a_checkpoint": checkpoint,
        "disk_bytes": kept * (checkpoint - remembered) + states * remembered,
        "memory_bytes": memory_held(config, processes, model, checkpoint) + activations,
        "of_which_activations": activations,
        "memory": memory_of(trainer.device),
    }
    return facts, trainer


def _passes(trainer: Any) -> dict[str, float]:
    """Return how often each of several corpora is read."""
    order, rows = trainer.data.order, trainer.data.train_rows
    parts = enumerate(zip(getattr(rows, "names", ()), getattr(rows, "parts", ()), strict=True))
    return {name: round(order.samples_of(at, trainer.plan.total_samples) / len(part), 3) for at, (name, part) in parts}


def _print_measured(options: argparse.Namespace, names: list[str]) -> None:
    from foundry_core.registry.loading import available_architectures, get_architecture

    load_plugins(options)
    if options.config is None and not names:
        names = [name for name in available_architectures() if get_architecture(name).base]
    for name in names:
        if not (get_architecture(name).base or get_architecture(name).recipe.get("model")):
            raise UsageError(f"{name} has neither a base size nor a recipe: measure it in a YAML")
    with large_imports():
        from foundry_core.storage.files import scratch_reported
        from foundry_core.training.progress import counting

    rows: list[dict[str, Any]] = []
    with counting("measuring", len(names) + bool(options.config)) as progress:
        if options.config:
            progress(options.config)
            rows.append(_measured(read_config(options)))
        with scratch_reported(), tempfile.TemporaryDirectory() as folder:
            for name in names:
                progress(name)
                rows.append(_measured(_base_config(name, Path(folder), options.overrides)))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    header = ("architecture", "parameters", "memory", "largest batch", "tokens/s", "measured")
    print(table(header, [_measured_cells(row) for row in rows]))
    print("\n" + hanging("", _measured_notes(rows)))


def _base_config(name: str, folder: Path, overrides: list[str]) -> Any:
    """Return an architecture at its base size, with a vocabulary and a corpus that serve for its speed only."""
    from foundry_core.config.loading import load_config
    from foundry_core.registry.loading import capabilities_of, get_architecture
    from foundry_core.storage.files import write_file

    architecture = get_architecture(name)
    model = {"architecture": name, **(architecture.base or architecture.recipe["model"])}
    objective = capabilities_of(architecture, architecture.config_class.model_validate(model)).objectives[0]
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        words = ["".join(letters) for letters in islice(product("abcdefghijklmnopqrst", repeat=4), _BASE_VOCABULARY)]
        lines = [" ".join(words[start::1000]) for start in range(1000)]
        write_file(corpus, "\n".join(lines * 2).encode())
    content = {
        "experiment_name": name,
        "data": {"training_corpus": str(corpus), "max_sequence_length": _BASE_LENGTH, "batch_size": _BASE_ROWS},
        "tokenizer": {
            "tokenizer_type": "word",
            "vocab_size": _BASE_VOCABULARY,
            "output_dir": str(folder / f"tokenizer-{objective}"),
        },
        "model": model,
        "training": {"output_dir": str(folder / name), "objective": objective, "train_steps": 1000},
    }
    return load_config(content, overrides)


def _measured(config: Any) -> dict[str, Any]:
    """Return a row of the table: what a run needs by estimate, and its speed in a few real steps."""
    from foundry_core.devices import processor

    facts, trainer = planned(config)
    batch, activations = config.data.batch_size, max(facts["of_which_activations"], 1)
    room = _USABLE * facts["memory"] - facts["memory_bytes"] + activations
    fits = max(int(batch * room / (_PEAK * activations)), 0)
    speed, rows = _speed(trainer, fits) if fits else (0.0, 0)
    kept = ("architecture", "objective", "device", "precision", "vocabulary", "parameters", "memory_bytes")
    return {name: facts[name] for name in kept} | {
        "model": trainer.config.resolved()["model"],
        "max_sequence_length": config.data.max_sequence_length,
        "batch_size": batch,
        "device_memory": facts["memory"],
        "largest_batch_size": fits,
        "tokens_per_second": round(speed, 1),
        "measured_batch_size": rows,
        "processor": processor(trainer.device),
    }


def _speed(trainer: Any, fits: int) -> tuple[float, int]:
    """Return tokens per second in the fastest of a few real steps, and the rows of these steps.

    They have as many rows as a micro-batch, or fewer where steps would take long.
    """
    from foundry_core.data.batches import Batches

    trainer.forward = trainer.model  # compiling takes longer than the measurement
    start, begun = trainer.state, time.perf_counter()

    def step(rows: int) -> float:
        trainer.state = deepcopy(start)
        return _timed(
            trainer, list(Batches(trainer.data.train_rows, trainer.data.order, trainer.collate, rows, 0, rows))
        )

    most = max(min(trainer.config.data.batch_size, trainer.plan.total_samples, fits), 1)
    rows, fastest = 1, step(1)  # sets up the optimizer
    # Of a single row the optimizer's part is too large, and a busy machine must not decide that by one slow step.
    while rows < most and (rows == 1 or time.perf_counter() - begun + 4 * fastest < _ROW_SECONDS):
        rows = min(4 * rows, most)
        fastest = step(rows)
    for _ in range(_MOST_STEPS):
        if time.perf_counter() - begun + fastest > _ROW_SECONDS:
            break
        fastest = min(fastest, step(rows))
    return rows * trainer.plan.tokens_per_row / fastest, rows


def _measured_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["architecture"],
        f"{row['parameters'] / 1e6:,.1f}M",
        f"{row['memory_bytes'] / 1e9:,.2f} GB",
        f"{row['largest_batch_size']:,}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['measured_batch_size']} x {row['max_sequence_length']}",
    )


def _measured_notes(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    batches = ", ".join(dict.fromkeys(str(row["batch_size"]) for row in rows))
    vocabularies = ", ".join(dict.fromkeys(f"{row['vocabulary']:,}" for row in rows))
    precisions = ", ".join(dict.fromkeys(row["precision"] for row in rows))
    return (
        f"{first['processor']}, {precisions}; vocabulary {vocabularies}. Memory of a step: weights, gradients, "
        f"optimizer and the activations that {batches} rows keep. Largest batch: rows that fit in {_USABLE:.0%} of "
        f"{first['device_memory'] / 1e9:,.1f} GB with twice their activations, as a backward pass peaks. Both are "
        "estimates. Tokens/s: the fastest of a few steps, not compiled, of as many rows and tokens as the last column "
        "names."
    )


def _activation_bytes(trainer: Any) -> int:
    """Estimate the activations of a batch from a few rows: there may not be room for a whole one."""
    from foundry_core.data.batches import Batches
    from foundry_core.models.cost import activation_bytes
    from foundry_core.models.loss import IGNORED

    data = trainer.config.data
    rows = max(1, min(_PROBED_ROWS, trainer.plan.total_samples, _PROBED_TOKENS // data.max_sequence_length))
    (batch,) = Batches(trainer.data.train_rows, trainer.data.order, trainer.collate, rows, 0, rows)
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
    whole, seconds = training_flops(trainer.model, rows, length) or rows * length, 0.0
    start = deepcopy(trainer.state)
    for part_rows, part_length in _parts(rows, length):
        # A part keeps less than its share of the tokens: a quarter of the room is left for what is not kept.
        if seconds and activations * part_rows * part_length > rows * length * room / 4:
            break
        batch = [plain_rows(trainer.model, part_rows, part_length)]
        taken = [_timed(trainer, batch) for _ in range(1 if seconds else 2)]  # the first one sets things up
        share = (training_flops(trainer.model, part_rows, part_length) or part_rows * part_length) / whole
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
