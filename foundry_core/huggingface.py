"""Training a transformers model as one of ours: `WrappedLanguageModel`.

The wrapped model keeps its keys and its class on disk; the loss is core's, and the vocabulary projection is done by
core's helper, so its cost and its convention are those of every other architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foundry_core.architecture import BuildContext
from foundry_core.config import ExperimentConfig
from foundry_core.errors import FoundryError
from foundry_core.model import BaseLanguageModel, ModelOutput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OUTPUT_KEYWORDS = ("reduction", "return_logits")


class WrappedLanguageModel(BaseLanguageModel):
    """A plugin's base for an architecture that transformers has: build the inner model, name its head.

    inner: the transformers model with its language-model head; kept as `self.model`. `state` is its key-value cache.
    """

    def __init__(self, config: ExperimentConfig, context: BuildContext, inner: PreTrainedModel):
        super().__init__(config, context)
        self.model = inner

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V); override where the output layer is more than one projection."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> ModelOutput:
        past = state.get_seq_length() if state is not None else 0
        if past + input_ids.shape[1] > self.context.max_sequence_length:
            raise FoundryError(
                f"{past + input_ids.shape[1]} tokens are more than this {self.model_type} was built for "
                f"(data.max_sequence_length: {self.context.max_sequence_length})"
            )
        asked = {key: kwargs.pop(key) for key in _OUTPUT_KEYWORDS if key in kwargs}
        if use_cache or state is not None:
            kwargs.update(past_key_values=state, use_cache=True)
        elif self.context.objective.causal:
            kwargs["use_cache"] = False
        inner = self.model.base_model(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return self.output(
            inner.last_hidden_state,
            self.head,
            labels,
            attention_mask=attention_mask,
            hidden_states=inner.get("hidden_states"),
            attentions=inner.get("attentions"),
            state=inner.get("past_key_values"),
            **asked,
        )

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        # mean_resizing draws new rows from the old ones' distribution, at the cost of a covariance matrix.
        self.model.resize_token_embeddings(new_num_tokens, mean_resizing=False)
        self.note_vocabulary_size(new_num_tokens)

    def gradient_checkpointing_enable(self) -> None:
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def to_transformers(self) -> PreTrainedModel:
        return self.model
