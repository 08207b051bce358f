"""Base classes of the sections of a YAML: strict, frozen pydantic models. Light."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Finding = TypeVar("Finding")


def expand_home(path: str) -> str:
    """Replace a leading `~` by the home folder. Raises ValueError where there is none, as for an unknown `~user`."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - a glob or a folder's trailing slash stays as it is
    if expanded.startswith("~"):
        raise ValueError(
            f"{path!r} is in the home of a user who does not exist here; a file of that name is './{path}'"
        )
    return expanded


PathText = Annotated[str, Field(min_length=1), AfterValidator(expand_home)]
"""The type of every key that names a file or a folder; `~` is replaced when the section is validated."""


class NotYaml(Exception):  # noqa: N818 - becomes a problem of the key that it names
    """An override that is not YAML, of a key that is not text. place: where the key is in the section."""

    def __init__(self, problem: str, place: tuple[str, ...] = ()):
        super().__init__(problem)
        self.problem, self.place = problem, place


@dataclass(frozen=True)
class Override:
    """A value from the command line, until the type of its key is known.

    text: As it was typed. value: The text as YAML; a function, since text need not be YAML. It may raise NotYaml.
    """

    text: str
    value: Callable[[], Any]

    def read(self, kind: Any, may_be_null: bool) -> Any:
        """Return the text unchanged for a key that takes text, and otherwise its YAML.

        A key that takes text or a mapping takes what looks like a mapping as YAML: `{name: ...`.
        """
        looks_like_one = self.text.lstrip().startswith("{") and ": " in self.text
        if not _is_text(kind) or (looks_like_one and any(map(_has_keys, _members(kind)))):
            return self.value()
        return None if self.text == "null" and may_be_null else self.text


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, and any other type alone, without annotations."""
    while get_origin(kind) is Annotated or hasattr(kind, "__value__"):
        kind = getattr(kind, "__value__", None) or get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for each in get_args(kind) for member in _members(each))
    return (kind,)


def _is_text(kind: Any) -> bool:
    """Check whether a type accepts any text, or null, and nothing else but mappings."""
    members = [each for each in _members(kind) if each is not NoneType and not _has_keys(each)]
    return bool(members) and all(
        all(isinstance(value, str | None) for value in get_args(each))
        if get_origin(each) is Literal
        else isinstance(each, type) and issubclass(each, str | PurePath)
        for each in members
    )


def _has_keys(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _inside(kind: Any, key: str) -> tuple[Any, bool] | None:
    """Return the type of a key of a section or mapping, and whether it may be null; None for an unknown key."""
    members = [each for each in _members(kind) if each is not NoneType]
    owner = next((each for each in members if _has_keys(each)), Any)
    if isinstance(owner, type) and issubclass(owner, BaseModel) and owner.model_config.get("extra") != "allow":
        field = owner.model_fields.get(key)
        if field is None:
            return None
        return field.annotation, not field.is_required() or NoneType in _members(field.annotation)
    inner = get_args(owner)[-1] if get_origin(owner) in (dict, Mapping) else Any
    return inner, NoneType in _members(inner)


def with_overrides(kind: Any, data: Any) -> Any:
    """Read the overrides in the data of a section or a mapping of this type; those of unknown keys stay.

    Raises:
        NotYaml: The first one that is not YAML, of a key that is not text.
    """
    if not isinstance(data, Mapping):
        return data
    read = dict(data)
    for key, value in data.items():
        known = _inside(kind, key)
        if known is not None:
            try:
                if isinstance(value, Override):
                    read[key] = value.read(*known)
                read[key] = with_overrides(known[0], read[key])
            except NotYaml as error:
                raise NotYaml(error.problem, (str(key), *error.place)) from None
    return read


class NotValid(Exception):  # noqa: N818 - a signal between rules and `broken`, not an error
    """A rule reads a key that is missing or wrong by itself."""


class Values:
    """The valid values of a section as attributes; reading any other key raises NotValid."""

    def __init__(self, section: type[ConfigSection], data: Any):
        self._section, self._fields = section, section.model_fields
        self._data = data if isinstance(data, Mapping) else {}

    def __getattr__(self, name: str) -> Any:
        field = self._fields.get(name)
        if field is None:
            raise NotValid(name)
        kind, given = field.annotation, {name: self._data[name]} if name in self._data else {}
        if isinstance(kind, type) and issubclass(kind, ConfigSection) and isinstance(given.get(name), Mapping):
            return Values(kind, given[name])
        try:
            return getattr(_alone(self._section, name).model_validate(given), name)
        except ValidationError:
            raise NotValid(name) from None


@lru_cache(1024)
def _alone(section: type[ConfigSection], name: str) -> type[BaseModel]:
    """Return a model of one key of a section, which takes 0.4 ms to make: each configuration reads them again."""
    field = section.model_fields[name]
    alone: dict[str, Any] = {name: (field.annotation, field)}
    return create_model("Alone", __config__=section.model_config, **alone)


def broken(rules: Iterable[Callable[..., Iterator[Finding]]], *read: Any) -> Iterator[Finding]:
    """Run each rule and yield its problems. A rule stops silently when it reads a key that is missing or invalid."""
    for rule in rules:
        with suppress(NotValid):
            yield from rule(*read)


def _bounds(schema: dict[str, Any], section: type[ConfigSection]) -> None:
    """Include in a JSON schema what `_possible` checks."""
    if schema.get("type") == "integer":
        for side, bound in (("Maximum", section.LARGEST), ("Minimum", -section.LARGEST)):
            if f"exclusive{side}" not in schema:
                schema.setdefault(side.lower(), bound)
    elif schema.get("type") == "string" and not {"enum", "const"} & schema.keys():
        schema.setdefault("pattern", "^[^\\u0000]*$")
    for each in (*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")):
        if each:
            _bounds(each, section)


class ConfigSection(BaseModel):
    """A section of the YAML. Refuses unknown keys, converts no values, and does not change after loading.

    LARGEST: Bound of every integer whose field sets no bound; larger ones overflow in libraries.
    RECORDED: Keys that are stored with a model and do not change it; the conformance kit expects no effect of them.
    RULES: Functions that receive the section and yield a line for each problem between its keys. A rule is checked
        when the keys it reads are valid, even if others are missing or wrong, so that users get all problems at once.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_bounds,
    )
    LARGEST: ClassVar[int] = 2**31 - 1
    RECORDED: ClassVar[frozenset[str]] = frozenset()
    RULES: ClassVar[tuple[Callable[[Any], Iterator[str]], ...]] = ()

    @field_validator("*")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int) and abs(each) > cls.LARGEST:
                raise ValueError(f"must be at most {cls.LARGEST:,}")
            if isinstance(each, str) and "\0" in each:
                raise ValueError("contains a NUL character")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the keys, then the rules."""
        problems: list[InitErrorDetails] = []
        try:
            data = with_overrides(cls, data)
        except NotYaml as error:
            kind = PydanticCustomError("value_error", "{error}", {"error": error.problem})
            unread = InitErrorDetails(type=kind, loc=error.place, input=data)
            raise ValidationError.from_exception_data(cls.__name__, [unread]) from None
        try:
            section: Any = handler(data)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                kind = PydanticCustomError(found["type"], found["msg"], found.get("ctx"))
                problems.append(InitErrorDetails(type=kind, loc=found["loc"], input=found["input"]))
            section = Values(cls, data)
        for line in broken(cls.RULES, section):
            kind = PydanticCustomError("value_error", "{error}", {"error": line})
            problems.append(InitErrorDetails(type=kind, loc=(), input=data))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return section  # type: ignore[no-any-return]


class ModelConfig(ConfigSection):
    """Base of the `model:` section; a plugin's subclass adds the sections that its architecture reads."""

    architecture: str = Field(description="name of an installed architecture: see `foundry plugins list`")


