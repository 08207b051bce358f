"""Mutants that see what is not there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from foundry_core import Capabilities, ModelOutput

from .bases import AttentionLayer, AttentionModel, BidirectionalModel, IsolatingModel, RecurrentModel
from .mutants import Mutants

MUTANTS = Mutants()


@MUTANTS.plant("attention without the padding mask", caught_by="right-padding")
class MaskIgnored(BidirectionalModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().visible(torch.ones_like(real_BS), tokens)


@MUTANTS.plant("packed length off by one", caught_by="right-padding")
class PackedLengthOffByOne(RecurrentModel):
    def layer(self) -> nn.Module:
        return nn.GRU(self.width, self.width, batch_first=True)

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = real_BT.sum(dim=1)
        lengths = torch.where(lengths < real_BT.shape[1], lengths - 1, lengths).clamp(min=1)
        packed = pack_padded_sequence(x_BTD, lengths, batch_first=True, enforce_sorted=False)
        output, state_1BD = cell(packed, state_BD[None])
        output_BTD, _ = pad_packed_sequence(output, batch_first=True, total_length=x_BTD.shape[1])
        return output_BTD, state_1BD[0]


@MUTANTS.plant("loss at padding", caught_by="right-padding")
class LossFromPadding(AttentionModel):
    """The positions of padding are scored on the token that stands there."""

    def forward(  # type: ignore[override]  # the others are keywords
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        labels = labels if labels is None else torch.where(labels == -100, input_ids, labels)
        return super().forward(input_ids, attention_mask, labels, **kwargs)


@MUTANTS.plant("positions counted from the first column", caught_by="left-padding")
class ColumnPositions(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return super().places(torch.ones_like(real_BS), tokens)


class InfiniteMask(AttentionLayer):
    def weights(self, scores_BTS: torch.Tensor, visible_BTS: torch.Tensor) -> torch.Tensor:
        return scores_BTS.masked_fill(~visible_BTS, -torch.inf).softmax(dim=-1)


@MUTANTS.plant("NaN where a query sees nothing", caught_by="left-padding")
class NothingToSee(AttentionModel):
    layer_class = InfiniteMask


@MUTANTS.plant("recurrence starts in the padding", caught_by="left-padding")
class ReadsLeftPadding(RecurrentModel):
    """As if padding were always on the right, where it does no harm."""

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().recur(cell, x_BTD, torch.ones_like(real_BT), state_BD)


@MUTANTS.plant("padded prompts taken without a declaration", caught_by="left-padding")
class UndeclaredLeftPadding(ColumnPositions):
    """The class's own `generate` goes past core's refusal."""

    capabilities = Capabilities()

    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return self.to_transformers().generate(input_ids, **kwargs)


@MUTANTS.plant("a mask made of lengths", caught_by="attention-mask")
class MaskByLength(BidirectionalModel):
    """Right for padding on the right."""

    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        columns = torch.arange(real_BS.shape[1])
        return super().visible((columns < real_BS.sum(dim=1, keepdim=True)).long(), tokens)


@MUTANTS.plant("a masked token between others is read", caught_by="attention-mask")
class ReadsToTheLastToken(RecurrentModel):
    """Right for padding on either side."""

    def recur(
        self, cell: Any, x_BTD: torch.Tensor, real_BT: torch.Tensor, state_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before, after = real_BT.long().cumsum(dim=1) > 0, real_BT.flip(1).long().cumsum(dim=1).flip(1) > 0
        return super().recur(cell, x_BTD, before & after, state_BD)


class BatchNormalisedLayer(AttentionLayer):
    def __init__(self, width: int, dropout: nn.Dropout):
        super().__init__(width, dropout)
        self.normal_1 = nn.Sequential(Transposed(), nn.BatchNorm1d(width), Transposed())  # type: ignore[assignment]


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT


@MUTANTS.plant("batch norm", caught_by="rows-independent")
class BatchNormalised(AttentionModel):
    layer_class = BatchNormalisedLayer


class AcrossRows(AttentionLayer):
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible_BTS: torch.Tensor
    ) -> torch.Tensor:
        mixed_TBB = (query.transpose(0, 1) @ key.transpose(0, 1).mT).softmax(dim=-1)
        rows_BTD = (mixed_TBB @ value.transpose(0, 1)).transpose(0, 1)
        return super().attend(query, key, value, visible_BTS) + rows_BTD


@MUTANTS.plant("attention over the rows of the batch", caught_by="rows-independent")
class AttentionOverRows(BidirectionalModel):
    layer_class = AcrossRows


@MUTANTS.plant("one maximum for all rows", caught_by="rows-independent")
class OneMaximum(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        return super().finish(hidden_BTD / hidden_BTD.abs().max(), labels, **kwargs)


@MUTANTS.plant("positions beyond the longest clamped", caught_by="lengths")
class ClampedPositions(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        places = (real_BS.cumsum(dim=1) - 1)[:, -tokens:]
        return places.clamp(min=0, max=self.context.max_sequence_length - 1)


@MUTANTS.plant("an IndexError beyond the longest", caught_by="lengths")
class NoRefusal(BidirectionalModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return (real_BS.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]


@MUTANTS.plant("a row of one token squeezed", caught_by="lengths")
class SqueezedRow(RecurrentModel):
    def finish(self, hidden_BTD: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> ModelOutput:
        output = super().finish(hidden_BTD, labels, **kwargs)
        if "logits" in output:
            output.logits = output["logits"].squeeze(1)
        return output


@MUTANTS.plant("positions behind a state clamped", caught_by="lengths")
class ClampedBehindState(AttentionModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        if tokens > self.context.max_sequence_length:
            return super().places(real_BS, tokens)
        longest = self.context.max_sequence_length
        return (real_BS.cumsum(dim=1) - 1).clamp(min=0, max=longest - 1)[:, -tokens:]


@MUTANTS.plant("documents that see each other", caught_by="isolation")
class DocumentsNotApart(IsolatingModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return AttentionModel.visible(self, real_BS, tokens)


@MUTANTS.plant("positions that go on over documents", caught_by="isolation")
class PositionsGoOn(IsolatingModel):
    def places(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return AttentionModel.places(self, real_BS, tokens)


@MUTANTS.plant("documents apart in evaluation only", caught_by="isolation")
class ApartInEvaluationOnly(IsolatingModel):
    def visible(self, real_BS: torch.Tensor, tokens: int) -> torch.Tensor:
        return (AttentionModel if self.training else IsolatingModel).visible(self, real_BS, tokens)
