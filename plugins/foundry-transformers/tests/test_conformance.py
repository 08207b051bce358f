"""Six model types of transformers under the conformance kit."""

from foundry_core.testing import conformance

test_transformers = conformance("transformers")
