"""The configuration of the transformers adapter. Light: the adapter itself imports 2 s of transformers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from foundry_core.models.building import describe
from foundry_core.models.interface import LanguageModel
from foundry_core.registry.loading import shipped_by
from foundry_core.run_folder import MODELING
from foundry_core.storage.files import write_file


@dataclass
class _Registration:
    """What `registration` has been asked for, and the adapter does."""

    asked: dict[str, None] = field(default_factory=dict)
    postponed: bool = False
    adapter_is_imported: bool = False


registration = _Registration()

OF_OBJECTIVES = ("AutoModelForCausalLM", "AutoModelForMaskedLM")
"""The auto classes of which a model has one, that of its objective."""
AUTO_CLASSES = (
    "AutoConfig",
    *OF_OBJECTIVES,
    *("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"),
)
"""The auto classes that know an adapted architecture, configuration first."""


def class_names(architecture: str) -> dict[str, str]:
    """Return the names of the classes of an architecture, by those of the auto classes that open them."""
    name = "".join(part.capitalize() for part in architecture.replace("-", "_").split("_"))
    return {auto: f"Foundry{name}{auto.removeprefix('Auto').removeprefix('Model') or 'Model'}" for auto in AUTO_CLASSES}


def hidden_size(model: LanguageModel) -> int:
    """Return the width of what the output layer reads, which is that of the last hidden states."""
    parameters = dict(model.named_parameters())
    read = [parameters[name] for name, role in model.parameter_roles().items() if role == "output"]
    width: int = [*model.get_input_embeddings().parameters(), *read][-1].shape[-1]
    return width


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return the names that share a parameter: each further name with the first."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[id(each)] for name, each in named if first.setdefault(id(each), name) != name}


class AdaptedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Base of the configuration class of each architecture."""

    foundry: dict[str, Any] | None = None
    vocab_size: int = 0
    max_position_embeddings: int = 0
    hidden_size: int = 0
    tie_word_embeddings: bool = False
    # What transformers' Trainer leaves out when it collects predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["state", "count", "token_losses"]

    def loading_module(self) -> dict[str, bytes]:
        """Return the module that opens the folder in a fresh process, under its name, and enter it in `auto_map`.

        Empty for an architecture that no installed package ships.
        """
        architecture = self.model_type.removeprefix("foundry_")
        point = shipped_by(architecture)
        if point is None:
            self.__dict__.pop("auto_map", None)
            return {}
        module, names = MODELING.removesuffix(".py"), class_names(architecture)
        kept = {*(self.architectures or ()), *(names.get(auto) for auto in getattr(self, "auto_map", None) or ())}
        if self.hidden_size:
            kept |= {name for auto, name in names.items() if auto not in OF_OBJECTIVES}
        names = {auto: name for auto, name in names.items() if auto == "AutoConfig" or name in kept}
        self.auto_map = {auto: f"{module}.{name}" for auto, name in names.items()}
        text = f"import {point.module.partition('.')[0]}  # pip install {point.distribution}\n"
        text += "from foundry_core import auto_classes\n\n"
        text += "".join(f'({name},) = auto_classes("{architecture}", "{auto}")\n' for auto, name in names.items())
        return {MODELING: text.encode()}

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **keywords: Any) -> None:
        """Save as transformers does, and the module that opens the folder with it."""
        for name, content in self.loading_module().items():
            write_file(Path(save_directory) / name, content)
        super().save_pretrained(save_directory, *arguments, **keywords)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: transformers would save this file, which does not name the architecture, as the module."""


@cache
def config_class_of(architecture: str) -> type[AdaptedConfig]:
    """Return the configuration class of an architecture; `adapter.auto_classes` registers it."""
    attributes = {"__module__": __name__, "model_type": f"foundry_{architecture}"}
    made = type(class_names(architecture)["AutoConfig"], (AdaptedConfig,), attributes)
    setattr(sys.modules[__name__], made.__name__, made)  # so that it can be pickled by reference
    return made


def adapted_config(model: LanguageModel) -> AdaptedConfig:
    """Return the configuration of the adapter of a model."""
    causal, masked = (class_names(model.model_type)[auto] for auto in OF_OBJECTIVES)
    return config_class_of(model.model_type)(
        foundry=describe(model),
        vocab_size=model.context.vocab_size,
        max_position_embeddings=model.context.max_sequence_length,
        hidden_size=hidden_size(model),
        tie_word_embeddings=bool(tied_names(model)),
        architectures=[causal if model.context.objective.causal else masked],
        **model.context.special_ids,
    )
