"""Descriptors of training objectives: core's two, and those of the hook `foundry_objectives`. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from foundry_core.registry.checks import check, check_import_string, check_name, check_names

if TYPE_CHECKING:
    from foundry_core.schema import ConfigSection

RowLayout = Literal["overlap", "framed"]


@dataclass(frozen=True)
class Objective:
    """A training task: how the token stream is cut, what is hidden, and which predictions count.

    Raises PluginError for an invalid name, layout, collator, required_tokens or loss.

    Attributes:
        name: The value of `training.objective`.
        causal: Position t is scored on token t + 1. Core's loss shifts the labels, and only such models generate.
        layout: `overlap`: rows share a token with the next one, so that every token but the first is predicted once
            per epoch. `framed`: rows open with the cls token and close with the sep token.
        collator: Import string of a function `f(config, tokenizer)` that returns a function from a list of rows,
            `{"input_ids": int64 array, "epoch": int, "row": int}`, to a batch: input_ids, attention_mask and labels,
            each (B, T), labels not shifted, -100 if nothing is predicted. Random numbers must be a function of the
            seed `config.seed("masking")`, epoch and row alone. None: core's own, that of `same_interface_as`.
        required_tokens: Special-token roles (`mask_token`, ...) that the tokenizer must have.
        same_interface_as: An objective that expects the same of a model, such as `masked_lm`; an architecture that
            accepts that one accepts this one too. None: only architectures that name this objective accept it.
        settings: Schema of `training.objective_settings`, for settings that `training:` has no key for; the collator
            finds an instance there. None: it takes none.
        loss: Import string of a function `f(config)` that returns the function that training minimises: of logits
            (N, V) in fp32, labels (N,) and the batch, it returns the loss of each predicted token (N,). Reports give
            the cross-entropy besides, and evaluation gives it alone. None: the cross-entropy.
    """

    name: str
    summary: str
    causal: bool
    layout: RowLayout
    collator: str | None
    required_tokens: tuple[str, ...] = ()
    same_interface_as: str | None = None
    settings: type[ConfigSection] | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        check_name("objective", self.name)
        field = f"the objective '{self.name}': its"
        layouts = get_args(RowLayout)
        check(self.layout in layouts, f"{field} layout", self.layout, f"one of {', '.join(layouts)}")
        if self.collator is not None:
            check_import_string(f"{field} collator", self.collator)
        check_names(f"{field} required_tokens", self.required_tokens)
        if self.loss is not None:
            check_import_string(f"{field} loss", self.loss)

    @property
    def auto_class(self) -> str:
        """The auto class of transformers that opens its checkpoints."""
        return "AutoModelForCausalLM" if self.causal else "AutoModelForMaskedLM"


CAUSAL_LM = Objective(
    name="causal_lm",
    summary="predict each token from those before it",
    causal=True,
    layout="overlap",
    collator=None,
)
MASKED_LM = Objective(
    name="masked_lm",
    summary="predict hidden tokens from both sides",
    causal=False,
    layout="framed",
    collator=None,
    required_tokens=("mask_token", "cls_token", "sep_token"),
)

CORE_OBJECTIVES = {objective.name: objective for objective in (CAUSAL_LM, MASKED_LM)}
