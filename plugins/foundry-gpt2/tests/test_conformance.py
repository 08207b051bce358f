"""GPT-2 under the conformance kit."""

from foundry_core.testing import conformance

test_gpt2 = conformance("gpt2")
