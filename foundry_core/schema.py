"""Base classes of the sections of a YAML: strict, frozen pydantic models. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
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


class NotValid(Exception):  # noqa: N818 - a signal between rules and `broken`, not an error
    """A rule reads a key that is missing or wrong by itself."""


class Values:
    """The valid values of a section as attributes; reading any other key raises NotValid."""

    def __init__(self, section: type[ConfigSection], data: Any):
        self._fields, self._config = section.model_fields, section.model_config
        self._data = data if isinstance(data, Mapping) else {}

    def __getattr__(self, name: str) -> Any:
        field = self._fields.get(name)
        if field is None:
            raise NotValid(name)
        kind, given = field.annotation, {name: self._data[name]} if name in self._data else {}
        if isinstance(kind, type) and issubclass(kind, ConfigSection) and isinstance(given.get(name), Mapping):
            return Values(kind, given[name])
        alone: dict[str, Any] = {name: (kind, field)}
        try:
            return getattr(create_model("Alone", __config__=self._config, **alone).model_validate(given), name)
        except ValidationError:
            raise NotValid(name) from None


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


MOST_LAYERS, WIDEST = 10_000, 2**20
"""Limits on the blocks of a model and on any width inside it, beyond what any machine holds."""

Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class Marked:
    """The meaning of a key, for the conformance kit, which sets keys of these meanings to what a check needs."""

    meaning: Literal["dropout", "layers"]


Dropout = Annotated[float, Field(ge=0, lt=1), Marked("dropout")]
"""A probability with which values are dropped in training."""

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
