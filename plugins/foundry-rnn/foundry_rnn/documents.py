"""The documents of rows as rows of their own, so that a recurrence begins anew with each.

Shapes: B batch, T tokens, S documents of like length, L tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_SHORTEST = 0.6
"""Share of the longest document of a group that the shortest has: each group takes as many steps as its longest."""


def groups_of_documents(
    documents_BT: torch.Tensor, real_BT: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield for documents of like length the place of each token among all B T, (S, L), and which are real, (S, L).

    Args:
        documents_BT: The number of the document of each token; those of one document stand together.
        real_BT: True for real tokens; None if all are. Others are in no document.
    """
    length = documents_BT.shape[1]
    places = torch.arange(documents_BT.numel(), device=documents_BT.device)
    if real_BT is not None:
        places = places[real_BT.flatten()]
    if not len(places):
        return
    row, number = places // length, documents_BT.flatten()[places]
    begins = torch.ones_like(places, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (number[1:] != number[:-1])
    starts = begins.nonzero()[:, 0]
    sizes = torch.diff(starts, append=starts.new_tensor([len(places)]))
    sizes, order = sizes.sort(descending=True, stable=True)
    starts = starts[order]
    lengths, first = sizes.tolist(), 0
    while first < len(lengths):
        end = next((at for at in range(first, len(lengths)) if lengths[at] < _SHORTEST * lengths[first]), len(lengths))
        columns = torch.arange(lengths[first], device=places.device)
        real_SL = columns < sizes[first:end, None]
        yield places[torch.where(real_SL, starts[first:end, None] + columns, starts[first:end, None])], real_SL
        first = end
