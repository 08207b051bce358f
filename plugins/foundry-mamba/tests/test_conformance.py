"""foundry-mamba under the conformance kit."""

from foundry_core.testing import conformance

test_mamba = conformance("mamba")
