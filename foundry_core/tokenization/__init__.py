"""Tokenizers, each a `transformers.PreTrainedTokenizerFast`: training, saving, loading, and documents to token ids.

`training` is the entry point; `trainers` are core's five types, on what `text_counts` counts; `tokenizer_folder` saves
and loads within bounds; `encoding` turns documents into ids.
"""
