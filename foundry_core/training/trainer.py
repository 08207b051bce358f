"""The training loop: trains one model according to a RunPlan, starting from the current state.

A step is an optimizer step. Its loss is the sum over all its micro-batches divided by the number of tokens they
predict. The rows come in the order of (seed, epoch), the masks from (seed, epoch, row), dropout from (seed, step,
micro-batch). These depend only on seed and position, so saving and resuming do not change them, and neither does the
number of processes that divide the micro-batches.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import load_checkpoint, newest_valid, optimizer_file
from foundry_core.checkpoints.compatibility import environment_changes
from foundry_core.checkpoints.optimizer_state import optimizer_values
from foundry_core.checkpoints.state import TrainState
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Batches, Share
from foundry_core.data.collators import get_data_collator
from foundry_core.data.order import extended_ledger
from foundry_core.data.preparation import ExperimentData, HeldOut, data_identity
from foundry_core.data.workers import Batch
from foundry_core.devices import Precision, choose_device, memory_watched, model_memory_watched
from foundry_core.errors import StoppedError, warn
from foundry_core.evaluation.corpus_loss import evaluate
from foundry_core.evaluation.inference import to_device
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.cost import training_flops
from foundry_core.models.shards import whole
from foundry_core.processes import World
from foundry_core.random_streams import derive
from foundry_core.registry.reports import StepReport
from foundry_core.run_folder import checkpoint_name
from foundry_core.systems import STOP_SIGNALS
from foundry_core.training.averaging import Averaging
from foundry_core.training.best_weights import BestWeights
from foundry_core.training.choices import Choices, choose
from foundry_core.training.evaluations import LOG_KEYS, Evaluations
from foundry_core.training.figures import Figures
from foundry_core.training.finite import check_weights, not_finite_update
from foundry_core.training.gradients import reduction_of
from foundry_core.training.lanes import Lanes
from foundry_core.training.losses import objective_loss, summed_losses
from foundry_core.training.notifier import Notifier
from foundry_core.training.optimizers import build_optimizer
from foundry_core.training.plan import RunPlan
from foundry_core.training.record import run_info, write_record
from foundry_core.training.room import smaller_batch
from foundry_core.training.saving import CheckpointSaver
from foundry_core.training.schedule import Schedule
from foundry_core.training.signals import StopRequest
from foundry_core.training.speed import Stopwatch
from foundry_core.training.trial import compiled_forward
from foundry_core.training.warm_start import load_start


class Trainer:
    """Trains one model according to one RunPlan.

    Args:
        config: The experiment.
        model: The model, with fresh weights.
        tokenizer: The tokenizer that the data were encoded with.
        data: The token files and the rows cut from them.
        notifier: Calls the observers of the run.
        choices: What to compute with; by default those of a new run.
        world: The processes of the run; by default this one alone.
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
        world: World | None = None,
        *,
        background: bool | None = None,
    ):
        settings = config.training
        self.config, self.data, self.notifier = config, data, notifier
        self.output_dir, self.world = Path(settings.output_dir), world or World()
        self.share = Share.of(self.world.rank, self.world.size, settings.gradient_accumulation_steps)
        self.plan = RunPlan.of(config, data)
        self.device = choose_device(settings.device)
        self.choices = choices or choose(config, model, tokenizer, data)
        self.precision, model.kernels = Precision(self.choices.precision, self.device), self.choices.kernels
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        with model_memory_watched():
            self.reduction = reduction_of(config, model, self.world, self.device)
            self.model = model.train()
            self.optimizer = self._optimizer()
        self.forward: Callable[..., Any] = compiled_forward(model, self.precision) if self.choices.compile else model
        self.schedule = Schedule(settings, self.plan.total_steps, config.schedule)
        self.lanes = Lanes(config, data, self.share, self.world)
        self.figures = Figures(self.share, self.world)
        self.collate = get_data_collator(config, tokenizer)  # of evaluations
        self.training_collate = get_data_collator(config, tokenizer, self.plan.total_samples)
        self.own_loss = objective_loss(config)
        self.score_suites: Callable[[TrainState], None] = lambda state: None  # where there are suites, `run` sets it
        self.state = TrainState(
            data=data_identity(data),
            stream=self.plan.stream,
            **self.choices.values,
            wandb_run_id=uuid.uuid4().hex if config.logging.use_wandb else None,
        )
        self.averaging = Averaging(settings, model, self.state.weights)
        self.best = BestWeights(settings, model, self.state.weights)
        self.saver = CheckpointSaver(
            config,
            model,
            self.optimizer,
            tokenizer,
            notifier=notifier,
            background=self.device.type != "cpu" if background is None else background,
            writes=self.world.first,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.training, self.config.optimizer)

    def begin(self, allowed_changes: Iterable[str] = ()) -> None:
        """Begin a new run, with the weights of `training.start_from` if it is given."""
        self.state.started_from = load_start(self.config, self.model, allowed_changes)

    def resume(self, allowed_changes: Iterable[str] = ()) -> None:
        """Continue from the newest valid checkpoint of the run.

        Raises:
            CheckpointError: There is none, or it belongs to another experiment, or lies beyond the end of this one.
        """
        folder, passed_over = newest_valid(self.output_dir, to_resume=True)
        for line in passed_over:
            warn(line)
        self.state = load_checkpoint(
            folder, self.model, self.optimizer, config=self.config, fresh=self.state, allowed=allowed_changes
        )
        self.lanes.load(optimizer_file(folder), self.state.carried, self.device)
        changes = environment_changes(folder, self.device)
        if changes:
            warn(f"the run continues, but not bit for bit as it would have: {'; '.join(changes)}")
        self.schedule.load(self.state.schedule)
        for kept in (self.averaging, self.best):
            kept.load(optimizer_file(folder), self.state.weights)
        self.precision.load_scaler(self.state.scaler, folder)
        self.plan = self.plan.continued(self.config, self.state, folder)
        self.saver.go_on_from(folder)

    def train(self, stop: StopRequest | None = None) -> TrainState:
        """Run the plan to its end, starting from the current state.

        Args:
            stop: A StopRequest that is already active; a new one by default.
        """
        state, plan, settings = self.state, self.plan, self.config.training
        start = state.step
        self.evaluations = Evaluations(self.config, self.data, plan, state.log)
        self.saver.kept_steps = plan.kept_steps
        self.saver.names = plan.names if settings.checkpoints.names is not None else {}
        batches = self.batches()
        with nullcontext(stop) if stop is not None else StopRequest() as stop, self._observed():
            if self.saver.parent is None:
                with self._watched("the evaluation before the first step"):
                    self._evaluate()
                self._save()
            self.saver.tidy_again()
            watch = Stopwatch(plan, state, settings.num_workers, self.world)
            while not self.evaluations.ended(state.step):
                overdue = self._agree(stop)
                with self._watched(f"step {state.step + 1}"):
                    report = self.take_step(watch.next_of(batches, self.share.size))
                if state.step == start + 1:
                    # An optimizer whose state cannot be saved is refused now, not at a checkpoint hours later.
                    optimizer_values(self.model, self.optimizer)
                logged = self._is_logged(state.step)
                if logged:
                    self._log_step(watch.report(state, *report))
                if plan.evaluation_due(state.step):
                    with watch, self._watched(f"the evaluation after step {state.step}"):
                        self._evaluate()
                last = self.evaluations.ended(state.step)
                if last and not logged and report[0]:
                    self._log_step(watch.report(state, *report))
                due = last or plan.checkpoint_due(state.step)
                if due or overdue:
                    with watch:
                        self._save(ephemeral=not due)
            self.saver.finish()
            self.world.meet()
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

    def _agree(self, stop: StopRequest) -> bool:
        """Stop if a signal has asked any process to; return whether an ephemeral checkpoint is overdue."""
        overdue, *asked = self.world.any([self.saver.overdue(), *stop.flags])
        if any(asked):
            self._stop(STOP_SIGNALS[asked.index(True)].name)
        return overdue

    def _stop(self, signal_name: str) -> None:
        """Save at this step boundary, unless that has been done, and leave."""
        name = checkpoint_name(self.state.step)
        if self.saver.parent != name:
            self._save(ephemeral=True)
        self.saver.finish()
        self.world.meet()  # the others report a checkpoint once it is there, and do not leave process 0 alone with it
        raise StoppedError(
            f"stopped by {signal_name} after step {self.state.step:,} of {self.plan.total_steps:,}: go on from {name} "
            "with --resume"
        )

    def _is_logged(self, step: int) -> bool:
        """Check whether a step is reported, for which its losses are needed."""
        return step == self.plan.total_steps or step % self.config.logging.log_every_steps == 0

    @contextmanager
    def _watched(self, stage: str) -> Iterator[None]:
        """Turn running out of memory, or a lost process, into one line that says how to continue; skip no batch."""
        with self.world.watched(), memory_watched(partial(smaller_batch, self.config, stage)):
            yield

    def _begin(self) -> None:
        plan = self.plan
        for line in plan.warnings:
            warn(line)
        facts: dict[str, Any] = {"parameters": self.model.get_parameter_count().total, "device": str(self.device)}
        facts |= {"threads": torch.get_num_threads(), "processes": self.world.size, **self.choices.values}
        if self.state.started_from is not None:
            facts["started_from"] = self.state.started_from
        if self.data.train.info.unknown:
            facts["unknown_share"] = round(self.data.train.info.unknown_share, 4)
        if not self.world.first:
            return
        flops = training_flops(self.model, plan.total_samples, self.data.train_rows.length)
        write_record(self.config, facts | {"training_flops": flops}, plan, self.data.description, self.choices.reasons)
        self.notifier.tell("foundry_run_started", run=run_info(self.config, facts, self.plan, self.state))

    def batches(self) -> Iterator[Batch]:
        """Return this process's micro-batches from the present position on; the last step may be smaller."""
        size, workers = self.config.data.batch_size, self.config.training.num_workers
        span = (self.state.samples, self.plan.total_samples)
        rows = (self.data.train_rows, self.data.order, self.training_collate)
        return iter(Batches(*rows, size, *span, workers, self.share))

    def take_step(self, micro_batches: list[Batch]) -> tuple[dict[str, float], float, float]:
        """Take one optimizer step and advance the state. Return its losses, learning rate and gradient norm.

        micro_batches: Those of this process.
        """
        state, settings, scaler = self.state, self.config.training, self.precision.scaler
        rate = self.schedule.rate(state.step + 1, state.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The number of predictions is needed before the first backward pass: dividing each micro-batch by its own count
        # would weigh tokens unequally.
        own = [(self._predictions(batch), len(batch["input_ids"])) for batch in micro_batches]
        predicted, rows = self.world.sum(torch.tensor([*own, (0, 0)]).sum(0)).tolist()
        count = max(predicted, 1)
        divisor = count if settings.loss_sum_over == "tokens" else rows
        self.reduction.begin(-(-rows // self.config.data.batch_size))
        sums = list[dict[str, torch.Tensor]]()
        for number, batch in enumerate(micro_batches, self.share.first):
            with self.reduction.micro_batch(last=len(sums) == len(micro_batches) - 1):
                sums.append(self._add_gradient(batch, divisor, number))
        self.reduction.finish()
        scaler.unscale_(self.optimizer)
        limit = settings.max_grad_norm if settings.max_grad_norm is not None else math.inf
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
        figures = {name: total / count for name, total in self.figures.summed(sums).items()}
        self._check_numbers(figures.get("optimised", figures["loss"]), norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad()
        self.averaging.step_taken()
        self._advance(rows)
        return figures, rate, norm

    def _seed_dropout(self, number: int) -> None:
        """Make what a micro-batch of the next step draws a function of seed, step and its number."""
        seed = derive(self.config.seed("dropout"), "dropout", self.state.step, number)
        # Without a GPU torch.manual_seed notes where it was called from, which takes 1 ms instead of 2 us.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def _add_gradient(self, batch: Batch, divisor: int, number: int) -> dict[str, torch.Tensor]:
        """Add the gradient of a micro-batch's summed loss over `divisor`; return the sums to report.

        number: That of the micro-batch in the step.
        """
        self._seed_dropout(number)
        carried = self.lanes.into(batch, number, self.state.samples)
        with self.precision.autocast():
            batch = to_device(batch, self.device)
            optimised, figures = summed_losses(self.model, self.forward, batch, self.own_loss, carried)
        torch.autograd.backward(self.precision.scaler.scale(optimised / divisor))
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
        epochs, rows = self.data.order.at(np.arange(state.samples, state.samples + samples))
        state.tokens_seen += int(self.data.train_rows.stream_tokens(rows).sum())
        for name, count in self.data.train_rows.tokens_by_corpus(rows).items():
            state.tokens_by_corpus[name] = state.tokens_by_corpus.get(name, 0) + count
        state.ledger = extended_ledger(state.ledger, epochs, rows)
        state.samples += samples
        state.step += 1
        state.epoch = state.samples / self.plan.rows
        state.words_seen = self.plan.words_after(state.tokens_seen)

    def _log_step(self, report: StepReport) -> None:
        self.state.log.append({"step": report.step, "loss": report.loss, "learning_rate": report.learning_rate})
        self.notifier.tell("foundry_step_ended", report=report)

    def _evaluate(self) -> None:
        """Evaluate on the texts that are due at the present step, and act on the loss that decides."""
        step = self.state.step
        for corpus in self.evaluations.due(step):
            loss = self._evaluate_on(corpus)
            if corpus == self.evaluations.decisive:
                with self.averaging.applied():
                    self.best.observe(self.schedule.observe(loss), step)
                self.averaging.observe(loss)
            self.evaluations.observe(corpus, step, loss)
            if corpus == self.evaluations.decisive and self.evaluations.ended(step) and self.best.restore(step):
                self.averaging.stop()
                self._evaluate_on(corpus)
        with self.averaging.applied():
            self.score_suites(self.state)

    def _evaluate_on(self, corpus: HeldOut) -> float:
        """Evaluate the weights, or their average, and report; return the loss."""
        state = self.state
        with self.averaging.applied():
            report = evaluate(
                self.model,
                *self.data.held_out(corpus),
                self.collate,
                batch_size=self.config.data.batch_size,
                step=state.step,
                autocast=self.precision.autocast,
                world=self.world,
            )
            self._check_weights(report.loss)
        self.state.log.append({"step": report.step, LOG_KEYS[corpus]: report.loss})
        self.notifier.tell("foundry_evaluated", report=replace(report, corpus=corpus, **state.seen))
        return report.loss

    def _save(self, *, ephemeral: bool = False) -> None:
        """Save a checkpoint of the present state, unless its weights are not finite."""
        self.saver.finish()
        self._check_weights()
        self.state.schedule = self.schedule.state()
        self.state.optimizer = optimizer_values(self.model, self.optimizer)
        self.state.scaler = self.precision.scaler.state_dict() if self.precision.scaler.is_enabled() else {}
        self.state.carried, carried = self.lanes.saved()
        with self.averaging.applied():
            kept = self.averaging.kept() | self.best.kept() | carried
            self.saver.save(self.state, ephemeral=ephemeral, kept=kept)
