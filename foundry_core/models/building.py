"""Building a model through its plugin, and refusing a class that training could not use."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import PluginError, TokenizerError
from foundry_core.models.interface import LanguageModel
from foundry_core.registry.architecture import BuildContext
from foundry_core.registry.loading import import_string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_context(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> BuildContext:
    """Return sizes and ids from the tokenizer that exists; without one, the configured vocabulary size."""
    length, objective = config.data.max_sequence_length, config.objective
    if tokenizer is None:
        return BuildContext(config.tokenizer.vocab_size, length, objective)
    for role in objective.required_tokens:
        if getattr(tokenizer, role) is None:
            raise TokenizerError(f"{objective.name} needs a tokenizer with a {role}: see tokenizer.special_tokens")
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_id") for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    known = {key: value for key, value in ids.items() if key in BuildContext.__dataclass_fields__}
    return BuildContext(vocab_size=len(tokenizer), max_sequence_length=length, objective=objective, **known)


def build(config: ExperimentConfig, context: BuildContext, **kwargs: Any) -> LanguageModel:
    """Build the model of a configuration through its plugin.

    Args:
        kwargs: Passed to the plugin's `from_config`.

    Raises:
        PluginError: The plugin's class is not a BaseLanguageModel, or not one that can be trained.
    """
    target = config.architecture.model_class
    model_class = import_string(target) if isinstance(target, str) else target
    if not (isinstance(model_class, type) and issubclass(model_class, LanguageModel)):
        raise PluginError(f"{target} is not a subclass of BaseLanguageModel")
    name = f"{model_class.__module__}.{model_class.__qualname__}"
    if model_class.__abstractmethods__:
        raise PluginError(f"{name} does not define {', '.join(sorted(model_class.__abstractmethods__))}")
    model: Any = model_class.from_config(config, context, **kwargs)
    if not isinstance(model, LanguageModel):
        raise PluginError(f"{name}.from_config returned a {type(model).__name__}, not a BaseLanguageModel")
    _refuse_misfit(model)
    return model


def _refuse_misfit(model: LanguageModel) -> None:
    """Check the methods that the trainer calls, so that a wrong signature is reported as the plugin's error."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if "context" not in vars(model):
        raise PluginError(f"{name}.__init__ does not call super().__init__(config, context)")
    try:
        inspect.signature(model.forward).bind(
            None, attention_mask=None, labels=None, reduction="sum", return_logits=False
        )
    except TypeError as error:
        raise PluginError(
            f"{name}.forward does not take (input_ids, attention_mask=, labels=, **kwargs), which are passed on to "
            f"`self.lm_output`: {error}"
        ) from error
