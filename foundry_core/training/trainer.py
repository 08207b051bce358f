"""Training, from a configuration to a checkpoint. Read `run` first: it is the walk of the data.

A step is an optimizer step. Its loss is the sum over all its micro-batches divided by the number of tokens they
predict. The rows come in the order of (seed, epoch), the masks from (seed, epoch, row), dropout from (seed, step):
position and seed are all the state there is, so that stopping, saving and resuming change nothing.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from foundry_core.checkpoints.checkpoint import (
    CheckpointTensors,
    TensorBuffers,
    TrainState,
    checkpoints,
    environment,
    environment_changes,
    fixed_files,
    is_ephemeral,
    load_checkpoint,
    newest_valid,
    retire,
    save_checkpoint,
    versions,
)
from foundry_core.checkpoints.optimizer_state import optimizer_values
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.sections import MOST_ROWS
from foundry_core.data.batches import Batch, Batches
from foundry_core.data.collators import get_data_collator
from foundry_core.data.order import SampleOrder, extended_ledger
from foundry_core.data.preparation import (
    ExperimentData,
    data_identity,
    experiment_corpora,
    experiment_data,
    experiment_tokenizer,
    own_folders,
)
from foundry_core.devices import Precision, choose_device, memory_watched, model_memory_watched
from foundry_core.errors import CheckpointError, StoppedError, TrainingError, UsageError, warn
from foundry_core.evaluation.corpus_loss import evaluate, to_device
from foundry_core.models.base import BaseLanguageModel, create_model, training_loss
from foundry_core.random_streams import derive
from foundry_core.registry.hooks import hook_manager
from foundry_core.registry.hookspecs import EvaluationReport, RunInfo, StepReport
from foundry_core.registry.loading import active_modules
from foundry_core.run_folder import CONFIG, RECORD, checkpoint_name
from foundry_core.storage.files import RunLock, remove_leftovers, write_file
from foundry_core.training.background import Background
from foundry_core.training.observers import Notifier, observers, reading
from foundry_core.training.optim import Schedule, build_optimizer
from foundry_core.training.plan import RunPlan
from foundry_core.training.signals import StopRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CALMER = "Lower training.learning_rate, lengthen the warm-up, or use fp32"


def run(
    config: ExperimentConfig,
    *,
    resume: bool = False,
    allowed_changes: Iterable[str] = (),
    extra_observers: Sequence[Any] = (),
    quiet: bool = False,
) -> TrainState:
    """Carry out an experiment: everything from the corpus to the last checkpoint.

    resume: go on from the newest valid checkpoint of `training.output_dir`; without it a folder that holds checkpoints
    is refused. allowed_changes: configuration keys that may differ from the checkpoint's. extra_observers: objects
    with hook implementations. Raises FoundryError with one line for whatever the user can mend.
    """
    output_dir = Path(config.training.output_dir)
    with StopRequest() as stop, RunLock(output_dir):
        with stop.at_once():
            trainer = _prepared(config, resume, allowed_changes, extra_observers, quiet)
        return trainer.train(stop)


def _prepared(
    config: ExperimentConfig, resume: bool, allowed_changes: Iterable[str], extra_observers: Sequence[Any], quiet: bool
) -> Trainer:
    """Everything up to the first step; nothing of it is lost, or needs to be taken back, when it is interrupted."""
    output_dir = Path(config.training.output_dir)
    if not resume and checkpoints(output_dir):
        raise CheckpointError(
            f"{output_dir} holds checkpoints up to {checkpoints(output_dir)[-1].name}: go on with --resume, or "
            "choose another training.output_dir"
        )
    record = output_dir / CONFIG
    if os.path.lexists(record) and not (output_dir / RECORD).exists():
        raise UsageError(
            f"{record} was not written by a run, and would be replaced by the resolved configuration: give it "
            "another name, or choose another training.output_dir"
        )
    # What cannot go on is said before anything is prepared, which may take hours.
    if resume:
        newest_valid(output_dir)
    Precision(config.training.precision, choose_device(config.training.device))
    modules = active_modules(config.architecture, config.plugins)
    manager = hook_manager([*modules, *observers(config, quiet=quiet), *extra_observers])
    for line in remove_leftovers(*own_folders(config)):
        warn(line)
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    with reading("encoding", corpora.train.bytes, quiet=quiet) as progress:
        data = experiment_data(config, tokenizer, corpora, progress=progress)
    model = create_model(config, tokenizer)
    trainer = Trainer(config, model, tokenizer, data, Notifier(manager))
    if resume:
        trainer.resume(allowed_changes)
    return trainer


class Trainer:
    """One model on its way through one plan.

    background: save in a thread, from a copy; default: where a device other than the CPU computes.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: BaseLanguageModel,
        tokenizer: PreTrainedTokenizerFast,
        data: ExperimentData,
        notifier: Notifier,
        *,
        background: bool | None = None,
    ):
        settings = config.training
        self.config, self.tokenizer, self.data, self.notifier = config, tokenizer, data, notifier
        self.output_dir = Path(settings.output_dir)
        self.plan = RunPlan.of(config, data)
        self.device = choose_device(settings.device)
        self.precision = Precision(settings.precision, self.device)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        with model_memory_watched():
            self.model = model.to(self.device).train()
            self.optimizer = build_optimizer(model, settings, config.optimizer)
        self.forward: Callable[..., Any] = torch.compile(model) if settings.compile else model
        self.schedule = Schedule(settings, self.plan.total_steps)
        self.order = SampleOrder(self.plan.rows, derive(config.seed("data_order"), "data_order"))
        self.collate = get_data_collator(config, tokenizer)
        self.state = TrainState(
            data=data_identity(data),
            stream=self.plan.stream,
            precision=self.precision.name,
            wandb_run_id=uuid.uuid4().hex if config.logging.use_wandb else None,
        )
        # On a CPU a thread that saves takes the time from training: nothing was gained when measured.
        self.background = self.device.type != "cpu" if background is None else background
        self.buffers = TensorBuffers()
        self.saving = Background(self._saved, enabled=self.background)
        self._fixed_files = fixed_files(model, tokenizer)
        self._parent: str | None = None
        self._ephemeral: set[Path] = set()
        self._damaged: set[Path] = set()
        self._warned: set[str] = set()

    def resume(self, allowed_changes: Iterable[str] = ()) -> None:
        """Go on from the newest valid checkpoint of the run."""
        folder, passed_over = newest_valid(self.output_dir)
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
            warn(f"the run goes on, but not bit for bit as it would have: {'; '.join(changes)}")
        self.schedule.load(self.state.schedule)
        if self.state.scaler:
            try:
                self.precision.scaler.load_state_dict(self.state.scaler)
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(f"{folder}: its gradient scaler is damaged: {error}") from error
        # Where steps are counted, those before may have been larger ones.
        by_steps = self.config.training.train_steps is not None
        most = self.state.step * MOST_ROWS if by_steps else self.plan.total_samples
        if self.state.step > self.plan.total_steps or self.state.samples > most:
            raise CheckpointError(
                f"{folder} lies beyond the end of this run: {self.state.step:,} steps and {self.state.samples:,} rows "
                f"of {self.plan.total_steps:,} and {self.plan.total_samples:,}. Give it a longer budget, or start in "
                "another training.output_dir"
            )
        self._check_budget(folder)
        self._parent = folder.name
        there = checkpoints(self.output_dir)
        self._damaged = set(there[there.index(folder) + 1 :])
        self._ephemeral = {path for path in there if is_ephemeral(path)}

    def _check_budget(self, folder: Path) -> None:
        """The steps that are left need rows: with another batch size, those before took more or fewer than planned."""
        state, plan = self.state, self.plan
        left = plan.total_steps - state.step
        if self.config.training.train_steps is not None:
            self.plan = replace(plan, total_samples=state.samples + left * plan.samples_per_step)
        elif left and plan.total_samples - state.samples <= (left - 1) * plan.samples_per_step:
            raise CheckpointError(
                f"{folder} leaves {plan.total_samples - state.samples:,} rows for {left:,} steps of "
                f"{plan.samples_per_step:,}: a step was larger before. Give the budget as training.train_steps"
            )

    def train(self, stop: StopRequest | None = None) -> TrainState:
        """Run the plan from where the state stands to its end. stop: one that is entered; default: an own one."""
        state, plan, settings = self.state, self.plan, self.config.training
        due, start = set(plan.checkpoint_steps), state.step
        batches = self.batches()
        with nullcontext(stop) if stop is not None else StopRequest() as stop, self._told():
            if self._parent is None:
                self._save()
            else:
                # The run before may have ended between a checkpoint and the retention that follows it.
                self._retire(self.output_dir / self._parent)
            watch = _Watch(plan, state)
            saved_at = time.monotonic()
            while state.step < plan.total_steps:
                if stop.requested:
                    self._stop(stop.requested)
                with self._memory_watched(f"step {state.step + 1}"):
                    report = self.take_step(list(islice(batches, settings.gradient_accumulation_steps)))
                if state.step == start + 1:
                    # What could not be saved is said now, not at a checkpoint hours later.
                    optimizer_values(self.model, self.optimizer)
                last = state.step == plan.total_steps
                if last or state.step % self.config.logging.log_every_steps == 0:
                    self._log_step(watch.report(state, *report))
                if self.data.test_rows is not None and (
                    last or (settings.evaluate_every_steps and state.step % settings.evaluate_every_steps == 0)
                ):
                    with watch.paused(), self._memory_watched(f"the evaluation after step {state.step}"):
                        self._evaluate()
                minutes = settings.checkpoints.ephemeral_minutes
                overdue = minutes is not None and time.monotonic() - saved_at > 60 * minutes
                if state.step in due or overdue:
                    with watch.paused():
                        self._save(ephemeral=state.step not in due)
                    saved_at = time.monotonic()
        return state

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Observers hear of the beginning, and of the end however it comes."""
        try:
            self._begin()
            yield
        finally:
            self.saving.finish()
            self.notifier.tell("foundry_run_ended", step=self.state.step)

    def _stop(self, signal_name: str) -> None:
        """Save at this step boundary, unless that has been done, and leave."""
        name = checkpoint_name(self.state.step)
        if self._parent != name:
            self._save(ephemeral=True)
        self.saving.finish()
        raise StoppedError(
            f"stopped by {signal_name} after step {self.state.step:,} of {self.plan.total_steps:,}: go on from {name} "
            "with --resume"
        )

    def _memory_watched(self, stage: str) -> AbstractContextManager[None]:
        """No batch is left out when memory ends: the run does, with a line that says how it goes on."""
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
        facts = {
            "parameters": self.model.get_parameter_count().total,
            "device": str(self.device),
            "precision": self.precision.name,
            "threads": torch.get_num_threads(),
            "compile": self.config.training.compile,
        }
        environment = {"host": platform.node(), "pid": os.getpid(), "versions": dict(versions()), **facts}
        record = environment | {"plan": asdict(self.plan), "started": time.strftime("%Y-%m-%dT%H:%M:%S")}
        write_file(self.output_dir / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        text = yaml.safe_dump(self.config.resolved(), sort_keys=False, allow_unicode=True)
        write_file(self.output_dir / CONFIG, text.encode())
        self.notifier.tell(
            "foundry_run_started",
            run=RunInfo(
                experiment_name=self.config.experiment_name,
                output_dir=self.output_dir,
                config=self.config.resolved(),
                total_steps=self.plan.total_steps,
                first_step=self.state.step,
                facts=facts,
                wandb_run_id=self.state.wandb_run_id,
            ),
        )

    def batches(self) -> Iterator[Batch]:
        """Micro-batches from the present position to the end; the last step may be smaller."""
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

    def take_step(self, micro_batches: list[Batch]) -> tuple[float, float, float]:
        """One optimizer step. Returns its loss, learning rate and gradient norm; moves the state on."""
        state, settings, scaler = self.state, self.config.training, self.precision.scaler
        torch.manual_seed(derive(self.config.seed("dropout"), "dropout", state.step))
        rate = self.schedule.rate(state.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The number of predictions is needed before the first backward pass: dividing each micro-batch by its own count
        # would weigh tokens unequally.
        count = max(sum(self._predictions(batch) for batch in micro_batches), 1)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for batch in micro_batches:
            with self.precision.autocast():
                output = self.forward(**to_device(batch, self.device), reduction="sum", return_logits=False)
            loss_sum = training_loss(self.model, output)
            torch.autograd.backward(scaler.scale(loss_sum / count))
            total += loss_sum.detach()
        scaler.unscale_(self.optimizer)
        limit = settings.max_grad_norm if settings.max_grad_norm is not None else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        loss = float(total) / count
        # With a gradient scaler an infinite norm only means that the scale was too large: it skips the update itself.
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaler.is_enabled()):
            raise TrainingError(self._not_finite(loss, norm))
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(sum(len(batch["input_ids"]) for batch in micro_batches))
        return loss, rate, norm

    def _predictions(self, batch: Batch) -> int:
        _, chosen = self.model.targets(batch["labels"], batch["attention_mask"])
        return int(chosen.sum())

    def _not_finite(self, loss: float, norm: float) -> str:
        first = self.state.samples
        culprit = _first_not_finite((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)
        where = f", first in the gradient of {culprit}" if culprit else ""
        return (
            f"stopped before the update of step {self.state.step + 1}: loss {loss}, gradient norm {norm}{where}; "
            f"samples {first} to {first + self.plan.samples_per_step - 1}. {_CALMER}"
        )

    def _check_weights(self, test_loss: float = 0.0) -> None:
        """An update from finite numbers can overflow. Such weights are not saved: the checkpoint before them stays."""
        culprit = _first_not_finite((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if culprit is not None or not math.isfinite(test_loss):
            found = f"{culprit} is not finite" if culprit is not None else f"the test loss is {test_loss}"
            last = self.state.samples - 1
            raise TrainingError(
                f"stopped after the update of step {self.state.step}, which is not saved: {found}; samples "
                f"{max(last - self.plan.samples_per_step + 1, 0)} to {last}. {_CALMER}"
            )

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

    def _evaluate(self) -> EvaluationReport:
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
        return report

    def _save(self, *, ephemeral: bool = False) -> None:
        """A checkpoint of the present state. Reads only: saving is invisible to the result."""
        self.saving.finish()
        self._check_weights()
        self.state.schedule = self.schedule.state()
        self.state.optimizer = optimizer_values(self.model, self.optimizer)
        self.state.scaler = self.precision.scaler.state_dict() if self.precision.scaler.is_enabled() else {}
        tensors, state = CheckpointTensors.of(self.model, self.optimizer), self.state
        if self.background:
            tensors, state = self.buffers.copy(tensors), deepcopy(state)
        facts: dict[str, Any] = {"order": (self.order.seed, self.plan.samples_per_step)}
        facts |= {"parent": self._parent, "ephemeral": ephemeral, "environment": environment(self.device)}
        self._parent = checkpoint_name(state.step)
        self.saving.start(partial(self._publish, tensors, state, facts))

    def _publish(self, tensors: CheckpointTensors, state: TrainState, facts: dict[str, Any]) -> tuple[int, Path]:
        folder = save_checkpoint(self.output_dir, self._fixed_files, tensors, state, facts=facts)
        self._damaged.discard(folder)
        (self._ephemeral.add if facts["ephemeral"] else self._ephemeral.discard)(folder)
        self._retire(folder)
        return state.step, folder

    def _retire(self, newest: Path) -> None:
        """Retention, once a checkpoint is known to be whole. What cannot be removed is said once, and tried again."""
        keep = self.config.training.checkpoints.keep
        problems = retire(self.output_dir, keep, newest, ephemeral=self._ephemeral, damaged=self._damaged)
        for line in sorted({*problems} - self._warned):
            warn(f"{line}; training goes on")
        self._warned.update(problems)

    def _saved(self, saved: tuple[int, Path]) -> None:
        step, folder = saved
        self.notifier.tell("foundry_checkpoint_saved", step=step, folder=folder)


def _first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    return next((name for name, tensor in tensors if not bool(tensor.isfinite().all())), None)


class _Watch:
    """Speed of training, with evaluations and saves taken out."""

    def __init__(self, plan: RunPlan, state: TrainState):
        self._plan = plan
        self._mark = time.perf_counter()
        self._tokens, self._step = state.tokens_seen, state.step

    def paused(self) -> _Watch:
        return self

    def __enter__(self) -> None:
        self._paused_at = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._mark += time.perf_counter() - self._paused_at

    def report(self, state: TrainState, loss: float, rate: float, norm: float) -> StepReport:
        now = time.perf_counter()
        elapsed, steps = max(now - self._mark, 1e-9), max(state.step - self._step, 1)
        speed = (state.tokens_seen - self._tokens) / elapsed
        self._mark, self._tokens, self._step = now, state.tokens_seen, state.step
        return StepReport(
            step=state.step,
            total_steps=self._plan.total_steps,
            epoch=state.epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens_seen=state.tokens_seen,
            words_seen=state.words_seen,
            tokens_per_second=speed,
            seconds_left=(self._plan.total_steps - state.step) * elapsed / steps,
        )
