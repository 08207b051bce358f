"""The plan of a run: the steps its budget comes to, and those at which a checkpoint or an evaluation is due.

Neither a budget nor a milestone is ever exceeded. Whatever the order, so many rows hold at most `tokens_in` tokens;
where rows differ in size, their order tells how many. Words and bytes are counted as shares of the tokens:
`rows_within` rounds down to the rows that an amount certainly has room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.sections import BUDGETS, MOST_ROWS, StepSchedule, TrainingConfig
from foundry_core.data.batching import TokensInOrder, tokens_in_order
from foundry_core.data.order import StreamSizes
from foundry_core.data.preparation import ExperimentData
from foundry_core.errors import CheckpointError, UsageError
from foundry_core.run_folder import milestone_name
from foundry_core.training.schedule import warmup_steps

UNITS = ("words", "tokens", "bytes", "epochs")


@dataclass(frozen=True)
class Milestone:
    """A step that a schedule names, or the last one at which no more than an amount of text has been seen.

    step: None if the run ends before it. That of an amount smaller than what the first step sees is 0.
    """

    amount: float
    unit: str
    step: int | None

    def __str__(self) -> str:
        return f"step {self.amount:,}" if self.unit == "steps" else f"{self.amount:,} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class RunPlan(StreamSizes):
    """Steps, rows and checkpoints of a configuration on its data; computed, never written into the configuration.

    Counts are of the training corpus. Tokens are those of the stream: padding, overlap and row frames not counted. For
    part of an epoch, the counts of words and bytes are the epoch's total times the fraction trained.

    Attributes:
        checkpoint_steps: Steps at which a checkpoint is due, in order; step 0 and the last one always are.
        evaluation_steps: Steps at which an evaluation is due, in order; the last one always is. Empty without a text
            or a suite.
        milestones: The checkpoints that the configuration asks for by name: listed steps and milestones.
        unreached_checkpoints: Those of them that lie beyond the end.
        unreached_evaluations: The same of evaluations, unless they are at the checkpoints.
        varied: The tokens of the rows in their order, where they are not as many in each.
    """

    samples_per_step: int
    total_samples: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: tuple[int, ...] = ()
    evaluation_steps: tuple[int, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    unreached_checkpoints: tuple[str, ...] = ()
    unreached_evaluations: tuple[str, ...] = ()
    varied: TokensInOrder | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, config: ExperimentConfig, data: ExperimentData) -> RunPlan:
        """Compute the plan of an experiment.

        Raises:
            UsageError: The budget does not suffice for one row, or the warm-up is longer than the whole budget.
        """
        rows, info = data.train_rows, data.train.info
        stream = StreamSizes(
            rows.per_epoch, rows.tokens_per_row, rows.total_tokens, info.words, bytes_per_epoch=info.text_bytes
        )
        per_step = config.data.batch_size * config.training.gradient_accumulation_steps
        varied = tokens_in_order(data.order, rows)
        lanes = per_step if config.data.batching == "contiguous" else 1  # each takes part in each step
        samples = _samples_of_budget(config.training, stream, per_step, lanes, varied)
        steps = math.ceil(samples / per_step)
        warmup = warmup_steps(config.training, steps)
        if warmup > steps:
            raise UsageError(
                f"training.warmup_steps ({warmup}) exceeds the {steps} steps that the budget comes to: lower it, or "
                "give warmup_ratio"
            )
        plan = cls(
            **asdict(stream),
            samples_per_step=per_step,
            total_samples=samples,
            total_steps=steps,
            warmup_steps=warmup,
            varied=varied,
        )
        return plan.scheduled(config)

    def scheduled(self, config: ExperimentConfig, step: int = 0, samples: int = 0) -> RunPlan:
        """Return the plan with its checkpoints and evaluations.

        Args:
            config: The experiment.
            step: The step that the run continues from.
            samples: The rows taken until then: steps may have been smaller or larger ones before it.
        """
        training = config.training
        saved, named = due_steps(training.checkpoints, self, step, samples)
        evaluated, asked = saved, tuple[Milestone, ...]()
        if training.evaluate_at is None:
            short = StepSchedule(every_steps=training.evaluate_every_steps)
            evaluated = tuple(each for each in due_steps(short, self)[0] if each)
        elif training.evaluate_at != "checkpoints":
            evaluated, asked = due_steps(training.evaluate_at, self, step, samples)
        if config.data.test_corpus is None and config.data.validation_corpus is None and not training.suites:
            evaluated = ()
        return replace(
            self,
            checkpoint_steps=saved,
            evaluation_steps=evaluated,
            milestones=named,
            unreached_checkpoints=tuple(str(each) for each in named if each.step is None),
            unreached_evaluations=tuple(str(each) for each in asked if each.step is None),
        )

    def continued(self, config: ExperimentConfig, state: TrainState, folder: Path) -> RunPlan:
        """Return the plan of a run that continues from a state, which a checkpoint stores.

        Raises:
            CheckpointError: The state lies beyond the end, or too few rows are left for the steps that are left.
        """
        by_steps = config.training.train_steps is not None
        # With a budget in steps, an earlier step may have taken more rows than this batch size takes.
        most = state.step * MOST_ROWS if by_steps else self.total_samples
        if state.step > self.total_steps or state.samples > most:
            raise CheckpointError(
                f"{folder} lies beyond the end of this run: {state.step:,} steps and {state.samples:,} rows "
                f"of {self.total_steps:,} and {self.total_samples:,}. Give it a longer budget, or start in "
                "another training.output_dir"
            )
        plan, left = self, self.total_steps - state.step
        if by_steps:
            plan = replace(self, total_samples=state.samples + left * self.samples_per_step)
        elif left and self.total_samples - state.samples <= (left - 1) * self.samples_per_step:
            raise CheckpointError(
                f"{folder} leaves {self.total_samples - state.samples:,} rows for {left:,} steps of "
                f"{self.samples_per_step:,}: a step was larger before. Give the budget as training.train_steps"
            )
        return plan.scheduled(config, state.step, state.samples)

    @property
    def warnings(self) -> list[str]:
        """What a user who asked for these checkpoints and evaluations should know before the run begins."""
        end, lines = f"the run ends at step {self.total_steps:,}", list[str]()
        for what, unreached in (("checkpoint", self.unreached_checkpoints), ("evaluation", self.unreached_evaluations)):
            lines += [f"no {what} at {each}: {end}" for each in unreached]
        before = [each for each in self.milestones if each.step == 0 and each.unit != "steps"]
        return lines + [f"the checkpoint at {each} is that of step 0: one step sees more" for each in before]

    @property
    def stream(self) -> StreamSizes:
        """The sizes of the training stream."""
        return StreamSizes(
            self.rows, self.tokens_per_row, self.tokens_per_epoch, self.words_per_epoch, self.bytes_per_epoch
        )

    @property
    def described(self) -> dict[str, Any]:
        """The plan as plain data."""
        facts = asdict(replace(self, varied=None)) | {"budget": self.budget}
        return {name: value for name, value in facts.items() if name != "varied"}

    @property
    def budget(self) -> dict[str, float]:
        """The whole run in each unit. Tokens, words and bytes are at most these: the last row of an epoch is short."""
        tokens = tokens_in(self, self.total_samples, self.varied)
        return {
            "epochs": self.total_samples / self.rows,
            "steps": self.total_steps,
            "tokens": tokens,
            "words": self.words_after(tokens),
            "bytes": self.bytes_after(tokens),
        }

    @cached_property
    def names(self) -> Mapping[str, int]:
        """The step of each milestone in words, by the name that BabyLM has for it."""
        words = [(int(each.amount), each.step) for each in self.milestones if each.unit == "words"]
        return {milestone_name(amount): step for amount, step in words if step is not None}

    @cached_property
    def kept_steps(self) -> frozenset[int]:
        """The steps whose checkpoints retention never removes, besides step 0."""
        return frozenset(each.step for each in self.milestones if each.step is not None)

    @cached_property
    def _checkpoints(self) -> frozenset[int]:
        return frozenset(self.checkpoint_steps)

    @cached_property
    def _evaluations(self) -> frozenset[int]:
        return frozenset(self.evaluation_steps)

    def checkpoint_due(self, step: int) -> bool:
        """Check whether the configuration asks for a checkpoint after this step (0: before the first one)."""
        return step in self._checkpoints

    def evaluation_due(self, step: int) -> bool:
        """Check whether the configuration asks for an evaluation after this step (0: before the first one)."""
        return step in self._evaluations


def due_steps(
    schedule: StepSchedule, plan: RunPlan, step: int = 0, samples: int = 0
) -> tuple[tuple[int, ...], tuple[Milestone, ...]]:
    """Compute at which steps a schedule asks for something: a checkpoint or an evaluation.

    Args:
        schedule: The schedule.
        plan: Its sizes.
        step: The step that the run continues from.
        samples: The rows taken until then.

    Returns:
        The steps in order, with 0 and the last one, and what the schedule asks for by name: its steps and milestones.
    """
    total = plan.total_steps
    chosen = {0, total}
    if schedule.every_steps:
        chosen.update(range(schedule.every_steps, total + 1, schedule.every_steps))
    if schedule.log_base:
        power = 1.0
        while power <= total:
            chosen.add(round(power))
            power *= schedule.log_base
    named = [Milestone(listed, "steps", listed if listed <= total else None) for listed in schedule.steps]
    for unit in UNITS:
        for amount in getattr(schedule.milestones, unit):
            named.append(
                Milestone(
                    amount, unit, _last_step_within(rows_within(plan, amount, unit, plan.varied), plan, step, samples)
                )
            )
    chosen.update(each.step for each in named if each.step is not None)
    return tuple(sorted(chosen)), tuple(named)


def _last_step_within(rows: int, plan: RunPlan, step: int, samples: int) -> int | None:
    """Return the last step at which no more than so many rows have been taken.

    None if the run ends a whole step or more before: the last step is then that of its budget, not of the milestone.
    """
    if rows >= plan.total_samples:
        return plan.total_steps if rows < plan.total_samples + plan.samples_per_step else None
    if rows < samples:
        return rows * step // samples
    found = step + (rows - samples) // plan.samples_per_step
    return found if found <= plan.total_steps else None


def tokens_in(stream: StreamSizes, rows: int, varied: TokensInOrder | None = None) -> int:
    """Return the most tokens that so many rows can hold: in part of an epoch, its short row may not be among them."""
    if varied is not None:
        return varied.of(rows)
    epochs, rest = divmod(rows, stream.rows)
    return epochs * stream.tokens_per_epoch + rest * stream.tokens_per_row


def rows_within(stream: StreamSizes, amount: float, unit: str, varied: TokensInOrder | None = None) -> int:
    """Return how many rows hold no more than an amount, whichever rows they are."""
    # The decimal that was written: as a binary float 0.29 of 100 rows would be 28.
    exact = Fraction(str(amount))
    if unit == "epochs":
        return math.floor(exact * stream.rows)
    tokens = math.floor(exact * stream.tokens_per_epoch / _per_epoch(stream, unit))
    if varied is not None:
        return varied.within(tokens)
    epochs, rest = divmod(tokens, stream.tokens_per_epoch)
    return epochs * stream.rows + rest // stream.tokens_per_row


def _per_epoch(stream: StreamSizes, unit: str) -> int:
    return int(getattr(stream, f"{unit}_per_epoch"))


def _samples_of_budget(
    training: TrainingConfig,
    stream: StreamSizes,
    samples_per_step: int,
    multiple: int = 1,
    varied: TokensInOrder | None = None,
) -> int:
    """Return how many rows the budget of a run comes to, rounded down to a multiple.

    Raises:
        UsageError: It does not suffice for one row, or for one multiple.
    """
    if training.train_steps is not None:
        return training.train_steps * samples_per_step
    key, amount = next((key, value) for key in BUDGETS if (value := getattr(training, key)) is not None)
    unit = key.removeprefix("train_")
    samples = rows_within(stream, amount, unit, varied) // multiple * multiple
    if not samples:
        what, least = "a row" if multiple == 1 else f"a step of {multiple:,} rows", Fraction(multiple, stream.rows)
        enough = math.ceil(10**6 * least) / 10**6
        if unit != "epochs":
            enough = math.ceil(
                Fraction(tokens_in(stream, multiple, varied), stream.tokens_per_epoch) * _per_epoch(stream, unit)
            )
        raise UsageError(
            f"training.{key}: {amount:,} {unit} are less than {what} holds, and a budget is never exceeded: give at "
            f"least {enough:,}"
        )
    return samples
