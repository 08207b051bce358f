"""What the sections of a YAML are made of: strict, frozen pydantic models. Light."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator


class ConfigSection(BaseModel):
    """A section of the YAML: unknown keys are refused, values are not converted, and nothing changes after loading.

    An integer without a bound of its own is at most `LARGEST`: what is larger overflows in libraries, or never ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
    LARGEST: ClassVar[int] = 2**31 - 1

    @field_validator("*")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int) and abs(each) > cls.LARGEST:
                raise ValueError(f"must be at most {cls.LARGEST:,}")
            if isinstance(each, str) and "\0" in each:
                raise ValueError("holds a NUL character")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema says the same."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for each in properties.values():
            _bound(each, cls.LARGEST)
        return schema


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

    layers: int = Field(4, ge=1, le=MOST_LAYERS, description="number of blocks")
    embedding_size: int = Field(256, ge=1, le=WIDEST, description="width of the token embeddings; equal to hidden_size")
    hidden_size: int = Field(256, ge=1, le=WIDEST, description="width of the residual stream")
    intermediate_hidden_size: int = Field(1024, ge=1, le=WIDEST, description="width inside the feed-forward layers")
    attention_heads: int = Field(4, ge=1, le=WIDEST, description="attention heads; they divide hidden_size")
    activation_function: Activation = Field("gelu", description="gelu is exact, gelu_new is GPT-2's tanh approximation")
    dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings and after each sub-layer")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="on attention probabilities")

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.embedding_size != self.hidden_size:
            raise ValueError(
                f"embedding_size ({self.embedding_size}) must equal hidden_size ({self.hidden_size}): "
                "there is no projection between them"
            )
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"attention_heads ({self.attention_heads}) must divide hidden_size ({self.hidden_size})")
        return self
