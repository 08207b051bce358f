"""The model of the architecture `averages`.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import nn

from foundry_core import BaseLanguageModel, BuildContext, ExperimentConfig, ModelOutput, register_auto_classes


class AveragesLanguageModel(BaseLanguageModel[Any]):
    """Each token and the mean of those so far, through a hidden layer."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        width = self.settings.averages.hidden_size
        self.embedding = nn.Embedding(context.vocab_size, width)
        self.inner = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = self._new_head(context.vocab_size, width)

    def _new_head(self, vocabulary: int, width: int) -> nn.Linear:
        head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        return head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        real_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x_BTD = self.embedding(input_ids) * real_BT.unsqueeze(-1)
        mean_BTD = x_BTD.cumsum(dim=1) / real_BT.cumsum(dim=1).clamp(min=1).unsqueeze(-1)
        hidden_BTD = x_BTD + self.inner(torch.cat([x_BTD, mean_BTD], dim=-1))
        return self.lm_output(hidden_BTD, self.head, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        old, kept = self.embedding.weight, min(len(self.embedding.weight), new_num_tokens)
        embedding = nn.Embedding(new_num_tokens, old.shape[1]).to(old)
        head = self._new_head(new_num_tokens, old.shape[1]).to(old)
        with torch.no_grad():
            embedding.weight[:kept], head.weight[:kept] = old[:kept], self.head.weight[:kept]
        self.embedding, self.head = embedding, head
        self.set_vocabulary_size(new_num_tokens)


register_auto_classes("averages")
