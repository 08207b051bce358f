"""What core knows of an architecture. Light: importing this, or a descriptor made with it, leaves torch alone.

A plugin's entry point leads to an `Architecture`. A class in a notebook gets one through `register_architecture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from foundry_core.errors import PluginError
from foundry_core.registry.checks import check, check_import_string, check_name, check_names
from foundry_core.registry.objective import Objective
from foundry_core.schema import ModelConfig

PLUGIN_API_VERSION = 1
"""Version of what plugins rely on: the names of this module, `Objective`, the hooks, `BaseLanguageModel`."""


@dataclass(frozen=True)
class BuildContext:
    """What a model is built from besides its own settings; made from the tokenizer that exists.

    vocab_size: rows of the embedding, every token id is below it. Token ids are None where the tokenizer has no such
    token. max_sequence_length: the longest row, in tokens.
    """

    vocab_size: int
    max_sequence_length: int
    objective: Objective
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    unk_token_id: int | None = None
    mask_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    @property
    def special_ids(self) -> dict[str, int | None]:
        """Token ids for a transformers configuration.

        bos is the token that a document starts with in training: in the causal stream the separator that closed the
        one before, in framed rows the cls token. A scorer that prepends bos then asks what the model was taught.
        """
        separator = self.eos_token_id if self.eos_token_id is not None else self.sep_token_id
        start = self.cls_token_id if self.objective.layout == "framed" else separator
        return {"pad_token_id": self.pad_token_id, "bos_token_id": start, "eos_token_id": separator}


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can do *with given settings*: a bidirectional LSTM cannot be trained causally.

    objectives: accepted values of `training.objective`; the first is the default. An objective of a plugin that names
        one of them as its interface (`same_interface_as`) is accepted too.
    generation: can generate text when the objective is causal.
    stateful: `state` can be handed from one call to the next.
    padding_sides: the sides on which a batch may be padded.
    gradient_checkpointing: supports `training.gradient_checkpointing`.
    longest_sequence: the largest `data.max_sequence_length` in tokens; None: no limit.
    unbounded_length: reads texts longer than the rows it was trained on.
    bidirectional: under an objective that is not causal a prediction sees tokens on both sides.
    receptive_field: receptive field in tokens, the current one included (in each direction if bidirectional); None:
        all tokens.
    tied_embeddings: the weights of the output layer are the input embeddings.
    compile: `training.compile` keeps the losses.

    Raises PluginError for a text in place of a tuple.
    """

    objectives: tuple[str, ...] = ("causal_lm",)
    generation: bool = True
    stateful: bool = False
    padding_sides: tuple[Literal["left", "right"], ...] = ("right",)
    gradient_checkpointing: bool = False
    longest_sequence: int | None = None
    unbounded_length: bool = False
    bidirectional: bool = False
    receptive_field: int | None = None
    tied_embeddings: bool = False
    compile: bool = True

    def __post_init__(self) -> None:
        check_names("Capabilities: objectives", self.objectives)
        check_names("Capabilities: padding_sides", self.padding_sides)

    def accepts(self, objective: Objective) -> bool:
        """Return whether the architecture, with these settings, can be trained with an objective."""
        return objective.name in self.objectives or objective.same_interface_as in self.objectives


def _default_capabilities(config: Any) -> Capabilities:
    return Capabilities()


@dataclass(frozen=True)
class Architecture:
    """A kind of model, as its plugin describes it.

    name: the value of `model.architecture`, and the entry point's name. config_class: the schema of `model:`.
    model_class: the `BaseLanguageModel` subclass, or its import string `"package.module:Class"` (which keeps the
    descriptor light). capabilities: a function of the validated `model:` section. default_tokenizer: used when the
    YAML names none. examples: small `model:` sections (without `architecture`) that the checks build. recipe: sections
    of a YAML with the values that `foundry init` writes: the sizes under `model`, the learning rate under `training`.

    Raises PluginError for a name, class, import string or function that is none.
    """

    name: str
    summary: str
    config_class: type[ModelConfig]
    model_class: str | type[Any]
    capabilities: Callable[[Any], Capabilities] = _default_capabilities
    default_tokenizer: str = "sentencepiece"
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugin_api_version: int = PLUGIN_API_VERSION

    def __post_init__(self) -> None:
        if self.plugin_api_version != PLUGIN_API_VERSION:
            return  # what another version asks for is not known here
        check_name("architecture", self.name)
        whose = f"the architecture '{self.name}': its"
        is_section = isinstance(self.config_class, type) and issubclass(self.config_class, ModelConfig)
        check(is_section, f"{whose} config_class", self.config_class, "a subclass of ModelConfig")
        check(callable(self.capabilities), f"{whose} capabilities", self.capabilities, "a function of the section")
        if not isinstance(self.model_class, type):
            check_import_string(f"{whose} model_class", self.model_class)


M = TypeVar("M", bound=type)

_registered: dict[str, Architecture] = {}


def registered_architectures() -> dict[str, Architecture]:
    """Return the architectures registered in this process, by name: the registry itself, not a copy."""
    return _registered


def register_architecture(
    name: str,
    *,
    config: type[ModelConfig],
    summary: str = "",
    capabilities: Callable[[Any], Capabilities] | Capabilities | None = None,
    default_tokenizer: str = "sentencepiece",
    examples: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[M], M]:
    """Class decorator: make a `BaseLanguageModel` available as `model.architecture: name` in this process.

    `capabilities` may be a value or a function of the `model:` section; left out, the model is causal and generates.
    `examples`: small `model:` sections that `foundry check` builds; it needs one where a setting has no default. Raises
    PluginError when the name is taken or the class is not a `BaseLanguageModel`.
    """

    def register(cls: M) -> M:
        # By name: the class itself is torch's, which is not imported here.
        if "BaseLanguageModel" not in {base.__name__ for base in cls.__mro__}:
            raise PluginError(f"cannot register '{name}': {cls.__name__} is not a BaseLanguageModel")
        taken = _registered.get(name)
        # A cell of a notebook that is carried out again means its new class.
        again = taken is not None and cls.__module__ == "__main__" and _described(taken.model_class) == _described(cls)
        if taken is not None and not again:
            raise PluginError(f"the architecture '{name}' is registered already, by {_described(taken.model_class)}")
        same = Capabilities() if capabilities is None else capabilities
        _registered[name] = Architecture(
            name=name,
            summary=summary or (cls.__doc__ or "").strip().split("\n")[0],
            config_class=config,
            model_class=cls,
            capabilities=partial(_same_for_all, same) if isinstance(same, Capabilities) else same,
            default_tokenizer=default_tokenizer,
            examples={} if examples is None else examples,
        )
        return cls

    return register


def _same_for_all(capabilities: Capabilities, config: Any) -> Capabilities:
    return capabilities


def _described(model_class: str | type[Any]) -> str:
    return model_class if isinstance(model_class, str) else f"{model_class.__module__}.{model_class.__qualname__}"
