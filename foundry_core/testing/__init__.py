"""Helpers that the test-suite and `foundry quickstart` share: a language with an exactly known entropy."""
