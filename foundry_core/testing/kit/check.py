"""What a check is: a named invariant, the cases it holds for, and how to say that it does not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foundry_core.testing.kit.case import Case, Suite

Scope = Literal["variant", "objective", "architecture"]
Needs = Callable[[Case], str | None]
"""None when a check applies to a case; otherwise the reason, which names a declared capability or setting."""

GROUPS = ("packaging", "objective", "masking", "numerics", "state", "cost", "generation", "integration")


class NonconformanceError(Exception):
    """An invariant that does not hold: what was seen, and by how much."""


class NotApplicableError(Exception):
    """Raised inside a check that finds nothing to look at, such as a committed list that a package does not ship."""


@dataclass(frozen=True)
class Check:
    """One invariant. name: what `expected_failures` and `--only` call it. invariant: a sentence, the function's first.

    mend: what usually causes a failure, and the way out. scope: carried out for every case; or for the first case of
    each objective (and of one or two directions); or once, with the whole suite.
    """

    name: str
    group: str
    invariant: str
    mend: str
    scope: Scope
    needs: Needs
    function: Callable[[Any], None]


CHECKS: dict[str, Check] = {}
"""Every check by name; filled when `run` imports the modules that hold them."""


def check(
    group: str, name: str, *, mend: str, scope: Scope = "variant", needs: Needs = lambda case: None
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check: a function of a `Case`, or of the `Suite` for scope "architecture", that raises
    `NonconformanceError`.
    """
    assert group in GROUPS, group
    assert name not in CHECKS, name

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        invariant = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        CHECKS[name] = Check(name, group, invariant, mend, scope, needs, function)
        return function

    return register


def subjects(one: Check, suite: Suite) -> tuple[list[Case | Suite], str]:
    """What a check is carried out with, and when that is nothing, why."""
    reasons = [one.needs(case) for case in suite.cases]
    cases = [case for case, reason in zip(suite.cases, reasons, strict=True) if reason is None]
    if not cases:
        return [], next((reason for reason in reasons if reason), "no example has an objective that is known here")
    if one.scope == "architecture":
        return [suite], ""
    if one.scope == "objective":
        first = {(case.objective.name, case.sees_right): case for case in reversed(cases)}
        cases = [case for case in cases if case in first.values()]
    return list(cases), ""


def declared(capability: str) -> Needs:
    """A check for architectures whose `Capabilities` say so."""

    def needs(case: Case) -> str | None:
        return None if getattr(case.capabilities, capability) else f"{capability} is not declared"

    return needs


def causal(case: Case) -> str | None:
    """A check for causal objectives."""
    return None if case.causal else f"{case.objective.name} is not causal"


def every(*needs: Needs) -> Needs:
    """All of these."""
    return lambda case: next((reason for reason in (need(case) for need in needs) if reason), None)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise NonconformanceError(message)


def require_close(actual: torch.Tensor, expected: torch.Tensor, what: str, *, atol: float = 0, rtol: float = 0) -> None:
    """Every element within atol + rtol * |expected|; the message has the largest difference and where it is."""
    require(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    difference = (actual.detach().double() - expected.detach().double()).abs()
    allowed = atol + rtol * expected.detach().double().abs()
    if bool((difference <= allowed).all()):  # a NaN is not within anything
        return
    worst = (difference - allowed).nan_to_num(nan=torch.inf).argmax()
    place = tuple(int(i) for i in torch.unravel_index(worst, difference.shape)) if difference.ndim else ()
    limits = " + ".join([f"{atol:g}"] * (atol > 0) + [f"{rtol:g} relative"] * (rtol > 0)) or "0, bit by bit"
    raise NonconformanceError(f"{what}: differs by {difference.flatten()[worst]:.3g} at {place}, allowed is {limits}")


def require_equal(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """The same bits."""
    require_close(actual, expected, what)


def named_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each trainable parameter's gradient, zeros where it has none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def require_same_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str, *, relative: float = 1e-5
) -> None:
    """Gradients of all parameters as one vector: relative to its largest entry, within `relative`."""
    scale = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    for name, gradient in expected.items():
        require_close(actual[name], gradient, f"{what}: gradient of {name}", atol=relative * max(scale, 1e-12))


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
