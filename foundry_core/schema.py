"""What the sections of a YAML are made of: strict, frozen pydantic models. Light."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Place = tuple[int | str, ...]


class ConfigSection(BaseModel):
    """A section of the YAML: unknown keys are refused, values are not converted, and nothing changes after loading.

    A rule between keys is a `model_validator(mode="after")`, one for each rule. Every rule whose keys are valid is
    checked, whatever else is missing or wrong in the section, so that a user gets all problems at once.

    LARGEST: Bound of every integer that has no bound of its own; a larger one overflows in libraries, or never ends.
    RECORDED: Keys that are stored with a model and do not change it; the conformance checks expect no effect of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
    LARGEST: ClassVar[int] = 2**31 - 1
    RECORDED: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int) and abs(each) > cls.LARGEST:
                raise ValueError(f"must be at most {cls.LARGEST:,}")
            if isinstance(each, str) and "\0" in each:
                raise ValueError("holds a NUL character")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the keys and then the rules. pydantic alone checks no rule of a section that lacks a key."""
        decorators = cls.__pydantic_decorators__.model_validators
        rules = [name for name, decorator in decorators.items() if decorator.info.mode == "after"]
        problems: list[InitErrorDetails] = []
        try:
            section = handler(data)
        except ValidationError as error:
            if not rules or not isinstance(data, Mapping):
                raise
            problems = _details(error)
            section = cls._valid_part(data, [finding["loc"] for finding in error.errors()])
        for rule in (getattr(section, name) for name in rules):
            if inspect.signature(rule).parameters:
                continue  # pydantic gives it what it asks for
            try:
                rule()
            except ValidationError as error:
                problems += _details(error)
            except ValueError as error:
                wrong = PydanticCustomError("value_error", "{error}", {"error": str(error)})
                problems.append(InitErrorDetails(type=wrong, loc=(), input=data))
            except AttributeError:
                if not problems:
                    raise
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return section

    @classmethod
    def _valid_part(cls, data: Mapping[Any, Any], faults: Sequence[Place]) -> Self:
        """Return the section with its valid keys alone; reading another one raises AttributeError.

        faults: Where the problems are, from this section on.
        """
        wrong = {place[0] for place in faults if place}
        sound: dict[str, Any] = {
            name: (field.annotation, field) for name, field in cls.model_fields.items() if name not in wrong
        }
        checked = create_model(cls.__name__, __config__=cls.model_config, **sound)
        try:
            values = dict(vars(checked.model_validate({name: data[name] for name in sound if name in data})))
        except ValidationError:
            values = {}  # the section converts a key in a validator of its own
        for name in wrong & cls.model_fields.keys():
            section, inside = cls.model_fields[str(name)].annotation, data.get(name)
            if isinstance(section, type) and issubclass(section, ConfigSection) and isinstance(inside, Mapping):
                values[str(name)] = section._valid_part(inside, [place[1:] for place in faults if place[:1] == (name,)])
        part = cast("Self", cls.model_construct())
        vars(part).clear()
        vars(part).update(values)
        return part

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema says the same."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for each in properties.values():
            _bound(each, cls.LARGEST)
        return schema


def _details(error: ValidationError) -> list[InitErrorDetails]:
    """Return the findings of an error in the form that another error is made of."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(finding["type"], finding["msg"], finding.get("ctx")),
            loc=finding["loc"],
            input=finding["input"],
        )
        for finding in error.errors(include_url=False)
    ]


def _bound(schema: Any, largest: int) -> None:
    if isinstance(schema, list):
        for each in schema:
            _bound(each, largest)
    elif isinstance(schema, dict):
        if schema.get("type") == "integer":
            if "exclusiveMaximum" not in schema:
                schema.setdefault("maximum", largest)
            if "exclusiveMinimum" not in schema:
                schema.setdefault("minimum", -largest)
        elif schema.get("type") == "string" and not {"enum", "const"} & schema.keys():
            schema.setdefault("pattern", "^[^\\u0000]*$")
        _bound(schema.get("anyOf"), largest)
        _bound(schema.get("items"), largest)


class ModelConfig(ConfigSection):
    """Base of the `model:` section; a plugin's subclass adds the sections that its architecture reads."""

    architecture: str = Field(description="name of an installed architecture: see `foundry plugins list`")


MOST_LAYERS, WIDEST = 10_000, 2**20
"""Blocks of a model, and width of anything inside: beyond what any machine holds, and short of what never ends."""

Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]


class TransformerConfig(ConfigSection):
    """The sizes every transformer shares; `model.transformer` in the YAML."""

    layers: int = Field(ge=1, le=MOST_LAYERS, description="number of blocks")
    embedding_size: int = Field(ge=1, le=WIDEST, description="width of the token embeddings; must equal hidden_size")
    hidden_size: int = Field(ge=1, le=WIDEST, description="width of the residual stream")
    intermediate_hidden_size: int = Field(ge=1, le=WIDEST, description="width inside the feed-forward layers")
    attention_heads: int = Field(ge=1, le=WIDEST, description="number of attention heads; must divide hidden_size")
    activation_function: Activation = Field("gelu", description="gelu is exact, gelu_new is GPT-2's tanh approximation")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on embeddings and after each sub-layer")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout on attention probabilities")

    @model_validator(mode="after")
    def _embeddings_are_as_wide(self) -> Self:
        if self.embedding_size != self.hidden_size:
            raise ValueError(
                f"embedding_size ({self.embedding_size}) must equal hidden_size ({self.hidden_size}): "
                "there is no projection between them"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"attention_heads ({self.attention_heads}) must divide hidden_size ({self.hidden_size})")
        return self
