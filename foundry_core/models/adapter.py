"""The transformers adapter: a `PreTrainedModel` for each architecture that transformers does not have.

Its classes are registered with the auto classes, so that `AutoModel...from_pretrained` opens the folders of a plugin
that has been imported.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from foundry_core.errors import CheckpointError, FoundryError
from foundry_core.models.adapted_config import (
    AdaptedConfig,
    adapted_config,
    class_names,
    config_class_of,
    registration,
    tied_names,
)
from foundry_core.models.building import read_description, rebuild
from foundry_core.models.interface import LanguageModel
from foundry_core.models.migrations import own_shapes, pending, present_names
from foundry_core.run_folder import WEIGHTS

_stored_shapes: ContextVar[Mapping[str, tuple[int, ...]]] = ContextVar("stored_shapes", default=MappingProxyType({}))
"""The shapes in the file that is about to be loaded: transformers builds the model from config.json alone."""


class AdaptedModel(PreTrainedModel):  # type: ignore[misc]
    """Wraps a `LanguageModel` in the interface of transformers."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    supports_gradient_checkpointing = False

    def __init__(self, config: PreTrainedConfig, model: LanguageModel | None = None):
        super().__init__(config)
        self.model = _rebuilt(config) if model is None else model
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
        folder, shapes = Path(arguments[0]) if arguments else None, dict[str, tuple[int, ...]]()
        if folder is not None and (folder / WEIGHTS).exists():
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                names = present_names(file.keys(), pending(read_description(folder)), adapted=True)
                shapes = own_shapes(file, names)
            old = {f"^{re.escape(old)}$": new for new, old in names.items() if new != old}
            keywords = {"key_mapping": old or None, **keywords}
        token = _stored_shapes.set(shapes)
        try:
            opened = super().from_pretrained(*arguments, **keywords)
        finally:
            _stored_shapes.reset(token)
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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the output of the model, with the keywords of transformers.

        Args:
            num_items_in_batch: From transformers' Trainer: the number by which the sum of the losses is divided.
            kwargs: Passed to the model.

        Raises:
            FoundryError: The model does not support what is asked for.
        """
        asked = {
            "inputs_embeds": inputs_embeds,
            "output_hidden_states": self._asked("output_hidden_states", output_hidden_states),
            "output_attentions": self._asked("output_attentions", output_attentions),
        }
        asked = {name: value for name, value in asked.items() if value is not None and value is not False}
        for name in asked:
            if name not in inspect.signature(self.model.forward).parameters:
                raise FoundryError(f"{self.model.model_type} does not support {name}")
        asked |= {"state": state, "token_type_ids": token_type_ids, **kwargs}
        asked = {name: value for name, value in asked.items() if value is not None}
        use_cache = self._asked("use_cache", use_cache)
        if use_cache is not None and self.model.config.capabilities.stateful:
            asked["use_cache"] = use_cache
        shared = labels is not None and num_items_in_batch is not None
        if shared:
            asked["reduction"] = "sum"
        outputs = self.model(input_ids, attention_mask=attention_mask, labels=labels, **asked)
        if shared:
            outputs.loss = outputs.loss / num_items_in_batch
        if use_cache is False and "state" in outputs:
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key != "state"})
        return outputs.to_tuple() if self._asked("return_dict", return_dict) is False else outputs

    def _asked(self, name: str, given: Any) -> Any:
        """Return an argument of forward; as in all of transformers, the configuration has its default."""
        return getattr(self.config, name, None) if given is None else given


class AdaptedCausalModel(AdaptedModel, GenerationMixin):  # type: ignore[misc]
    """The adapter of a model that generates."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, state: Any = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        passed = ("use_cache", "output_hidden_states", "output_attentions", "token_type_ids")
        inputs: dict[str, Any] = {"input_ids": input_ids}
        inputs |= {name: kwargs[name] for name in passed if kwargs.get(name) is not None}
        if state is None:
            return {**inputs, "attention_mask": attention_mask}
        newest: dict[str, Any] = {
            name: inputs[name][:, -1:] for name in ("input_ids", "token_type_ids") if name in inputs
        }
        return {**inputs, **newest, "state": state}

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


def _rebuilt(config: AdaptedConfig) -> LanguageModel:
    """Build the model on the CPU in fp32, whatever it is loaded into, and return it in the dtype asked for.

    transformers loads in a context of the meta device, with some functions of torch on the CPU, and of the dtype. A
    plugin may mix the two devices, and an initialisation such as `orthogonal_` exists only in fp32 and float64.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            model = rebuild(config.foundry or {})
            model.make_room(_stored_shapes.get())
            return model.to(dtype)
    finally:
        torch.set_default_dtype(dtype)


@cache
def auto_classes(architecture: str) -> tuple[type[Any], type[Any], type[Any]]:
    """Return configuration class, causal model class and masked model class of an architecture, registered once.

    From then on `AutoConfig` has `foundry_<architecture>`, and the auto model classes open its folders.
    """

    def defined(name: str, base: type[Any]) -> Any:
        return type(name, (base,), {"__module__": __name__, "config_class": config_class})

    config_class, names = config_class_of(architecture), class_names(architecture)
    causal, masked = defined(names[1], AdaptedCausalModel), defined(names[2], AdaptedModel)
    for made in (config_class, causal, masked):
        setattr(sys.modules[__name__], made.__name__, made)  # so that a model can be pickled by reference
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, causal)
    AutoModelForMaskedLM.register(config_class, masked)
    # With label smoothing, transformers' Trainer shifts the labels only of classes that this table names.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config_class.model_type] = causal.__name__
    return config_class, causal, masked


def adapted(model: LanguageModel) -> PreTrainedModel:
    """Return a transformers model around this one, sharing its weights."""
    _, causal, masked = auto_classes(model.model_type)
    chosen = causal if model.context.objective.causal else masked
    return chosen(adapted_config(model), model)


# torch collects the functions that `torch.device` acts on at the first use of one. In from_pretrained of transformers
# some are replaced by others: after a first use there, a model with `torch.linspace` could not be built on torch's
# meta device any more.
with torch.device("meta"):
    torch.empty(0)

registration.adapter_is_imported = True
for _postponed in registration.asked:
    auto_classes(_postponed)
