"""A whole experiment, from a configuration to the last checkpoint: `run` is the walk of the data, read it first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import checkpoints, newest_valid
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.preparation import (
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
    own_folders,
)
from foundry_core.devices import Precision, choose_device
from foundry_core.errors import CheckpointError, UsageError, warn
from foundry_core.models.base import create_model
from foundry_core.processes import World, joined
from foundry_core.registry.hooks import observing
from foundry_core.run_folder import CONFIG, RECORD
from foundry_core.storage.files import remove_leftovers
from foundry_core.storage.lock import RunLock
from foundry_core.systems import started_together
from foundry_core.training.choices import Choices, agreed_choices, choose
from foundry_core.training.counting import trainer_of
from foundry_core.training.division import check_division
from foundry_core.training.notifier import Notifier
from foundry_core.training.progress import reading
from foundry_core.training.record import check_beginning
from foundry_core.training.signals import StopRequest
from foundry_core.training.sinks import sinks
from foundry_core.training.suites import RunSuites
from foundry_core.training.trainer import Trainer
from foundry_core.training.warm_start import check_start, check_start_tokenizer

_ONE_REQUEST_SECONDS = 5.0
"""A request to stop that reaches one of several processes by two ways does so within this time."""


def run(
    config: ExperimentConfig,
    *,
    resume: bool | Literal["auto"] = False,
    allowed_changes: Iterable[str] = (),
    extra_observers: Sequence[Any] = (),
    quiet: bool = False,
    profile: int = 0,
) -> TrainState:
    """Carry out an experiment, from the corpus to the last checkpoint; return where training stands at the end.

    Args:
        resume: Continue from the newest valid checkpoint; "auto": where there are any. False refuses such a folder.
        allowed_changes: Configuration keys that may differ from those of the checkpoint, also of `training.start_from`.
        extra_observers: Objects with hook implementations.
        quiet: Print nothing but warnings.
        profile: Profile that many steps, and write a trace and a table.

    Raises:
        FoundryError: One line for whatever the user can fix.
    """
    with _together(config, extra_observers, quiet=quiet) as (stop, world, suites):
        with stop.at_once():
            with world.in_turn("preparing the data"):  # the others find prepared what process 0 has prepared
                begun = check_before_preparing(config, resume, allowed_changes, profile) if world.first else None
                resumed = bool(world.from_first("looking for checkpoints", lambda: begun is not None))
                corpora = experiment_corpora(config)
                tokenizer = experiment_tokenizer(config, corpora.train, resume=resumed)
                check_start_tokenizer(config, tokenizer, resume=resumed)
                with reading("encoding", corpora.train.bytes, quiet=quiet or not world.first) as progress:
                    tokens = experiment_tokens(config, tokenizer, corpora, progress=progress)
                rows = experiment_rows(config, tokenizer, tokens, corpora)
            model = create_model(config, tokenizer)
            made = partial(choose, config, model, tokenizer, rows, begun=begun, quiet=quiet)
            choices, notifier = agreed_choices(config, world, made), Notifier(config.chosen.plugins.manager, world)
            trainer: Trainer = _maker(config, profile, world)(config, model, tokenizer, rows, notifier, choices, world)
            (trainer.resume if resumed else trainer.begin)(allowed_changes)
            _with_suites(trainer, suites, tokenizer)
            check_beginning(world, config, model, trainer.optimizer, trainer.state)
        return trainer.train(stop)


@contextmanager
def _together(
    config: ExperimentConfig, observers: Sequence[Any], *, quiet: bool
) -> Iterator[tuple[StopRequest, World, RunSuites]]:
    """Join the processes of the run; the first holds the lock of its folder and has its observers and its suites."""
    device, patience = partial(choose_device, config.training.device), _ONE_REQUEST_SECONDS * started_together()
    with StopRequest(patience=patience) as stop, joined(device) as world, ExitStack() as held:
        check_division(config, world.size)
        suites = RunSuites(config, world)
        if world.first:
            watching = [*sinks(config, quiet=quiet), suites, *observers]
            held.enter_context(RunLock(config.training.output_dir))
            held.enter_context(observing(config.chosen.plugins.manager, watching))
        yield stop, world, suites


def _with_suites(trainer: Trainer, suites: RunSuites, tokenizer: PreTrainedTokenizerFast) -> None:
    """Score suites at the evaluations of a trainer, and at the checkpoint it goes on from if that was not done."""
    trainer.score_suites = suites.prepared(trainer.model, tokenizer, trainer.notifier, trainer.plan)
    if trainer.saver.parent is not None:
        with trainer.averaging.applied():
            suites.complete(trainer.output_dir / trainer.saver.parent)


def _maker(config: ExperimentConfig, profiled_steps: int, world: World) -> Callable[..., Trainer]:
    """Return what makes the trainer; that of a profile is imported only where the first process profiles."""
    if not profiled_steps or not world.first:
        return trainer_of(config)
    from foundry_core.training.profiling import ProfiledTrainer

    return partial(ProfiledTrainer, profiled_steps=profiled_steps)


def check_before_preparing(
    config: ExperimentConfig, resume: bool | Literal["auto"], allowed_changes: Iterable[str] = (), profile: int = 0
) -> Choices | None:
    """Refuse what cannot go on before anything is prepared, which may take hours; remove what a killed run left.

    Returns:
        The choices that the run to resume began with; None for a new one.

    Raises:
        CheckpointError: The folder holds checkpoints and `resume` is not given, or it is and there is no valid one; or
            a new run cannot start from `training.start_from`.
        UsageError: The folder holds a configuration of the user's own, the machine cannot compute as asked, or there
            are no passes to profile.
    """
    if profile and config.capabilities.trained_by_counting:
        raise UsageError(f"{config.model.architecture} is trained by counting: there are no passes to profile")
    output_dir = Path(config.training.output_dir)
    if resume == "auto":  # damaged checkpoints are some, too: none is trained over
        resume = bool(checkpoints(output_dir))
    if not resume and checkpoints(output_dir):
        raise CheckpointError(
            f"{output_dir} holds checkpoints up to {checkpoints(output_dir)[-1].name}: go on with --resume, or "
            "choose another training.output_dir"
        )
    if not resume:
        check_start(config, allowed_changes)
    own = output_dir / CONFIG
    if os.path.lexists(own) and not (output_dir / RECORD).exists():
        raise UsageError(
            f"{own} was not written by a run, and would be replaced by the resolved configuration: give it "
            "another name, or choose another training.output_dir"
        )
    begun = Choices.of(read_state(newest_valid(output_dir, to_resume=True)[0])) if resume else None
    asked = config.training.precision
    chosen = begun.precision if begun is not None else "fp32"
    Precision(chosen if asked == "auto" else asked, choose_device(config.training.device))
    for line in remove_leftovers(*own_folders(config)):
        warn(line)
    return begun
