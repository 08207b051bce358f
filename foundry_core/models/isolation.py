"""Keeping the documents of a row apart: masks and positions from the number of the document of each token.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch


def document_mask(documents_BT: torch.Tensor, real_BT: torch.Tensor | None, *, causal: bool) -> torch.Tensor:
    """Return which keys each query may attend to, (B, 1, T, T): real tokens of its document, and itself.

    Args:
        documents_BT: The number of the document of each token.
        real_BT: True for real tokens; None if all are.
        causal: Nothing after its own position is attended to.
    """
    length = documents_BT.shape[1]
    allowed = documents_BT[:, :, None] == documents_BT[:, None, :]
    if real_BT is not None:
        allowed = allowed & real_BT[:, None, :]
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=allowed.device).tril()
    return (allowed | torch.eye(length, dtype=torch.bool, device=allowed.device))[:, None]


def document_positions(documents_BT: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its document, (B, T), where the tokens of one stand together."""
    places = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    begins = torch.ones_like(documents_BT, dtype=torch.bool)
    begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values
