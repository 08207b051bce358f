"""Tokenizers: the five types of core, training one of any type, its folder, and documents to token ids.

All are `transformers.PreTrainedTokenizerFast`. `training` is the way in; `trainers` are core's five; `tokenizer_folder`
saves and loads; `encoding` turns documents into ids; `limits` bounds what a stored tokenizer may ask for.
"""
