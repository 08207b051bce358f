"""Tools for tests: the conformance kit for architectures, checks of extensions, and a toy language of known entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def conformance(
    name: str, *, kind: str = "architecture", expected_failures: Mapping[str, str] | None = None
) -> Callable[..., None]:
    """Return a pytest test with one case for each check of a kind, including checks added in the future.

        from foundry_core.testing import conformance

        test_conformance = conformance("my_arch")
        test_my_optimizer = conformance("my_optimizer", kind="optimizer")

    Args:
        name: Name of something that is installed or registered in this process.
        kind: architecture, objective, optimizer, schedule, tokenizer, order, step, suite, observer or command.
        expected_failures: Names of checks that are known to fail, each with the reason. A listed check that passes is
            a failure.
    """
    if kind != "architecture":
        from foundry_core.testing.extensions.run import conformance_test as extension_test

        return extension_test(name, kind, dict(expected_failures or {}))
    from foundry_core.testing.kit.run import conformance_test

    test: Callable[..., Any] = conformance_test(name, dict(expected_failures or {}))
    return test
