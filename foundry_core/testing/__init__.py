"""For those who test: the conformance kit of architectures, and a toy language whose entropy is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def conformance(architecture: str, *, expected_failures: Mapping[str, str] | None = None) -> Callable[..., None]:
    """A pytest test with one case for each check of the conformance kit; checks added later arrive by themselves.

        from foundry_core.testing import conformance

        test_conformance = conformance("my_arch")

    architecture: an installed one, or one registered in this process. expected_failures: names of checks that are known
    to fail, each with the reason. They are strict: one that passes is a failure.
    """
    from foundry_core.testing.kit.run import conformance_test

    test: Callable[..., Any] = conformance_test(architecture, dict(expected_failures or {}))
    return test
