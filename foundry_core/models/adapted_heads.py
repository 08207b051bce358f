"""Other heads than a language model's in the adapter: none, `AutoModel`, and classifiers of texts and of tokens.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput

from foundry_core.errors import FoundryError
from foundry_core.models.adapted_model import AdaptedModel
from foundry_core.models.loss import ModelOutput


class AdaptedBody(AdaptedModel):
    """The adapter of a model without its head: `AutoModel`. The file keeps the weights of the head."""

    def read(self, input_ids: torch.Tensor | None, **asked: Any) -> tuple[torch.Tensor, ModelOutput]:
        """Return what the head would read, (B, T, D), and the output of the model without logits.

        Raises:
            FoundryError: The model's head does not read vectors, or the model does not support what is asked for.
        """
        found: list[torch.Tensor] = []
        output = self.outputs(input_ids, use_cache=False, read=lambda hidden_BTD, _: found.append(hidden_BTD), **asked)
        if not found or not found[0].is_floating_point():
            raise FoundryError(f"{self.model.model_type} does not have hidden states")
        return found[0], output

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        """Compute the hidden states, with the keywords of transformers; nothing is carried over."""
        last_BTD, output = self.read(
            input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
        )
        states = BaseModelOutput(last_BTD, output.hidden_states, output.attentions)
        return states.to_tuple() if self._asked("return_dict", return_dict) is False else states


class AdaptedClassifier(AdaptedBody):
    """The adapter of a model with a new head, `score`, which reads the hidden state of every token."""

    output_class: type[Any] = TokenClassifierOutput

    def finish(self) -> None:
        """Add the head."""
        if not self.config.hidden_size:
            raise FoundryError(f"{self.model.model_type} does not have hidden states")
        self.score = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the head, and keep the weights that the plugin has initialised."""
        if module is self.score:
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the scores of the labels and, with labels, transformers' loss for the task."""
        last_BTD, output = self.read(
            input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
        )
        logits, loss = self.score(self.chosen(last_BTD, attention_mask)), None
        if labels is not None:
            shared = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.computed_loss(logits, labels, **shared)
        scores = self.output_class(loss, logits, output.hidden_states, output.attentions)
        return scores.to_tuple() if self._asked("return_dict", return_dict) is False else scores

    def chosen(self, hidden_BTD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states that the head reads."""
        return hidden_BTD

    def computed_loss(self, logits: torch.Tensor, labels: torch.Tensor, **shared: Any) -> Any:
        """Return the loss of the labels."""
        return self.loss_function(logits, labels, self.config, **shared)


class AdaptedSequenceClassifier(AdaptedClassifier):
    """The adapter of a classifier of texts.

    Its head reads the last real token, which has seen all others; of a model that sees both sides the mean of all,
    because in a recurrent one no token is the last that both directions read.
    """

    output_class = SequenceClassifierOutput

    def chosen(self, hidden_BTD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        # Not of the type of the states: bfloat16 cannot tell places beyond 256 apart.
        every_BT = hidden_BTD.new_ones(hidden_BTD.shape[:2], dtype=torch.bool)
        real_BT = every_BT if attention_mask is None else attention_mask != 0
        if self.model.config.capabilities.bidirectional:
            real_BT1 = real_BT.unsqueeze(-1).to(hidden_BTD.dtype)
            return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
        places_BT = torch.arange(1, real_BT.shape[1] + 1, device=real_BT.device) * real_BT
        return hidden_BTD[torch.arange(len(real_BT), device=real_BT.device), places_BT.argmax(dim=1)]

    def computed_loss(self, logits: torch.Tensor, labels: torch.Tensor, **shared: Any) -> Any:
        return self.loss_function(labels, logits, self.config, **shared)
