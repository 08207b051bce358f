"""The hooks that a plugin may implement.

Mark an implementation with `from foundry_core import hookimpl`; it names the arguments that it wants. A package is
active only if the run uses its architecture or names its module under `plugins:`, a light module with an entry point:

    [project.entry-points."foundry.plugins"]
    rmsprop = "foundry_rmsprop"

Hooks that return a list *offer* something by name: frozen descriptors, which name their heavy half by import string.
The others observe a run and cannot change it: each gets copies, what it returns is ignored, the random generators and
torch's threads, default dtype and grad mode are restored after it, and one that raises is reported once and muted.
Each example below is a whole package, file by file, and the YAML that uses it.
"""

from __future__ import annotations

from pathlib import Path

import pluggy

from foundry_core.registry.corpus_step import CorpusStep
from foundry_core.registry.data_order import DataOrder
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.reports import EvaluationReport, RunInfo, StepReport, SuiteReport
from foundry_core.registry.schedule import LearningRateSchedule
from foundry_core.registry.suite import Suite
from foundry_core.registry.tokenizer_type import TokenizerType

hookspec = pluggy.HookspecMarker("foundry")
hookimpl = pluggy.HookimplMarker("foundry")
"""Marks a function as the implementation of the hook of its name, as in the examples of the hooks."""


@hookspec
def foundry_objectives() -> list[Objective]:  # type: ignore[empty-body]
    """Offer further values of `training.objective`.

    One that names an objective of core's with `same_interface_as` is open to every architecture that accepts that one.

    # foundry_second_half/__init__.py
    from foundry_core import Objective, hookimpl

    @hookimpl
    def foundry_objectives():
        return [
            Objective(
                name="second_half",
                summary="predict the second half of each row from the first",
                causal=True,
                layout="overlap",
                collator="foundry_second_half.collator:second_half_collator",
                same_interface_as="causal_lm",
            )
        ]

    # foundry_second_half/collator.py
    from foundry_core import CausalLMDataCollator

    def second_half_collator(config, tokenizer):
        pad = CausalLMDataCollator(tokenizer, max_length=config.data.max_sequence_length)

        def collate(rows):
            batch = pad(rows)
            batch["labels"][:, : config.data.max_sequence_length // 2] = -100
            return batch

        return collate

    # experiment.yaml
    training: {objective: second_half}
    plugins: [foundry_second_half]
    """


@hookspec
def foundry_optimizers() -> list[Optimizer]:  # type: ignore[empty-body]
    """Offer further values of `training.optimizer`.

    # foundry_rmsprop/__init__.py
    from pydantic import Field

    from foundry_core import ConfigSection, Optimizer, hookimpl


    class RMSpropSettings(ConfigSection):
        smoothing: float = Field(0.99, ge=0, lt=1, description="decay of the squared gradient's average")


    @hookimpl
    def foundry_optimizers():
        return [
            Optimizer(
                name="rmsprop",
                summary="the gradient over the root of its running mean square (Tieleman and Hinton 2012)",
                builder="foundry_rmsprop.optimizer:rmsprop",
                settings=RMSpropSettings,
            )
        ]

    # foundry_rmsprop/optimizer.py
    import torch


    def rmsprop(parameter_groups, training):
        # A group has "params", their "names", their "role" ("matrix", "embedding", ...) and "weight_decay".
        smoothing = training.optimizer_settings.smoothing
        return torch.optim.RMSprop(parameter_groups, lr=training.learning_rate, alpha=smoothing)

    # experiment.yaml
    training: {optimizer: rmsprop, optimizer_settings: {smoothing: 0.95}}
    plugins: [foundry_rmsprop]
    """


@hookspec
def foundry_schedules() -> list[LearningRateSchedule]:  # type: ignore[empty-body]
    """Offer further values of `training.lr_scheduler`.

    # foundry_restarts/__init__.py
    from pydantic import Field

    from foundry_core import ConfigSection, LearningRateSchedule, hookimpl


    class RestartSettings(ConfigSection):
        cycles: int = Field(4, ge=1, description="number of times that the learning rate falls from the peak")


    @hookimpl
    def foundry_schedules():
        return [
            LearningRateSchedule(
                name="restarts",
                summary="half a cosine several times in a row (Loshchilov and Hutter 2017)",
                function="foundry_restarts.schedule:restarts",
                settings=RestartSettings,
            )
        ]

    # foundry_restarts/schedule.py
    import math


    def restarts(step, total, training):
        # Steps are counted from 1 after the warm-up; the peak is multiplied by what is returned.
        cycles = training.schedule_settings.cycles
        share = (step - 1) * cycles / total % 1
        return 0.5 * (1 + math.cos(math.pi * share))

    # experiment.yaml
    training: {lr_scheduler: restarts, schedule_settings: {cycles: 2}}
    plugins: [foundry_restarts]
    """


@hookspec
def foundry_tokenizer_types() -> list[TokenizerType]:  # type: ignore[empty-body]
    """Offer further values of `tokenizer.tokenizer_type`.

    # foundry_marks/__init__.py
    from foundry_core import TokenizerType, hookimpl

    @hookimpl
    def foundry_tokenizer_types():
        return [
            TokenizerType(
                name="words_and_marks",
                summary="one token for each frequent word, and for each run of punctuation",
                trainer="foundry_marks.tokenizer:train",
                required_tokens=("unk_token",),
            )
        ]

    # foundry_marks/tokenizer.py
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def train(documents, vocab_size, special_tokens):
        backend = Tokenizer(models.WordLevel(unk_token=special_tokens["unk_token"]))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        names = list(dict.fromkeys(special_tokens.values()))
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=names, show_progress=False)
        backend.train_from_iterator(documents(), trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens)

    # experiment.yaml
    tokenizer: {tokenizer_type: words_and_marks}
    plugins: [foundry_marks]
    """


