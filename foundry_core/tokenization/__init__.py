"""Tokenizers: the five types, their training, encoding, and limits on what a stored one may ask for."""
