"""Tools for tests: the conformance kit for architectures, and a toy language of known entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def conformance(architecture: str, *, expected_failures: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Return a pytest test with one case for each check of the conformance kit, including checks added in the future.

        from foundry_core.testing import conformance

        test_conformance = conformance("my_arch")

    Args:
        architecture: Name of an architecture that is installed or registered in this process.
        expected_failures: Names of checks that are known to fail, each with the reason. A listed check that passes is
            a failure.
    """
    from foundry_core.testing.kit.run import conformance_test

    test: Callable[..., Any] = conformance_test(architecture, dict(expected_failures or {}))
    return test
