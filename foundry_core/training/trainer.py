"""The training loop: trains one model according to a RunPlan, starting from the current state.

A step is an optimizer step. Its loss is the sum over all its micro-batches divided by the number of tokens they
predict. The rows come in the order of (seed, epoch), the masks from (seed, epoch, row), dropout from (seed, step).
These depend only on seed and position, so saving and resuming do not change them.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import load_checkpoint, newest_valid
from foundry_core.checkpoints.compatibility import environment_changes
from foundry_core.checkpoints.optimizer_state import optimizer_values
from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.sections import MOST_ROWS
from foundry_core.data.batches import Batches
from foundry_core.data.collators import get_data_collator
from foundry_core.data.order import SampleOrder, extended_ledger
from foundry_core.data.preparation import ExperimentData, data_identity
from foundry_core.data.workers import Batch
from foundry_core.devices import Precision, choose_device, memory_watched, model_memory_watched
from foundry_core.errors import CheckpointError, StoppedError, warn
from foundry_core.evaluation.corpus_loss import evaluate
from foundry_core.evaluation.inference import to_device
from foundry_core.models.base import BaseLanguageModel
from foundry_core.random_streams import derive
from foundry_core.registry.hookspecs import StepReport
from foundry_core.run_folder import checkpoint_name
from foundry_core.training.choices import Choices, choose, compiled_forward
from foundry_core.training.finite import check_weights, not_finite_update
from foundry_core.training.losses import objective_loss, summed_losses
from foundry_core.training.notifier import Notifier
from foundry_core.training.optimizers import build_optimizer
from foundry_core.training.plan import RunPlan
from foundry_core.training.record import run_info, write_record
from foundry_core.training.saving import CheckpointSaver
from foundry_core.training.schedule import Schedule
from foundry_core.training.signals import StopRequest
from foundry_core.training.speed import Stopwatch


class Trainer:
    """Trains one model according to one RunPlan.

    Args:
        config: The experiment.
        model: The model, with fresh weights.
        tokenizer: The tokenizer that the data were encoded with.
        data: The token files and the rows cut from them.
        notifier: Calls the observers of the run.
        choices: What to compute with; by default those of a new run.
        background: Save in a thread; by default where a device other than the CPU computes.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: BaseLanguageModel,
        tokenizer: PreTrainedTokenizerFast,
        data: ExperimentData,
        notifier: Notifier,
        choices: Choices | None = None,
        *,
        background: bool | None = None,
    ):
        settings = config.training
        self.config, self.data, self.notifier = config, data, notifier
        self.output_dir = Path(settings.output_dir)
        self.plan = RunPlan.of(config, data)
        self.device = choose_device(settings.device)
        self.choices = choices or choose(config, model, tokenizer, data)
        self.precision, model.kernels = Precision(self.choices.precision, self.device), self.choices.kernels
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        with model_memory_watched():
            self.model = model.to(self.device).train()
            self.optimizer = build_optimizer(model, settings, config.optimizer)
        self.forward: Callable[..., Any] = compiled_forward(model, self.precision) if self.choices.compile else model
        self.schedule = Schedule(settings, self.plan.total_steps)
        self.order = SampleOrder(self.plan.rows, derive(config.seed("data_order"), "data_order"))
        self.collate = get_data_collator(config, tokenizer)
        self.own_loss = objective_loss(config)
        self.state = TrainState(
            data=data_identity(data),
            stream=self.plan.stream,
            **self.choices.values,
            wandb_run_id=uuid.uuid4().hex if config.logging.use_wandb else None,
        )
        self.saver = CheckpointSaver(
            config,
            model,
            self.optimizer,
            tokenizer,
            notifier=notifier,
            background=self.device.type != "cpu" if background is None else background,
        )

    def resume(self, allowed_changes: Iterable[str] = ()) -> None:
        """Continue from the newest valid checkpoint of the run.

        Raises:
            CheckpointError: There is none, or it belongs to another experiment, or lies beyond the end of this one.
        """
        folder, passed_over = newest_valid(self.output_dir, to_resume=True)
        for line in passed_over:
            warn(line)
        self.state = load_checkpoint(
            folder,
            self.model,
            self.optimizer,
            config=self.config,
            fresh=self.state,
            allowed=allowed_changes,
        )
        changes = environment_changes(folder, self.device)
        if changes:
            warn(f"the run continues, but not bit for bit as it would have: {'; '.join(changes)}")
        self.schedule.load(self.state.schedule)
        if self.state.scaler:
            try:
                self.precision.scaler.load_state_dict(self.state.scaler)
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(f"{folder}: its gradient scaler is damaged: {error}") from error
        self._check_budget(folder)
        self.saver.go_on_from(folder)

    def _check_budget(self, folder: Path) -> None:
        """Refuse a position beyond the end, and rows that do not suffice for the steps that are left."""
        state, plan = self.state, self.plan
        by_steps = self.config.training.train_steps is not None
        # With a budget in steps, an earlier step may have taken more rows than this batch size takes.
        most = state.step * MOST_ROWS if by_steps else plan.total_samples
        if state.step > plan.total_steps or state.samples > most:
            raise CheckpointError(
                f"{folder} lies beyond the end of this run: {state.step:,} steps and {state.samples:,} rows "
                f"of {plan.total_steps:,} and {plan.total_samples:,}. Give it a longer budget, or start in "
                "another training.output_dir"
            )
        left = plan.total_steps - state.step
        if by_steps:
            self.plan = replace(plan, total_samples=state.samples + left * plan.samples_per_step)
        elif left and plan.total_samples - state.samples <= (left - 1) * plan.samples_per_step:
            raise CheckpointError(
                f"{folder} leaves {plan.total_samples - state.samples:,} rows for {left:,} steps of "
                f"{plan.samples_per_step:,}: a step was larger before. Give the budget as training.train_steps"
            )

    def train(self, stop: StopRequest | None = None) -> TrainState:
        """Run the plan to its end, starting from the current state.

        Args:
            stop: A StopRequest that is already active; a new one by default.
        """
        state, plan, settings = self.state, self.plan, self.config.training
        start = state.step
        batches = self.batches()
        with nullcontext(stop) if stop is not None else StopRequest() as stop, self._observed():
            if self.saver.parent is None:
                self._save()
            self.saver.retire_again()
            watch = Stopwatch(plan, state, settings.num_workers)
            while state.step < plan.total_steps:
                if stop.requested:
                    self._stop(stop.requested)
                with self._memory_watched(f"step {state.step + 1}"):
                    report = self.take_step(watch.next_of(batches, settings.gradient_accumulation_steps))
                if state.step == start + 1:
                    # An optimizer whose state cannot be saved is refused now, not at a checkpoint hours later.
                    optimizer_values(self.model, self.optimizer)
                last = state.step == plan.total_steps
                if last or state.step % self.config.logging.log_every_steps == 0:
                    self._log_step(watch.report(state, *report))
                if self.data.test_rows is not None and (
                    last or (settings.evaluate_every_steps and state.step % settings.evaluate_every_steps == 0)
                ):
                    with watch, self._memory_watched(f"the evaluation after step {state.step}"):
                        self._evaluate()
                due = plan.checkpoint_due(state.step)
                if due or self.saver.overdue():
                    with watch:
                        self._save(ephemeral=not due)
        return state

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Call the observers at the beginning, and at the end however it comes."""
        try:
            self._begin()
            yield
        finally:
            self.saver.finish()
            self.notifier.tell("foundry_run_ended", step=self.state.step)

    def _stop(self, signal_name: str) -> None:
        """Save at this step boundary, unless that has been done, and leave."""
        name = checkpoint_name(self.state.step)
        if self.saver.parent != name:
            self._save(ephemeral=True)
        self.saver.finish()
        raise StoppedError(
            f"stopped by {signal_name} after step {self.state.step:,} of {self.plan.total_steps:,}: go on from {name} "
            "with --resume"
        )

    def _memory_watched(self, stage: str) -> AbstractContextManager[None]:
        """Turn running out of memory into one line that says how to continue; no batch is skipped."""
        return memory_watched(partial(self._out_of_memory, stage))

    def _out_of_memory(self, stage: str) -> str:
        where = f"out of memory in {stage}, nothing is lost"
        size, accumulation = self.config.data.batch_size, self.config.training.gradient_accumulation_steps
        if size == 1:
            return f"{where}: give a smaller data.max_sequence_length, or training.gradient_checkpointing"
        # The largest part that leaves the step what it is: the same rows, summed in another grouping.
        fits = next(part for part in range(size // 2, 0, -1) if size % part == 0)
        changed = (f"data.batch_size={fits}", f"training.gradient_accumulation_steps={accumulation * size // fits}")
        allowed = " ".join(f"--allow {setting.partition('=')[0]}" for setting in changed)
        return f"{where}: a batch of {fits} is expected to fit, go on with --resume {' '.join(changed)} {allowed}"

    def _begin(self) -> None:
        for checkpoint in self.plan.unreached_checkpoints:
            warn(f"no checkpoint at {checkpoint}: the run ends at step {self.plan.total_steps:,}")
        facts: dict[str, Any] = {"parameters": self.model.get_parameter_count().total, "device": str(self.device)}
        facts |= {"threads": torch.get_num_threads(), **self.choices.values}
        if self.data.train.info.unknown:
            facts["unknown_share"] = round(self.data.train.info.unknown_share, 4)
        write_record(self.config, facts, self.plan, self.data.description, self.choices.reasons)
        self.notifier.tell("foundry_run_started", run=run_info(self.config, facts, self.plan, self.state))

    def batches(self) -> Iterator[Batch]:
        """Return the micro-batches from the present position to the end; the last step may be smaller."""
        return iter(
            Batches(
                self.data.train_rows,
                self.order,
                self.collate,
                self.config.data.batch_size,
                self.state.samples,
                self.plan.total_samples,
                self.config.training.num_workers,
            )
        )

    def take_step(self, micro_batches: list[Batch]) -> tuple[dict[str, float], float, float]:
        """Take one optimizer step and advance the state. Return its losses, learning rate and gradient norm."""
        state, settings, scaler = self.state, self.config.training, self.precision.scaler
        self._seed_dropout()
        rate = self.schedule.rate(state.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The number of predictions is needed before the first backward pass: dividing each micro-batch by its own count
        # would weigh tokens unequally.
        count = max(sum(self._predictions(batch) for batch in micro_batches), 1)
        totals: dict[str, torch.Tensor] = {}
        for batch in micro_batches:
            for name, figure in self._add_gradient(batch, count).items():
                totals[name] = totals.get(name, 0) + figure.double()
        scaler.unscale_(self.optimizer)
        limit = settings.max_grad_norm if settings.max_grad_norm is not None else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        figures = {name: float(total) / count for name, total in totals.items()}
        self._check_numbers(figures.get("optimised", figures["loss"]), norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(sum(len(batch["input_ids"]) for batch in micro_batches))
        return figures, rate, norm

    def _seed_dropout(self) -> None:
        """Make what the next step draws a function of seed and step."""
        torch.manual_seed(derive(self.config.seed("dropout"), "dropout", self.state.step))

    def _add_gradient(self, batch: Batch, count: int) -> dict[str, torch.Tensor]:
        """Add the gradient of a micro-batch's summed loss over `count` to the parameters; return the sums to report."""
        with self.precision.autocast():
            batch = to_device(batch, self.device)
            optimised, figures = summed_losses(self.model, self.forward, batch, self.own_loss)
        torch.autograd.backward(self.precision.scaler.scale(optimised / count))
        return figures

    def _predictions(self, batch: Batch) -> int:
        _, chosen = self.model.targets(batch["labels"], batch["attention_mask"])
        return int(chosen.sum())

    def _check_numbers(self, loss: float, norm: float) -> None:
        """Refuse the update of a step whose loss or gradient norm is not finite."""
        # With a gradient scaler an infinite norm only means that the scale was too large: it skips the update itself.
        if math.isfinite(loss) and (math.isfinite(norm) or self.precision.scaler.is_enabled()):
            return
        first = self.state.samples
        samples = range(first, first + self.plan.samples_per_step)
        raise not_finite_update(self.model, self.state.step + 1, loss, norm, samples)

    def _check_weights(self, test_loss: float = 0.0) -> None:
        """Refuse weights that are not finite, which an update from finite numbers can cause: they are never saved."""
        end = self.state.samples
        samples = range(max(end - self.plan.samples_per_step, 0), end)
        check_weights(self.model, self.state.step, samples, test_loss)

    def _advance(self, samples: int) -> None:
        state = self.state
        epochs, rows = self.order.at(np.arange(state.samples, state.samples + samples))
        state.tokens_seen += int(self.data.train_rows.stream_tokens(rows).sum())
        state.ledger = extended_ledger(state.ledger, epochs, rows)
        state.samples += samples
        state.step += 1
        state.epoch = state.samples / self.plan.rows
        state.words_seen = self.plan.words_after(state.tokens_seen)

    def _log_step(self, report: StepReport) -> None:
        self.state.log.append({"step": report.step, "loss": report.loss, "learning_rate": report.learning_rate})
        self.notifier.tell("foundry_step_ended", report=report)

    def _evaluate(self) -> None:
        assert self.data.test is not None
        assert self.data.test_rows is not None
        report = evaluate(
            self.model,
            self.data.test,
            self.data.test_rows,
            self.collate,
            batch_size=self.config.data.batch_size,
            step=self.state.step,
            autocast=self.precision.autocast,
        )
        self._check_weights(report.loss)
        self.schedule.observe(report.loss)
        self.state.log.append({"step": report.step, "eval_loss": report.loss})
        self.notifier.tell("foundry_evaluated", report=report)

    def _save(self, *, ephemeral: bool = False) -> None:
        """Save a checkpoint of the present state, unless its weights are not finite."""
        self.saver.finish()
        self._check_weights()
        self.state.schedule = self.schedule.state()
        self.state.optimizer = optimizer_values(self.model, self.optimizer)
        self.state.scaler = self.precision.scaler.state_dict() if self.precision.scaler.is_enabled() else {}
        self.saver.save(self.state, ephemeral=ephemeral)
