"""Parts of the transformers models that `WrappedLanguageModel` wraps: a skeleton, a head without a base, a cache."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Skeleton(NamedTuple):
    """The parameters of an inner model that is not built yet.

    weights: a module with `get_input_embeddings` and `get_output_embeddings`, whose parameters have names, ties and
    initial values of those of the inner model. The output embeddings are all that its head does. config and
    class_name: those of the inner model.
    """

    weights: nn.Module
    config: PreTrainedConfig
    class_name: str


class _Answer(tuple[torch.Tensor]):
    """The output of a base model: hidden states, and None for everything else that a head might pass on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class GivenHiddenStates(nn.Module):
    """Takes the place of a base model and returns the hidden states that it is given as `inputs_embeds`."""

    def __init__(self, base: nn.Module):
        super().__init__()
        from transformers.modeling_utils import PreTrainedModel

        for name, child in base.named_children():
            # Some heads ask the base model's decoder instead of the whole, or take its embedding as their weights.
            self.__dict__[name] = self if isinstance(child, PreTrainedModel) else child

    def forward(self, *_: Any, inputs_embeds: torch.Tensor | None = None, **__: Any) -> _Answer:
        if inputs_embeds is None:
            raise TypeError("its forward does not pass inputs_embeds to its base model")
        return _Answer((inputs_embeds,))


def copied_cache(cache: Any) -> Any:
    """Return a copy of a cache: transformers writes into the one that it is given, and a state may be used again."""
    copied = copy(cache)
    copied.layers = [copy(layer) for layer in cache.layers]
    for layer in copied.layers:
        layer.__dict__ = tree_map_only(torch.Tensor, torch.Tensor.clone, layer.__dict__)
    return copied


def skeleton_of(model: Any) -> Skeleton | None:
    """Return the skeleton of a model, unless a subclass builds another inner model than the one it is a skeleton of."""
    owners = [next(base for base in type(model).__mro__ if name in vars(base)) for name in ("skeleton", "inner_model")]
    found: Skeleton | None = model.skeleton() if owners[0] is owners[1] else None
    return found
