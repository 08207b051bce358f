"""The models that are checked: every example of an architecture with every objective, and the first in other sizes.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.errors import ConfigError, PluginError
from foundry_core.models.base import BaseLanguageModel, create_model
from foundry_core.models.building import build, build_context
from foundry_core.models.interface import LanguageModel
from foundry_core.random_streams import kept_generators
from foundry_core.registry.architecture import Architecture, BuildContext, Capabilities
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.isolation import home_of
from foundry_core.registry.loading import active_modules, get_architecture
from foundry_core.registry.objective import Objective
from foundry_core.schema import ModelConfig
from foundry_core.testing.kit.marks import changed_at, marked, without_defaults
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ODD_SIZES = "odd sizes"
"""Name of the case with one layer, and with other numbers of tokens and positions than the examples."""

RECIPE, DEFAULTS = "the recipe", "the defaults"
"""Names of the cases with the sizes of the recipe, and with every default of the schema."""

MOST_PARAMETERS, MOST_CONTEXTS = 8_000_000, 5_000
"""Parameters, and contexts that are counted, of the largest model with realistic sizes: a second for each check."""


@dataclass(frozen=True, eq=False)
class Case:
    """One architecture with settings and an objective.

    Attributes:
        length: The longest row that the model is built for.
        vocabulary: The number of token ids; never a multiple of 8.
    """

    architecture: Architecture
    example: str
    settings: Mapping[str, Any]
    objective: Objective
    vocabulary: int
    length: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.example}, {self.objective.name}"

    @property
    def causal(self) -> bool:
        return self.objective.causal

    @property
    def counts(self) -> bool:
        """True if the model is trained by counting."""
        return self.capabilities.trained_by_counting

    @property
    def contexts(self) -> int:
        """The number of contexts whose predictions differ once each has been counted; 0 for a model with gradients."""
        return self.vocabulary ** (self.capabilities.receptive_field or 1) if self.counts else 0

    @property
    def sees_right(self) -> bool:
        """True if a prediction depends on tokens to its right."""
        return self.capabilities.bidirectional and not self.causal

    @cached_property
    def config(self) -> ExperimentConfig:
        config = self.config_with()
        # A configuration looks these up once, in the metadata of all installed packages; its copies share them.
        assert config.architecture is not None
        assert config.objective is not None
        return config

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A character tokenizer with every special token that an objective may require."""
        return _letters(self.vocabulary)

    def config_with(
        self, *, seed: int = 0, model: Mapping[str, Any] | None = None, **sections: Any
    ) -> ExperimentConfig:
        """Return the experiment, with sections updated key by key. model: replaces the settings."""
        content: dict[str, Any] = {
            "experiment_name": "conformance",
            "random_seed": seed,
            "data": {"training_corpus": str(self.folder / "train.txt"), "max_sequence_length": self.length},
            # Not the number of tokens: a model that takes its sizes from the YAML shows.
            "tokenizer": {"tokenizer_type": "character", "vocab_size": self.vocabulary + 6},
            "model": {
                **deepcopy(dict(self.settings if model is None else model)),
                "architecture": self.architecture.name,
            },
            "training": {
                "output_dir": str(self.folder / "run"),
                "objective": self.objective.name,
                "train_steps": 10,
                "device": "cpu",
                "precision": "fp32",
            },
        }
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section}
        return load_config(content)

    def with_one_layer(self) -> Case:
        """Return the case with one layer, or unchanged if its settings do not allow that."""
        layers = marked(self.config.model, "layers")
        case = replace(self, settings=changed_at(self.settings, layers, 1))
        try:
            case.config  # noqa: B018 - loads it
        except ConfigError:
            return self
        return case

    @cached_property
    def has_dropout(self) -> bool:
        """True if a key of the settings is a `Dropout`."""
        return bool(marked(self.config.model, "dropout"))

    def settings_with_dropout(self, probability: float) -> ModelConfig:
        """Return the settings with every `Dropout` set to this probability."""
        model = self.config.model
        settings = changed_at(model.model_dump(), marked(model, "dropout"), probability)
        return self.architecture.config_class.model_validate(settings)

    def model(self, *, seed: int = 0, dropout: float | None = None) -> BaseLanguageModel:
        """Return a new model in evaluation mode. dropout: replaces the probabilities in the settings."""
        changes: dict[str, Any] = {"random_seed": seed}
        if dropout is not None:
            changes["model"] = self.settings_with_dropout(dropout)
        model = create_model(self.config.model_copy(update=changes), self.tokenizer)
        if dropout == 0:
            for module in model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):  # including dropout that no key sets
                    module.p = 0.0
        return model.eval()

    @cached_property
    def parameters(self) -> int:
        """The number of parameters; 0 if the model cannot be built on torch's meta device."""
        try:
            return self.on_meta_device().get_parameter_count().total
        except Exception:  # noqa: BLE001 - a check reports it
            return 0

    def on_meta_device(self, context: BuildContext | None = None) -> LanguageModel:
        """Build a model without memory for its weights."""
        with kept_generators(), torch.device("meta"):
            return build(self.config, context or build_context(self.config, self.tokenizer))

    def stirred(self, *, dropout: float | None = None) -> BaseLanguageModel:
        """Return a new model in evaluation mode with noise added to every parameter, or with each context counted.

        New models may have an output layer or a branch of zeros, and most hardly distinguish tokens: then equal
        results would prove nothing.
        """
        model, generator = self.model(dropout=dropout), torch.Generator().manual_seed(1)
        if self.counts:
            shape = 20 * self.contexts // self.length, self.length
            model.count(torch.randint(0, self.vocabulary, shape, generator=generator))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.numel():
                    # Sums over many inputs would grow with their number.
                    scale = 0.1 * min(1.0, math.sqrt(64 / parameter.shape[-1])) if parameter.ndim > 1 else 0.1
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        return model

    def ids(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Return random token ids without special tokens, int64 of this shape."""
        ordinary = self.ordinary
        return ordinary[torch.randint(0, len(ordinary), shape, generator=torch.Generator().manual_seed(seed))]

    @cached_property
    def ordinary(self) -> torch.Tensor:
        """The ids of tokens that are not special, ascending."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor([number for number in range(self.vocabulary) if number not in special])

    def changed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a different ordinary token for each token."""
        place = torch.searchsorted(self.ordinary, ids.contiguous())
        return self.ordinary[(place + 7) % len(self.ordinary)]

    def labels(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return labels for every token (B, T): the ids, or -100 where the mask is 0."""
        return ids.clone() if mask is None else ids.masked_fill(mask == 0, -100)

    def ragged(self, rows: int = 6, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return random ids (B, T) and labels with some -100: the end of each row, single tokens, and one whole row."""
        ids, generator = self.ids(rows, self.length, seed=seed), torch.Generator().manual_seed(seed + 1)
        hidden = torch.rand(ids.shape, generator=generator) < 0.3
        hidden |= torch.arange(self.length) >= torch.randint(4, self.length + 1, (rows, 1), generator=generator)
        hidden[-2] = True
        return ids, ids.masked_fill(hidden, -100)

    def features(self, rows: int, length: int, *, first: int = 0) -> list[dict[str, Any]]:
        """Return rows of random ordinary tokens in the form that collators receive, numbered from `first`.

        Rows of a framed objective begin with the cls token and end with the sep token.
        """
        ids = self.ids(rows, length, seed=first)
        if self.objective.layout == "framed":
            ids[:, 0], ids[:, -1] = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [{"input_ids": row, "epoch": 0, "row": first + place} for place, row in enumerate(ids.numpy())]


@dataclass(frozen=True, eq=False)
class Suite:
    """All cases of one architecture, and a folder that is removed when the process ends."""

    architecture: Architecture
    cases: tuple[Case, ...]
    folder: Path
    _room: TemporaryDirectory[str] = field(repr=False)

    @cached_property
    def fault(self) -> tuple[Case, Exception] | None:
        """The first case whose model cannot be built or called, and its exception."""
        for case in (*self.cases, *self.realistic):
            try:
                ids = case.ids(2, min(4, case.length))
                model, given = case.model(), {"attention_mask": torch.ones_like(ids), "labels": ids}
                model(ids, **given)
                model(ids, **given, reduction="sum", return_logits=False)  # as the trainer does
            except Exception as error:  # noqa: BLE001 - whatever a model under test raises is a finding
                return case, error
        return None

    @cached_property
    def without_one_layer(self) -> str | None:
        """None, or the reason why no model with one layer is checked."""
        if not any(case.example == ODD_SIZES for case in self.cases):
            return "the settings refuse one layer"
        found = marked(self.cases[0].config.model, "layers")
        return None if found else "no key of the first example has the type Layers of foundry_core"

    @cached_property
    def realistic(self) -> tuple[Case, ...]:
        """The models with the sizes of the recipe and with the schema's defaults, each with its first objective.

        One that equals the first example, or that is too large, is left out.
        """
        return tuple(
            each for each in self._larger if each.parameters <= MOST_PARAMETERS and each.contexts <= MOST_CONTEXTS
        )

    @cached_property
    def too_large(self) -> list[str]:
        """The realistic models that are left out, with the number of their parameters or contexts."""
        return [
            f"{case.example}: {case.contexts:,} contexts to count are more than {MOST_CONTEXTS:,}"
            if case.counts
            else f"{case.example}: {case.parameters:,} parameters are more than {MOST_PARAMETERS:,}"
            for case in self._larger
            if case not in self.realistic
        ]

    @cached_property
    def _larger(self) -> list[Case]:
        first, found = self.cases[0], list[Case]()
        stated = without_defaults(first.settings, first.config.model)
        recipe = self.architecture.recipe.get("model")
        for name, settings in ([] if recipe is None else [(RECIPE, recipe)]) + [(DEFAULTS, stated)]:
            with suppress(ValidationError):  # reported by the check of the schema
                case = next(_valid(self.architecture, name, settings, self.folder), None)
                known = [each.settings_with_dropout(0) for each in (first, *found)]
                if case is not None and case.settings_with_dropout(0) not in known:
                    found.append(case)
        return found

    @cached_property
    def home(self) -> Path | None:
        """The folder of the package that contains the model, or the file of a single module."""
        target = self.architecture.model_class
        name = target.partition(":")[0] if isinstance(target, str) else target.__module__
        return home_of(name)

    @classmethod
    def of(cls, name: str) -> Suite:
        """Return the cases of an architecture.

        Raises:
            PluginError: The architecture cannot be loaded, an example is invalid, or there is nothing to check.
        """
        architecture = get_architecture(name)
        room = TemporaryDirectory(prefix="foundry-check-")
        cases = tuple(_cases(architecture, Path(room.name)))
        if not cases:
            raise PluginError(f"'{name}' accepts no known objective with any of its examples")
        return cls(architecture, cases, Path(room.name), room)


def _cases(architecture: Architecture, folder: Path) -> Iterator[Case]:
    examples = dict(architecture.examples) or {"default": {}}
    for name, settings in examples.items():
        try:
            yield from _valid(architecture, name, settings, folder)
        except ValidationError as error:
            raise PluginError(_refusal(architecture, name, error)) from error
    first = next(iter(examples.values()))
    layers = marked(_section(architecture, first), "layers")
    with suppress(ValidationError):  # an architecture that needs more than one layer
        yield from _valid(architecture, ODD_SIZES, changed_at(first, layers, 1), folder, vocabulary=29, length=13)


def _valid(
    architecture: Architecture,
    name: str,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    vocabulary: int = 37,
    length: int = 24,
) -> Iterator[Case]:
    """Yield a case for each objective that the settings accept. Raises ValidationError for settings that are wrong."""
    capabilities = architecture.capabilities(_section(architecture, settings))
    known = offers(hook_manager(active_modules(architecture))).objectives
    longest = min(length, capabilities.longest_sequence or length)
    for objective in capabilities.objectives:
        if objective in known:
            yield Case(architecture, name, settings, known[objective], vocabulary, longest, folder)


def _section(architecture: Architecture, settings: Mapping[str, Any]) -> ModelConfig:
    return architecture.config_class.model_validate({**settings, "architecture": architecture.name})


def _refusal(architecture: Architecture, example: str, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    reason = f"model.{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if architecture.examples:
        return f"the example '{example}' of '{architecture.name}' is not valid: {reason}"
    return (
        f"'{architecture.name}' has settings without a default, and no example to build: {reason}. Pass small sizes to "
        'the descriptor or to register_architecture: examples={"tiny": {...}}'
    )


@cache
def _letters(vocabulary: int) -> PreTrainedTokenizerFast:
    special = default_special_tokens("character")
    letters = (string.ascii_lowercase + string.digits)[: vocabulary - len(set(special.values()))]
    tokenizer = train_tokenizer("character", lambda: iter([letters]), None, special)
    assert len(tokenizer) == vocabulary, (len(tokenizer), vocabulary)
    return tokenizer
