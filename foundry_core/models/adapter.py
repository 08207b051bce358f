"""The transformers adapter: a `PreTrainedModel` for each architecture that transformers does not have.

Its classes are registered with the auto classes, so that `AutoModel...from_pretrained` opens the folders of a plugin
that has been imported.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import modeling_auto

from foundry_core.errors import CheckpointError, FoundryError
from foundry_core.models.adapted_config import (
    AUTO_CLASSES,
    OF_OBJECTIVES,
    adapted_config,
    class_names,
    config_class_of,
    registration,
)
from foundry_core.models.adapted_heads import AdaptedBody, AdaptedClassifier, AdaptedSequenceClassifier
from foundry_core.models.adapted_model import AdaptedModel
from foundry_core.models.interface import LanguageModel


class AdaptedLanguageModel(AdaptedModel):
    """The adapter of a model with its own head, which is that of its objective."""

    def finish(self) -> None:
        """Refuse a model of another objective."""
        objective = self.model.context.objective
        if objective.causal != isinstance(self, GenerationMixin):
            raise CheckpointError(f"a model trained with {objective.name} opens with {objective.auto_class}")

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
        use_cache = self._asked("use_cache", use_cache)
        shared = labels is not None and num_items_in_batch is not None
        if shared:
            kwargs["reduction"] = "sum"
        outputs: Any = self.outputs(
            input_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            use_cache=use_cache,
            attention_mask=attention_mask,
            labels=labels,
            state=state,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        if shared:
            outputs.loss = outputs.loss / num_items_in_batch
        # Pipelines take every output for a row for each text: a masked model returns a state only if it is asked to.
        carries = isinstance(self, GenerationMixin) if use_cache is None else use_cache
        if not carries and "state" in outputs:
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key != "state"})
        return outputs.to_tuple() if self._asked("return_dict", return_dict) is False else outputs


class AdaptedCausalModel(AdaptedLanguageModel, GenerationMixin):  # type: ignore[misc]
    """The adapter of a model that generates."""

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        state: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        passed = ("use_cache", "output_hidden_states", "output_attentions", "token_type_ids")
        inputs: dict[str, Any] = {"input_ids": input_ids}
        inputs |= {name: kwargs[name] for name in passed if kwargs.get(name) is not None}
        if state is None:
            # transformers gives the vectors of a prompt to every step, and refuses them without a state to go on from.
            given = {} if inputs_embeds is None else {"input_ids": None, "inputs_embeds": inputs_embeds}
            return {**inputs, **given, "attention_mask": attention_mask}
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
        if beams > 1 and kwargs.get("inputs_embeds") is not None:
            raise FoundryError("beam search continues input_ids, not inputs_embeds")
        # transformers reorders key-value caches between beams, not a recurrent state: recompute instead.
        if beams > 1 and generation_config is not None:
            generation_config = deepcopy(generation_config)
            generation_config.use_cache = False
        elif beams > 1:
            kwargs["use_cache"] = False
        return super().generate(inputs, generation_config, **kwargs)


_BASES: dict[str, type[AdaptedModel]] = dict(
    zip(
        AUTO_CLASSES[1:],
        (AdaptedCausalModel, AdaptedLanguageModel, AdaptedBody, AdaptedSequenceClassifier, AdaptedClassifier),
        strict=True,
    )
)


@cache
def _classes(architecture: str) -> dict[str, type[Any]]:
    """Return the classes of an architecture by the names of their auto classes, registered once."""
    config_class, names = config_class_of(architecture), class_names(architecture)
    made: dict[str, type[Any]] = {"AutoConfig": config_class}
    for auto, base in _BASES.items():
        made[auto] = type(names[auto], (base,), {"__module__": __name__, "config_class": config_class})
    for each in made.values():
        setattr(sys.modules[__name__], each.__name__, each)  # so that a model can be pickled by reference
    AutoConfig.register(config_class.model_type, config_class)
    for auto in _BASES:
        getattr(modeling_auto, auto).register(config_class, made[auto])
    # With label smoothing, transformers' Trainer shifts the labels only of classes that this table names.
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config_class.model_type] = names["AutoModelForCausalLM"]
    return made


def auto_classes(architecture: str, *names: str) -> tuple[type[Any], ...]:
    """Return the classes of an architecture that auto classes of these names open, registered with them.

    From then on `AutoConfig` has `foundry_<architecture>`, and the auto model classes open its folders.

    names: By default, as in the modules of the first checkpoints, those of the configuration and of the language
        models, causal and masked.
    """
    made = _classes(architecture)
    return tuple(made[name] for name in names or ("AutoConfig", *OF_OBJECTIVES))


def adapted(model: LanguageModel) -> PreTrainedModel:
    """Return a transformers model around this one, sharing its weights."""
    causal, masked = auto_classes(model.model_type, *OF_OBJECTIVES)
    chosen = causal if model.context.objective.causal else masked
    return chosen(adapted_config(model), model)


registration.adapter_is_imported = True
for _postponed in registration.asked:
    auto_classes(_postponed)
