"""Descriptors of architectures, and registration of a class in this process. Light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from foundry_core.errors import PluginError
from foundry_core.registry.checks import check, check_file_name, check_import_string, check_name, check_names
from foundry_core.registry.objective import Objective
from foundry_core.schema import ModelConfig

PLUGIN_API_VERSION = 1
"""Version of what plugins rely on: see plugins/STABILITY.md."""


@dataclass(frozen=True)
class BuildContext:
    """Sizes and ids a model is built with, besides its settings. Ids are None for tokens that the tokenizer lacks.

    vocab_size: rows of the embedding, every token id is below it. max_sequence_length: the longest row, in tokens.
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
        """Token ids for a transformers configuration; bos is the token before a document in training."""
        separator = self.eos_token_id if self.eos_token_id is not None else self.sep_token_id
        start = self.cls_token_id if self.objective.layout == "framed" else separator
        return {"pad_token_id": self.pad_token_id, "bos_token_id": start, "eos_token_id": separator}


@dataclass(frozen=True)
class Capabilities:
    """Abilities of an architecture with given settings: a bidirectional LSTM cannot be trained causally.

    Raises PluginError for a string in place of a tuple.

    Attributes:
        objectives: Accepted values of `training.objective`, the default first; see also `same_interface_as` there.
        generation: Can generate text if the objective is causal.
        stateful: `state` can be passed from one call to the next.
        left_padding: A batch may be padded on the left as well as on the right.
        gradient_checkpointing: Supports `training.gradient_checkpointing`.
        longest_sequence: The largest `data.max_sequence_length` in tokens; None: no limit.
        unbounded_length: Reads texts longer than the rows it was trained on.
        bidirectional: Under an objective that is not causal, a prediction sees tokens on both sides.
        receptive_field: In tokens, the current one included (in each direction if bidirectional); None: all tokens.
        tied_embeddings: The weights of the output layer are the input embeddings.
        compile: `training.compile` does not change the losses.
        isolates_documents: `forward` takes `document_ids` (B, T) and keeps tokens of different documents apart.
        trained_by_counting: Learns by `count`, and has no gradients: what sets them and the optimizer has no effect.
    """

    objectives: tuple[str, ...] = ("causal_lm",)
    generation: bool = True
    stateful: bool = False
    left_padding: bool = False
    gradient_checkpointing: bool = False
    longest_sequence: int | None = None
    unbounded_length: bool = False
    bidirectional: bool = False
    receptive_field: int | None = None
    tied_embeddings: bool = False
    compile: bool = True
    isolates_documents: bool = False
    trained_by_counting: bool = False

    def __post_init__(self) -> None:
        check_names("Capabilities: objectives", self.objectives)

    @property
    def padding_sides(self) -> tuple[Literal["left", "right"], ...]:
        """The sides on which a batch may be padded."""
        return ("left", "right") if self.left_padding else ("right",)

    def accepts(self, objective: Objective) -> bool:
        """Return whether the architecture, with these settings, can be trained with an objective."""
        return objective.name in self.objectives or objective.same_interface_as in self.objectives


def _default_capabilities(config: Any) -> Capabilities:
    return Capabilities()


@dataclass(frozen=True)
class Migration:
    """New names in a version of a plugin: models that earlier versions saved open under them.

    Attributes:
        keys: The new name of each renamed key of `model:`, with dots: {"small.width": "small.hidden_size"}.
        weights: Replacements for regular expressions in the names of weights: {r"^table\\.": "embedding."}.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A kind of model. Raises PluginError for an invalid name, config_class, model_class or capabilities.

    Attributes:
        name: The value of `model.architecture`, and the name of the entry point.
        config_class: The schema of `model:`.
        model_class: The `BaseLanguageModel` subclass, or its import string, which keeps the descriptor light.
        capabilities: A function of the validated `model:` section.
        default_tokenizer: The tokenizer type used if the YAML does not set one.
        examples: Small `model:` sections (without `architecture`) that the checks build.
        recipe: Values that `foundry init` writes, by section: sizes under `model`, a learning rate under `training`.
        plugin_api_version: The version of core's plugin API that the plugin is written for, as a number. A package has
            to state it: core refuses another version before it uses anything of the descriptor.
        migrations: What versions of the plugin renamed, by version.
        proven_precisions: Precisions besides fp32 in which it is known to learn as well: `precision: auto` takes
            another one than fp32 on a CPU only if it is named here.
        base: The `model:` section (without `architecture`) of its usual base size, for `foundry plan --measure`.
        standalone: A file in the plugin's package, by its path there, that opens a model of this architecture with
            torch and transformers alone: `foundry export --standalone` copies it. Only for one that transformers lacks.
    """

    name: str
    summary: str
    config_class: type[ModelConfig]
    model_class: str | type[Any]
    capabilities: Callable[[Any], Capabilities] = _default_capabilities
    default_tokenizer: str = "sentencepiece"
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugin_api_version: int | None = None
    migrations: Mapping[str, Migration] = field(default_factory=dict)
    proven_precisions: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    standalone: str | None = None

    def __post_init__(self) -> None:
        if self.plugin_api_version not in (None, PLUGIN_API_VERSION):
            return  # other rules may hold there; loading refuses it by its version
        check_name("architecture", self.name)
        whose = f"the architecture '{self.name}': its"
        is_section = isinstance(self.config_class, type) and issubclass(self.config_class, ModelConfig)
        check(is_section, f"{whose} config_class", self.config_class, "a subclass of ModelConfig")
        check(callable(self.capabilities), f"{whose} capabilities", self.capabilities, "a function of the section")
        check_names(f"{whose} proven_precisions", self.proven_precisions)
        for version, migration in self.migrations.items():
            check(isinstance(migration, Migration), f"{whose} migrations[{version!r}]", migration, "a Migration")
        if not isinstance(self.model_class, type):
            check_import_string(f"{whose} model_class", self.model_class)
        if self.standalone is not None:
            check_file_name(f"{whose} standalone", self.standalone)


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
    """Return a class decorator that makes a model available as `model.architecture: name` in this process.

    Args:
        config: The schema of `model:`.
        summary: By default the first line of the class's docstring.
        capabilities: A value or a function of the `model:` section; by default the model is causal and generates.
        examples: Small `model:` sections that `foundry check` builds; required if a setting does not have a default.
    """

    def register(cls: M) -> M:
        # Compared by name: importing BaseLanguageModel would import torch.
        if "BaseLanguageModel" not in {base.__name__ for base in cls.__mro__}:
            raise PluginError(f"cannot register '{name}': {cls.__name__} is not a BaseLanguageModel")
        place = f"{cls.__module__}.{cls.__qualname__}"
        taken = _registered[name].model_class if name in _registered else None
        if isinstance(taken, type):
            owner = f"{taken.__module__}.{taken.__qualname__}"
            # A notebook's cell that is executed again replaces its class.
            if owner != place or cls.__module__ != "__main__":
                raise PluginError(f"the architecture '{name}' is registered already, by {owner}")
        able = Capabilities() if capabilities is None else capabilities
        _registered[name] = Architecture(
            name=name,
            summary=summary or (cls.__doc__ or "").strip().split("\n")[0],
            config_class=config,
            model_class=cls,
            capabilities=partial(_same_for_all, able) if isinstance(able, Capabilities) else able,
            default_tokenizer=default_tokenizer,
            examples=examples or {},
            plugin_api_version=PLUGIN_API_VERSION,
        )
        return cls

    return register


def _same_for_all(capabilities: Capabilities, config: Any) -> Capabilities:
    return capabilities
