"""Rules between sections, and between a section and the plugins that the file names. Light.

A rule yields each problem as (key, message). It reads an `ExperimentConfig`, or the `Values` of a file that is not one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foundry_core.config.sections import MOST_ROWS
from foundry_core.config.yaml_source import KeyPath
from foundry_core.registry.architecture import Capabilities
from foundry_core.registry.objective import Objective
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

    @property
    def capabilities(self) -> Capabilities:
        if self.settled is None:
            raise NotValid("capabilities")
        return self.settled


def cross_section_problems(experiment: Any, chosen: Chosen) -> Found:
    """Yield each problem between the sections of a file as (key, message)."""
    rules = (
        _corpora_differ,
        _test_corpus_is_given,
        _plateau_is_evaluated,
        _rows_fit,
        _rows_have_room,
        _steps_fit,
        _switches_are_supported,
        _objective_is_accepted,
        _special_tokens_are_usable,
        _pretokenized_text_is_read_by_words,
        _blank_lines_are_documents,
    )
    return broken(rules, experiment, chosen)


def _corpora_differ(experiment: Any, chosen: Chosen) -> Found:
    train, test = experiment.data.training_corpus, experiment.data.test_corpus
    if test is not None and os.path.normpath(test) == os.path.normpath(train):
        yield ("data", "test_corpus"), "is the training corpus: its loss would not mean anything"


def _test_corpus_is_given(experiment: Any, chosen: Chosen) -> Found:
    if experiment.data.test_corpus is None:
        if experiment.training.lr_scheduler == "plateau":
            yield ("training", "lr_scheduler"), "needs data.test_corpus"
        if experiment.training.evaluate_every_steps is not None:
            yield ("training", "evaluate_every_steps"), "needs data.test_corpus"


def _plateau_is_evaluated(experiment: Any, chosen: Chosen) -> Found:
    if experiment.training.lr_scheduler == "plateau" and experiment.training.evaluate_every_steps is None:
        yield ("training", "lr_scheduler"), "plateau needs training.evaluate_every_steps"


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


def _pretokenized_text_is_read_by_words(experiment: Any, chosen: Chosen) -> Found:
    tokenizer = experiment.tokenizer
    if tokenizer.pretokenized and tokenizer.path is None and tokenizer.tokenizer_type != "word":
        yield ("tokenizer", "pretokenized"), "needs tokenizer_type: word: the words of the text are its tokens"


def _blank_lines_are_documents(experiment: Any, chosen: Chosen) -> Found:
    if experiment.data.blank_lines == "keep" and experiment.data.documents != "line":
        yield ("data", "blank_lines"), "keep needs documents: line, of which each blank line is an empty document"
