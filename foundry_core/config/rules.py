"""Rules between sections: what each section allows, and the others forbid. Light.

Each rule is a function that yields what is wrong as (key, message). It receives the values that are valid by themselves
and skips what is None, so that one missing key does not hide another problem.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from foundry_core.config.sections import MOST_ROWS, DataConfig, TokenizerConfig, TrainingConfig
from foundry_core.config.yaml_source import KeyPath
from foundry_core.registry.architecture import Capabilities
from foundry_core.registry.objective import Objective
from foundry_core.registry.tokenizer_type import TokenizerType, special_token_problems

Finding = tuple[KeyPath, str]


class Values:
    """The values of a section as attributes; None for a key that is missing or wrong by itself."""

    def __init__(self, section: type[BaseModel], data: Any):
        given = data if isinstance(data, dict) else {}
        wrong = set()
        try:
            section.model_validate(given)
        except ValidationError as error:
            wrong = {finding["loc"][0] for finding in error.errors(include_url=False) if finding["loc"]}
        self._values = {
            name: given.get(name, field.get_default(call_default_factory=True, validated_data={}))
            for name, field in section.model_fields.items()
            if name not in wrong
        }

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)


@dataclass(frozen=True)
class Chosen:
    """What the rules are about. objective, tokenizer_type: None where the file names none that there is."""

    architecture: str
    capabilities: Capabilities
    objectives: Mapping[str, Objective]
    objective: Objective | None
    tokenizer_type: TokenizerType | None


def cross_section_problems(sections: Mapping[str, Any], chosen: Chosen) -> Iterator[Finding]:
    """Yield what is wrong between sections.

    Args:
        sections: The content of the file.
        chosen: What its names lead to.
    """
    data = Values(DataConfig, sections.get("data"))
    training = Values(TrainingConfig, sections.get("training"))
    tokenizer = Values(TokenizerConfig, sections.get("tokenizer"))
    yield from _corpora(data, training)
    yield from _sizes(data, training, chosen)
    yield from _supported(training, chosen)
    yield from _objective_fits(chosen)
    yield from _special_tokens(tokenizer, chosen)


def _corpora(data: Values, training: Values) -> Iterator[Finding]:
    """A test corpus is another text than the training corpus, and there where it is asked for."""
    train, test = data.training_corpus, data.test_corpus
    if train is not None and test is not None and os.path.normpath(test) == os.path.normpath(train):
        yield ("data", "test_corpus"), "is the training corpus: its loss would say nothing"
    needs_test = {
        "evaluate_every_steps": training.evaluate_every_steps is not None,
        "lr_scheduler": training.lr_scheduler == "plateau",
    }
    for key, asked in needs_test.items():
        if asked and train is not None and test is None:
            yield ("training", key), "needs data.test_corpus"


def _sizes(data: Values, training: Values, chosen: Chosen) -> Iterator[Finding]:
    """Rows are no longer than the architecture takes; a step has no more than `MOST_ROWS` of them."""
    longest, length = chosen.capabilities.longest_sequence, data.max_sequence_length
    if longest is not None and length is not None and length > longest:
        yield ("data", "max_sequence_length"), f"{chosen.architecture} takes at most {longest} tokens"
    rows, parts = data.batch_size, training.gradient_accumulation_steps
    if rows is not None and parts is not None and rows * parts > MOST_ROWS:
        yield (
            ("training", "gradient_accumulation_steps"),
            f"times data.batch_size must be at most {MOST_ROWS:,}: the rows of one optimizer step",
        )


def _supported(training: Values, chosen: Chosen) -> Iterator[Finding]:
    """The architecture supports what is switched on."""
    for key in ("gradient_checkpointing", "compile"):
        if getattr(training, key) and not getattr(chosen.capabilities, key):
            yield ("training", key), f"{chosen.architecture} does not support it"
    if training.lr_scheduler == "plateau" and training.evaluate_every_steps is None:
        yield ("training", "lr_scheduler"), "plateau needs training.evaluate_every_steps"


def _objective_fits(chosen: Chosen) -> Iterator[Finding]:
    """The architecture can be trained with the objective: a bidirectional LSTM cannot be trained causally."""
    objective, capabilities = chosen.objective, chosen.capabilities
    if objective is not None and not capabilities.accepts(objective):
        accepted = ", ".join(name for name, each in chosen.objectives.items() if capabilities.accepts(each)) or "none"
        yield (
            ("training", "objective"),
            f"{chosen.architecture} with these settings cannot be trained with {objective.name}; it accepts {accepted}",
        )


def _special_tokens(tokenizer: Values, chosen: Chosen) -> Iterator[Finding]:
    """The tokenizer has the tokens that the objective needs, each usable in its kind of tokenizer."""
    objective, kind = chosen.objective, chosen.tokenizer_type
    if objective is None or kind is None:
        return
    changes = {str(role): token for role, token in (tokenizer.special_tokens or {}).items()}
    for role, token in changes.items():
        if token is None and role in objective.required_tokens:
            yield ("tokenizer", "special_tokens", role), f"{objective.name} needs a {role}"
    tokens = kind.tokens_by_role(changes, "mask_token" in objective.required_tokens)
    for concerned, problem in special_token_problems(kind, tokens):
        # Two roles that clash: the one that the file names is the one to change.
        named = [role for role in changes if concerned and tokens.get(role) == tokens.get(concerned)]
        place = concerned if concerned in changes else next(iter(named), None)
        text = f"{concerned} {problem}" if concerned is not None and place != concerned else problem
        yield ("tokenizer", "special_tokens", *((place,) if place else ())), text
