"""A model that is trained by counting, and mutants of it that lose counts, or count what they should not.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from foundry_core import BuildContext, Capabilities, ConfigSection, ExperimentConfig, ModelConfig, ModelOutput

from .bases import SmallModel
from .mutants import Mutants

MUTANTS = Mutants()
STATE = Mutants()


class CountingSection(ConfigSection):
    """`model.small` of a table."""

    added: float = Field(0.1, gt=0, description="added to each count")


class CountingConfig(ModelConfig):
    """`model:` of a table."""

    small: CountingSection = Field(CountingSection(), description="smoothing")


class CountingModel(SmallModel):
    """Counts which token follows which: a table of V x V that is as large before training as after it."""

    capabilities = Capabilities(
        stateful=True,
        unbounded_length=True,
        left_padding=True,
        receptive_field=1,
        compile=False,
        trained_by_counting=True,
    )
    config_class = CountingConfig
    example: ClassVar[Mapping[str, Any]] = {"added": 0.1}
    followers: torch.Tensor

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        nn.Module.__init__(self)
        self.config, self.context = config, context
        self.embedding = nn.Embedding(context.vocab_size, 0).requires_grad_(False)
        size, section = context.vocab_size, getattr(config.model, "small")  # noqa: B009 - of another class
        self.added: float = section.added
        self.register_buffer("followers", torch.zeros(size, size, dtype=torch.int64))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.chances(self.followers, hidden)

    def chances(self, table: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        counts = table[hidden.squeeze(-1)].to(self.embedding.weight.dtype) + self.added
        return (counts / counts.sum(dim=-1, keepdim=True)).log()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> ModelOutput:
        # The state is not needed: a prediction depends on the last token alone, which is read.
        after = input_ids[:, -1:] if use_cache else None
        return self.finish(input_ids[..., None], labels, attention_mask=attention_mask, state=after, **kwargs)

    def count(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        targets, chosen = self.targets(input_ids if labels is None else labels, attention_mask, input_ids.shape[1])
        self.add(input_ids[:, : targets.shape[1]][chosen], targets[chosen])

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        kept, old = min(len(self.followers), new_num_tokens), self.followers
        self.embedding = nn.Embedding(new_num_tokens, 0).requires_grad_(False)
        self.followers = old.new_zeros(new_num_tokens, new_num_tokens)
        self.followers[:kept, :kept] = old[:kept, :kept]
        self.set_vocabulary_size(new_num_tokens)

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        self.followers.index_put_((before, after), torch.ones_like(after), accumulate=True)


@MUTANTS.plant("a count lost at the edge of a batch", caught_by="counts-add-up")
class LostAtTheEdge(CountingModel):
    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        super().add(before[:-1], after[:-1])


@MUTANTS.plant("counts from one row to the next", caught_by="counts-add-up")
class AcrossRows(CountingModel):
    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        super().add(before, after)
        super().add(after[:-1], before[1:])


@MUTANTS.plant("a pair counted once in a batch", caught_by="counts-add-up")
class OncePerBatch(CountingModel):
    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        self.followers[before, after] += 1


@MUTANTS.plant("counts of what is read", caught_by="counts-add-up")
class CountsWhatIsRead(CountingModel):
    def forward(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> ModelOutput:
        output = super().forward(input_ids, *arguments, **keywords)
        if self.training:
            self.add(input_ids[:, :-1].flatten(), input_ids[:, 1:].flatten())
        return output


@MUTANTS.plant("padding counted", caught_by="counted-tokens")
class PaddingCounted(CountingModel):
    def count(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
        self.add(input_ids[:, :-1].flatten(), input_ids[:, 1:].flatten())


@MUTANTS.plant("a table that is read once", caught_by="counts-add-up")
class ReadOnce(CountingModel):
    table: Any = None

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.__dict__["table"] = self.followers.clone()
        return self.chances(self.table, hidden)


@STATE.plant("counts that are not stored", caught_by="save-load")
class CountsNotStored(CountingModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        followers = self.followers
        del self.followers
        self.register_buffer("followers", followers, persistent=False)
