"""The transformers adapter: a `PreTrainedModel` for each architecture that transformers does not have.

Its classes are registered with the auto classes, so that `AutoModel...from_pretrained` opens the folders of a plugin
that has been imported.
"""

from __future__ import annotations

import re
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from foundry_core.errors import CheckpointError
from foundry_core.models.building import describe, read_description, rebuild
from foundry_core.models.interface import LanguageModel
from foundry_core.models.migrations import pending, present_names
from foundry_core.run_folder import WEIGHTS


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
    tie_word_embeddings: bool = False


class AdaptedModel(PreTrainedModel):  # type: ignore[misc]
    """Wraps a `LanguageModel` in the interface of transformers."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    supports_gradient_checkpointing = False

    def __init__(self, config: PreTrainedConfig, model: LanguageModel | None = None):
        super().__init__(config)
        # transformers builds on the meta device, with some functions of torch on the CPU: a plugin may mix the two.
        with torch.device("cpu"):
            self.model = rebuild(config.foundry) if model is None else model
        objective = self.model.context.objective
        if objective.causal != isinstance(self, GenerationMixin):
            raise CheckpointError(f"a model trained with {objective.name} opens with {objective.auto_class}")
        self._tied_weights_keys = tied_names(self)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **keywords: Any) -> Any:
        """Open as transformers does, and restore the buffers that are not stored, which it leaves undefined.

        Weights that the plugin has renamed since a local folder was written are found under their old names.
        """
        if arguments and (weights := Path(arguments[0]) / WEIGHTS).exists():
            with safe_open(str(weights), framework="pt") as file:
                names = present_names(file.keys(), pending(read_description(arguments[0])), adapted=True)
            old = {f"^{re.escape(old)}$": new for new, old in names.items() if new != old}
            keywords = {"key_mapping": old or None, **keywords}
        opened = super().from_pretrained(*arguments, **keywords)
        outer = opened[0] if isinstance(opened, tuple) else opened
        stored = outer.state_dict()
        computed = {name: buffer for name, buffer in outer.model.named_buffers() if f"model.{name}" not in stored}
        built = dict(rebuild(outer.config.foundry).named_buffers()) if computed else {}
        for name, buffer in computed.items():
            buffer.copy_(built[name])
        return opened

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the weights that the plugin has initialised; transformers' own scheme would replace them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key not in ("logits_to_keep", "past_key_values")}
        if state is not None:
            kwargs["state"] = state
        if use_cache is not None and self.model.config.capabilities.stateful:
            kwargs["use_cache"] = use_cache
        outputs = self.model(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        if use_cache is False and "state" in outputs:
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key != "state"})
        return outputs.to_tuple() if return_dict is False else outputs


class AdaptedCausalModel(AdaptedModel, GenerationMixin):  # type: ignore[misc]
    """The adapter of a model that generates."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, state: Any = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": kwargs.get("use_cache")}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        # From 5.24 on transformers passes its own caches from step to step, and no longer a `state`.
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return {**updated, "state": outputs["state"]} if "state" in outputs else updated

    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        beams = kwargs.get("num_beams") or (generation_config or self.generation_config).num_beams or 1
        # transformers reorders key-value caches between beams, not a recurrent state: recompute instead.
        if beams > 1 and generation_config is not None:
            generation_config = deepcopy(generation_config)
            generation_config.use_cache = False
        elif beams > 1:
            kwargs["use_cache"] = False
        return super().generate(inputs, generation_config, **kwargs)


@cache
def auto_classes(architecture: str) -> tuple[type[Any], type[Any], type[Any]]:
    """Return configuration class, causal model class and masked model class of an architecture, registered once.

    From then on `AutoConfig` has `foundry_<architecture>`, and the auto model classes open its folders.
    """
    name = "".join(part.capitalize() for part in architecture.replace("-", "_").split("_"))

    def defined(suffix: str, base: type[Any], **attributes: Any) -> Any:
        made = type(f"Foundry{name}{suffix}", (base,), {"__module__": __name__, **attributes})
        setattr(sys.modules[__name__], made.__name__, made)  # so that a model can be pickled by reference
        return made

    config_class = defined("Config", AdaptedConfig, model_type=f"foundry_{architecture}")
    causal = defined("ForCausalLM", AdaptedCausalModel, config_class=config_class)
    masked = defined("ForMaskedLM", AdaptedModel, config_class=config_class)
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, causal)
    AutoModelForMaskedLM.register(config_class, masked)
    return config_class, causal, masked


def register_auto_classes(*architectures: str) -> None:
    """Register architectures with transformers' auto classes. Call this at the end of a plugin's model module."""
    for name in architectures:
        auto_classes(name)


def adapted(model: LanguageModel) -> PreTrainedModel:
    """Return a transformers model around this one, sharing its weights."""
    config_class, causal, masked = auto_classes(model.model_type)
    chosen = causal if model.context.objective.causal else masked
    config = config_class(
        foundry=describe(model),
        vocab_size=model.context.vocab_size,
        max_position_embeddings=model.context.max_sequence_length,
        tie_word_embeddings=bool(tied_names(model)),
        architectures=[chosen.__name__],
        **model.context.special_ids,
    )
    return chosen(config, model)
