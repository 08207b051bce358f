"""A check: a named invariant, the cases it applies to, and helpers that report a violation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foundry_core.testing.kit.case import Case, Suite

Scope = Literal["variant", "objective", "architecture"]
Needs = Callable[[Case], str | None]
"""Returns None if a check applies to a case, otherwise the reason, which names a capability or setting."""

GROUPS = ("packaging", "objective", "masking", "numerics", "state", "cost", "generation", "integration")

ROOTS = ("runs", "pure-evaluation")
"""Checks on which all checks of a model depend, each on those before it."""


class NonconformanceError(Exception):
    """A violated invariant: what was observed, and by how much it is off."""


class NotApplicableError(Exception):
    """Raised by a check that does not apply to its subject; the message is the reason."""


class NotLookedAtError(Exception):
    """Raised by a check that cannot look at its subject; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """One invariant of the kit.

    Attributes:
        name: Its name in `expected_failures` and `--only`.
        invariant: The first paragraph of the function's docstring.
        fix: What usually causes a failure, and how to fix it.
        scope: "variant" runs the check for every case, "objective" for the first case of each objective and
            direction, "architecture" once, with the whole suite.
        after: Checks whose failure makes this one fail too, besides ROOTS.
        realistic: The check is also run with realistic sizes.
    """

    name: str
    group: str
    invariant: str
    fix: str
    scope: Scope
    needs: Needs
    function: Callable[[Any], str | None]
    after: tuple[str, ...] = ()
    realistic: bool = False

    @property
    def causes(self) -> tuple[str, ...]:
        """Checks whose failure makes this one fail too, the most likely cause first."""
        if self.group == "packaging":
            return ()
        return ROOTS[: ROOTS.index(self.name)] if self.name in ROOTS else (*ROOTS, *self.after)


CHECKS: dict[str, Check] = {}
"""Every check by name; filled when `run` imports the modules that hold them."""


_unseen: list[str] = []


def not_looked_at(part: str) -> None:
    """Record a part of the running check that cannot be looked at, with the reason. It is printed with the result."""
    if part not in _unseen:
        _unseen.append(part)


def take_unseen() -> list[str]:
    """Return what `not_looked_at` has recorded, and forget it."""
    parts = list(_unseen)
    _unseen.clear()
    return parts


def check(
    group: str,
    name: str,
    *,
    fix: str,
    scope: Scope = "variant",
    needs: Needs = lambda case: None,
    after: tuple[str, ...] = (),
    realistic: bool = False,
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check: a function of a `Case`, or of the `Suite` for scope "architecture"."""
    assert group in GROUPS, group
    assert name not in CHECKS, name

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        invariant = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        CHECKS[name] = Check(name, group, invariant, fix, scope, needs, function, after, realistic)
        return function

    return register


def subjects(one: Check, suite: Suite) -> tuple[list[Case | Suite], str]:
    """Return what a check is run with and, if that is empty, the reason."""
    reasons = [one.needs(case) for case in suite.cases]
    cases = [case for case, reason in zip(suite.cases, reasons, strict=True) if reason is None]
    if not cases:
        return [], next((reason for reason in reasons if reason), "no example has a known objective")
    if one.scope == "architecture":
        return [suite], ""
    if one.scope == "objective":
        first = {(case.objective.name, case.sees_right): case for case in reversed(cases)}
        cases = [case for case in cases if case in first.values()]
    large = [case for case in suite.realistic if one.realistic and one.needs(case) is None]
    return [*cases, *large], ""


def declared(capability: str) -> Needs:
    """Return a condition: the architecture declares this capability."""

    def needs(case: Case) -> str | None:
        return None if getattr(case.capabilities, capability) else f"{capability} is not declared"

    return needs


def unless_counting(because: str = "there are no gradients") -> Needs:
    """Return a condition: the model is not trained by counting, under which a check would mean nothing."""
    return lambda case: f"trained_by_counting is declared: {because}" if case.counts else None


def differentiated(case: Case, loss: torch.Tensor) -> None:
    """Compute the gradients of a loss, of a model that has any."""
    if not case.counts:
        torch.autograd.backward(loss)


def every(*needs: Needs) -> Needs:
    """Return a condition that requires all of these."""
    return lambda case: next((reason for reason in (need(case) for need in needs) if reason), None)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise NonconformanceError(message)


def require_close(actual: torch.Tensor, expected: torch.Tensor, what: str, *, atol: float = 0, rtol: float = 0) -> None:
    """Require every element to be within atol + rtol * |expected|; report the largest difference and its index."""
    require(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    difference = (actual.detach().double() - expected.detach().double()).abs()
    allowed = atol + rtol * expected.detach().double().abs()
    if bool((difference <= allowed).all()):  # False for NaN
        return
    worst = (difference - allowed).nan_to_num(nan=torch.inf).argmax()
    place = tuple(int(i) for i in torch.unravel_index(worst, difference.shape)) if difference.ndim else ()
    limits = " + ".join([f"{atol:g}"] * (atol > 0) + [f"{rtol:g} relative"] * (rtol > 0)) or "0, bit for bit"
    raise NonconformanceError(f"{what}: differs by {difference.flatten()[worst]:.3g} at {place}, allowed is {limits}")


def require_equal(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Require the same bits."""
    require_close(actual, expected, what)


def named_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradient of each trainable parameter, zeros if it has none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def require_same_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str, *, relative: float = 1e-5
) -> None:
    """Require gradients to agree within `relative`, measured against the largest entry of all of them."""
    scale = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    for name, gradient in expected.items():
        require_close(actual[name], gradient, f"{what}: gradient of {name}", atol=relative * max(scale, 1e-12))


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return `a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
