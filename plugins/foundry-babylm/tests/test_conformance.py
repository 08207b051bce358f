"""foundry babylm under the checks of commands."""

from foundry_core.testing import conformance

test_babylm = conformance("babylm", kind="command")
