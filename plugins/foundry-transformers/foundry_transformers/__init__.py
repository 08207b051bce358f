"""Any language model of the transformers library for foundry: the descriptor. `model` is imported when one is built.

The keys of the section `model.transformers` are those of the model type's configuration class, and are checked when the
YAML is read. Sizes are required; other keys default to the library's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import Field, SerializeAsAny, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from foundry_core import (
    Architecture,
    Capabilities,
    ConfigSection,
    Dropout,
    Layers,
    ModelConfig,
    Positions,
    did_you_mean,
)
from foundry_transformers import catalogue
from foundry_transformers.catalogue import ModelType

_MAX_POSITIONS = (
    "number of positions; null: data.max_sequence_length. Those beyond it are never trained: they are for tools that "
    "read longer texts"
)


class TransformersSection(ConfigSection):
    """The section `model.transformers`: a model type, and the keys of its configuration class."""

    model_type: str = Field(
        description="a model type of transformers: llama, roberta, mamba, ...; it determines the other keys"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_type(cls, value: Any, handler: Callable[[Any], Any]) -> Any:
        if cls is not TransformersSection or not isinstance(value, Mapping):
            return handler(value)
        if not isinstance(value.get("model_type"), str):  # without it the other keys have no meaning
            return handler({key: each for key, each in value.items() if key == "model_type"})
        kind = _model_type(value)
        section = section_class(kind.name)
        problems = {key: _refused(kind, key) for key in value if key not in section.model_fields}
        errors = [_problem(text, key, value[key]) for key, text in problems.items()]
        checked = None
        try:
            checked = section.model_validate({key: each for key, each in value.items() if key not in problems})
        except ValidationError as error:
            errors += _one_for_each_key(kind, error)
        if errors:
            raise ValidationError.from_exception_data(section.__name__, errors)
        return checked

    def __reduce__(self) -> Any:
        """Pickle the values only: the class is created while reading, so another process creates it again."""
        return TransformersSection.model_validate, (self.model_dump(exclude_unset=True),)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        return _open_schema() if cls is TransformersSection else handler(core_schema)


def _model_type(section: Mapping[str, Any]) -> ModelType:
    name = section["model_type"]
    kind = catalogue.model_type(name)
    if kind is not None:
        return kind
    known = catalogue.model_types()
    parts = [each for each in known if each.startswith(f"{name}_")]
    if name in catalogue.known_types():
        text = f"'{name}' has no causal or masked language model that can be trained here."
    else:
        text = f"transformers has no model type '{name}'."
    near = did_you_mean(name, parts or known) or f" There are {len(known)}: see foundry schema."
    raise ValidationError.from_exception_data("TransformersSection", [_problem(text + near, "model_type", name)])


def _refused(kind: ModelType, key: str) -> str:
    """Return the reason why a key is refused."""
    own_name = kind.aliases.get(key, key)
    if own_name == kind.vocabulary:
        return "comes from the tokenizer: set tokenizer.vocab_size"
    if catalogue.special_token(key):
        return "comes from the tokenizer: see tokenizer.special_tokens"
    if own_name == kind.positions or key in catalogue.POSITIONS:
        return "comes from data.max_sequence_length" + ("" if kind.positions is None else ", or set max_positions")
    if key == "use_cache":
        return "is set for each call: remove it"
    if own_name in kind.settings:
        return f"is called {own_name} in a {kind.config_class}"
    return f"unknown key: not in {kind.config_class}.{did_you_mean(key, section_class(kind.name).model_fields)}"


def _problem(text: str, key: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("value_error", "{error}", {"error": text}), loc=(key,), input=value
    )


def _one_for_each_key(kind: ModelType, error: ValidationError) -> Iterator[InitErrorDetails]:
    """Yield pydantic's errors, but only one for a key of a union type instead of one for each member."""
    findings: dict[Any, list[Any]] = {}
    for finding in error.errors(include_url=False):
        findings.setdefault(finding["loc"][:1], []).append(finding)
    for (key,), found in findings.items():
        first = found[0]
        if len(first["loc"]) == 1:
            yield InitErrorDetails(type=first["type"], loc=(key,), input=first["input"], ctx=first.get("ctx", {}))
        else:
            yield _problem(f"must be {kind.settings[key].written}, not {first['input']!r}", key, first["input"])


@cache
def section_class(model_type: str) -> type[TransformersSection]:
    """Return the schema of `model.transformers` for one model type: the keys that a YAML may set."""
    kind = catalogue.model_type(model_type)
    assert kind is not None
    fields: dict[str, Any] = {
        key: (
            _marked(kind, key),
            Field(... if key in kind.sizes else setting.default, description=f"{kind.config_class}: {setting.written}"),
        )
        for key, setting in kind.settings.items()
        if key not in (kind.vocabulary, kind.positions, "use_cache") and catalogue.special_token(key) is None
    }
    if kind.positions is not None:
        fields["max_positions"] = (Positions | None, Field(None, description=_MAX_POSITIONS))
    return create_model(f"{kind.config_class}Section", __base__=TransformersSection, __module__=__name__, **fields)


