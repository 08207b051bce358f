"""Scores of a model: loss on a corpus, minimal pairs, generation."""
