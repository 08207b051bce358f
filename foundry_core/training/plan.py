"""The plan of a run: how many steps its budget comes to, and at which of them a checkpoint is due."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.sections import CheckpointConfig, TrainingConfig
from foundry_core.data.order import StreamSizes
from foundry_core.data.preparation import ExperimentData
from foundry_core.errors import UsageError
from foundry_core.training.schedule import warmup_steps


@dataclass(frozen=True)
class RunPlan(StreamSizes):
    """Steps, rows and checkpoints of a configuration on its data; computed, never written into the configuration.

    Counts are of the training corpus. Tokens are those of the stream: padding, overlap and row frames not counted. For
    part of an epoch, the word count is the epoch's total times the fraction trained.

    Attributes:
        checkpoint_steps: Steps at which a checkpoint is due, in order; step 0 and the last one always are.
        unreached_checkpoints: Checkpoints that the configuration asks for by name and that lie beyond the end.
    """

    samples_per_step: int
    total_samples: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: tuple[int, ...]
    unreached_checkpoints: tuple[str, ...]

    @classmethod
    def of(cls, config: ExperimentConfig, data: ExperimentData) -> RunPlan:
        """Compute the plan of an experiment.

        Raises:
            UsageError: The warm-up is longer than the whole budget.
        """
        rows = data.train_rows
        stream = StreamSizes(len(rows), rows.tokens_per_row, rows.total_tokens, data.train.info.words)
        per_step = config.data.batch_size * config.training.gradient_accumulation_steps
        samples = _samples_of_budget(config.training, stream, per_step)
        steps = math.ceil(samples / per_step)
        warmup = warmup_steps(config.training, steps)
        if warmup > steps:
            raise UsageError(
                f"training.warmup_steps ({warmup}) exceeds the {steps} steps that the budget comes to: lower it, or "
                "give warmup_ratio"
            )
        due, unreached = checkpoint_steps(config.training.checkpoints, stream, per_step, steps)
        return cls(
            **asdict(stream),
            samples_per_step=per_step,
            total_samples=samples,
            total_steps=steps,
            warmup_steps=warmup,
            checkpoint_steps=due,
            unreached_checkpoints=unreached,
        )

    @property
    def stream(self) -> StreamSizes:
        """The sizes of the training stream."""
        return StreamSizes(self.rows, self.tokens_per_row, self.tokens_per_epoch, self.words_per_epoch)

    @cached_property
    def _due(self) -> frozenset[int]:
        return frozenset(self.checkpoint_steps)

    def checkpoint_due(self, step: int) -> bool:
        """Check whether the configuration asks for a checkpoint after this step (0: before the first one)."""
        return step in self._due

    def words_after(self, tokens_seen: int) -> int:
        """Return how many white-space separated words so many tokens of the corpus are."""
        return round(tokens_seen * self.words_per_epoch / self.tokens_per_epoch)


def checkpoint_steps(
    schedule: CheckpointConfig, stream: StreamSizes, samples_per_step: int, total_steps: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Compute at which steps `training.checkpoints` asks for a checkpoint.

    Returns:
        The steps in order, with 0 and the last one, and in words the checkpoints that lie beyond the last step.
    """
    chosen = {0, total_steps}
    if schedule.every_steps:
        chosen.update(range(schedule.every_steps, total_steps + 1, schedule.every_steps))
    if schedule.log_base:
        power = 1.0
        while power <= total_steps:
            chosen.add(round(power))
            power *= schedule.log_base
    named = {step: f"step {step:,}" for step in schedule.steps}
    for unit, amounts, per_epoch in (
        ("words", schedule.milestones.words, stream.words_per_epoch),
        ("tokens", schedule.milestones.tokens, stream.tokens_per_epoch),
    ):
        for amount in amounts:
            step = math.ceil(_samples_for(amount, per_epoch, stream.rows) / samples_per_step)
            named[step] = f"{amount:,} {unit}"
    return (
        tuple(sorted(step for step in {*chosen, *named} if step <= total_steps)),
        tuple(name for step, name in sorted(named.items()) if step > total_steps),
    )


def _samples_of_budget(training: TrainingConfig, stream: StreamSizes, samples_per_step: int) -> int:
    """Return how many rows the budget of a run comes to: its epochs, steps, tokens or words."""
    if training.epochs is not None:
        return max(1, round(training.epochs * stream.rows))
    if training.train_steps is not None:
        return training.train_steps * samples_per_step
    if training.train_tokens is not None:
        return _samples_for(training.train_tokens, stream.tokens_per_epoch, stream.rows)
    assert training.train_words is not None
    return _samples_for(training.train_words, stream.words_per_epoch, stream.rows)


def _samples_for(amount: float, per_epoch: int, rows: int) -> int:
    """Return the number of rows that hold an amount of tokens or words, of which an epoch has `per_epoch`."""
    return max(1, math.ceil(amount * rows / per_epoch))