def _marked(kind: ModelType, key: str) -> Any:
    """Return the type of a key. The library marks neither probabilities of dropout nor numbers of layers: names do."""
    setting = kind.settings[key]
    if "drop" in key and isinstance(setting.default, float):
        return Annotated[setting.annotation, get_args(Dropout)[-1]]
    if key == kind.aliases.get("num_hidden_layers", "num_hidden_layers"):
        return Annotated[setting.annotation, get_args(Layers)[-1]]
    return setting.annotation


def _open_schema() -> dict[str, Any]:
    """Return the JSON schema of the section: the keys of all model types, and which keys each of them has."""
    types_of: dict[str, list[Any]] = {}
    names_of: dict[tuple[frozenset[str], frozenset[str]], list[str]] = {}
    for name in catalogue.model_types():
        fields = section_class(name).model_fields
        required = frozenset(key for key, field in fields.items() if field.is_required())
        names_of.setdefault((frozenset(fields), required), []).append(name)
        for key, field in fields.items():
            if key != "model_type" and field.annotation not in types_of.setdefault(key, []):
                types_of[key].append(field.annotation)
    properties = {key: _any_of(annotations) for key, annotations in sorted(types_of.items())}
    own_keys = [
        {
            "if": {"properties": {"model_type": {"enum": names}}},
            "then": {"propertyNames": {"enum": sorted(keys)}, "required": sorted(required)},
        }
        for (keys, required), names in names_of.items()
    ]
    model_type = {
        "description": TransformersSection.model_fields["model_type"].description,
        "enum": catalogue.model_types(),
    }
    return {
        "type": "object",
        "properties": {"model_type": model_type, **properties},
        "required": ["model_type"],
        "allOf": own_keys,
    }


def _any_of(annotations: list[Any]) -> dict[str, Any]:
    schemas = [_schema_of(each) for each in annotations]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


@cache
def _schema_of(annotation: Any) -> dict[str, Any]:
    """Return the schema of a key in a section, including the bounds that sections set."""
    section = create_model("Section", __base__=ConfigSection, key=(annotation, Field()))
    schema: dict[str, Any] = section.model_json_schema()["properties"]["key"]
    return {name: value for name, value in schema.items() if name != "title"}


class TransformersModelConfig(ModelConfig):
    """The section `model:` for transformers."""

    transformers: SerializeAsAny[TransformersSection] = Field(
        description="a model type, its sizes, and the settings that differ from the library's defaults"
    )


def _capabilities(config: TransformersModelConfig) -> Capabilities:
    section = config.transformers
    kind = catalogue.model_type(section.model_type)
    assert kind is not None
    # An encoder with a causal variant is causal if that setting is on.
    causal = kind.masked_class is None or (
        kind.causal_class is not None and getattr(section, kind.direction or "", False)
    )
    placed = "position_ids" in kind.arguments and not kind.stateful
    return Capabilities(
        objectives=("causal_lm",) if causal else ("masked_lm",),
        generation=causal,
        stateful=causal and kind.hands_on_a_cache and not kind.stateful,
        left_padding=placed or kind.blanks_padding,
        gradient_checkpointing=kind.gradient_checkpointing,
        unbounded_length=kind.positions is None,
        longest_sequence=getattr(section, "max_positions", None),
        bidirectional=not causal,
        tied_embeddings=getattr(section, "tie_word_embeddings", True),
        # DeBERTa does not take a mask of pairs of tokens.
        isolates_documents=placed and "relative_attention" not in kind.settings,
    )


def _example(model_type: str, **settings: Any) -> dict[str, Any]:
    return {"transformers": {"model_type": model_type, "hidden_size": 32, "num_hidden_layers": 2, **settings}}


transformers = Architecture(
    name="transformers",
    plugin_api_version=1,
    summary="any language model that the transformers library has (Wolf et al. 2020)",
    config_class=TransformersModelConfig,
    model_class="foundry_transformers.model:TransformersLanguageModel",
    capabilities=_capabilities,
    default_tokenizer="sentencepiece",
    examples={
        "tiny": _example("llama", intermediate_size=64, num_attention_heads=4, num_key_value_heads=2),
        "tiny_mamba": _example("mamba", state_size=4, initializer_range=0.02),
        "tiny_roberta": _example(
            "roberta",
            intermediate_size=64,
            num_attention_heads=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        "tiny_deberta_v2": _example(
            "deberta-v2",
            intermediate_size=64,
            num_attention_heads=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
        ),
        "tiny_opt": _example("opt", ffn_dim=64, num_attention_heads=2, dropout=0.0),
        "tiny_gpt_neox": _example("gpt_neox", intermediate_size=64, num_attention_heads=2),
    },
    recipe={
        "data": {"batch_size": 16},
        "model": {
            "transformers": {
                "model_type": "llama",
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "tie_word_embeddings": True,
            }
        },
        "training": {"learning_rate": 2e-3},
    },
    base={
        "transformers": {
            "model_type": "llama",
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "tie_word_embeddings": True,
        }
    },
)
