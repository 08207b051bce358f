"""Core's own steps of `data.steps` and their settings. Light."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from foundry_core.errors import PluginError
from foundry_core.registry.checks import check_import_string
from foundry_core.registry.corpus_step import CONTROL, CorpusStep, DroppingSettings
from foundry_core.schema import ConfigSection, expand_home

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
"""A word in a word list or a table: letters, digits and underscores, with apostrophes and hyphens inside."""


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression of Python: {error}") from None
    return text


def _import_string(text: str) -> str:
    try:
        check_import_string("it", text)
    except PluginError:
        raise ValueError(f"is {text!r}, must be package.module:function") from None
    return text


def checked_word(word: Any) -> str:
    """Return a word as it is. Raises ValueError for anything that is not one word."""
    if not isinstance(word, str):
        raise ValueError(f"{word!r} is not text: put it in quotes")
    if WORD.fullmatch(word) is None:
        raise ValueError(f"{word!r} is not one word; `matching` finds other text")
    return word


def _word_list(value: Any) -> Any:
    """Return a file's name, or a tuple of words."""
    if isinstance(value, str) and value:
        return expand_home(value)
    if isinstance(value, list | tuple) and value:
        return tuple(map(checked_word, value))
    raise ValueError("must be a list of words, or a file with one word a line")


def _word_table(value: Any) -> Any:
    """Return a file's name, or a mapping of words to text."""
    if isinstance(value, str) and value:
        return expand_home(value)
    if isinstance(value, dict) and value:
        if wrong := [other for other in value.values() if not isinstance(other, str)]:
            raise ValueError(f"{wrong[0]!r} is not text: put it in quotes")
        return {checked_word(word): other for word, other in value.items()}
    raise ValueError("must map words to others, or be a file of lines with two columns, parted by a tab")


Expression = Annotated[str, Field(min_length=1), AfterValidator(_expression)]
Function = Annotated[str, AfterValidator(_import_string)]
WordList = Annotated[str | tuple[str, ...], BeforeValidator(_word_list)]
WordTable = Annotated[str | dict[str, str], BeforeValidator(_word_table)]
Share = Annotated[float, Field(gt=0, lt=1)]
StepSeed = Annotated[int, Field(ge=0, lt=2**63)]


def _exactly_one_of(*keys: str) -> Callable[[Any], Iterator[str]]:
    def rule(settings: Any) -> Iterator[str]:
        given = [key for key in keys if getattr(settings, key) is not None]
        if len(given) != 1:
            yield f"give exactly one of {', '.join(keys)}: found {' and '.join(given) or 'none'}"

    return rule


def _functions_know_no_case(settings: Any) -> Iterator[str]:
    if settings.function is not None and settings.ignore_case:
        yield "ignore_case has no effect on a function: remove it"


class SelectionSettings(DroppingSettings):
    """What `drop` drops and `keep` keeps; exactly one of the first four."""

    RULES = (_exactly_one_of("matching", "words", "only_words", "function"), _functions_know_no_case)
    LARGEST = 2**63 - 1

    matching: Expression | None = Field(None, description="a match of this regular expression, anywhere in the text")
    words: WordList | None = Field(None, description="any of these words; a list, or a file with one word a line")
    only_words: WordList | None = Field(None, description="no other words than these")
    function: Function | None = Field(
        None, description="package.module:function of a package under plugins; true for a text that is meant"
    )
    ignore_case: bool = Field(False, description="find words and matches in capitals and small letters")


def _a_replacement_for_what_is_found(settings: Any) -> Iterator[str]:
    if settings.function is not None and settings.by is not None:
        yield "by has no effect on a function, which returns the new text: remove it"
    if settings.function is None and settings.by is None:
        yield 'needs by: the new text, or "" to remove what is found'


def _groups_exist(settings: Any) -> Iterator[str]:
    if settings.matching is not None and settings.by is not None:
        try:
            re.compile(settings.matching).sub(settings.by, "")
        except (re.error, IndexError) as error:
            yield f"by is not a replacement for this expression: {error}"


class ReplaceSettings(ConfigSection):
    RULES = (
        _exactly_one_of("matching", "words", "function"),
        _functions_know_no_case,
        _a_replacement_for_what_is_found,
        _groups_exist,
    )

    matching: Expression | None = Field(None, description="each match of this regular expression")
    words: WordList | None = Field(None, description="each of these words; a list, or a file with one word a line")
    function: Function | None = Field(
        None, description="package.module:function of a package under plugins; returns the new text of a document"
    )
    by: str | None = Field(None, description=r"the new text; \1 is the first group of `matching`")
    ignore_case: bool = Field(False, description="find words and matches in capitals and small letters")


class SampleSettings(DroppingSettings):
    LARGEST = 2**63 - 1

    share: Share = Field(description="probability with which a text is kept")
    seed: StepSeed = Field(0, description="another seed, another sample")
    follows: Literal["number", "text"] = Field(
        "number", description="what decides, with the seed: the number of the text; or text: equal texts go together"
    )


class DeduplicateSettings(DroppingSettings):
    ignore_case: bool = Field(False, description="texts that differ in capitals and small letters are equal")


class RelabelSettings(ConfigSection):
    table: WordTable = Field(description="words and what takes their place; a mapping, or a file with two columns")
    others: str | None = Field(None, description="what takes the place of every other word; null: it stays")
    ignore_case: bool = Field(
        False, description="find words in any case; the first letter of the new one follows that of the old"
    )


def _one_step(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("must be one step with its settings, such as {drop: {matching: never}}")
    return value


class ControlSettings(ConfigSection):
    LARGEST = 2**63 - 1

    of: Annotated[dict[str, SerializeAsAny[ConfigSection]], BeforeValidator(_one_step)] = Field(
        description="the step that this is the control of, with its settings"
    )
    as_many: Literal["documents", "lines", "words"] = Field(
        "documents", description="drop as many as that step; words: whole texts with together as many, never more"
    )
    among: Literal["others", "all"] = Field("others", description="others: only texts that the step would not drop")
    seed: StepSeed = Field(0, description="another seed, another choice")
    in_place: bool = Field(False, description="as for the step")


CORE_CORPUS_STEPS = {
    step.name: step
    for step in (
        CorpusStep("drop", "leave out what matches", None, SelectionSettings, True, ("words", "only_words")),
        CorpusStep("keep", "leave out what does not match", None, SelectionSettings, True, ("words", "only_words")),
        CorpusStep("replace", "write other text for what is found", None, ReplaceSettings, False, ("words",)),
        CorpusStep("sample", "keep a random share", None, SampleSettings, True),
        CorpusStep("deduplicate", "keep the first of equal texts", None, DeduplicateSettings, True),
        CorpusStep("relabel", "write other words for words", None, RelabelSettings, False, ("table",)),
        CorpusStep(CONTROL, "leave out as much as another step, at random", None, ControlSettings, True),
    )
}
