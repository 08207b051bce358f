"""foundry-ngram under the conformance kit."""

from foundry_core.testing import conformance

test_ngram = conformance("ngram")