MOST_LAYERS, WIDEST, LONGEST = 10_000, 2**20, 2**24
"""Limits on the blocks of a model, on any width inside it and on a row, beyond what any machine holds."""

Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class Marked:
    """The meaning of a key, for the conformance kit, which sets keys of these meanings to what a check needs."""

    meaning: Literal["dropout", "layers"]


Dropout = Annotated[float, Field(ge=0, lt=1), Marked("dropout")]
"""A probability with which values are dropped in training."""

Positions = Annotated[int, Field(ge=4, le=LONGEST)]
"""A number of positions, one for each token that is read at a time."""

Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS), Marked("layers")]
"""A number of layers on top of each other."""


def _embeddings_as_wide_as_the_stream(sizes: TransformerConfig) -> Iterator[str]:
    if sizes.embedding_size != sizes.hidden_size:
        yield (
            f"embedding_size ({sizes.embedding_size}) must equal hidden_size ({sizes.hidden_size}): "
            "there is no projection between them"
        )


def _heads_divide_the_width(sizes: TransformerConfig) -> Iterator[str]:
    if sizes.hidden_size % sizes.attention_heads:
        yield f"attention_heads ({sizes.attention_heads}) must divide hidden_size ({sizes.hidden_size})"


class TransformerConfig(ConfigSection):
    """The sizes every transformer shares; `model.transformer` in the YAML."""

    RULES = (_embeddings_as_wide_as_the_stream, _heads_divide_the_width)

    layers: Layers = Field(description="number of blocks")
    embedding_size: int = Field(ge=1, le=WIDEST, description="width of the token embeddings; must equal hidden_size")
    hidden_size: int = Field(ge=1, le=WIDEST, description="width of the residual stream")
    intermediate_hidden_size: int = Field(ge=1, le=WIDEST, description="width inside the feed-forward layers")
    attention_heads: int = Field(ge=1, le=WIDEST, description="number of attention heads; must divide hidden_size")
    activation_function: Activation = Field("gelu", description="gelu is exact, gelu_new is GPT-2's tanh approximation")
    dropout: Dropout = Field(0.1, description="dropout on embeddings and after each sub-layer")
    attention_dropout: Dropout = Field(0.1, description="dropout on attention probabilities")


class LearnedPositionsConfig(TransformerConfig):
    """The sizes of a transformer that looks positions up in a table."""

    max_positions: Positions | None = Field(
        None,
        description="rows of the table of positions; null: data.max_sequence_length. Those beyond it are never "
        "trained: they are for tools that read longer texts",
    )
