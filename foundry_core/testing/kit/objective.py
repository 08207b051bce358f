"""Does the model learn the task that it is said to learn?"""

from __future__ import annotations

from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import check, require, require_equal


@check(
    "objective",
    "causal-leak",
    mend="An attention mask, a convolution's padding or a second direction lets a prediction see what it predicts.",
)
def causal_leak(case: Case) -> None:
    """A changed token leaves every logit before it bit-equal and changes those from it on; a model of both directions
    sees it on both sides.
    """
    model, place = case.model(), case.length // 2
    before = case.ids(3, case.length)
    after = before.clone()
    after[:, place] = case.changed(before[:, place])
    old, new = model(before).logits, model(after).logits
    differs = (old != new).any(dim=-1)
    require(bool(differs[:, place:].all()), f"token {place} does not change the logits from it on")
    if case.sees_right:
        require(bool(differs[:, :place].all()), f"token {place} does not change the logits before it")
    else:
        require_equal(new[:, :place], old[:, :place], f"logits before the changed token {place}")
