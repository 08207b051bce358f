"""What a model is trained to do. Light: an `Objective` is a frozen description; its collator is named, not imported.

Core ships `causal_lm` and `masked_lm`; a plugin adds more through the hook `foundry_objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RowLayout = Literal["overlap", "framed"]


@dataclass(frozen=True)
class Objective:
    """A training task: how the token stream is cut, what is hidden, and which predictions count.

    name: the value of `training.objective`.
    causal: position t is scored on token t + 1; core's loss shifts the labels, and only such models generate.
    layout: `overlap`, rows that share one token with the next one, so that every token but the first is predicted
        once per epoch; `framed`, rows that open with the cls token and close with the sep token.
    collator: import string of a function `f(config, tokenizer)` that gives a collator: list of features -> batch.
    required_tokens: special-token roles (`mask_token`, ...) that the tokenizer must have.
    auto_class: the transformers auto class that opens a checkpoint of this objective.
    """

    name: str
    summary: str
    causal: bool
    layout: RowLayout
    collator: str
    auto_class: str
    required_tokens: tuple[str, ...] = ()


CAUSAL_LM = Objective(
    name="causal_lm",
    summary="predict each token from those before it",
    causal=True,
    layout="overlap",
    collator="foundry_core.collators:causal_lm_collator",
    auto_class="AutoModelForCausalLM",
)

MASKED_LM = Objective(
    name="masked_lm",
    summary="predict hidden tokens from both sides",
    causal=False,
    layout="framed",
    collator="foundry_core.collators:masked_lm_collator",
    auto_class="AutoModelForMaskedLM",
    required_tokens=("mask_token", "cls_token", "sep_token"),
)

CORE_OBJECTIVES = {objective.name: objective for objective in (CAUSAL_LM, MASKED_LM)}
