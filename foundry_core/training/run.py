"""A whole experiment, from a configuration to the last checkpoint: `run` is the walk of the data, read it first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

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
from foundry_core.training.record import beginning
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
    resume: bool = False,
    allowed_changes: Iterable[str] = (),
    extra_observers: Sequence[Any] = (),
    quiet: bool = False,
    profile: int = 0,
) -> TrainState:
    """Carry out an experiment, from the corpus to the last checkpoint; return where training stands at the end.

    Args:
        config: The experiment.
        resume: Continue from the newest valid checkpoint; without it, a folder that holds any is refused.
        allowed_changes: Configuration keys that may differ from those of the checkpoint, also of `training.start_from`.
        extra_observers: Objects with hook implementations. quiet: Print nothing but warnings.
        profile: Profile that many steps, and write a trace and a table.

    Raises:
        FoundryError: One line for whatever the user can fix.
    """
    manager, device = config.chosen.plugins.manager, choose_device(config.training.device)
    patience = _ONE_REQUEST_SECONDS if started_together() else 0.0
    with StopRequest(patience=patience) as stop, joined(device) as world, _alone(config, world):
        quiet = quiet or not world.first
        suites = RunSuites(config) if world.first else None
        watching = [*sinks(config, quiet=quiet), suites, *extra_observers] if world.first else []
        with observing(manager, watching):
            with stop.at_once():
                check_division(config, world.size)
                # The others find prepared what process 0 has prepared.
                with world.in_turn("preparing the data"):
                    begun = None
                    if world.first:
                        begun = check_before_preparing(
                            config, resume=resume, allowed_changes=allowed_changes, profile=profile
                        )
                    corpora = experiment_corpora(config)
                    tokenizer = experiment_tokenizer(config, corpora.train, resume=resume)
                    check_start_tokenizer(config, tokenizer, resume=resume)
                    with reading("encoding", corpora.train.bytes, quiet=quiet) as progress:
                        tokens = experiment_tokens(config, tokenizer, corpora, progress=progress)
                    rows = experiment_rows(config, tokenizer, tokens, corpora)
                model = create_model(config, tokenizer)
                choices = agreed_choices(
                    config, world, partial(choose, config, model, tokenizer, rows, begun=begun, quiet=quiet)
                )
                profiled = profile and world.first
                maker: Callable[..., Trainer] = _profiled(profile) if profiled else trainer_of(config)
                notifier = Notifier(manager, silent=not world.first)
                trainer = maker(config, model, tokenizer, rows, notifier, choices, world)
                (trainer.resume if resume else trainer.begin)(allowed_changes)
                if suites is not None:
                    trainer.score_suites = suites.prepared(model, tokenizer, trainer.notifier, trainer.plan)
                if world.size > 1:
                    world.check_same(beginning(config, model, trainer.optimizer, trainer.state))
            return trainer.train(stop)


def _alone(config: ExperimentConfig, world: World) -> AbstractContextManager[Any]:
    """Return the lock of the run's folder, which process 0 holds for all."""
    return RunLock(config.training.output_dir) if world.first else nullcontext()


def _profiled(steps: int) -> Callable[..., Trainer]:
    """Return a maker of trainers that profile; imported only for that."""
    from foundry_core.training.profiling import ProfiledTrainer

    return partial(ProfiledTrainer, profiled_steps=steps)


def check_before_preparing(
    config: ExperimentConfig, *, resume: bool, allowed_changes: Iterable[str] = (), profile: int = 0
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
