"""`BaseLanguageModel`, from which every architecture derives, and `create_model`, which builds one from a YAML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.devices import model_memory_watched
from foundry_core.errors import FoundryError
from foundry_core.models.building import build, build_context
from foundry_core.models.folder import load_model, model_files, stored_tensors
from foundry_core.models.interface import LanguageModel, Settings_co
from foundry_core.models.tensor_file import weights_file
from foundry_core.random_streams import derive, kept_generators, seed_generators
from foundry_core.run_folder import WEIGHTS
from foundry_core.storage.files import InPlaceFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BaseLanguageModel(LanguageModel[Settings_co]):
    """Base of every architecture, with the class of its `model:` section: `BaseLanguageModel[MineModelConfig]`.

    A subclass's `forward` ends with `self.lm_output(hidden, head, labels, ...)`.
    """

    def to_transformers(self) -> PreTrainedModel:
        """Return this model as a transformers model that shares its weights."""
        from foundry_core.models.adapter import adapted  # imports 2 s of transformers

        return adapted(self)

    @property
    def is_adapted(self) -> bool:
        return type(self).to_transformers is BaseLanguageModel.to_transformers

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Continue prompts (B, T), padded on the left; takes the arguments of transformers' `generate`.

        Raises:
            FoundryError: The model does not generate, or the prompts are padded and the architecture does not declare
                padding on the left.
        """
        if not self.supports_generation:
            objective = self.context.objective.name
            raise FoundryError(f"this {self.model_type} does not generate: it is trained with {objective}")
        mask = kwargs.get("attention_mask")
        if mask is not None and not self.config.capabilities.left_padding and not bool(mask.all()):
            raise FoundryError(
                f"{self.model_type} does not take padding on the left: generate from prompts of one length at a time"
            )
        return self.to_transformers().generate(input_ids, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that transformers' auto classes and `from_pretrained` open."""
        sink = InPlaceFolder(folder)
        for name, content in model_files(self).items():
            sink.write(name, content)
        sink.write(WEIGHTS, weights_file(stored_tensors(self)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Open a saved folder; the architecture that it names must be installed."""
        model = load_model(folder)
        if not isinstance(model, cls):
            raise FoundryError(f"{folder} contains a {model.model_type} ({type(model).__name__}), not a {cls.__name__}")
        return model


def create_model(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> BaseLanguageModel:
    """Build the model of a configuration, with weights drawn from `seeds.initialisation`.

    Leaves the process's random state as it was.

    Args:
        tokenizer: The source of sizes and token ids; without one, the configured vocabulary size is used.
    """
    context = build_context(config, tokenizer)
    with model_memory_watched(), kept_generators():
        seed_generators(derive(config.seed("initialisation"), "initialisation"))
        model = build(config, context)
    assert isinstance(model, BaseLanguageModel)
    return model


create_model_from_config = create_model
"""Another name of `create_model`."""
