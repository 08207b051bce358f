"""Rules between sections, and between a section and the plugins that the file names. Light.

A rule yields each problem as (key, message). It reads an `ExperimentConfig`, or the `Values` of a file that is not one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from foundry_core.config.sections import MOST_ROWS
from foundry_core.config.yaml_source import KeyPath
from foundry_core.registry.architecture import Capabilities
from foundry_core.registry.core_steps import CORE_CORPUS_STEPS
from foundry_core.registry.corpus_step import CONTROL, CorpusStep, flat_steps
from foundry_core.registry.objective import Objective
from foundry_core.registry.schedule import CORE_SCHEDULES, FALLING
from foundry_core.registry.tokenizer_type import TokenizerType, special_token_problems
from foundry_core.schema import NotValid, broken

Found = Iterator[tuple[KeyPath, str]]


@dataclass(frozen=True)
class Chosen:
    """The descriptors that a file names. objective, tokenizer_type: None if the name is missing or unknown.

    settled: The capabilities; None if `model:` is not valid, and then no rule that reads them is checked.
    """

    architecture: str
    settled: Capabilities | None
    objectives: Mapping[str, Objective]
    objective: Objective | None
    tokenizer_type: TokenizerType | None
    corpus_steps: Mapping[str, CorpusStep] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        if self.settled is None:
            raise NotValid("capabilities")
        return self.settled


def cross_section_problems(experiment: Any, chosen: Chosen) -> Found:
    """Yield each problem between the sections of a file as (key, message)."""
    rules = (
        _corpora_differ,
        _batches_are_possible,
        _held_out_text_is_given,
        _there_is_something_to_go_by,
        _schedule_takes_its_settings,
        _evaluations_are_acted_on,
        _counts_are_kept,
        _start_is_elsewhere,
        _rows_fit,
        _rows_have_room,
        _steps_fit,
        _switches_are_supported,
        _sharding_is_supported,
        _objective_is_accepted,
        _special_tokens_are_usable,
        _something_is_masked,
        _pretokenized_text_is_read_by_words,
        _blank_lines_are_documents,
        _functions_are_of_plugins,
        _holes_can_be_left,
        _controls_can_count,
    )
    return broken(rules, experiment, chosen)


def _corpora_differ(experiment: Any, chosen: Chosen) -> Found:
    given, test, validation = (
        getattr(experiment.data, f"{kind}_corpus") for kind in ("training", "test", "validation")
    )
    trained = [each.path for each in given.values()] if isinstance(given, Mapping) else [given]
    for key, held_out in (("test_corpus", test), ("validation_corpus", validation)):
        if held_out is not None and os.path.normpath(held_out) in map(os.path.normpath, trained):
            yield ("data", key), "is the training corpus: its loss would not mean anything"
    if test is not None and validation is not None and os.path.normpath(test) == os.path.normpath(validation):
        yield ("data", "validation_corpus"), "is the test corpus: what is chosen by it would be chosen by the test"


def _batches_are_possible(experiment: Any, chosen: Chosen) -> Found:
    if experiment.data.batching == "contiguous":
        able = chosen.capabilities.stateful and chosen.capabilities.unbounded_length
        if not able:
            problem = f"contiguous needs a model whose state is carried from row to row: {chosen.architecture} has none"
            yield ("data", "batching"), problem
        if chosen.objective is not None and not chosen.objective.causal:
            yield ("data", "batching"), f"contiguous needs a causal objective, not {chosen.objective.name}"
    if experiment.data.isolate_documents and not chosen.capabilities.isolates_documents:
        yield ("data", "isolate_documents"), f"{chosen.architecture} cannot keep documents apart"


def _held_out_text_is_given(experiment: Any, chosen: Chosen) -> Found:
    data, training = experiment.data, experiment.training
    if data.test_corpus is None and data.validation_corpus is None:
        if training.lr_scheduler == "plateau":
            yield ("training", "lr_scheduler"), "needs data.validation_corpus or data.test_corpus"
        for key in ("evaluate_every_steps", "evaluate_at"):
            if getattr(training, key) is not None and not training.suites:
                yield ("training", key), "needs data.validation_corpus, data.test_corpus or training.suites"
    if data.test_corpus is None and training.evaluate_test == "always":
        yield ("training", "evaluate_test"), "needs data.test_corpus"
    if data.validation_corpus is None and training.early_stopping_patience is not None:
        yield ("training", "early_stopping_patience"), "needs data.validation_corpus"


def _there_is_something_to_go_by(experiment: Any, chosen: Chosen) -> Found:
    """A loss that is computed only at the end decides nothing."""
    training, schedules = experiment.training, "training.evaluate_every_steps or training.evaluate_at"
    if training.evaluate_every_steps is None and training.evaluate_at is None:
        if training.lr_scheduler == "plateau":
            yield ("training", "lr_scheduler"), f"plateau needs {schedules}"
        if training.early_stopping_patience is not None:
            yield ("training", "early_stopping_patience"), f"needs {schedules}"


def _schedule_takes_its_settings(experiment: Any, chosen: Chosen) -> Found:
    training, name = experiment.training, experiment.training.lr_scheduler
    decays = [key for key in ("decay_steps", "decay_ratio") if getattr(training, key) is not None]
    if name not in FALLING:
        for key in decays:
            yield ("training", key), f"has no meaning for {name}: it is for {', '.join(FALLING)}"
    elif name == "wsd" and not decays:
        yield ("training", "lr_scheduler"), "wsd needs training.decay_steps or training.decay_ratio"
    if training.min_learning_rate_ratio and (name not in CORE_SCHEDULES or name == "constant"):
        yield ("training", "min_learning_rate_ratio"), f"has no meaning for {name}"
    if (name == "step") != (training.step_after_epochs is not None):
        problem = "is for lr_scheduler: step" if name != "step" else "missing: lr_scheduler: step needs it"
        yield ("training", "step_after_epochs"), problem


def _evaluations_are_acted_on(experiment: Any, chosen: Chosen) -> Found:
    training = experiment.training
    if training.restore_best == "when_lowered" and training.lr_scheduler != "plateau":
        yield ("training", "restore_best"), "when_lowered needs lr_scheduler: plateau, which lowers the learning rate"
    elif training.restore_best == "when_lowered" and training.optimizer == "asgd":
        yield ("training", "restore_best"), "when_lowered cannot be used with asgd, whose average would be lost: at_end"
    if training.asgd_nonmonotonic_interval is not None and training.optimizer != "asgd":
        yield ("training", "asgd_nonmonotonic_interval"), "is for optimizer: asgd"
    held_out = experiment.data.validation_corpus is not None or experiment.data.test_corpus is not None
    if not held_out or (training.evaluate_every_steps is None and training.evaluate_at is None):
        needed = "needs data.validation_corpus or data.test_corpus, and training.evaluate_every_steps or evaluate_at"
        if training.restore_best != "never":
            yield ("training", "restore_best"), needed
        if training.asgd_nonmonotonic_interval is not None:
            yield ("training", "asgd_nonmonotonic_interval"), needed


def _counts_are_kept(experiment: Any, chosen: Chosen) -> Found:
    """What only sets gradients is ignored, so that all architectures of a study share it; this would be a promise."""
    if chosen.capabilities.trained_by_counting and experiment.training.restore_best != "never":
        yield (
            ("training", "restore_best"),
            f"{chosen.architecture} is trained by counting, and counts are not taken back",
        )


def _start_is_elsewhere(experiment: Any, chosen: Chosen) -> Found:
    start, output_dir = experiment.training.start_from, os.path.abspath(experiment.training.output_dir)  # noqa: PTH100
    if start is not None and os.path.abspath(start).startswith(output_dir + os.sep):  # noqa: PTH100
        yield ("training", "start_from"), "is in training.output_dir: continue that run with --resume, or name another"


def _rows_fit(experiment: Any, chosen: Chosen) -> Found:
    longest = chosen.capabilities.longest_sequence
    if longest is not None and experiment.data.max_sequence_length > longest:
        yield ("data", "max_sequence_length"), f"{chosen.architecture} takes at most {longest} tokens"


def _rows_have_room(experiment: Any, chosen: Chosen) -> Found:
    given, length, objective = experiment.data.tokens_per_row, experiment.data.max_sequence_length, chosen.objective
    if given is None or objective is None:
        return
    room = length - (2 if objective.layout == "framed" else 1)
    if given > room:
        yield ("data", "tokens_per_row"), f"at most {room} fit into max_sequence_length {length} under {objective.name}"


def _steps_fit(experiment: Any, chosen: Chosen) -> Found:
    if experiment.data.batch_size * experiment.training.gradient_accumulation_steps > MOST_ROWS:
        problem = f"times data.batch_size must be at most {MOST_ROWS:,}: the rows of one optimizer step"
        yield ("training", "gradient_accumulation_steps"), problem


def _switches_are_supported(experiment: Any, chosen: Chosen) -> Found:
    for key in ("gradient_checkpointing", "compile"):
        if not getattr(chosen.capabilities, key) and getattr(experiment.training, key) is True:
            yield ("training", key), f"{chosen.architecture} does not support it"


def _sharding_is_supported(experiment: Any, chosen: Chosen) -> Found:
    training = experiment.training
    if training.reduction != "sharded":
        return
    if training.compile is True:
        yield ("training", "compile"), "is not supported with reduction: sharded"
    if training.precision == "fp16":
        yield ("training", "precision"), "fp16 is not supported with reduction: sharded; use bf16"
    if training.suites:
        line = "one process scores them, and with reduction: sharded none has the whole model: score its checkpoints"
        yield ("training", "suites"), f"{line} with foundry evaluate --suite"


def _objective_is_accepted(experiment: Any, chosen: Chosen) -> Found:
    """A bidirectional LSTM, for instance, cannot be trained causally."""
    objective, accepts = chosen.objective, chosen.capabilities.accepts
    if objective is not None and not accepts(objective):
        accepted = ", ".join(name for name, each in chosen.objectives.items() if accepts(each)) or "none"
        yield (
            ("training", "objective"),
            f"{chosen.architecture} with these settings cannot be trained with {objective.name}; it accepts {accepted}",
        )


def _special_tokens_are_usable(experiment: Any, chosen: Chosen) -> Found:
    objective, kind = chosen.objective, chosen.tokenizer_type
    if objective is None or kind is None:
        return
    place, changes = ("tokenizer", "special_tokens"), experiment.tokenizer.special_tokens or {}
    tokens = kind.tokens_by_role(changes)
    for role in objective.required_tokens:
        if role not in tokens:
            yield (*place, *((role,) if role in changes else ())), f"{objective.name} needs a {role}"
    for concerned, problem in special_token_problems(kind, tokens):
        # Of two roles that clash, the one to change is the one in the file.
        clashing = [role for role in changes if concerned and tokens.get(role) == tokens.get(concerned)]
        named = concerned if concerned in changes else next(iter(clashing), None)
        text = f"{concerned} {problem}" if concerned is not None and named != concerned else problem
        yield (*place, *((named,) if named else ())), text


def _something_is_masked(experiment: Any, chosen: Chosen) -> Found:
    if chosen.objective is None or not chosen.objective.causal:
        return
    line = f"{chosen.objective.name} does not mask: only masked_lm does"
    if experiment.training.masking != "token":
        yield ("training", "masking"), line
    if isinstance(experiment.training.mlm_probability, tuple):
        yield ("training", "mlm_probability"), line


def _pretokenized_text_is_read_by_words(experiment: Any, chosen: Chosen) -> Found:
    tokenizer = experiment.tokenizer
    if tokenizer.pretokenized and tokenizer.path is None and tokenizer.tokenizer_type != "word":
        yield ("tokenizer", "pretokenized"), "needs tokenizer_type: word: the words of the text are its tokens"


def _blank_lines_are_documents(experiment: Any, chosen: Chosen) -> Found:
    if experiment.data.blank_lines == "keep" and experiment.data.documents != "line":
        yield ("data", "blank_lines"), "keep needs documents: line, of which each blank line is an empty document"


def _functions_are_of_plugins(experiment: Any, chosen: Chosen) -> Found:
    """A YAML imports only the installed plugins it names."""
    packages = {module.partition(".")[0] for module in experiment.plugins}
    for number, step in enumerate(experiment.data.steps):
        for name, settings in flat_steps([step]):
            function = getattr(settings, "function", None) if name in CORE_CORPUS_STEPS else None
            package = str(function or "").partition(":")[0].partition(".")[0]
            if function is not None and package not in packages:
                yield ("data", "steps", number, next(iter(step))), f"{function} is not of a package under plugins"


def _holes_can_be_left(experiment: Any, chosen: Chosen) -> Found:
    began = False
    for number, step in enumerate(experiment.data.steps):
        ((name, settings),) = step.items()
        place = ("data", "steps", number, name)
        if getattr(settings, "in_place", False):
            began = True
            of = settings.of if name == CONTROL else step
            if any(getattr(each, "unit", "") == "line" for each in of.values()) and experiment.data.documents != "line":
                yield (*place, "in_place"), "leaves holes for whole documents, not for lines of them"
            if not chosen.capabilities.left_padding:
                yield (*place, "in_place"), f"{chosen.architecture} does not take padding before text"
            if isinstance(experiment.data.training_corpus, Mapping):
                yield (*place, "in_place"), "leaves holes in one corpus, and training_corpus names several"
        elif began:
            yield place, "stands behind a step that is in_place: such steps come last, as what they drop is left alone"


def _controls_can_count(experiment: Any, chosen: Chosen) -> Found:
    for number, step in enumerate(experiment.data.steps):
        if CONTROL not in step:
            continue
        settings, place = step[CONTROL], ("data", "steps", number, CONTROL)
        ((name, inner),) = settings.of.items()
        if name == CONTROL or not chosen.corpus_steps[name].drops:
            yield (*place, "of"), f"{name} drops nothing to count" if name != CONTROL else "is a control itself"
            continue
        if inner.in_place:
            yield (*place, "of", name, "in_place"), "give it to the control: nothing is dropped by the step inside it"
        lines = inner.unit == "line" or experiment.data.documents == "line"
        if settings.as_many == "lines" and not lines:
            yield (*place, "as_many"), f"{name} drops documents: write documents"
        if settings.as_many == "documents" and inner.unit == "line" and experiment.data.documents != "line":
            yield (*place, "as_many"), f"{name} drops lines of documents: write lines"
