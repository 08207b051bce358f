"""An n-gram model with interpolated Kneser-Ney smoothing, whose buffers are what it has counted.

Shapes: B batch, T tokens, N predictions, M n-grams, n order, c context (order - 1), V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from foundry_core import (
    BaseLanguageModel,
    BuildContext,
    ExperimentConfig,
    FoundryError,
    ModelOutput,
    register_auto_classes,
)
from foundry_ngram import NgramModelConfig
from foundry_ngram.smoothing import KneserNey
from foundry_ngram.windows import NOTHING, Ids, fault, merged

_ROOM = 2**20
"""Windows that wait to be sorted into the table: sorting them in at each step would move the whole table each time."""


@dataclass(frozen=True)
class _Read:
    """The probabilities that follow from a table, and the table, by which a change of it is noticed."""

    table: tuple[torch.Tensor, torch.Tensor]
    versions: tuple[int, ...]
    vocabulary: int
    smoothed: KneserNey


class _Predictions:
    """The head of the model: hidden states are contexts of token ids, and logits the logarithms of probabilities."""

    def __init__(self, model: "NgramLanguageModel"):
        self._model = model

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        contexts_Nc = hidden.flatten(0, -2)
        chances_NV = torch.from_numpy(self._model.smoothed().of_all(contexts_Nc.cpu().numpy())).log_()
        return chances_NV.view(*hidden.shape[:-1], -1).to(hidden.device, self._model.embedding.weight.dtype)

    def target_losses(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the losses of given tokens, in float64, which looks up one n-gram of each order for each."""
        chances_N = self._model.smoothed().of(hidden_ND.cpu().numpy(), targets_N.cpu().numpy())
        return -torch.from_numpy(chances_N).log_().to(hidden_ND.device)


class NgramLanguageModel(BaseLanguageModel[NgramModelConfig]):
    """Contexts of `order - 1` tokens. Its state is the tokens before, (B, c), with -1 where there is none."""

    ngrams: torch.Tensor
    """The distinct n-grams, (M, n): see `windows`."""
    counts: torch.Tensor
    """How often each has been predicted, (M,)."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.order = self.settings.ngram.order
        # Nothing is learnt about single tokens. Their table, without a number in it, has the model's device and dtype.
        self.embedding = nn.Embedding(context.vocab_size, 0).requires_grad_(False)
        self.register_buffer("ngrams", torch.zeros(0, self.order, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self._waiting: list[Ids] = []
        self._read: _Read | None = None
        self._is_sound = True

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        use_cache: bool = True,
        document_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        contexts_BTc, after_Bc = self._contexts(input_ids, attention_mask, state, document_ids)
        return self.lm_output(
            contexts_BTc,
            _Predictions(self),
            labels,
            attention_mask=attention_mask,
            state=after_Bc if use_cache else None,
            **kwargs,
        )

    def count(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the n-grams that end with the predicted tokens of a batch."""
        contexts_BTc, _ = self._contexts(input_ids, attention_mask, state, document_ids)
        targets, chosen = self.targets(input_ids if labels is None else labels, attention_mask, input_ids.shape[1])
        context_Nc = contexts_BTc[:, : targets.shape[1]][chosen]
        windows_Nn = torch.cat([context_Nc, targets[chosen][:, None]], dim=1).int()
        self._waiting.append(windows_Nn.cpu().numpy())
        if sum(map(len, self._waiting)) > max(_ROOM, len(self.counts)):
            self._sort_in()

    def _contexts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        state: torch.Tensor | None,
        document_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the context that each token ends, (B, T, c), and the state after the last real token of each row.

        A context reaches back to the separator of documents, but not further, and not into other `document_ids`.
        Tokens that are not real are not read: a stable sort moves the others to the front of their row.
        """
        reach, real_BT = self.order - 1, self.real_tokens(input_ids, attention_mask)
        read = torch.stack([input_ids] if document_ids is None else [input_ids, document_ids], dim=-1)
        order_BT = None if real_BT is None else (~real_BT).int().argsort(dim=1, stable=True)
        if order_BT is not None:
            read = read.gather(1, order_BT[..., None].expand_as(read))
        before = read.new_full((len(read), reach, read.shape[2]), NOTHING)
        if state is not None:
            before[..., 0] = state
        seen = torch.cat([before, read], dim=1)
        windows = seen.unfold(1, reach, 1)[:, 1:]  # (B, T, 1 or 2, c)
        if order_BT is None:
            after = seen[:, -reach:, 0]
        else:
            assert real_BT is not None
            last = real_BT.sum(dim=1, keepdim=True) + torch.arange(reach, device=seen.device)
            after = seen[..., 0].gather(1, last)
            windows = windows.gather(1, order_BT.argsort(dim=1)[..., None, None].expand_as(windows))
        contexts_BTc = windows[:, :, 0]
        separator = self.context.special_ids["bos_token_id"]
        if separator is not None:
            begins = (contexts_BTc == separator).int()
            behind = begins.flip(-1).cumsum(-1).flip(-1) - begins
            contexts_BTc = contexts_BTc.masked_fill(behind > 0, NOTHING)
        if document_ids is not None:
            contexts_BTc = contexts_BTc.masked_fill(windows[:, :, 1] != windows[:, :, 1, -1:], NOTHING)
        return contexts_BTc, after

    def smoothed(self) -> KneserNey:
        """Return the probabilities that follow from what has been counted so far.

        Raises:
            FoundryError: The counts were read from a file and are damaged.
        """
        self._sort_in()
        table, vocabulary = (self.ngrams, self.counts), self.context.vocab_size
        versions = tuple(0 if each.is_inference() else each._version for each in table)
        read = self._read
        same = read is not None and all(ours is theirs for ours, theirs in zip(read.table, table, strict=True))
        if read is None or not same or (read.versions, read.vocabulary) != (versions, vocabulary):
            windows, counts = (each.cpu().numpy() for each in table)
            wrong = None if self._is_sound else fault(windows, counts, vocabulary)
            if wrong is not None:
                raise FoundryError(f"the counts of this {self.model_type} are damaged: {wrong}")
            separator, discounts = self.context.special_ids["bos_token_id"], self.settings.ngram.discounts
            read = _Read(table, versions, vocabulary, KneserNey(windows, counts, vocabulary, separator, discounts))
            self._read = read
        return read.smoothed

    def _sort_in(self) -> None:
        """Sort the windows that wait into the table."""
        if not self._waiting:
            return
        windows, counts = merged(self.ngrams.cpu().numpy(), self.counts.cpu().numpy(), np.concatenate(self._waiting))
        self._waiting.clear()
        self.ngrams, self.counts = (torch.from_numpy(each).to(self.counts.device) for each in (windows, counts))

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the tensors, which contain all that has been counted."""
        self._sort_in()
        return super().state_dict(*arguments, **keywords)

    def make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        rows = next(iter(shapes.get("counts", ())), 0)
        self._waiting.clear()
        self._is_sound = False
        self.ngrams, self.counts = self.ngrams.new_zeros(rows, self.order), self.counts.new_zeros(rows)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        """Take other tokens; n-grams with one that is gone are forgotten."""
        self._sort_in()
        old = self.embedding.weight
        self.embedding = nn.Embedding(new_num_tokens, 0, device=old.device, dtype=old.dtype).requires_grad_(False)
        kept = (self.ngrams < new_num_tokens).all(dim=1)
        self.ngrams, self.counts = self.ngrams[kept], self.counts[kept]
        self.set_vocabulary_size(new_num_tokens)


register_auto_classes("ngram")
