"""The check of auxiliary terms: what a model adds to the loss that is optimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundry_core.models.loss import IGNORED, language_loss
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import NotApplicableError, check, listed, require, require_close
from foundry_core.testing.kit.masking import padded


@check(
    "objective",
    "auxiliary",
    scope="architecture",
    fix="Compute a term from the activations of real tokens, weight it yourself, and pass it on: `self.lm_output(..., "
    'auxiliary={"balance": term})`. Leave out padding: multiply by `attention_mask`, and divide by its sum.',
)
def auxiliary(suite: Suite) -> None:
    """Auxiliary terms are finite and differentiable scalars that padding changes by at most 1e-5; they are added to the
    loss in training mode and not in evaluation mode, and the summed loss counts them once for each prediction.
    """
    found = [_has_right_terms(case) for case in suite.cases]
    if not any(found):
        raise NotApplicableError("the model has no auxiliary terms")


def _has_right_terms(case: Case) -> bool:
    """Check the terms of a model. Return whether it has any."""
    model = case.stirred(dropout=0.0)
    rows = [case.ids(length, seed=length) for length in (case.length - 2, case.length // 2, 3)]
    ids, mask = padded(rows, "right", int(case.ordinary[0]))
    labels, chance = case.labels(ids, mask), torch.random.get_rng_state()
    trained = model.train()(ids, attention_mask=mask, labels=labels)
    terms, names = trained.get("auxiliary", {}), listed(list(trained.get("auxiliary", {})))
    for name, term in terms.items():
        require(bool(term.isfinite()), f"{case}: the term {name} is {term.item():g}")
        require(term.requires_grad, f"{case}: the term {name} is not differentiable")
    if not terms or not torch.equal(torch.random.get_rng_state(), chance):
        return bool(terms)  # with noise in training there is nothing to compare
    wider = model(F.pad(ids, (0, 1)), attention_mask=F.pad(mask, (0, 1)), labels=F.pad(labels, (0, 1), value=IGNORED))
    for name, term in wider.get("auxiliary", {}).items():
        what = f"{case}: the term {name} with one more column of padding"
        require_close(term, terms[name], what, rtol=1e-5, atol=1e-7)
    total = torch.stack([term.detach() for term in terms.values()]).sum()
    plain, summed = language_loss(trained), model(ids, attention_mask=mask, labels=labels, reduction="sum")
    require_close(trained.loss, plain + total, f"{case}: the loss with {names} in training", rtol=1e-5)
    expected = language_loss(summed) + summed.count * total
    require_close(summed.loss, expected, f"{case}: the summed loss with {names} in training", rtol=1e-5)
    evaluated = model.eval()(ids, attention_mask=mask, labels=labels)
    require_close(evaluated.loss, plain, f"{case}: the loss without {names} in evaluation", rtol=1e-5)
    return True
