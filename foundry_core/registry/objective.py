"""What a model is trained to do. Light: an `Objective` is a frozen description; its collator is named, not imported.

Core ships `causal_lm` and `masked_lm`; a plugin adds more through the hook `foundry_objectives`.
"""

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

    name: the value of `training.objective`.
    causal: position t is scored on token t + 1; core's loss shifts the labels, and only such models generate.
    layout: `overlap`, rows that share one token with the next one, so that every token but the first is predicted
        once per epoch; `framed`, rows that open with the cls token and close with the sep token.
    collator: import string of a function `f(config, tokenizer)` that gives a collator: a list of rows -> a batch.
        A row is `{"input_ids": int64 array, "epoch": int, "row": int}`; what is drawn must be a function of the seed
        `config.seed("masking")`, epoch and row alone. A batch holds input_ids, attention_mask and labels, each (B, T),
        labels with -100 where nothing is to be predicted, and for a causal objective not shifted. None: core's own.
    auto_class: the transformers auto class that opens a checkpoint of this objective: AutoModelForCausalLM when it is
        causal, AutoModelForMaskedLM otherwise.
    required_tokens: special-token roles (`mask_token`, ...) that the tokenizer must have.
    same_interface_as: an objective that expects the same of a model, such as `masked_lm`: an architecture that accepts
        it accepts this one too, without naming it. None: only architectures that name this one accept it.
    settings: schema of `training.objective_settings`, for settings that `training:` has no key for; the collator finds
        an instance there. None: it takes none.

    Raises PluginError for a name, layout, collator, auto_class or required_tokens that cannot be one.
    """

    name: str
    summary: str
    causal: bool
    layout: RowLayout
    collator: str | None
    auto_class: str
    required_tokens: tuple[str, ...] = ()
    same_interface_as: str | None = None
    settings: type[ConfigSection] | None = None

    def __post_init__(self) -> None:
        check_name("objective", self.name)
        whose = f"the objective '{self.name}': its"
        layouts = get_args(RowLayout)
        check(self.layout in layouts, f"{whose} layout", self.layout, f"one of {', '.join(layouts)}")
        check_import_string(f"{whose} collator", self.collator, optional=True)
        auto_class = "AutoModelForCausalLM" if self.causal else "AutoModelForMaskedLM"
        check(self.auto_class == auto_class, f"{whose} auto_class", self.auto_class, auto_class)
        check_names(f"{whose} required_tokens", self.required_tokens)


CAUSAL_LM = Objective(
    name="causal_lm",
    summary="predict each token from those before it",
    causal=True,
    layout="overlap",
    collator=None,
    auto_class="AutoModelForCausalLM",
)

MASKED_LM = Objective(
    name="masked_lm",
    summary="predict hidden tokens from both sides",
    causal=False,
    layout="framed",
    collator=None,
    auto_class="AutoModelForMaskedLM",
    required_tokens=("mask_token", "cls_token", "sep_token"),
)

CORE_OBJECTIVES = {objective.name: objective for objective in (CAUSAL_LM, MASKED_LM)}