@hookspec
def foundry_orders() -> list[DataOrder]:  # type: ignore[empty-body]
    """Offer further values of `data.order`.

    # foundry_short_to_long/__init__.py
    from pydantic import Field

    from foundry_core import ConfigSection, DataOrder, hookimpl

    class ShortToLongSettings(ConfigSection):
        epochs: int = Field(1, ge=1, description="epochs from short to long; shuffled after them")

    @hookimpl
    def foundry_orders():
        return [
            DataOrder(
                name="short_to_long",
                summary="documents with short words first",
                order="foundry_short_to_long.order:order",
                score="foundry_short_to_long.order:score",
                settings=ShortToLongSettings,
            )
        ]

    # foundry_short_to_long/order.py
    import numpy as np

    def score(text):
        return len(text) / len(text.split())

    def order(rows, seed, epoch):
        if epoch < rows.settings.epochs:
            return np.argsort(rows.scores, kind="stable")
        return np.random.default_rng([seed, epoch]).permutation(len(rows.lengths))

    # experiment.yaml
    data: {order: short_to_long, batching: documents, order_settings: {epochs: 2}}
    plugins: [foundry_short_to_long]
    """


@hookspec
def foundry_corpus_steps() -> list[CorpusStep]:  # type: ignore[empty-body]
    """Offer further steps of `data.steps`.

    # foundry_lengths/__init__.py
    from pydantic import Field

    from foundry_core import CorpusStep, DroppingSettings, hookimpl


    class LengthSettings(DroppingSettings):
        at_least: int = Field(2, ge=1, description="words of the shortest text that is kept")


    @hookimpl
    def foundry_corpus_steps():
        return [
            CorpusStep(
                name="long_enough",
                summary="keep texts of so many words",
                function="foundry_lengths.steps:long_enough",
                settings=LengthSettings,
                drops=True,
            )
        ]

    # foundry_lengths/steps.py
    def long_enough(settings):
        def change(text, number):
            return text if len(text.split()) >= settings.at_least else None

        return change

    # experiment.yaml
    data: {steps: [{long_enough: {at_least: 6}}]}
    plugins: [foundry_lengths]
    """


@hookspec
def foundry_suites() -> list[Suite]:  # type: ignore[empty-body]
    """Offer suites for `foundry evaluate --suite`, and formats that suites are written in.

    # foundry_slashes/__init__.py
    from foundry_core import Suite, hookimpl

    @hookimpl
    def foundry_suites():
        return [
            Suite(
                name="slashes",
                summary="lines of a good and a bad sentence, with a slash between them",
                reader="foundry_slashes.reader:read",
                suffixes=(".slashes",),
            )
        ]

    # foundry_slashes/reader.py
    from foundry_core import BETTER, FoundryError, SuiteItem

    def read(path):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            place = f"{path}:{number}"
            good, slash, bad = (part.strip() for part in line.partition("/"))
            if not good or not bad:
                raise FoundryError(f"{place}: not two sentences with a slash between them")
            yield SuiteItem(str(number), path.stem, {"good": (good,), "bad": (bad,)}, (BETTER,), place)

    # experiment.yaml
    plugins: [foundry_slashes]
    """


@hookspec
def foundry_run_started(run: RunInfo) -> None:
    """Observe a run before its first step. The example implements every hook of an observer.

    # foundry_diary/__init__.py
    from foundry_core import hookimpl

    @hookimpl
    def foundry_run_started(run):
        global diary
        diary = (run.output_dir / "diary.txt").open("w")
        print(run.experiment_name, "with", run.facts["parameters"], "parameters", file=diary)

    @hookimpl
    def foundry_step_ended(report):
        print("step", report.step, "gradient norm", report.grad_norm, file=diary)

    @hookimpl
    def foundry_evaluated(report):
        print("step", report.step, "perplexity", report.perplexity, file=diary)

    @hookimpl
    def foundry_suite_scored(report):
        print("step", report.step, report.suite, "accuracy", report.accuracy, file=diary)

    @hookimpl
    def foundry_checkpoint_saved(step, folder):
        print("step", step, "saved in", folder.name, file=diary)

    @hookimpl
    def foundry_run_ended(step):
        print("step", step, "ended", file=diary)
        diary.close()

    # experiment.yaml
    plugins: [foundry_diary]
    """


@hookspec
def foundry_step_ended(report: StepReport) -> None:
    """Observe an optimizer step: every `logging.log_every_steps` steps, and the last."""


@hookspec
def foundry_evaluated(report: EvaluationReport) -> None:
    """Observe an evaluation on the validation or the test corpus, as `report.corpus` says."""


@hookspec
def foundry_suite_scored(report: SuiteReport) -> None:
    """Observe an evaluation on a suite of `training.suites`, as `report.suite` says."""


@hookspec
def foundry_checkpoint_saved(step: int, folder: Path) -> None:
    """Observe a checkpoint that is safely on the disk. Do not change its files: it would count as damaged."""


@hookspec
def foundry_run_ended(step: int) -> None:
    """Observe the end of a run, also by an error."""
