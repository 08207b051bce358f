"""Suites during a run: scored at its evaluations, reported, and kept beside the run with a checkpoint of that step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foundry_core.checkpoints.checkpoint import checkpoint_step
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import UsageError
from foundry_core.evaluation.suites.reading import LoadedSuite, read_suite
from foundry_core.evaluation.suites.results import averages, described, keep, results_of
from foundry_core.evaluation.suites.scoring import SuiteScorer, SuiteScores
from foundry_core.models.base import BaseLanguageModel
from foundry_core.processes import World
from foundry_core.registry.hookspecs import hookimpl
from foundry_core.registry.reports import SuiteReport
from foundry_core.training.notifier import Notifier
from foundry_core.training.plan import RunPlan


class RunSuites:
    """The suites of `training.suites`, scored with the model that is trained; see `foundry_core.evaluation.suites`.

    Scoring draws no random number, computes in fp32 as `foundry evaluate` does, and leaves the model in the mode it was
    in: training goes on as without it.

    Args:
        config: The experiment, whose suites are read.
        world: The processes of the run, of which the first one scores.

    Raises:
        DataError: A file of a suite is not what it should be; names file and line.
        UsageError: Two suites have the same name.
    """

    def __init__(self, config: ExperimentConfig, world: World):
        specs = config.training.suites if world.first else ()
        suites = [read_suite(spec, config.chosen.plugins.modules) for spec in specs]
        check_names(suites)
        self._scorers = [SuiteScorer(suite) for suite in suites]
        self._waiting: dict[int, list[SuiteScores]] = {}

    def prepared(
        self, model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, notifier: Notifier, plan: RunPlan
    ) -> Callable[[TrainState], None]:
        """Return what scores after a step.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            notifier: Receives `foundry_suite_scored`.
            plan: After which steps there is an evaluation, and after which a checkpoint.

        Raises:
            DataError: The model can score no item of a suite.
        """
        self._model, self._tokenizer, self._notifier, self._plan = model, tokenizer, notifier, plan
        for scorer in self._scorers:
            scorer.prepare(model, tokenizer)
        return self._score

    def _score(self, state: TrainState) -> None:
        """Score the weights as they are, if there is an evaluation after the step of a state; report each suite."""
        if not self._scorers or not self._plan.evaluation_due(state.step):
            return
        found: list[SuiteScores] = []
        for scorer in self._scorers:
            found.append(scorer.scores(self._model, self._tokenizer))
            report = _report(state, scorer.suite, averages(found[-1]))
            self._notifier.tell("foundry_suite_scored", report=report)
        # A checkpoint that is saved in the background may be announced after the next evaluation.
        self._waiting = {step: each for step, each in self._waiting.items() if self._plan.checkpoint_due(step)}
        self._waiting[state.step] = found

    def complete(self, folder: Path) -> None:
        """Keep the results of the checkpoint that a run goes on from, whose weights are in the model.

        They are missing if the run was killed once the checkpoint was on the disk and before they were.
        """
        if self._plan.evaluation_due(checkpoint_step(folder)):
            for scorer in self._scorers:
                results_of(folder, scorer, lambda: (self._model, self._tokenizer))

    @hookimpl
    def foundry_checkpoint_saved(self, step: int, folder: Path) -> None:
        """Keep the results of a step whose checkpoint is on the disk, by whose manifest they are known."""
        if found := self._waiting.pop(step, None):
            state = read_state(folder)
            for scorer, scores in zip(self._scorers, found, strict=True):
                content = described(folder, state, scorer.suite, scorer.measure)
                keep(folder, content | averages(scores), scores)


def check_names(suites: list[LoadedSuite]) -> None:
    """Raise UsageError if two suites have one name, under which their results would be kept."""
    counts, kinds = Counter(suite.name for suite in suites), {suite.name: suite.kind for suite in suites}
    for name, times in counts.items():
        if times > 1:
            problem = f"{times} suites are called {name}: their results would be mixed up"
            raise UsageError(f"{problem}; name one, as in NAME={kinds[name]}=PATH")


def _report(state: TrainState, suite: LoadedSuite, found: dict[str, Any]) -> SuiteReport:
    keys = ("accuracy", "macro", "items", "ties", "left_out", "unknown_share")
    low, high = found["interval"]
    return SuiteReport(
        state.step,
        suite.name,
        **{key: found[key] for key in keys},
        interval=(low, high),
        phenomena={each: group["accuracy"] for each, group in found["phenomena"].items()},
        **state.seen,
        suite_digest=suite.digest,
    )
