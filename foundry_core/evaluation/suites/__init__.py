"""Evaluation suites: items of sentences and what is predicted of their scores, read from files and scored."""
